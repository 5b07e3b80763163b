// The options of every command, one schema a command: a field is a flag (in kebab-case) and a key of a --config file, with its
// default, range and help in one place. The defaults are the preset "tiny".

import { z } from "zod";
import { BOUNDS, count, countOrNone } from "../bounds.ts";
import { AUGMENTATIONS } from "../ops/diffaug.ts";
import { GAN_LOSSES } from "../train/losses.ts";
import { GROUPS } from "./about.ts";
import { architecture } from "./architecture_options.ts";
import { encoding, objective, watching } from "./dit_options.ts";
import {
  ALIGN_PRESET_NAMES,
  amount,
  decay,
  encoder,
  flag,
  general,
  imageSize,
  isPartList,
  lpips,
  optimizing,
  perStage,
  reading,
  running,
  text,
  tokenizer,
  validating,
} from "./options.ts";
import { emaOptions, emaWidth, muonOptions } from "./optimizer_options.ts";

export * from "./eval_config.ts";
export * from "./sample_config.ts";

const { input, output, data, model, training, losses } = GROUPS;
const DATA = { value: "PATH", otherwise: "generated shapes" };
const IMAGES = "Images: folder, .txt list of paths, .tar shards (also a-{00..99}.tar) or .parquet files";
const ACCUMULATE = "Micro-batches per step (gradient accumulation); batch = --batch-size x --accumulate";
const NEW = { value: "DIR", otherwise: "a new one under ./runs" };
const advanced = true;

