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
import { vitConfig } from "../../src/models/vit_config.ts";
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
/** Options of a {@link Variant.tiny} alignment. */
export const TINY_OPTIONS: AlignmentOptions = { ...OPTIONS, batchSize: 2, imageSize: 8 };
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

export interface Variant {
  /** An encoder of two narrow blocks with weights by the formula, and a decoder of two levels, for images of 8 pixels. */
  tiny?: boolean;
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

/** Two blocks for images of 8 pixels, patches of 2. */
export const TINY_ENCODER = vitConfig.parse({
  hidden_size: 32,
  num_hidden_layers: 2,
  num_attention_heads: 2,
  mlp_ratio: 2,
  patch_size: 2,
  image_size: 8,
});

/** Untrained but for the encoder, which is the embedded one unless `tiny`; stage 2 could begin. */
export async function alignment(
  precision: Precision = "f32",
  variant: Variant = {},
): Promise<Alignment & { tokenizer: Tokenizer }> {
  const {
    tiny = false,
    blocks = 0,
    attention = [],
    lpips,
    config,
    lora,
    discriminator = () => new PatchDiscriminator({ ndf: 8, n_layers: tiny ? 1 : 2 }),
  } = variant;
  await testDevice();
  const encoder = await openEncoder(), side = tiny ? TINY_OPTIONS.imageSize : OPTIONS.imageSize;
  const tokenizer = new Tokenizer(tokenizerConfig.parse({
    image_size: side,
    encoder: tiny ? TINY_ENCODER : encoder.config,
    image_mean: encoder.preprocessor.mean,
    image_std: encoder.preprocessor.std,
    adapter_hidden: 48,
    decoder: {
      ch: 8,
      ch_mult: tiny ? [1, 1] : [1, 1, 2, 4],
      num_res_blocks: blocks,
      attn_resolutions: [...attention],
      resolution: side,
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
  if (tiny) await loadState(tokenizer.encoder, formulaSource(shapesOf(tokenizer.encoder)));
  else await encoder.load(tokenizer.encoder);
  await made.setReference();
  await made.setAnchor();
  return Object.assign(made, { tokenizer });
}
