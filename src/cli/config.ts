// The options of every command, one schema a command: a field is a flag (in kebab-case) and a key of a --config file, with its
// default, range and help in one place. The defaults are the preset "tiny".

import { z } from "zod";
import { BOUNDS, countOrNone } from "../bounds.ts";
import { METRIC_NAMES } from "../metrics/table.ts";
import {
  amount,
  count,
  encoder,
  general,
  imageSize,
  lpips,
  optimizing,
  option,
  reading,
  running,
  sampling,
  three,
  tokenizer,
} from "./options.ts";

const DATA = { value: "DIR", otherwise: "generated shapes" };
const NEW = { value: "DIR", otherwise: "a new one under ./runs" };
const advanced = true;

export const alignConfig = z.strictObject({
  preset: option(
    z.enum(["tiny", "dinov2-b", "dinov2-l"]).default("tiny"),
    "Input",
    "Named set of options, encoder included; other options override it",
  ),
  ...encoder,
  data: option(z.string().optional(), "Input", "Folder of images", { ...DATA, free: true }),
  lpips,
  ...running,
  imageSize: option(count("pixels").default(32), "Data", "Side of the images", { unit: "pixels" }),
  batchSize: option(count("batch").default(16), "Data", "Images of a micro-batch"),
  accumulate: option(count().default(1), "Data", "Micro-batches per step"),
  heldOut: option(count("images").default(256), "Data", "Held-out images for the metrics of each stage"),
  flip: option(z.boolean().default(false), "Data", "Mirror half of the images; --no-flip: none of them"),
  ...reading,
  stages: option(
    z.array(z.number().int().min(1).max(3)).min(1).default([1, 2, 3]),
    "Training",
    "Stages to run: 1 latent, 2 perceptual, 3 refine",
  ),
  steps: option(z.array(count()).length(3).default([120, 500, 110]), "Training", "Steps of the three stages"),
  lr: option(three(2e-3, 3e-3, 1.5e-3), "Training", "Learning rates of the three stages"),
  encoderLr: option(amount().default(1), "Training", "Factor of the encoder's learning rate in stage 2", {
    advanced,
  }),
  ema: option(z.number().min(0).lt(1).default(0.98), "Training", "Decay of the EMA in stage 2; 0: no EMA", {
    advanced,
  }),
  ...optimizing(0.9, 0.95),
  wL1: option(amount().default(1), "Losses", "Weight of the L1 loss", { advanced }),
  perceptual: option(
    z.enum(["lpips", "encoder", "none"]).default("encoder"),
    "Losses",
    "Perceptual loss: LPIPS-VGG, or distance of the frozen encoder's features",
  ),
  wPerceptual: option(amount().default(0.01), "Losses", "Weight of the perceptual loss"),
  wSemantic: option(amount().default(0.2), "Losses", "Weight of the semantic loss in stage 2"),
  semanticLoss: option(z.enum(["l2", "cosine"]).default("l2"), "Losses", "Distance of the semantic loss", {
    advanced,
  }),
  semanticAt: option(
    z.enum(["after", "before"]).default("after"),
    "Losses",
    "Compare latents after the adapter, or features before it",
    { advanced },
  ),
  gan: option(z.enum(["patch", "none"]).default("patch"), "Losses", "Discriminator: PatchGAN or none"),
  wGan: option(amount().default(0.05), "Losses", "Factor of the adaptive adversarial weight"),
  ganStart: option(
    z.array(z.union([z.literal("off"), z.number().int().nonnegative()])).min(1).max(3)
      .refine((starts) => starts.length !== 2, "give one value, or one for each of the three stages")
      .default(["off", "off", 85]),
    "Losses",
    "First step of each stage with the adversarial loss; off: never",
    { value: "off|N,..." },
  ),
  discriminatorChannels: option(
    count("channels").default(16),
    "Losses",
    "Base channels of the discriminator; LDM: 64",
    { advanced },
  ),
  discriminatorLayers: option(count("levels").default(2), "Losses", "Layers of the discriminator; LDM: 3", {
    advanced,
  }),
  ganLr: option(amount().default(2e-4), "Losses", "Learning rate of the discriminator", { advanced }),
  latentChannels: option(count("channels").default(16), "Model", "Channels of the latent"),
  adapterHidden: option(count("channels").optional(), "Model", "Hidden width of the adapter", {
    otherwise: "the encoder's width",
    advanced,
  }),
  decoderChannels: option(
    count("channels").default(16),
    "Model",
    "Channels of the decoder at full resolution; VA-VAE: 128",
  ),
  decoderMultiples: option(
    z.array(count("channels")).min(1).max(BOUNDS.levels).default([1, 1, 2, 4]),
    "Model",
    "Channel multiples of the decoder's levels, full resolution first; each level halves the side",
    { advanced },
  ),
  decoderBlocks: option(
    countOrNone("layers").default(0),
    "Model",
    "Residual blocks per level, minus 1; VA-VAE: 2",
    { advanced },
  ),
  decoderGroups: option(count("channels").default(4), "Model", "Groups of the group norms; VA-VAE: 32", {
    advanced,
  }),
  decoderAttention: option(
    z.array(z.number().int().nonnegative()).default([0]),
    "Model",
    "Sides of feature maps with attention; 0: none",
    { advanced },
  ),
  ...general,
});
export type AlignConfig = z.infer<typeof alignConfig>;

