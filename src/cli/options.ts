// The options that several commands share.

import { z } from "zod";
import { count } from "../bounds.ts";
import { parseBytes } from "../formats/files.ts";
import { PROVIDERS } from "../gpu/provider.ts";
import { GROUPS } from "./about.ts";
import { guidance } from "./guidance.ts";
import { isSchedule } from "./key_steps.ts";

const { input, output, data, model, training, optimizer, sample, common } = GROUPS;

export const text = () => z.string().optional();
export const flag = () => z.boolean().default(false);
export const amount = () => z.number().nonnegative();
/** A value for each of the three stages, or for the only stage of a recipe. */
export const perStage = <T extends z.ZodType>(value: T) =>
  z.array(value).refine((values) => values.length === 1 || values.length === 3, "give three values, or one");

/** Encoder, size and latent of each; presets.ts has their options. */
export const ALIGN_PRESET_NAMES = [
  "tiny",
  "small",
  "dinov2-b-f16d32",
  "dinov2-l-f16d32",
  "dinov2-l-f16d64",
  "dinov2-l-f16d32-512",
  "siglip2-b-f16d32",
  "siglip2-l-f16d32",
  "siglip2-l-f16d32-512",
  "mae-l-f16d32",
  "mae-l-f16d32-512",
] as const;

/** Numbers of images are u32 on the device. */
const MAX_NUMBER = 2 ** 32 - 1;

/** A-B as its two ends, inclusive, or one number as both; undefined if a text is neither, or A is larger than B. */
export function parseRange(text: string): [first: number, last: number] | undefined {
  const [, a, b = a] = /^(\d+)(?:-(\d+))?$/.exec(text) ?? [];
  const first = Number(a), last = Number(b);
  return a !== undefined && first <= last && last <= MAX_NUMBER ? [first, last] : undefined;
}

/** An option that takes numbers of images. */
export const range = () =>
  z.string().refine(
    (text) => parseRange(text) !== undefined,
    "give first-last, such as 0-9, or one number",
  )
    .optional();

export const decay = z.number().min(0).lt(1);
const PARTS = ["encoder", "adapter", "decoder"];
/** Whether a text names parts of a tokenizer, each once. */
export const isPartList = (text: string) => {
  const names = text.split("+");
  return names.every((name, i) => PARTS.includes(name) && names.indexOf(name) === i);
};

export const general = {
  seed: common(z.number().int().nonnegative().default(0), "Random seed"),
  config: common(text(), "JSON file of options; flags override it", { value: "FILE", free: true }),
  json: common(flag(), "Print one JSON object per line on stdout", { free: true }),
  cpu: common(flag(), "Use the software adapter even if there is a GPU", { free: true }),
  gpu: common(
    z.enum(PROVIDERS).optional(),
    "WebGPU implementation: Deno's own, or Dawn (npm:webgpu), which reaches tensor cores",
    { otherwise: "TOK_GPU, else deno", advanced: true, free: true },
  ),
  kernels: common(
    z.enum(["auto", "cpu", "gpu", "matrix"]).default("auto"),
    "Kernel variants; auto chooses by the adapter; gpu: without subgroup matrices; matrix: gpu, with them required for fp16",
    { advanced: true, free: true },
  ),
  debug: common(flag(), "Print stack traces", { advanced: true, free: true }),
};

export const encoder = {
  encoder: input(
    text(),
    "Vision encoder: folder in Hugging Face layout, model name in the Hugging Face cache, or the authors' .pth",
    { value: "DIR", otherwise: "the embedded encoder", free: true },
  ),
  download: input(flag(), "Download the encoder if it is not in the cache", { free: true }),
  interpolateOffset: model(
    z.number().min(0).lt(1).optional(),
    "Offset in position-embedding interpolation, scale = (side + offset) / stored side",
    { otherwise: "0.1 for DINOv2 .pth, else 0", advanced: true },
  ),
};

/** Options of everything that reads images. */
export const reading = {
  badImage: data(
    z.enum(["skip", "error"]).optional(),
    "A broken image: skip uses another one of its class, error stops",
    {
      otherwise: "error below 1,000 images, else skip",
      advanced: true,
      free: true,
    },
  ),
  imageColumn: data(text(), "Column of the images in Parquet files", {
    value: "NAME",
    otherwise: "the one of structs with bytes",
    advanced: true,
    free: true,
  }),
  labelColumn: data(text(), "Column of the classes in Parquet files", {
    value: "NAME",
    otherwise: '"label", else the only class column',
    advanced: true,
    free: true,
  }),
  workers: data(
    z.number().int().min(0).max(64).optional(),
    "Threads that load images; 0: load on the main thread",
    { otherwise: "cores - 1, at most 8; 1 on a software adapter", advanced: true, free: true },
  ),
  imageMemory: data(z.number().positive().optional(), "Memory for decoding images, all threads", {
    unit: "MB",
    otherwise: "a quarter of the RAM",
    advanced: true,
    free: true,
  }),
};

export const imageSize = data(count("pixels").optional(), "Side of the images", {
  unit: "pixels",
  otherwise: "the tokenizer's",
});

export const tokenizer = input(
  text(),
  "Tokenizer: run, diffusers folder or its name in the Hugging Face cache (stabilityai/sd-vae-ft-mse), or checkpoint of " +
    "LDM, SD-VAE or VA-VAE",
  { value: "RUN", otherwise: "the newest run with one" },
);

export const lpips = input(
  z.array(z.string()).min(1).optional(),
  "LPIPS-VGG weights: torchvision's vgg16 .pth and the linear layers vgg.pth",
  { value: "FILE,FILE", free: true },
);

