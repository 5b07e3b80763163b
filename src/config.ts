// Every command's options as one schema each: field name = flag (in kebab-case) = key of a --config file, with default, range,
// unit and help beside each other. Defaults are the preset "tiny"; recipe numbers carry their grade: [S] stated by the
// authors of AlignTok, [N] from notes that agree, [C] one note, [I] our inference.

import { z } from "zod";

interface About {
  group: string;
  help: string;
  unit?: string;
}

/** What help and messages know about a field. */
export const about = new WeakMap<z.ZodType, About>();

function option<T extends z.ZodType>(schema: T, group: string, help: string, unit?: string): T {
  about.set(schema, unit === undefined ? { group, help } : { group, help, unit });
  return schema;
}

const count = () => z.number().int().positive();
const amount = () => z.number().nonnegative();
const three = (a: number, b: number, c: number) =>
  z.array(z.number().nonnegative()).length(3).default([a, b, c]);

const general = {
  seed: option(z.number().int().nonnegative().default(0), "General", "Seed of everything random"),
  cpu: option(z.boolean().default(false), "General", "Use the software adapter even where there is a GPU"),
  kernels: option(
    z.enum(["auto", "cpu", "gpu"]).default("auto"),
    "General",
    "Kernel variants; auto goes by the adapter",
  ),
  json: option(z.boolean().default(false), "General", "Print one JSON object a line on stdout"),
  debug: option(z.boolean().default(false), "General", "Show stack traces"),
  config: option(z.string().optional(), "General", "JSON file with options; flags go before it"),
};

const encoder = {
  encoder: option(
    z.string().optional(),
    "Model",
    "Encoder: a folder in Hugging Face layout, a name in its cache (facebook/dinov2-large), or the authors' .pth; " +
      "default: the embedded one",
  ),
  download: option(
    z.boolean().default(false),
    "Model",
    "Fetch an encoder that the Hugging Face cache has not got",
  ),
  interpolateOffset: option(
    z.number().min(0).lt(1).optional(),
    "Model",
    "Stretch stored positions by (n + offset) / N; default: as the files' own code, 0.1 for DINOv2's .pth, else 0",
  ),
};

const badImage = option(
  z.enum(["skip", "error"]).optional(),
  "Data",
  "What to do with a broken image; default: error below 1,000 images, skip from there on",
);

const imageSize = option(
  count().optional(),
  "Data",
  "Side of the images; default: the tokenizer's",
  "pixels",
);

const tokenizer = option(
  z.string().optional(),
  "Model",
  "Run or folder of a tokenizer; diffusers folder, or its name in the Hugging Face cache (stabilityai/sd-vae-ft-mse); " +
    "checkpoint of an LDM, SD-VAE or VA-VAE autoencoder; default: the newest run that has one",
);

const running = {
  out: option(z.string().optional(), "Output", "Run folder; default: a new one under ./runs"),
  logEvery: option(count().default(50), "Output", "Steps between log lines"),
  saveEvery: option(
    z.number().int().nonnegative().default(500),
    "Output",
    "Steps between checkpoints; 0: only at the end",
  ),
  keep: option(count().default(2), "Output", "Checkpoints that are kept"),
  resume: option(
    z.string().optional(),
    "Output",
    "Go on from the newest checkpoint of --out, or from this FILE",
  ),
  dryRun: option(z.boolean().default(false), "Output", "Print parameters, FLOPs and bytes, then stop"),
};

const optimizing = (beta1: number, beta2: number) => ({
  beta1: option(z.number().min(0).lt(1).default(beta1), "Optimizer", "AdamW's first decay"),
  beta2: option(z.number().min(0).lt(1).default(beta2), "Optimizer", "AdamW's second decay"),
  weightDecay: option(amount().default(0), "Optimizer", "AdamW's weight decay"),
  clip: option(amount().default(1), "Optimizer", "Largest global norm of the gradients; 0: no clipping"),
  warmup: option(z.number().int().nonnegative().default(20), "Optimizer", "Steps of linear warm-up", "steps"),
  lrEnd: option(
    z.number().min(0).max(1).default(0.1),
    "Optimizer",
    "Share of the rate that is left at the end",
  ),
});