export const ditSizes = z.enum(["tiny", "S/1", "B/1", "L/1", "XL/1"]);

export const trainDitConfig = z.strictObject({
  preset: option(
    z.enum(["tiny", "imagenet"]).default("tiny"),
    "Input",
    "Named set of options; other options override it",
  ),
  tokenizer,
  data: option(z.string().optional(), "Input", "Folder of images", { ...DATA, free: true }),
  latents: option(z.string().optional(), "Input", "Folder of latents from `tok encode`, instead of --data", {
    value: "DIR",
  }),
  ...running,
  model: option(ditSizes.default("tiny"), "Model", "Size of the LightningDiT"),
  qkNorm: option(
    z.boolean().default(false),
    "Model",
    "RMS-normalise queries and keys; needed beyond about 180,000 steps",
  ),
  imageSize,
  images: option(count("images").default(4000), "Data", "Number of generated images, without --data"),
  flip: option(z.boolean().default(false), "Data", "Also use mirrored images; --no-flip: only the originals"),
  ...reading,
  steps: option(count().default(900), "Training", "Training steps"),
  batchSize: option(count("batch").default(24), "Training", "Latents per step"),
  lr: option(amount().default(7e-3), "Training", "Learning rate; LightningDiT: 2e-4"),
  labelDropout: option(z.number().min(0).max(1).default(0.1), "Training", "Label dropout, for guidance", {
    advanced,
  }),
  wDirection: option(amount().default(1), "Training", "Weight of the direction loss", { advanced }),
  ema: option(z.number().min(0).lt(1).default(0.99), "Training", "Decay of the EMA; LightningDiT: 0.9999"),
  ...optimizing(0.9, 0.95),
  ...general,
});
export type TrainDitConfig = z.infer<typeof trainDitConfig>;

export const sampleConfig = z.strictObject({
  model: option(z.string().optional(), "Input", "Diffusion model: run, or checkpoint of LightningDiT", {
    value: "RUN",
    otherwise: "the newest run with one",
  }),
  tokenizer: option(z.string().optional(), "Input", "Tokenizer, as in reconstruct", {
    value: "RUN",
    otherwise: "the one that the model was trained on",
  }),
  latents: option(z.string().optional(), "Input", "Folder with the statistics of the training latents", {
    value: "DIR",
    otherwise: "the model's, else the tokenizer's",
    advanced,
  }),
  num: option(count("images").default(100), "Output", "Number of images"),
  classes: option(z.array(z.string()).min(1).default(["all"]), "Output", "Class numbers or names, or all", {
    value: "CLASS,...",
  }),
  out: option(z.string().optional(), "Output", "Folder for the images", NEW),
  folders: option(z.boolean().default(false), "Output", "Write one folder per class"),
  npz: option(z.boolean().default(false), "Output", "Also write samples.npz (arr_0 images, arr_1 labels)"),
  ...sampling,
  batchSize: option(count("batch").default(50), "Sampling", "Images at a time; does not change them"),
  ...general,
});
export type SampleConfig = z.infer<typeof sampleConfig>;

