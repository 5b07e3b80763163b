// What `tok train-dit` trains, from its options: the architecture, the recipe and the configuration that the result is saved with.

import { join } from "@std/path";
import { type Condition, type Conditions, needs, refuseWithoutEffect } from "../cli/conditions.ts";
import type { TrainDitConfig } from "../cli/config.ts";
import type { Origin } from "../cli/flags.ts";
import type { ImageSource } from "../data/image_source.ts";
import { UsageError } from "../errors.ts";
import { formatBytes, validated } from "../formats/files.ts";
import type { Provenance } from "../formats/provenance.ts";
import { countDit, Dit, DIT_SIZES, type DitConfig, ditConfig } from "../models/dit.ts";
import type { Prediction } from "../models/prediction.ts";
import { countParameters } from "../nn/layers.ts";
import type { Log } from "../run/log.ts";
import { TRACKED_WIDTHS } from "../run/power_ema.ts";
import type { EncoderSource } from "../zoo/encoders.ts";
import { placesOf } from "../zoo/generator.ts";
import type { KnownTokenizer, ModelConfig } from "../zoo/runs.ts";
import { DiffusionRecipe } from "./diffusion.ts";
import { checkEpochs } from "./epochs.ts";
import { type LatentSource, StoredLatents } from "./latent_source.ts";
import { DECAYS } from "./recipe.ts";
import { Repa } from "./repa.ts";

/** The smallest DiT: the default of `train-dit`. */
export const TINY = { depth: 4, hidden_size: 144, num_heads: 4 } satisfies Partial<DitConfig>;
const SIZES = { ...DIT_SIZES, tiny: { ...TINY, patch_size: 1 }, "tiny/2": { ...TINY, patch_size: 2 } };

/** Channels of a head of attention in RAE's wide head. */
const WIDE_HEAD_CHANNELS = 128;

const LOGIT_NORMAL = needs<TrainDitConfig>("--time logit-normal", (c) => c.time === "logit-normal");
const MUON = needs<TrainDitConfig>("--optimizer muon", (c) => c.optimizer === "muon");
const ALIGNED = needs<TrainDitConfig>("--repa", (c) => c.repa !== undefined);
const VALIDATED = needs<TrainDitConfig>("--val-every", (c) => c.valEvery > 0);
const ENCODED: Condition<TrainDitConfig> = [
  (c) => c.latents === undefined,
  "--latents are encoded already",
  "drop --latents",
];
const CONDITIONED = ({ unconditional }: TrainDitConfig) => !unconditional;

/** Options that have an effect with certain others only. */
const CONDITIONAL: Conditions<TrainDitConfig> = {
  online: [ENCODED],
  crop: [
    ENCODED,
    [
      (c) => c.crop === "center" || c.data !== undefined || c.dryRun,
      "generated shapes are squares already",
      "name images with --data",
    ],
  ],
  statImages: [needs("--online", (c) => c.online)],
  valNum: [VALIDATED],
  valCfg: [VALIDATED, [
    (c) => CONDITIONED(c) || c.valCfg === 1,
    "an unconditional model has no guidance",
    "drop --unconditional",
  ]],
  valEncoder: [VALIDATED],
  valSteps: [needs("--val-every or --sample-every", (c) => c.valEvery + c.sampleEvery > 0)],
  headDepth: [needs("--head-width", (c) => c.headWidth > 0)],
  emaEvery: [needs("--ema posthoc", (c) => c.ema === "posthoc")],
  muonLr: [MUON],
  momentum: [MUON],
  labelDropout: [[CONDITIONED, "an unconditional model has no labels to drop", "drop --unconditional"]],
  timeMu: [LOGIT_NORMAL],
  timeSigma: [LOGIT_NORMAL],
  innerWeight: [needs("--inner-head", (c) => c.innerHead > 0)],
  repaBlock: [ALIGNED],
  repaHidden: [ALIGNED],
  repaWeight: [ALIGNED],
  download: [needs("--repa or --val-encoder", (c) => c.repa !== undefined || c.valEncoder !== undefined)],
  lrEnd: [DECAYS],
};

/**
 * Checks what the options require of one another.
 * @param origins of the options; one from the command line must have an effect
 * @throws UsageError for an option without effect, and for options that exclude each other
 */