export const alignConfig = z.strictObject({
  preset: option(
    z.enum(["tiny", "dinov2-b", "dinov2-l"]).default("tiny"),
    "Model",
    "Named set of values for all options",
  ),
  ...encoder,
  latentChannels: option(count().default(16), "Model", "Channels of the latent; the paper: 32 [N]"),
  adapterHidden: option(
    count().optional(),
    "Model",
    "Hidden width of the adapter; default: the encoder's [I]",
  ),
  decoderChannels: option(count().default(16), "Model", "Decoder channels at full resolution; VA-VAE: 128"),
  decoderMultiples: option(
    z.array(count()).min(1).default([1, 1, 2, 4]),
    "Model",
    "Multiples for each level, full resolution first; each level halves the side",
  ),
  decoderBlocks: option(
    z.number().int().nonnegative().default(0),
    "Model",
    "Residual blocks a level, less one; VA-VAE: 2",
  ),
  decoderGroups: option(count().default(4), "Model", "Groups of group norm; VA-VAE: 32"),
  decoderAttention: option(
    z.array(z.number().int().nonnegative()).default([0]),
    "Model",
    "Sides of maps with attention; 0: none",
  ),
  data: option(z.string().optional(), "Data", "Folder of images; default: generated shapes"),
  imageSize: option(count().default(32), "Data", "Side of the images", "pixels"),
  batchSize: option(count().default(8), "Data", "Images of a micro-batch"),
  accumulate: option(count().default(1), "Data", "Micro-batches of a step"),
  heldOut: option(count().default(256), "Data", "Images kept apart for the metrics of each stage"),
  flip: option(z.boolean().default(false), "Data", "Flip half of the images"),
  badImage,
  stages: option(
    z.array(z.number().int().min(1).max(3)).min(1).default([1, 2, 3]),
    "Stages",
    "Stages to run [S]: 1 latent, 2 perceptual, 3 refine",
  ),
  steps: option(z.array(count()).length(3).default([300, 1400, 350]), "Stages", "Steps of the three stages"),
  lr: option(three(1.5e-3, 1e-3, 1e-3), "Stages", "Learning rates of the three stages; at scale 1e-4 [I]"),
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
    z.enum(["encoder", "none"]).default("encoder"),
    "Losses",
    "Perceptual loss: distance of the frozen encoder's features, or none",
  ),
  wPerceptual: option(amount().default(0.01), "Losses", "Weight of the perceptual loss"),
  wSemantic: option(
    amount().default(0.4),
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
    z.array(z.number().int().nonnegative()).length(3).default([300, 1400, 270]),
    "Losses",
    "Step of each stage from which the adversarial loss counts",
  ),
  discriminatorChannels: option(count().default(16), "Losses", "First width of the discriminator; LDM: 64"),
  discriminatorLayers: option(count().default(2), "Losses", "Its layers; LDM: 3"),
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
  images: option(count().default(4000), "Data", "How many generated images where no data is given"),
  flip: option(z.boolean().default(false), "Data", "Use flipped copies too"),
  badImage,
  steps: option(count().default(1200), "Training", "Training steps"),
  batchSize: option(count().default(24), "Training", "Latents of a step"),
  lr: option(amount().default(2e-3), "Training", "Learning rate; LightningDiT: 2e-4"),
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

const sampling = {
  cfg: option(z.number().default(4), "Sampling", "Guidance weight; 1: none"),
  cfgInterval: option(
    z.array(z.number().min(0).max(1)).length(2).default([0.1, 1]),
    "Sampling",
    "Times between which guidance acts (0 noise, 1 data)",
  ),
  cfgChannels: option(
    z.union([z.literal("all"), count()]).default("all"),
    "Sampling",
    "How many channels are guided; LightningDiT: 3",
  ),
  sampler: option(z.enum(["euler", "heun"]).default("euler"), "Sampling", "Method of integration"),
  steps: option(count().default(20), "Sampling", "Steps of integration; LightningDiT: 250"),
  shift: option(z.number().positive().default(1), "Sampling", "Time shift s; LightningDiT: 0.3"),
};

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
  num: option(count().default(200), "Output", "How many images"),
  classes: option(z.string().default("all"), "Output", "Class numbers or names, comma-separated, or all"),
  out: option(z.string().optional(), "Output", "Folder for the images; default: a new one under ./runs"),
  folders: option(z.boolean().default(false), "Output", "One folder for each class"),
  npz: option(z.boolean().default(false), "Output", "Also write samples.npz (arr_0 images, arr_1 labels)"),
  batchSize: option(count().default(50), "Sampling", "Images at a time; changes nothing in them"),
  ...sampling,
  ...general,
});
export type SampleConfig = z.infer<typeof sampleConfig>;