export const alignConfig = z.strictObject({
  preset: input(
    z.enum(ALIGN_PRESET_NAMES).default("tiny"),
    `Options by name, encoder included; others override them: ${ALIGN_PRESET_NAMES.join(", ")}`,
    { value: "NAME" },
  ),
  recipe: input(
    z.enum(["aligntok", "vae", "va-vae", "va-vae-vit", "rae"]).default("aligntok"),
    "Method: AlignTok, or a baseline in one stage: LDM's VAE; VA-VAE; VA-VAE with a vision transformer from scratch; RAE-style " +
      "(frozen encoder without an adapter, convolutional decoder)",
  ),
  ...encoder,
  init: input(
    text(),
    "Initial weights: run or its tokenizer, checkpoint, diffusers folder, LDM or VA-VAE checkpoint, or .safetensors of parts",
    { value: "PATH", otherwise: "random, but for the encoder" },
  ),
  initParts: input(
    z.array(z.enum(["encoder", "adapter", "decoder", "discriminator"])).min(1).optional(),
    "Parts that --init initialises",
    { otherwise: "those that it has", advanced },
  ),
  data: input(text(), IMAGES, { ...DATA, free: true }),
  lpips,
  ...running,
  ...validating,
  imageSize: data(count("pixels").default(32), "Side of the images", { unit: "pixels" }),
  batchSize: data(count("batch").default(16), "Images of a micro-batch"),
  accumulate: data(count().default(1), ACCUMULATE),
  heldOut: data(
    count("images").default(256),
    "Maximum number of held-out images for the metrics; without --val at most a tenth of --data",
  ),
  flip: data(flag(), "Mirror half of the images; --no-flip: none of them"),
  crop: data(
    z.enum(["center", "adm", "random", "resize"]).default("center"),
    "Crop of training images to squares: center, ADM's center crop, or ADM's random crop; resize ignores the aspect ratio",
    { advanced },
  ),
  ...reading,
  stages: training(
    z.array(z.number().int().min(1).max(3)).min(1).default([1, 2, 3]),
    "Stages to run: 1 latent, 2 perceptual, 3 refine",
  ),
  steps: training(
    perStage(count()).default([120, 500, 110]),
    "Steps of the three stages; of a baseline: of its stage, by default their sum",
  ),
  epochs: training(
    z.array(z.number().positive()).min(1).max(3).refine(
      (epochs) => epochs.length !== 2,
      "give one value, or one for each of the three stages",
    ).optional(),
    "Steps of the three stages as passes over the images of --data",
    { value: "N,...", otherwise: "as --steps", free: true },
  ),
  lr: training(
    perStage(amount()).default([2e-3, 3e-3, 1.5e-3]),
    "Learning rates of the three stages; of a baseline: of its stage",
  ),
  train: training(
    perStage(z.string().refine(isPartList, 'name encoder, adapter and decoder, joined by "+"'))
      .default(["adapter+decoder", "encoder+adapter+decoder", "decoder"]),
    "Modules that each of the three stages trains",
    { value: "M+M,M+M,M", advanced },
  ),
  encoderLr: training(amount().default(1), "Factor of the encoder's learning rate", { advanced }),
  adapterLr: training(amount().default(1), "Factor of the adapter's learning rate", { advanced }),
  decoderLr: training(amount().default(1), "Factor of the decoder's learning rate", { advanced }),
  ema: training(
    z.union([decay, z.array(decay).length(3)]).default(0.98),
    "Decay of the EMA in stage 2, or in each of the three stages; 0: no EMA",
    { value: "N|N,N,N", advanced },
  ),
  ...optimizing(0.9, 0.95),
  wL1: losses(amount().default(1), "Weight of the L1 loss", { advanced }),
  perceptual: losses(
    z.enum(["lpips", "encoder", "none"]).default("encoder"),
    "Perceptual loss: LPIPS-VGG, or distance of the frozen encoder's features",
  ),
  wPerceptual: losses(amount().default(0.01), "Weight of the perceptual loss"),
  wSemantic: losses(amount().default(0.2), "Weight of the semantic loss in stage 2"),
  semanticLoss: losses(z.enum(["l2", "cosine"]).default("l2"), "Distance of the semantic loss", { advanced }),
  semanticAt: losses(
    z.enum(["after", "before"]).default("after"),
    "Compare latents after the adapter, or features before it",
    { advanced },
  ),
  wVf: losses(
    amount().default(0),
    "Factor of the adaptive weight of VA-VAE's vision foundation loss",
    { otherwise: "0.1 in the VA-VAE recipes", advanced },
  ),
  vfMargins: losses(
    z.array(z.number().min(0).max(2)).length(2).default([0.5, 0.25]),
    "Margins of the vision foundation loss: cosine similarity, distance matrix",
    { advanced },
  ),
  wKl: losses(
    amount().default(0),
    "Weight of the KL loss, mean over latent elements, for a Gaussian posterior; 0: a deterministic latent",
    { advanced },
  ),
  noiseTau: losses(
    amount().default(0),
    "Noise on the latents that the decoder gets in stages 1 and 3: standard deviation uniform in 0..TAU for each image",
    { advanced },
  ),
  gan: losses(
    z.enum(["patch", "dino", "none"]).default("patch"),
    "Discriminator: PatchGAN, or heads on features of a frozen encoder, or none",
  ),
  ganEncoder: losses(text(), "Encoder of --gan dino, as in --encoder; RAE: facebook/dino-vits8", {
    value: "MODEL",
    otherwise: "--encoder, frozen",
  }),
  ganLoss: losses(
    z.enum(GAN_LOSSES).default("hinge"),
    "Loss of the discriminator: hinge, or binary cross-entropy (vanilla)",
    { advanced },
  ),
  diffaug: losses(
    z.array(z.enum([...AUGMENTATIONS, "none"])).min(1).refine(
      (names) => names.length === 1 || !names.includes("none"),
      "give none alone",
    ).optional(),
    `Augmentations of what the discriminator sees: any of ${AUGMENTATIONS.join(", ")}`,
    { value: "NAME,...|none", otherwise: "all with --gan dino, else none", advanced },
  ),
  wGan: losses(amount().default(0.05), "Factor of the adaptive adversarial weight"),
  ganStart: losses(
    z.array(z.union([z.literal("off"), z.number().int().nonnegative()])).min(1).max(3).refine(
      (starts) => starts.length !== 2,
      "give one value, or one for each of the three stages",
    ).default(["off", "off", 85]),
    "First step of each stage with the adversarial loss; off: never",
    { value: "off|N,..." },
  ),
  ganWarmup: losses(
    z.number().int().nonnegative().default(0),
    "Steps that the discriminator trains before --gan-start",
    { advanced },
  ),
  discriminatorChannels: losses(
    count("channels").default(16),
    "Base channels of PatchGAN; LDM: 64",
    { advanced },
  ),
  discriminatorLayers: losses(count("levels").default(2), "Layers of PatchGAN; LDM: 3", { advanced }),
  ganLr: losses(amount().default(2e-4), "Learning rate of the discriminator, constant", { advanced }),
  layers: model(
    z.array(count("layers")).min(1).refine((n) => new Set(n).size === n.length, "name each layer once")
      .optional(),
    "Encoder blocks, from 1, whose normalised patch tokens are summed",
    { otherwise: "the last block", advanced },
  ),
  loraRank: model(
    countOrNone("channels").default(0),
    "Rank of LoRA on the linear layers of the encoder where it is trained; 0: train all its weights",
    { advanced },
  ),
  loraAlpha: model(amount().optional(), "Scale of LoRA: its update is multiplied by alpha / rank", {
    otherwise: "the rank",
    advanced,
  }),
  latentChannels: model(count("channels").default(16), "Channels of the latent"),
  adapterHidden: model(count("channels").optional(), "Hidden width of the adapter", {
    otherwise: "the encoder's width",
    advanced,
  }),
  encoderBlocks: model(
    count("layers").optional(),
    "Residual blocks per level of the convolutional encoder; VA-VAE: 2",
    { otherwise: "--decoder-blocks, at least 1", advanced },
  ),
  decoderChannels: model(
    count("channels").default(16),
    "Channels of the decoder at full resolution; VA-VAE: 128",
  ),
  decoderMultiples: model(
    z.array(count("channels")).min(1).max(BOUNDS.levels).default([1, 1, 2, 4]),
    "Channel multiples of the decoder's levels, full resolution first; each level halves the side",
    { advanced },
  ),
  decoderBlocks: model(countOrNone("layers").default(0), "Residual blocks per level, minus 1; VA-VAE: 2", {
    advanced,
  }),
  decoderGroups: model(count("channels").default(4), "Groups of the group norms; VA-VAE: 32", { advanced }),
  decoderAttention: model(
    z.array(z.number().int().nonnegative()).default([0]),
    "Sides of feature maps with attention; 0: none",
    { advanced },
  ),
  ...general,
});
export type AlignConfig = z.infer<typeof alignConfig>;