export function checkDitOptions(c: TrainDitConfig, origins?: Readonly<Record<string, Origin>>): void {
  checkEpochs(c, origins, { repeats: true });
  if (c.latents !== undefined && c.data !== undefined) {
    throw new UsageError("Cannot train on --data and --latents at once: give one of them");
  }
  refuseWithoutEffect(c, CONDITIONAL, origins);
  if (c.crop === "random" && !c.online && c.latents === undefined) {
    throw new UsageError(
      "Cannot use --crop random: images are encoded once, with one crop; add --online, or choose another crop",
    );
  }
  if (c.repa === undefined || c.latents === undefined) return;
  throw new UsageError(
    "Cannot use --repa with --latents: the encoder needs images, and a folder of latents has none; name the images with --data",
  );
}

/** Steps from which training without QK-norm is likely to diverge (stated for 64 and 800 epochs of LightningDiT-XL). */
const LONG = 100_000;

/** Says that a long run needs --qk-norm. */
export function suggestQkNorm({ qkNorm }: TrainDitConfig, steps: number, log: Log): void {
  if (qkNorm || steps <= LONG) return;
  log.line(
    `--qk-norm is suggested beyond ${
      LONG.toLocaleString("en-US")
    } steps: without it training goes to NaN after about 180,000`,
  );
}

/**
 * The DiT that the options describe, with weights that are not initialised.
 * @param shape of one latent, [C, S, S]
 * @param classes their number
 * @param reversed whether the network's own time is 1 - t: that of the initial weights; by default as in RAE's code where there is
 * a wide head, so that its files and these are read alike
 * @throws UsageError for sizes that do not fit
 */
export function ditOf(
  c: TrainDitConfig,
  shape: readonly number[],
  classes: number,
  reversed = c.headWidth > 0,
): Dit {
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
    reversed_time: reversed,
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
 * The alignment with the encoder of --repa, without weights; undefined without the option.
 * @param images of the latents; undefined for a dry run
 * @param imageSize their side, pixels
 * @throws UsageError for a block that the DiT does not have
 */
export function repaOf(
  c: TrainDitConfig,
  { depth, hidden_size }: DitConfig,
  encoder: EncoderSource | undefined,
  images: ImageSource | undefined,
  imageSize: number,
): Repa | undefined {
  if (!encoder) return undefined;
  const block = c.repaBlock ?? Math.max(1, Math.min(8, Math.floor(depth / 2)));
  if (block > depth) {
    throw new UsageError(
      `Cannot use --repa-block ${block}: the model has ${depth} blocks; choose from 1 to ${depth}`,
    );
  }
  const { repaHidden: hidden, precision, seed, flip, crop } = c;
  return new Repa(encoder, hidden_size, { block, hidden, imageSize, precision, images, seed, flip, crop });
}

/** Numbers of parameters, that of the DiT as its authors count them. */
export const parametersOf = (dit: Dit, repa?: Repa) => ({
  dit: countDit(dit),
  ...repa && { projector: countParameters(repa.projector) },
});

/**
 * Flow matching with the options of a run.
 * @param source of the latents; by default that of a dry run on encoded latents
 * @param run its folder; undefined for a dry run
 */
export function diffusionRecipe(
  c: TrainDitConfig,
  dit: Dit,
  source: LatentSource = plannedLatents(dit, c),
  run?: string,
  repa?: Repa,
): DiffusionRecipe {
  const steadied = c.qkNorm ? [] : ["--qk-norm"];
  const options = { ...c, ...averagesOf(c, run), muon: muonOf(c), directionWeight: c.wDirection, steadied };
  return new DiffusionRecipe(dit, options, source, repa);
}

const plannedLatents = ({ config: { in_channels: C, input_size: S } }: Dit, c: TrainDitConfig) =>
  new StoredLatents([C, S, S], undefined, c);

/** Muon's options, where it is chosen. */
const muonOf = ({ optimizer, muonLr, momentum, lr }: TrainDitConfig) =>
  optimizer === "muon" ? { lr: muonLr ?? lr, momentum } : undefined;

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
  return `--ema posthoc: ${n} snapshots of two EMAs, of relative widths ${
    TRACKED_WIDTHS.join(" and ")
  }, one every ${every} steps: ` +
    `${formatBytes(n * each)} of disk space in all; RUN/model will be the EMA of width ${
      TRACKED_WIDTHS.at(-1)
    }`;
}

/** What a trained model records besides its architecture. */
export interface TrainedOn {
  /** What the network outputs. */
  prediction: Prediction;
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
  const { prediction, tokenizer, tokenizerRun, classes, mean, std, madeFrom } = data;
  const places = placesOf(tokenizerRun, join(folder, "model"));
  return {
    dit: dit.config,
    ...prediction === "velocity" ? {} : { prediction },
    tokenizer: tokenizerRun,
    classes,
    latent_mean: [...mean],
    latent_std: [...std],
    made_from: { tokenizer: { ...tokenizer.identity, places }, latents: madeFrom },
  };
}