export const reconstructConfig = z.strictObject({
  tokenizer,
  input: option(z.string().optional(), "Data", "Folder of images or one image; default: generated shapes"),
  imageSize,
  num: option(count().default(64), "Data", "How many generated images where no input is given"),
  out: option(z.string().optional(), "Output", "Folder for the images; default: a new one under ./runs"),
  grid: option(z.boolean().default(true), "Output", "Write grid.png, originals over reconstructions"),
  batchSize: option(count().default(32), "Data", "Images at a time"),
  badImage,
  ...general,
});
export type ReconstructConfig = z.infer<typeof reconstructConfig>;

export const encodeConfig = z.strictObject({
  tokenizer,
  data: option(z.string().optional(), "Data", "Folder of images; default: generated shapes"),
  imageSize,
  images: option(count().default(6000), "Data", "How many generated images where no data is given"),
  flip: option(z.boolean().default(true), "Data", "Also encode a flipped copy of each image"),
  out: option(z.string().optional(), "Output", "Folder for the latents; default: a new one under ./runs"),
  batchSize: option(count().default(32), "Data", "Images at a time"),
  badImage,
  ...general,
});
export type EncodeConfig = z.infer<typeof encodeConfig>;

export const featuresConfig = z.strictObject({
  ...encoder,
  input: option(z.string().optional(), "Data", "Folder of images or one image; default: 16 generated shapes"),
  imageSize: option(
    z.union([z.literal("native"), count()]).optional(),
    "Data",
    "Side, or native for no resizing; default: as the encoder's preprocessor_config.json says",
  ),
  out: option(
    z.string().default("features.safetensors"),
    "Output",
    "File for patch_tokens [N,T,C] and cls_token [N,C]",
  ),
  batchSize: option(count().default(16), "Data", "Images at a time"),
  badImage,
  ...general,
});
export type FeaturesConfig = z.infer<typeof featuresConfig>;

export const METRICS = ["psnr", "ssim", "probe", "knn", "fd-encoder", "classes"] as const;

export const evalConfig = z.strictObject({
  real: option(z.string().optional(), "Data", "Folder or NPZ of real images; default: generated shapes"),
  fake: option(z.string().optional(), "Data", "Folder or NPZ of images to score against them"),
  tokenizer: option(z.string().optional(), "Data", "Score a tokenizer: reconstruction and probes"),
  model: option(
    z.string().optional(),
    "Data",
    "Score a diffusion model: sample, then score; default: the newest run that has one",
  ),
  data: option(z.string().optional(), "Data", "Images for --tokenizer; default: generated shapes"),
  num: option(count().default(200), "Data", "Images of each set"),
  metrics: option(
    z.array(z.enum(METRICS)).default([...METRICS]),
    "Metrics",
    "Which scores, where they apply",
  ),
  ...encoder,
  out: option(z.string().optional(), "Output", "Folder for metrics.json; default: a new one under ./runs"),
  batchSize: option(count().default(50), "Metrics", "Images at a time"),
  badImage,
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
  ...general,
});
