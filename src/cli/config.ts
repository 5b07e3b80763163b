// Every command's options as one schema each: field name = flag (in kebab-case) = key of a --config file, with default, range,
// unit and help beside each other. Defaults are the preset "tiny"; recipe numbers carry their grade: [S] stated by the
// authors of AlignTok, [N] from notes that agree, [C] one note, [I] our inference.

import { z } from "zod";
import { BOUNDS, countOrNone } from "../bounds.ts";
import { METRIC_NAMES } from "../metrics/table.ts";
import {
  amount,
  badImage,
  count,
  encoder,
  general,
  imageMemory,
  imageSize,
  lpips,
  optimizing,
  option,
  running,
  sampling,
  three,
  tokenizer,
  workers,
} from "./options.ts";

export const alignConfig = z.strictObject({
  preset: option(
    z.enum(["tiny", "dinov2-b", "dinov2-l"]).default("tiny"),
    "Model",
    "Named set of values for all options",
  ),
  ...encoder,
  latentChannels: option(count("channels").default(16), "Model", "Channels of the latent; the paper: 32 [N]"),
  adapterHidden: option(
    count("channels").optional(),
    "Model",
    "Hidden width of the adapter; default: the encoder's [I]",
  ),
  decoderChannels: option(
    count("channels").default(16),
    "Model",
    "Decoder channels at full resolution; VA-VAE: 128",
  ),
  decoderMultiples: option(
    z.array(count("channels")).min(1).max(BOUNDS.levels).default([1, 1, 2, 4]),
    "Model",
    "Multiples for each level, full resolution first; each level halves the side",
  ),
  decoderBlocks: option(
    countOrNone("layers").default(0),
    "Model",
    "Residual blocks a level, less one; VA-VAE: 2",
  ),
  decoderGroups: option(count("channels").default(4), "Model", "Groups of group norm; VA-VAE: 32"),
  decoderAttention: option(
    z.array(z.number().int().nonnegative()).default([0]),
    "Model",
    "Sides of maps with attention; 0: none",
  ),
  data: option(z.string().optional(), "Data", "Folder of images; default: generated shapes"),
  imageSize: option(count("pixels").default(32), "Data", "Side of the images", "pixels"),
  batchSize: option(count("batch").default(16), "Data", "Images of a micro-batch"),
  accumulate: option(count().default(1), "Data", "Micro-batches of a step"),
  heldOut: option(count("images").default(256), "Data", "Images kept apart for the metrics of each stage"),
  flip: option(z.boolean().default(false), "Data", "Flip half of the images"),
  badImage,
  workers,
  imageMemory,
  stages: option(
    z.array(z.number().int().min(1).max(3)).min(1).default([1, 2, 3]),
    "Stages",
    "Stages to run [S]: 1 latent, 2 perceptual, 3 refine",
  ),
  steps: option(z.array(count()).length(3).default([120, 500, 110]), "Stages", "Steps of the three stages"),
  lr: option(three(2e-3, 3e-3, 1.5e-3), "Stages", "Learning rates of the three stages; at scale 1e-4 [I]"),
  encoderLr: option(
    amount().default(1),
    "Stages",
    "Factor of the rate for the encoder in stage 2; at scale 0.1 [I]",
  ),
  ema: option(
    z.number().min(0).lt(1).default(0.98),
    "Stages",
    "Decay of the weight average of stage 2 [N]; 0: none",
  ),
  wL1: option(amount().default(1), "Losses", "Weight of the L1 loss"),
  perceptual: option(
    z.enum(["lpips", "encoder", "none"]).default("encoder"),
    "Losses",
    "Perceptual loss: LPIPS-VGG [N], the distance of the frozen encoder's features, or none",
  ),
  lpips,
  wPerceptual: option(amount().default(0.01), "Losses", "Weight of the perceptual loss"),
  wSemantic: option(
    amount().default(0.2),
    "Losses",
    "Weight of semantic preservation in stage 2; the paper: 1 [N]",
  ),
  semanticLoss: option(z.enum(["l2", "cosine"]).default("l2"), "Losses", "Its distance [S/N: l2]"),
  semanticAt: option(
    z.enum(["after", "before"]).default("after"),
    "Losses",
    "Measured after [S/N] or before the adapter",
  ),
  gan: option(z.enum(["patch", "none"]).default("patch"), "Losses", "Discriminator: PatchGAN [I], or none"),
  wGan: option(
    amount().default(0.05),
    "Losses",
    "Factor of the adaptive adversarial weight; at scale 0.5 [I]",
  ),
  ganStart: option(
    z.array(z.number().int().nonnegative()).length(3).default([120, 500, 85]),
    "Losses",
    "Step of each stage from which the adversarial loss counts",
  ),
  discriminatorChannels: option(
    count("channels").default(16),
    "Losses",
    "First width of the discriminator; LDM: 64",
  ),
  discriminatorLayers: option(count("levels").default(2), "Losses", "Its layers; LDM: 3"),
  ganLr: option(amount().default(2e-4), "Losses", "Learning rate of the discriminator"),
  ...optimizing(0.9, 0.95),
  ...running,
  ...general,
});
export type AlignConfig = z.infer<typeof alignConfig>;

