// How an option is declared: a schema with its default and range, and what help says about it. Also the options that several
// commands share.

import { z } from "zod";
import { count } from "../bounds.ts";

export { count };

/** What help and resuming know about an option. */
export interface About {
  group: string;
  /** A noun phrase or an imperative; a boolean that is on by default says what its `--no-` form does. */
  help: string;
  unit?: string;
  /** Name of the value in help, such as DIR; by default it follows from the type. */
  value?: string;
  /** What applies without the option, where that is no fixed default. */
  otherwise?: string;
  /** Only in `--help all`. */
  advanced?: true;
  /** May change when a run is resumed: it does not decide the result. */
  free?: true;
}

const registry = z.registry<About>();

/** Declares an option: field of a command's config, flag and key of a --config file. */
export function option<T extends z.ZodType>(
  schema: T,
  group: string,
  help: string,
  more: Omit<About, "group" | "help"> = {},
): T {
  registry.add(schema, { group, help, ...more });
  return schema;
}

export const aboutOption = (schema: z.ZodType): About | undefined => registry.get(schema);

/** The options of a command that may change when its run is resumed. */
export function freeOptions({ shape }: z.ZodObject<z.ZodRawShape>): ReadonlySet<string> {
  return new Set(Object.keys(shape).filter((name) => aboutOption(shape[name] as z.ZodType)?.free));
}

export const amount = () => z.number().nonnegative();
/** A value for each of the three stages. */
export const three = (a: number, b: number, c: number) =>
  z.array(z.number().nonnegative()).length(3).default([a, b, c]);

export const general = {
  seed: option(z.number().int().nonnegative().default(0), "General", "Random seed"),
  config: option(z.string().optional(), "General", "JSON file of options; flags override it", {
    value: "FILE",
    free: true,
  }),
  json: option(z.boolean().default(false), "General", "Print one JSON object per line on stdout", {
    free: true,
  }),
  cpu: option(z.boolean().default(false), "General", "Use the software adapter even if there is a GPU", {
    free: true,
  }),
  kernels: option(
    z.enum(["auto", "cpu", "gpu"]).default("auto"),
    "General",
    "Kernel variants; auto chooses by the adapter",
    { advanced: true, free: true },
  ),
  debug: option(z.boolean().default(false), "General", "Print stack traces", { advanced: true, free: true }),
};

export const encoder = {
  encoder: option(
    z.string().optional(),
    "Input",
    "Vision encoder: folder in Hugging Face layout, model name in the Hugging Face cache, or the authors' .pth",
    { value: "DIR", otherwise: "the embedded encoder", free: true },
  ),
  download: option(z.boolean().default(false), "Input", "Download the encoder if it is not in the cache", {
    free: true,
  }),
  interpolateOffset: option(
    z.number().min(0).lt(1).optional(),
    "Model",
    "Offset in position-embedding interpolation, scale = (side + offset) / stored side",
    { otherwise: "0.1 for DINOv2 .pth, else 0", advanced: true },
  ),
};

/** Options of everything that reads images. */
export const reading = {
  badImage: option(z.enum(["skip", "error"]).optional(), "Data", "What to do with a broken image", {
    otherwise: "error below 1,000 images, else skip",
    advanced: true,
    free: true,
  }),
  workers: option(
    z.number().int().min(0).max(64).optional(),
    "Data",
    "Threads that load images; 0: load on the main thread",
    { otherwise: "cores - 1, at most 8; 1 on a software adapter", advanced: true, free: true },
  ),
  imageMemory: option(z.number().positive().optional(), "Data", "Memory for decoding images, all threads", {
    unit: "MB",
    otherwise: "a quarter of the RAM",
    advanced: true,
    free: true,
  }),
};

export const imageSize = option(count("pixels").optional(), "Data", "Side of the images", {
  unit: "pixels",
  otherwise: "the tokenizer's",
});

export const tokenizer = option(
  z.string().optional(),
  "Input",
  "Tokenizer: run, diffusers folder or its name in the Hugging Face cache (stabilityai/sd-vae-ft-mse), or checkpoint of " +
    "LDM, SD-VAE or VA-VAE",
  { value: "RUN", otherwise: "the newest run with one" },
);

export const lpips = option(
  z.array(z.string()).min(1).optional(),
  "Input",
  "LPIPS-VGG weights: torchvision's vgg16 .pth and the linear layers vgg.pth",
  { value: "FILE,FILE", free: true },
);

export const running = {
  out: option(z.string().optional(), "Output", "Run directory", {
    value: "DIR",
    otherwise: "a new one under ./runs",
    free: true,
  }),
  resume: option(
    z.string().optional(),
    "Output",
    "Resume from the newest checkpoint of --out, or from a checkpoint FILE",
    { value: "[FILE]", free: true },
  ),
  dryRun: option(z.boolean().default(false), "Output", "Print parameters, FLOPs and memory, then stop", {
    free: true,
  }),
  saveEvery: option(
    z.number().int().nonnegative().default(500),
    "Output",
    "Steps between checkpoints; 0: only at the end",
    { free: true },
  ),
  keep: option(count().default(2), "Output", "Number of checkpoints to keep", { advanced: true, free: true }),
  logEvery: option(count().default(50), "Output", "Steps between log lines", { advanced: true, free: true }),
};

export const optimizing = (beta1: number, beta2: number) => ({
  precision: option(
    z.enum(["f32", "f16"]).default("f32"),
    "Training",
    "Storage of activations and of the weights that GEMMs read; f16 halves their memory",
  ),
  recompute: option(
    z.boolean().default(false),
    "Training",
    "Activation recomputation: less memory, about 1/3 more compute",
    { free: true },
  ),
  beta1: option(z.number().min(0).lt(1).default(beta1), "Optimizer", "AdamW's beta1", { advanced: true }),
  beta2: option(z.number().min(0).lt(1).default(beta2), "Optimizer", "AdamW's beta2", { advanced: true }),
  weightDecay: option(amount().default(0), "Optimizer", "AdamW's weight decay", { advanced: true }),
  clip: option(amount().default(1), "Optimizer", "Clip the global gradient norm; 0: no clipping", {
    advanced: true,
  }),
  warmup: option(z.number().int().nonnegative().default(20), "Optimizer", "Linear warm-up", {
    unit: "steps",
    advanced: true,
  }),
  lrEnd: option(z.number().min(0).max(1).default(0.1), "Optimizer", "Final learning rate / initial one", {
    advanced: true,
  }),
});

export const sampling = {
  cfg: option(z.number().default(4), "Sampling", "Guidance weight; 1: no guidance", { value: "W" }),
  steps: option(count().default(20), "Sampling", "Integration steps; LightningDiT: 250"),
  sampler: option(z.enum(["euler", "heun"]).default("euler"), "Sampling", "Integration method"),
  shift: option(z.number().positive().default(1), "Sampling", "Time shift; LightningDiT: 0.3", {
    value: "S",
  }),
  cfgInterval: option(
    z.array(z.number().min(0).max(1)).length(2).default([0.1, 1]),
    "Sampling",
    "Times with guidance (0 noise, 1 data)",
    { value: "FROM,TO", advanced: true },
  ),
  cfgChannels: option(
    z.union([z.literal("all"), count()]).default("all"),
    "Sampling",
    "Number of guided channels; LightningDiT: 3",
    { advanced: true },
  ),
};
