// Named sets of options; the preset "tiny" is the defaults in config.ts.

import { UsageError } from "../errors.ts";
import type { AlignConfig, TrainDitConfig } from "./config.ts";

/** AlignTok's tokenizer "f16d32" at 256 x 256 (arXiv 2509.25162): 16 pixels and 32 channels per latent cell, batches of 256. */
const F16D32 = {
  latentChannels: 32,
  decoderChannels: 128,
  decoderMultiples: [1, 1, 2, 2, 4],
  decoderBlocks: 2,
  decoderGroups: 32,
  decoderAttention: [16],
  imageSize: 256,
  batchSize: 8,
  accumulate: 32,
  flip: true,
  steps: [50000, 50000, 25000],
  lr: [1e-4, 1e-4, 1e-4],
  encoderLr: 0.1,
  ema: 0.9999,
  perceptual: "lpips",
  wPerceptual: 1,
  wGan: 0.5,
  wSemantic: 1,
  ganStart: [5001, 0, 0],
  discriminatorChannels: 64,
  discriminatorLayers: 3,
  ganLr: 1e-4,
  beta1: 0.5,
  beta2: 0.9,
  lrEnd: 1,
  logEvery: 100,
  saveEvery: 2000,
  valEvery: 5000,
} satisfies Partial<AlignConfig>;

/** The same network on images of 512 x 512, in smaller micro-batches. */
const AT_512 = { ...F16D32, imageSize: 512, batchSize: 2, accumulate: 128 } satisfies Partial<AlignConfig>;

export const ALIGN_PRESETS = {
  tiny: {},
  /** 64 x 64 pixels, 8 pixels and 32 channels per latent cell. */
  small: {
    imageSize: 64,
    batchSize: 8,
    latentChannels: 32,
    decoderChannels: 16,
    decoderMultiples: [1, 2, 4, 4],
    decoderGroups: 8,
    steps: [300, 1300, 300],
    lr: [1.5e-3, 2e-3, 1e-3],
    ema: 0.99,
    ganStart: ["off", "off", 220],
    discriminatorChannels: 32,
  },
  "dinov2-b-f16d32": { ...F16D32, encoder: "facebook/dinov2-base" },
  "dinov2-l-f16d32": { ...F16D32, encoder: "facebook/dinov2-large" },
  "dinov2-l-f16d64": { ...F16D32, encoder: "facebook/dinov2-large", latentChannels: 64 },
  "dinov2-l-f16d32-512": { ...AT_512, encoder: "facebook/dinov2-large" },
  "siglip2-b-f16d32": { ...F16D32, encoder: "google/siglip2-base-patch16-256" },
  "siglip2-l-f16d32": { ...F16D32, encoder: "google/siglip2-large-patch16-256" },
  "siglip2-l-f16d32-512": { ...AT_512, encoder: "google/siglip2-large-patch16-512" },
  "mae-l-f16d32": { ...F16D32, encoder: "facebook/vit-mae-large" },
  "mae-l-f16d32-512": { ...AT_512, encoder: "facebook/vit-mae-large" },
} satisfies Record<AlignConfig["preset"], Partial<AlignConfig>>;

export const TRAIN_DIT_PRESETS = {
  tiny: {},
  imagenet: {
    model: "XL/1",
    steps: 80000,
    batchSize: 1024,
    lr: 2e-4,
    ema: 0.9999,
    flip: true,
    clip: 0,
    warmup: 0,
    lrEnd: 1,
    logEvery: 100,
    saveEvery: 5000,
  },
} satisfies Record<TrainDitConfig["preset"], Partial<TrainDitConfig>>;

/**
 * Learning rate of a model's size where none is given. The rate of "tiny" makes larger models diverge or learn nothing; LightningDiT
 * trains all sizes at 2e-4 in batches of 1,024 images.
 */
export function trainDitDefaults({ model = "tiny" }: Readonly<Record<string, unknown>>): { lr?: number } {
  const size = String(model).split("/")[0] as string;
  return size === "tiny" ? {} : { lr: size === "S" ? 1e-3 : 2e-4 };
}

/** The presets that train on generated images where no --data is given. */
const GENERATED: readonly string[] = ["tiny", "small"];

/**
 * Checks that a preset for real images has some; a dry run needs none.
 * @param given options with their values, one of which names the images
 * @throws UsageError if none of them does
 */
export function requireData(preset: string, dryRun: boolean, given: Readonly<Record<string, unknown>>): void {
  if (dryRun || GENERATED.includes(preset) || Object.values(given).some((value) => value !== undefined)) {
    return;
  }
  const options = Object.keys(given).map((name) => `--${name} DIR`).join(" or ");
  throw new UsageError(
    `Cannot train "${preset}": it needs ${options}; give a folder of images, or choose --preset tiny, which generates its own`,
  );
}