export const ditSizes = z.enum(["tiny", "S/1", "B/1", "L/1", "XL/1"]);

export const trainDitConfig = z.strictObject({
  preset: option(
    z.enum(["tiny", "imagenet"]).default("tiny"),
    "Model",
    "Named set of values for all options",
  ),
  model: option(ditSizes.default("tiny"), "Model", "Size of the LightningDiT"),
  qkNorm: option(
    z.boolean().default(false),
    "Model",
    "RMS-normalise queries and keys; needed beyond ~180K steps [S]",
  ),
  tokenizer,
  data: option(z.string().optional(), "Data", "Folder of images; default: generated shapes"),
  latents: option(
    z.string().optional(),
    "Data",
    "Folder of latents that `tok encode` wrote, instead of --data",
  ),
  imageSize,
  images: option(count("images").default(4000), "Data", "How many generated images where no data is given"),
  flip: option(z.boolean().default(false), "Data", "Use flipped copies too"),
  badImage,
  workers,
  imageMemory,
  steps: option(count().default(900), "Training", "Training steps"),
  batchSize: option(count("batch").default(24), "Training", "Latents of a step"),
  lr: option(amount().default(7e-3), "Training", "Learning rate; LightningDiT: 2e-4"),
  labelDropout: option(
    z.number().min(0).max(1).default(0.1),
    "Training",
    "Share of labels dropped, for guidance",
  ),
  wDirection: option(amount().default(1), "Training", "Weight of the direction loss"),
  ema: option(
    z.number().min(0).lt(1).default(0.99),
    "Training",
    "Decay of the weight average; LightningDiT: 0.9999",
  ),
  ...optimizing(0.9, 0.95),
  ...running,
  ...general,
});
export type TrainDitConfig = z.infer<typeof trainDitConfig>;

export const sampleConfig = z.strictObject({
  model: option(
    z.string().optional(),
    "Model",
    "Run or folder of a diffusion model, or checkpoint of LightningDiT; default: the newest run that has one",
  ),
  tokenizer: option(
    z.string().optional(),
    "Model",
    "Tokenizer, as in reconstruct; default: the one that the model was trained on",
  ),
  latents: option(
    z.string().optional(),
    "Model",
    "Folder with the statistics of the latents that the model was trained on; default: the model's, else the tokenizer's",
  ),
  num: option(count("images").default(100), "Output", "How many images"),
  classes: option(
    z.array(z.string()).min(1).default(["all"]),
    "Output",
    "Class numbers or names, comma-separated, or all",
  ),
  out: option(z.string().optional(), "Output", "Folder for the images; default: a new one under ./runs"),
  folders: option(z.boolean().default(false), "Output", "One folder for each class"),
  npz: option(z.boolean().default(false), "Output", "Also write samples.npz (arr_0 images, arr_1 labels)"),
  batchSize: option(count("batch").default(50), "Sampling", "Images at a time; changes nothing in them"),
  ...sampling,
  ...general,
});
export type SampleConfig = z.infer<typeof sampleConfig>;

export const reconstructConfig = z.strictObject({
  tokenizer,
  input: option(z.string().optional(), "Data", "Folder of images or one image; default: generated shapes"),
  imageSize,
  num: option(count("images").default(64), "Data", "How many generated images where no input is given"),
  out: option(z.string().optional(), "Output", "Folder for the images; default: a new one under ./runs"),
  grid: option(z.boolean().default(true), "Output", "Write grid.png, originals over reconstructions"),
  batchSize: option(count("batch").default(32), "Data", "Images at a time"),
  badImage,
  workers,
  imageMemory,
  ...general,
});
export type ReconstructConfig = z.infer<typeof reconstructConfig>;

