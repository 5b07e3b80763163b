// What the options of `tok align` describe: the tokenizer and the stages, and what options require of one another.

import type { AlignConfig } from "../cli/config.ts";
import {
  type Condition as ConditionOf,
  type Conditions,
  needs,
  refuseWithoutEffect,
} from "../cli/conditions.ts";
import { kebab, type Origin } from "../cli/flags.ts";
import { requireData } from "../cli/presets.ts";
import { UsageError } from "../errors.ts";
import { validated } from "../formats/files.ts";
import { autoencoderConfig, TrainableAutoencoder } from "../models/autoencoder.ts";
import { LPIPS_FILES } from "../models/lpips.ts";
import { type Part, Tokenizer, tokenizerConfig } from "../models/tokenizer.ts";
import type { VitConfig } from "../models/vit_config.ts";
import type { Log } from "../run/log.ts";
import type { Resumed } from "../run/resume.ts";
import type { Alignment } from "./alignment.ts";
import type { Stage } from "./stage_run.ts";
import { checkEpochs } from "./epochs.ts";
import { ALIGN_RECIPES } from "./align_recipes.ts";
import { weightsOf } from "./alignment_losses.ts";
import { DECAYS, schedule } from "./recipe.ts";

/** The convolutional networks: levels of the decoder, and of the encoder that mirrors it. */
function convolutions(c: AlignConfig, z_channels: number) {
  return {
    ch: c.decoderChannels,
    ch_mult: c.decoderMultiples,
    num_res_blocks: c.decoderBlocks,
    attn_resolutions: c.decoderAttention.filter((side) => side > 0),
    resolution: c.imageSize,
    z_channels,
    groups: c.decoderGroups,
  };
}

/** The convolutional autoencoder, with as many moments as its posterior has. @throws UsageError for sizes that do not fit */
export function autoencoderOf(c: AlignConfig): TrainableAutoencoder {
  const decoder = convolutions(c, c.latentChannels);
  return new TrainableAutoencoder(validated(autoencoderConfig, {
    image_size: c.imageSize,
    embed_dim: c.latentChannels,
    encoder: {
      ...decoder,
      num_res_blocks: c.encoderBlocks ?? Math.max(1, c.decoderBlocks),
      double_z: c.wKl > 0,
    },
    decoder,
  }, "the options"));
}

/**
 * The tokenizer with a vision encoder.
 * @param mean, std the encoder's normalisation of pixels in 0..1
 * @throws UsageError for sizes that do not fit
 */
export function tokenizerOf(
  c: AlignConfig,
  encoder: VitConfig,
  { mean, std }: { mean: readonly number[]; std: readonly number[] },
): Tokenizer {
  const bare = ALIGN_RECIPES[c.recipe].encoder === "frozen", features = encoder.hidden_size;
  return new Tokenizer(validated(tokenizerConfig, {
    image_size: c.imageSize,
    encoder,
    image_mean: mean,
    image_std: std,
    ...bare ? {} : { adapter_hidden: c.adapterHidden ?? features },
    ...c.wKl > 0 ? { double_z: true } : {},
    ...c.layers ? { encoder_layers: c.layers } : {},
    decoder: convolutions(c, bare ? features : c.latentChannels),
  }, "the options"));
}

/** Whether a loss, or the discriminator, reads features of the frozen encoder. */
export function comparesFeatures(c: AlignConfig): boolean {
  const discriminates = c.gan === "dino" && c.wGan > 0 &&
    (c.ganEncoder === undefined || c.ganEncoder === c.encoder);
  return discriminates || c.wVf > 0 || (c.perceptual === "encoder" && c.wPerceptual > 0);
}

/** Whether the options use a vision encoder: in the tokenizer, or in a loss. */
export function usesEncoder(c: AlignConfig): boolean {
  return ALIGN_RECIPES[c.recipe].encoder !== "convolutional" || comparesFeatures(c);
}

type Condition = ConditionOf<AlignConfig>;