export const running = {
  out: output(text(), "Run directory", { value: "DIR", otherwise: "a new one under ./runs", free: true }),
  resume: output(text(), "Resume from the newest checkpoint of --out, or from a checkpoint FILE", {
    value: "[FILE]",
    free: true,
  }),
  dryRun: output(flag(), "Print parameters, FLOPs and memory, then stop", { free: true }),
  explain: output(flag(), "Print the value, origin and evidence of each option, then stop", { free: true }),
  saveEvery: output(
    z.number().int().nonnegative().default(500),
    "Steps between checkpoints; 0: only at the end",
    { free: true },
  ),
  keep: output(count().default(2), "Number of checkpoints to keep", { advanced: true, free: true }),
  keepEvery: output(
    z.number().int().nonnegative().default(0),
    "Steps of the run between checkpoints that are never removed; 0: none",
    { advanced: true, free: true },
  ),
  tensorboard: output(flag(), "Also write TensorBoard event files to the run directory", { free: true }),
  logEvery: output(count().default(50), "Steps between log lines", { advanced: true, free: true }),
};

export const validating = {
  val: input(text(), "Held-out images for the metrics, as --data, of the same classes", {
    value: "PATH",
    otherwise: "a part of --data",
    free: true,
  }),
  valEvery: output(
    z.number().int().nonnegative().default(0),
    "Steps of the run between validations (EMA weights); 0: only after each stage",
    { free: true },
  ),
  best: output(
    z.enum(["psnr", "ssim", "lpips", "fd-encoder", "probe", "knn"]).optional(),
    "Metric that chooses the best checkpoint, which is never removed",
    { otherwise: "psnr with --val-every, else none", advanced: true, free: true },
  ),
};

export const optimizing = (beta1: number, beta2: number) => ({
  precision: training(
    z.enum(["f32", "f16"]).default("f32"),
    "Storage of activations and of the weights that GEMMs read; f16 takes half of the memory, and uses tensor cores with --gpu dawn",
  ),
  recompute: training(flag(), "Activation recomputation: less memory, 16 to 33 % more compute", {
    free: true,
  }),
  memory: training(
    z.string().refine((size) => parseBytes(size) !== undefined, "give a size such as 24 gb or 24 gib")
      .optional(),
    "Choose the largest micro-batch that fits, and the accumulation that keeps the batch; --dry-run: list what fits",
    { value: "SIZE", otherwise: "--batch-size as it is", free: true },
  ),
  beta1: optimizer(z.number().min(0).lt(1).default(beta1), "AdamW's beta1", { advanced: true }),
  beta2: optimizer(z.number().min(0).lt(1).default(beta2), "AdamW's beta2", { advanced: true }),
  weightDecay: optimizer(amount().default(0), "Decoupled weight decay", { advanced: true }),
  clip: optimizer(amount().default(1), "Clip the global gradient norm; 0: no clipping", { advanced: true }),
  warmup: optimizer(z.number().int().nonnegative().default(20), "Linear warm-up", {
    unit: "steps",
    advanced: true,
  }),
  lrSchedule: optimizer(
    z.enum(["linear", "cosine", "constant"]).default("linear"),
    "Decay of the learning rate to --lr-end over a stage, on top of the warm-up; constant: no decay",
    { advanced: true },
  ),
  lrEnd: optimizer(
    z.number().min(0).max(1).default(0.1),
    "Final learning rate as a fraction of --lr, after a linear or cosine decay",
    { advanced: true },
  ),
});

export const sampling = {
  ...guidance,
  steps: sample(count().default(20), "Integration steps; LightningDiT: 250"),
  sampler: sample(
    z.enum(["euler", "heun", "midpoint", "rk4", "dopri5", "dpm++2m", "unipc", "sde", "euler-stochastic"])
      .default("euler"),
    "Integration method: heun for 20 to 50 steps; dpm++2m, unipc for fewer; dopri5: adaptive steps; sde, euler-stochastic: " +
      "stochastic",
  ),
  spacing: sample(
    z.enum(["shifted", "uniform", "log-snr"]).default("shifted"),
    "Time grid: shifted (uniform, then --shift), uniform, or log-snr (uniform in the log signal-to-noise ratio)",
    { advanced: true },
  ),
  shift: sample(
    z.number().positive().default(1),
    "Time shift of the grid; below 1: more steps near the noise; LightningDiT: 0.3",
    { value: "S" },
  ),
  atol: sample(z.number().positive().default(1e-6), "Absolute tolerance of --sampler dopri5", {
    advanced: true,
  }),
  rtol: sample(z.number().positive().default(1e-3), "Relative tolerance of --sampler dopri5", {
    advanced: true,
  }),
  diffusionForm: sample(
    z.enum(["constant", "sigma", "linear", "sbdm", "decreasing", "increasing-decreasing"]).default("sigma"),
    "Noise strength over time of --sampler sde, as SiT names it",
    { advanced: true },
  ),
  lastStep: sample(
    z.enum(["mean", "tweedie", "euler"]).default("mean"),
    "Noise-free last step of --sampler sde: mean (drift only), tweedie (data prediction), euler (ODE step)",
    { advanced: true },
  ),
  lastStepSize: sample(
    z.number().gt(0).lt(1).default(0.04),
    "Length of the last step of --sampler sde, in time",
    {
      advanced: true,
    },
  ),
  reuseEncoder: sample(
    z.string().refine(
      isSchedule,
      "give every-2, a share of the steps such as 0.3, or step numbers from 0 on such as 0-5-10",
    )
      .optional(),
    "Faster Diffusion: run the first half of the DiT's blocks at key steps only, and reuse its output in between. Key steps: " +
      "every-2, a share of the steps (0.3), or step numbers from 0 on (0-5-10)",
    { value: "SCHEDULE", otherwise: "every step", advanced: true },
  ),
};