export const encodeConfig = z.strictObject({
  tokenizer,
  data: option(z.string().optional(), "Data", "Folder of images; default: generated shapes"),
  imageSize,
  images: option(count("images").default(6000), "Data", "How many generated images where no data is given"),
  flip: option(z.boolean().default(true), "Data", "Also encode a flipped copy of each image"),
  out: option(z.string().optional(), "Output", "Folder for the latents; default: a new one under ./runs"),
  batchSize: option(count("batch").default(32), "Data", "Images at a time"),
  badImage,
  workers,
  imageMemory,
  ...general,
});
export type EncodeConfig = z.infer<typeof encodeConfig>;

export const featuresConfig = z.strictObject({
  ...encoder,
  input: option(z.string().optional(), "Data", "Folder of images or one image; default: 16 generated shapes"),
  imageSize: option(
    z.union([z.literal("native"), count("pixels")]).optional(),
    "Data",
    "Side, or native for no resizing; default: as the encoder's preprocessor_config.json says",
  ),
  out: option(
    z.string().default("features.safetensors"),
    "Output",
    "File for patch_tokens [N,T,C] and cls_token [N,C]",
  ),
  batchSize: option(count("batch").default(16), "Data", "Images at a time"),
  badImage,
  workers,
  imageMemory,
  ...general,
});
export type FeaturesConfig = z.infer<typeof featuresConfig>;

export const evalConfig = z.strictObject({
  real: option(
    z.string().optional(),
    "Data",
    "Folder or NPZ of real images, or NPZ of their statistics; default: generated shapes",
  ),
  fake: option(z.string().optional(), "Data", "Folder or NPZ of images to score against them"),
  tokenizer: option(
    z.string().optional(),
    "Data",
    "Score a tokenizer: reconstruction and probes; beside --model: what turns its latents into images",
  ),
  model: option(
    z.string().optional(),
    "Data",
    "Score a diffusion model: sample, then score; default: the newest run that has one",
  ),
  data: option(z.string().optional(), "Data", "Images for a tokenizer; default: generated shapes"),
  num: option(count("images").default(200), "Data", "Images that are sampled or generated"),
  imageSize: option(
    count("pixels").optional(),
    "Data",
    "Resize and crop all images to squares of this side first [a tokenizer's training size; sets: no]",
    "pixels",
  ),
  metrics: option(
    z.array(z.enum(METRIC_NAMES)).min(1).optional(),
    "Metrics",
    `Which of ${METRIC_NAMES.join(", ")}; default: all that apply`,
  ),
  inception: option(
    z.string().optional(),
    "Metrics",
    "Inception-v3's weights for FID: pytorch-fid's pt_inception-2015-12-05-6726825d.pth",
  ),
  inceptionInput: option(
    z.enum(["pytorch-fid", "adm"]).default("pytorch-fid"),
    "Metrics",
    "Resizing and scaling before Inception: pytorch-fid's, or TensorFlow 1's as in ADM's evaluator",
  ),
  lpips,
  ...encoder,
  out: option(z.string().optional(), "Output", "Folder for metrics.json; default: a new one under ./runs"),
  batchSize: option(count("batch").default(50), "Metrics", "Images at a time"),
  badImage,
  workers,
  imageMemory,
  ...sampling,
  ...general,
});
export type EvalConfig = z.infer<typeof evalConfig>;

export const inspectConfig = z.strictObject({
  path: option(z.string().optional(), "Data", "File, run or folder; also as the argument behind the command"),
  convert: option(z.string().optional(), "Output", "Write the tensors to this .safetensors file as well"),
  preset: option(
    z.string().optional(),
    "Model",
    "Print the number of parameters of a published size instead; all: of every one",
  ),
  ...general,
});

export const doctorConfig = z.strictObject({
  bench: option(z.boolean().default(false), "General", "Measure GFLOP/s and GB/s"),
  tune: option(
    z.boolean().default(false),
    "General",
    "Measure which tiles of matrix products are fast here, and remember it",
  ),
  ...general,
});
