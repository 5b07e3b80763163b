// Named sets of options; the preset "tiny" is the defaults in config.ts.

import type { AlignConfig, TrainDitConfig } from "./config.ts";

/** AlignTok on DINOv2 (arXiv 2509.25162) at 256 x 256, batches of 256. */
const DINOV2 = {
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
} satisfies Partial<AlignConfig>;

export const ALIGN_PRESETS = {
  tiny: {},
  "dinov2-b": { ...DINOV2, encoder: "facebook/dinov2-base" },
  "dinov2-l": { ...DINOV2, encoder: "facebook/dinov2-large" },
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
