// What `tok train-dit` trains, from its options: the architecture, the recipe and the configuration that the result is saved with.

import { join } from "@std/path";
import type { TrainDitConfig } from "../cli/config.ts";
import { kebab, type Origin } from "../cli/flags.ts";
import { UsageError } from "../errors.ts";
import { formatBytes, validated } from "../formats/files.ts";
import type { Latents } from "../formats/latents.ts";
import type { Provenance } from "../formats/provenance.ts";
import { Dit, DIT_SIZES, type DitConfig, ditConfig } from "../models/dit.ts";
import { TRACKED_WIDTHS } from "../run/power_ema.ts";
import { placesOf } from "../zoo/generator.ts";
import type { KnownTokenizer, ModelConfig } from "../zoo/runs.ts";
import { DiffusionRecipe } from "./diffusion.ts";
import { StoredLatents } from "./latent_source.ts";

/**
 * @param origins of the options; one from the command line must have an effect
 * @throws UsageError for an option without effect
 */
export function checkDitOptions(c: TrainDitConfig, origins: Readonly<Record<string, Origin>> = {}): void {
  for (const [option, conditions] of Object.entries(CONDITIONAL)) {
    const failed = conditions.find(([holds]) => !holds(c));
    if (origins[option] !== "command line" || !failed) continue;
    throw new UsageError(`Cannot use --${kebab(option)}: ${failed[1]}; leave it out`);
  }
}

/** Options that need others to have an effect, and what they need. */
const CONDITIONAL: Partial<
  Record<keyof TrainDitConfig, readonly (readonly [holds: (c: TrainDitConfig) => boolean, reason: string])[]>
> = {
  headDepth: [[(c) => c.headWidth > 0, "--head-width is 0"]],
  labelDropout: [[(c) => !c.unconditional, "an unconditional model has no labels to drop"]],
  emaEvery: [[(c) => c.ema === "posthoc", "it is for --ema posthoc"]],
};

/** The smallest DiT: the default of `train-dit`. */
export const TINY = { depth: 4, hidden_size: 144, num_heads: 4 } satisfies Partial<DitConfig>;
const SIZES = { ...DIT_SIZES, tiny: { ...TINY, patch_size: 1 }, "tiny/2": { ...TINY, patch_size: 2 } };

/** Channels of a head of attention in RAE's wide head. */
const WIDE_HEAD_CHANNELS = 128;

/**
 * The DiT that the options describe, with weights that are not initialised.
 * @param shape of one latent, [C, S, S]
 * @param classes their number
 * @throws UsageError for sizes that do not fit
 */
export function ditOf(c: TrainDitConfig, shape: readonly number[], classes: number): Dit {
  const head = wideHeadOf(c);
  const config = {
    ...SIZES[c.model],
    input_size: shape[1],
    in_channels: shape[0],
    num_classes: classes,
    use_qknorm: c.qkNorm,
    use_swiglu: c.mlp === "swiglu",
    use_rope: c.rope,
    use_rmsnorm: c.norm === "rms",
    wo_shift: c.woShift,
    inner_head: c.innerHead,
    ...head && { head, use_gembed: true },
  };
  return new Dit(validated(ditConfig, config, "the options"));
}

function wideHeadOf({ headWidth, headDepth }: TrainDitConfig): DitConfig["head"] {
  if (headWidth === 0) return undefined;
  const channels = WIDE_HEAD_CHANNELS, step = headWidth < channels ? 4 : channels;
  if (headWidth % step) {
    throw new UsageError(
      `Cannot use --head-width ${headWidth}: heads of attention have ${channels} channels, or the width below that; choose ` +
        `a multiple of ${step}`,
    );
  }
  return { hidden_size: headWidth, depth: headDepth, num_heads: Math.ceil(headWidth / channels) };
}

/**
 * Flow matching with the options of a run.
 * @param latents undefined for a dry run
 * @param run its folder; undefined for a dry run
 */
export function diffusionRecipe(
  c: TrainDitConfig,
  dit: Dit,
  latents?: Latents,
  run?: string,
): DiffusionRecipe {
  const { in_channels, input_size } = dit.config;
  const source = new StoredLatents([in_channels, input_size, input_size], latents, c);
  const steadied = c.qkNorm ? [] : ["--qk-norm"];
  const options = { ...c, ...averagesOf(c, run), directionWeight: c.wDirection, steadied };
  return new DiffusionRecipe(dit, options, source);
}

/** The averages of the weights that a run keeps. */
function averagesOf(c: TrainDitConfig, run: string | undefined) {
  if (c.ema !== "posthoc") return { ema: c.ema > 0, emaDecay: c.ema };
  return {
    ema: TRACKED_WIDTHS,
    emaDecay: 0,
    snapshots: run === undefined ? undefined : { run, every: emaEveryOf(c) },
  };
}

/** Steps between snapshots of the averages. */
const emaEveryOf = ({ emaEvery, steps }: TrainDitConfig) => emaEvery ?? Math.max(1, Math.round(steps / 20));

/** What a run with --ema posthoc says about its snapshots, with the disk space for them. @param parameters their number */
export function snapshotsLine(c: TrainDitConfig, parameters: number): string | undefined {
  if (c.ema !== "posthoc") return undefined;
  const every = emaEveryOf(c), n = Math.ceil(c.steps / every), each = 4 * parameters * TRACKED_WIDTHS.length;
  return `--ema posthoc: ${n} snapshots of averages of sigma_rel ${
    TRACKED_WIDTHS.join(" and ")
  }, one every ${every} steps: ` +
    `${formatBytes(n * each)} of disk space in all; the run's model will be that of ${TRACKED_WIDTHS.at(-1)}`;
}

/** What the trained model needs to know about its latents. */
export interface TrainedOn {
  tokenizer: KnownTokenizer;
  /** How the tokenizer was named. */
  tokenizerRun: string;
  classes: string[];
  /** Per channel. */
  mean: Float32Array;
  std: Float32Array;
  madeFrom: Provenance;
}

/** config.json of a model that is saved as `folder`/model. */
export function trainedConfig(dit: Dit, data: TrainedOn, folder: string): ModelConfig {
  const { tokenizer, tokenizerRun, classes, mean, std, madeFrom } = data;
  const places = placesOf(tokenizerRun, join(folder, "model"));
  return {
    dit: dit.config,
    tokenizer: tokenizerRun,
    classes,
    latent_mean: [...mean],
    latent_std: [...std],
    made_from: { tokenizer: { ...tokenizer.identity, places }, latents: madeFrom },
  };
}