export const reconstructConfig = z.strictObject({
  tokenizer,
  input: option(z.string().optional(), "Input", "Folder of images, or one image", DATA),
  out: option(z.string().optional(), "Output", "Folder for the images", NEW),
  grid: option(
    z.boolean().default(true),
    "Output",
    "Do not write grid.png (originals above reconstructions)",
  ),
  imageSize,
  num: option(count("images").default(64), "Data", "Number of generated images, without --input"),
  batchSize: option(count("batch").default(32), "Data", "Images at a time"),
  ...reading,
  ...general,
});

export const encodeConfig = z.strictObject({
  tokenizer,
  data: option(z.string().optional(), "Input", "Folder of images", DATA),
  out: option(z.string().optional(), "Output", "Folder for the latents", NEW),
  imageSize,
  images: option(count("images").default(6000), "Data", "Number of generated images, without --data"),
  flip: option(z.boolean().default(true), "Data", "Do not encode mirrored images (latents_flip)"),
  batchSize: option(count("batch").default(32), "Data", "Images at a time"),
  ...reading,
  ...general,
});

export const featuresConfig = z.strictObject({
  ...encoder,
  input: option(z.string().optional(), "Input", "Folder of images, or one image", {
    value: "DIR",
    otherwise: "16 generated shapes",
  }),
  out: option(
    z.string().default("features.safetensors"),
    "Output",
    "File for patch_tokens [N,T,C] and cls_token [N,C]",
    { value: "FILE" },
  ),
  imageSize: option(
    z.union([z.literal("native"), count("pixels")]).optional(),
    "Data",
    "Side of the images; native: do not resize",
    { unit: "pixels", otherwise: "as preprocessor_config.json says" },
  ),
  batchSize: option(count("batch").default(16), "Data", "Images at a time"),
  ...reading,
  ...general,
});

export const evalConfig = z.strictObject({
  model: option(z.string().optional(), "Input", "Score a diffusion model: sample from it, then compare", {
    value: "RUN",
    otherwise: "the newest run with one",
  }),
  tokenizer: option(
    z.string().optional(),
    "Input",
    "Score a tokenizer: reconstruction and probes; with --model: the decoder of its latents",
    { value: "RUN" },
  ),
  data: option(z.string().optional(), "Input", "Images for a tokenizer", DATA),
  real: option(
    z.string().optional(),
    "Input",
    "Folder or NPZ of real images, or NPZ of their statistics",
    DATA,
  ),
  fake: option(z.string().optional(), "Input", "Folder or NPZ of images to compare with --real", {
    value: "DIR",
  }),
  out: option(z.string().optional(), "Output", "Folder for metrics.json", NEW),
  metrics: option(
    z.array(z.enum(METRIC_NAMES)).min(1).optional(),
    "Metrics",
    `Any of ${METRIC_NAMES.join(", ")}`,
    { otherwise: "all that apply" },
  ),
  inception: option(
    z.string().optional(),
    "Metrics",
    "Inception-v3 weights for FID: pytorch-fid's pt_inception-2015-12-05-6726825d.pth",
    { value: "FILE" },
  ),
  inceptionInput: option(
    z.enum(["pytorch-fid", "adm"]).default("pytorch-fid"),
    "Metrics",
    "Resizing and scaling before Inception: pytorch-fid's, or that of ADM's evaluator (TensorFlow 1)",
    { advanced },
  ),
  lpips,
  ...encoder,
  num: option(count("images").default(200), "Data", "Number of images to sample or generate"),
  imageSize: option(count("pixels").optional(), "Data", "Resize and crop all images to squares first", {
    unit: "pixels",
    otherwise: "a tokenizer's training size; sets: no",
  }),
  batchSize: option(count("batch").default(50), "Data", "Images at a time"),
  ...reading,
  ...sampling,
  ...general,
});
export type EvalConfig = z.infer<typeof evalConfig>;

export const inspectConfig = z.strictObject({
  path: option(z.string().optional(), "Input", "File, run or folder; also as the argument", {
    value: "PATH",
  }),
  convert: option(z.string().optional(), "Output", "Also write the tensors to this .safetensors file", {
    value: "FILE",
  }),
  preset: option(
    z.string().optional(),
    "Input",
    "Print the parameter count of a published model, or of all",
    { value: "NAME|all" },
  ),
  ...general,
});

export const doctorConfig = z.strictObject({
  bench: option(z.boolean().default(false), "Output", "Measure GFLOP/s and GB/s"),
  tune: option(
    z.boolean().default(false),
    "Output",
    "Measure GEMM tiles on this adapter and remember the fastest",
  ),
  ...general,
});