const GAN: Condition = [
  (c) => c.gan !== "none",
  "--gan none has no discriminator",
  "choose another --gan",
];
const ADVERSARIAL: Condition[] = [GAN, [
  (c) => c.wGan > 0,
  "--w-gan 0 turns the discriminator off",
  "choose another --w-gan",
]];
const PATCH: Condition[] = [...ADVERSARIAL, needs("--gan patch", (c) => c.gan === "patch")];
const SEMANTIC: Condition = [
  (c) => c.wSemantic > 0,
  "--w-semantic 0 turns the semantic loss off",
  "choose another --w-semantic",
];
const inStages = (names: readonly string[], otherwise: string): Condition => [
  (c) => chosenStages(c).some(({ name }) => names.includes(name)),
  otherwise,
];
const trained = (part: Part): Condition => [
  (c) => chosenStages(c).some(({ train }) => train.includes(part)),
  `no stage of the run trains the ${part}`,
];

/** Options that have an effect with certain others only. */
const CONDITIONAL: Conditions<AlignConfig> = {
  encoder: [[usesEncoder, "neither the tokenizer nor a loss uses one"]],
  initParts: [needs("--init", (c) => c.init !== undefined)],
  encoderLr: [trained("encoder")],
  adapterLr: [trained("adapter")],
  decoderLr: [trained("decoder")],
  lrEnd: [DECAYS],
  loraAlpha: [needs("--lora-rank", (c) => c.loraRank > 0)],
  wPerceptual: [[
    (c) => c.perceptual !== "none",
    "--perceptual none turns the loss off",
    "choose another --perceptual",
  ]],
  wSemantic: [inStages(["perceptual"], "stage 2 alone has it")],
  semanticLoss: [SEMANTIC, inStages(["perceptual"], "stage 2 alone has it")],
  semanticAt: [SEMANTIC, inStages(["perceptual"], "stage 2 alone has it")],
  vfMargins: [needs("--w-vf", (c) => c.wVf > 0)],
  noiseTau: [inStages(["latent", "refine", "joint", "decoder"], "stages 1 and 3 alone have it")],
  wGan: [GAN],
  ganStart: ADVERSARIAL,
  ganWarmup: ADVERSARIAL,
  ganEncoder: [...ADVERSARIAL, needs("--gan dino", (c) => c.gan === "dino")],
  ganLoss: ADVERSARIAL,
  ganLr: ADVERSARIAL,
  diffaug: ADVERSARIAL,
  discriminatorChannels: PATCH,
  discriminatorLayers: PATCH,
};

/**
 * Checks what the options require of one another. A dry run needs neither images nor weights.
 * @param origins of the options; one from the command line must have an effect
 * @throws UsageError for an option without effect, and for missing images or weights of LPIPS
 */
export function checkOptions(c: AlignConfig, origins: Readonly<Record<string, Origin>> = {}): void {
  requireData(c.preset, c.dryRun, { data: c.data });
  checkEpochs(c, origins);
  refuseWithoutEffect(c, CONDITIONAL, origins);
  if (c.crop !== "center" && c.data === undefined && !c.dryRun) {
    throw new UsageError(
      `Cannot use --crop ${c.crop} with generated shapes: they are squares already; name images with --data, or leave ` +
        `--crop out`,
    );
  }
  if (c.perceptual !== "lpips" || c.wPerceptual === 0 || c.lpips !== undefined || c.dryRun) return;
  throw new UsageError(
    `Cannot compute the perceptual loss: --perceptual lpips needs --lpips FILES (${LPIPS_FILES}); ` +
      `or choose --perceptual encoder`,
  );
}

/** First step of stage `n` (from 1) with the adversarial loss; Infinity: never. */
export function ganStartOf({ ganStart }: AlignConfig, n: number): number {
  const start = ganStart[n - 1] ?? ganStart[0] ?? "off";
  return start === "off" ? Infinity : start;
}

/** The stages that the options describe. */
export function stagesOf(c: AlignConfig, adversarial: boolean): Stage[] {
  const count = ALIGN_RECIPES[c.recipe].stages.length;
  for (const option of ["steps", "epochs", "lr", "train", "ganStart", "ema"] as const) {
    const values = c[option];
    if (
      !Array.isArray(values) || values.length === count ||
      (["ganStart", "epochs"].includes(option) && values.length === 1)
    ) {
      continue;
    }
    const wanted = count === 1 ? "one value" : `one for each of the ${count} stages`;
    throw new UsageError(`Cannot use --${kebab(option)} ${values} with --recipe ${c.recipe}: give ${wanted}`);
  }
  return chosenStages(c).map(({ n, name, ema, train }) => {
    return {
      name,
      train,
      losses: { ...weightsOf(c, { name, train }), gan: adversarial ? c.wGan : 0 },
      steps: c.steps[n - 1] as number,
      lr: c.lr[n - 1] as number,
      encoderLr: c.encoderLr,
      adapterLr: c.adapterLr,
      decoderLr: c.decoderLr,
      ema: Array.isArray(c.ema) ? c.ema[n - 1] as number : ema ? c.ema : 0,
      ganStart: ganStartOf(c, n),
      noiseTau: name === "perceptual" ? 0 : c.noiseTau,
      discriminatorStart: Math.max(0, ganStartOf(c, n) - c.ganWarmup),
    };
  });
}

