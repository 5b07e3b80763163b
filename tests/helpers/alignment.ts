// A small alignment for tests: its sizes, its stages, and what an optimizer needs.

import { Initializer } from "../../src/nn/init.ts";
import { loadState } from "../../src/nn/layers.ts";
import { type Discriminator, PatchDiscriminator } from "../../src/models/discriminator.ts";
import type { Lpips } from "../../src/models/lpips.ts";
import {
  type Encoder,
  Tokenizer,
  type TokenizerConfig,
  tokenizerConfig,
} from "../../src/models/tokenizer.ts";
import type { Precision } from "../../src/tensor/tensor.ts";
import { Alignment, type AlignmentOptions } from "../../src/train/alignment.ts";
import type { Stage } from "../../src/train/stage_run.ts";
import { openEncoder } from "../../src/zoo/encoders.ts";
import { testDevice } from "./check.ts";
import { formulaSource, shapesOf } from "./formula.ts";

export const OPTIONS: AlignmentOptions = {
  batchSize: 4,
  accumulate: 1,
  imageSize: 32,
  semanticLoss: "l2",
  semanticAt: "after",
};
const LOSSES = { l1: 1, perceptual: 0.01, gan: 0, semantic: 0 };
export const STAGES: Record<"latent" | "perceptual" | "refine", Stage> = {
  latent: {
    name: "latent",
    train: ["adapter", "decoder"],
    losses: LOSSES,
    steps: 30,
    lr: 2e-3,
    encoderLr: 0,
    ema: 0,
    ganStart: 0,
  },
  perceptual: {
    name: "perceptual",
    train: ["encoder", "adapter", "decoder"],
    losses: { ...LOSSES, semantic: 0.5 },
    steps: 30,
    lr: 1e-3,
    encoderLr: 1,
    ema: 0.9,
    ganStart: 0,
  },
  refine: {
    name: "refine",
    train: ["decoder"],
    losses: { ...LOSSES, gan: 0.1 },
    steps: 30,
    lr: 1e-3,
    encoderLr: 0,
    ema: 0,
    ganStart: 0,
  },
};
export const HYPER = { beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0, clip: 1, emaDecay: 0.9 };

interface Variant {
  /** Residual blocks of a decoder's level, less one, and the sides of maps with attention. */
  blocks?: number;
  attention?: readonly number[];
  /** The perceptual loss, with weights by the formula. */
  lpips?: Lpips | undefined;
  /** Fields of the tokenizer's config. */
  config?: Partial<TokenizerConfig>;
  lora?: { rank: number; alpha: number };
  /** The discriminator, given the frozen encoder; PatchGAN where it is absent. */
  discriminator?: (reference: Encoder | undefined) => Discriminator;
}

/** Untrained but for the encoder, which is the embedded one; stage 2 could begin. */
export async function alignment(
  precision: Precision = "f32",
  variant: Variant = {},
): Promise<Alignment & { tokenizer: Tokenizer }> {
  const {
    blocks = 0,
    attention = [],
    lpips,
    config,
    lora,
    discriminator = () => new PatchDiscriminator({ ndf: 8, n_layers: 2 }),
  } = variant;
  await testDevice();
  const encoder = await openEncoder();
  const tokenizer = new Tokenizer(tokenizerConfig.parse({
    image_size: 32,
    encoder: encoder.config,
    image_mean: encoder.preprocessor.mean,
    image_std: encoder.preprocessor.std,
    adapter_hidden: 48,
    decoder: {
      ch: 8,
      ch_mult: [1, 1, 2, 4],
      num_res_blocks: blocks,
      attn_resolutions: [...attention],
      resolution: 32,
      z_channels: 8,
      groups: 4,
    },
    ...config,
  }));
  const made = new Alignment(tokenizer, discriminator, lpips, precision);
  const init = new Initializer(0);
  tokenizer.init(init);
  made.discriminator?.init(init);
  if (lora) made.addLora(lora).init(init);
  if (lpips) await loadState(lpips, formulaSource(shapesOf(lpips)));
  await encoder.load(tokenizer.encoder);
  await made.setReference();
  await made.setAnchor();
  return Object.assign(made, { tokenizer });
}