export const trainDitConfig = z.strictObject({
  preset: input(
    z.enum(["tiny", "imagenet"]).default("tiny"),
    "Named set of options; other options override it",
  ),
  tokenizer,
  data: input(text(), IMAGES, { ...DATA, free: true }),
  latents: input(text(), "Folder of latents from `tok encode`, instead of --data", { value: "DIR" }),
  init: input(
    text(),
    "Initial weights: run (or its best/), checkpoint, or published LightningDiT file; class embeddings are re-initialised if " +
      "the number of classes differs",
    { value: "PATH", otherwise: "random" },
  ),
  ...running,
  ...watching,
  ...architecture,
  unconditional: model(flag(), "Train without classes; labels are ignored"),
  imageSize,
  images: data(count("images").default(4000), "Number of generated images, without --data"),
  flip: data(flag(), "Also use mirrored images; --no-flip: only the originals"),
  ...encoding,
  ...reading,
  steps: training(count().default(900), "Training steps"),
  epochs: training(z.number().positive().optional(), "Steps as passes over the images", {
    otherwise: "as --steps",
    free: true,
  }),
  batchSize: training(count("batch").default(24), "Latents of a micro-batch"),
  accumulate: training(count().default(1), ACCUMULATE),
  lr: training(amount().default(7e-3), "Learning rate; LightningDiT: 2e-4", {
    otherwise: "0.007 for tiny, 0.001 for S, 0.0002 for larger models",
  }),
  labelDropout: training(
    z.number().min(0).max(1).default(0.1),
    'Fraction of labels replaced by "no class", for classifier-free guidance',
    { advanced },
  ),
  ...objective,
  ...emaOptions,
  ...muonOptions,
  ...optimizing(0.9, 0.95),
  ...general,
});
export type TrainDitConfig = z.infer<typeof trainDitConfig>;

export const reconstructConfig = z.strictObject({
  tokenizer,
  input: input(text(), `${IMAGES}; or one image`, DATA),
  out: output(text(), "Folder for the images", NEW),
  grid: output(z.boolean().default(true), "Do not write grid.png (originals above reconstructions)"),
  imageSize,
  num: data(count("images").default(64), "Number of generated images, without --input"),
  batchSize: data(count("batch").default(32), "Images at a time"),
  ...reading,
  ...general,
});

export const encodeConfig = z.strictObject({
  tokenizer,
  data: input(text(), IMAGES, DATA),
  out: output(text(), "Folder for the latents", NEW),
  imageSize,
  images: data(count("images").default(6000), "Number of generated images, without --data"),
  flip: data(z.boolean().default(true), "Do not encode mirrored images (latents_flip)"),
  crop: data(
    z.enum(["center", "adm", "resize"]).default("center"),
    "Crop of images to squares: center, or ADM's center crop as LightningDiT's tools; resize ignores the aspect ratio",
    { advanced },
  ),
  batchSize: data(count("batch").default(32), "Images at a time"),
  ...reading,
  ...general,
});

export const featuresConfig = z.strictObject({
  ...encoder,
  input: input(text(), `${IMAGES}; or one image`, { value: "PATH", otherwise: "16 generated shapes" }),
  out: output(
    z.string().default("features.safetensors"),
    "File for patch_tokens [N,T,C], cls_token [N,C] and pooled [N,D], as the encoder has them",
    { value: "FILE" },
  ),
  imageSize: data(
    z.union([z.literal("native"), count("pixels")]).optional(),
    "Side of the images; native: do not resize",
    { unit: "pixels", otherwise: "as preprocessor_config.json says" },
  ),
  batchSize: data(count("batch").default(16), "Images at a time"),
  ...reading,
  ...general,
});

export const inspectConfig = z.strictObject({
  path: input(text(), "File, run or folder; also as the argument", { value: "PATH" }),
  convert: output(text(), "Also write the tensors to this .safetensors file", { value: "FILE" }),
  ema: input(
    emaWidth.unwrap().optional(),
    "List the EMA snapshots of a run, and the error of the EMA with this relative width or decay rebuilt from them",
  ),
  out: output(
    text(),
    "With --ema: also write the model with that EMA, a .safetensors file or a folder for --model",
    {
      value: "FILE",
    },
  ),
  preset: input(text(), "Print the parameter count of a published model, or of all", { value: "NAME|all" }),
  ...general,
});

export const doctorConfig = z.strictObject({
  bench: output(flag(), "Measure GFLOP/s and GB/s"),
  tune: output(
    flag(),
    "Measure GEMM tiles on this adapter and remember the fastest (about 30 s without a GPU)",
  ),
  ...general,
});