/** The stages of the run: the number in the recipe (from 1), the kind, and the parts that are trained. */
function chosenStages(c: AlignConfig) {
  const { stages: kinds } = ALIGN_RECIPES[c.recipe];
  const numbers = kinds.length === 1 ? [1] : [...new Set(c.stages)].sort();
  return numbers.map((n) => ({ ...kinds[n - 1] as typeof kinds[number], n, train: partsOf(c, n) }));
}

/** The parts that stage `n` (from 1) trains, in the order of data. */
function partsOf({ train }: AlignConfig, n: number): Part[] {
  const names = (train[n - 1] ?? "").split("+");
  return (["encoder", "adapter", "decoder"] as const).filter((part) => names.includes(part));
}

/** Adds LoRA as the options say. @throws UsageError if no stage trains a pretrained encoder */
export function addLora(alignment: Alignment, c: AlignConfig, stages: readonly Stage[]): void {
  if (c.loraRank === 0) return;
  if (!alignment.anchor || !stages.some(({ train }) => train.includes("encoder"))) {
    throw new UsageError(
      `Cannot use --lora-rank ${c.loraRank}: no stage trains a pretrained encoder; add stage 2, or leave --lora-rank out`,
    );
  }
  alignment.addLora({ rank: c.loraRank, alpha: c.loraAlpha ?? c.loraRank });
}

/** The stage that `step` steps have reached (the end of a stage belongs to it), and the number of steps of earlier stages. */
export function stageAt(
  stages: readonly { steps: number }[],
  step: number,
): { index: number; begin: number } {
  let index = 0, begin = 0;
  for (; index < stages.length - 1 && step > begin + (stages[index]?.steps ?? 0); index++) {
    begin += stages[index]?.steps ?? 0;
  }
  return { index, begin };
}

/**
 * Checks --stages and --steps against those of the checkpoint and reports how the schedule changes. The checkpoint's stage and
 * later ones may get other numbers of steps, and stages may be added.
 * @throws UsageError if a finished stage has changed
 */
export function checkStages(
  { path, step, config }: Resumed,
  c: AlignConfig,
  now: readonly Stage[],
  log: Log,
): void {
  // Checkpoints of tok 0.2.0 do not say the recipe.
  const options = { ...c, recipe: "aligntok", ...config as object } as AlignConfig;
  const before = stagesOf(options, now.some(({ losses }) => losses.gan > 0));
  const { index, begin } = stageAt(before, step), at = before[index] as Stage, n = step - begin;
  const fixed = before.slice(0, index).find((stage, i) =>
    stage.name !== now[i]?.name || stage.steps !== now[i]?.steps
  );
  if (fixed || now[index]?.name !== at.name || (now[index]?.steps ?? 0) < n) {
    throw new UsageError(
      `Cannot resume from "${path}": it has done ${n} steps of the stage "${at.name}", and --stages ${c.stages} ` +
        `--steps ${c.steps} does not lead there (it was --stages ${options.stages} --steps ${options.steps}); ` +
        `change only what comes after, or begin without --resume in another --out`,
    );
  }
  for (const stage of now.slice(index)) {
    const was = before.find(({ name }) => name === stage.name);
    if (was?.steps === stage.steps) continue;
    const done = stage.name === at.name ? n : 0;
    const rate = (steps: number) => (stage.lr * schedule(done, steps, c)).toPrecision(3);
    log.line(
      `stage "${stage.name}": ${was?.steps ?? 0} steps before, ${stage.steps} now` +
        (was && done ? `; its learning rate goes from ${rate(was.steps)} to ${rate(stage.steps)}` : "") +
        (stage.losses.gan > 0 && stage.ganStart >= (was?.steps ?? 0) && stage.ganStart < stage.steps
          ? `; the adversarial loss counts from its step ${stage.ganStart}`
          : ""),
    );
  }
}
