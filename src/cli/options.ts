// Options that several commands share, and how one is made: a schema with default and range, and what help says of it.

import { z } from "zod";
import { count } from "../bounds.ts";

export { count };

interface About {
  group: string;
  help: string;
  unit?: string;
}

/** What help and messages know about a field. */
export const about = new WeakMap<z.ZodType, About>();

export function option<T extends z.ZodType>(schema: T, group: string, help: string, unit?: string): T {
  about.set(schema, unit === undefined ? { group, help } : { group, help, unit });
  return schema;
}

export const amount = () => z.number().nonnegative();
export const three = (a: number, b: number, c: number) =>
  z.array(z.number().nonnegative()).length(3).default([a, b, c]);

export const general = {
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

export const encoder = {
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

export const badImage = option(
  z.enum(["skip", "error"]).optional(),
  "Data",
  "What to do with a broken image; default: error below 1,000 images, skip from there on",
);

export const workers = option(
  z.number().int().min(0).max(64).optional(),
  "Data",
  "Threads that decode or draw images; 0: none; default: the cores less one, at most 8, on a software adapter 1",
);

export const imageMemory = option(
  z.number().positive().optional(),
  "Data",
  "Memory for decoding images, all threads together [a quarter of the RAM]",
  "MB",
);

export const imageSize = option(
  count("pixels").optional(),
  "Data",
  "Side of the images; default: the tokenizer's",
  "pixels",
);

export const tokenizer = option(
  z.string().optional(),
  "Model",
  "Run or folder of a tokenizer; diffusers folder, or its name in the Hugging Face cache (stabilityai/sd-vae-ft-mse); " +
    "checkpoint of an LDM, SD-VAE or VA-VAE autoencoder; default: the newest run that has one",
);

export const lpips = option(
  z.array(z.string()).min(1).optional(),
  "Metrics",
  "LPIPS-VGG's weights: torchvision's vgg16 .pth and the published linear layers vgg.pth, comma-separated",
);

export const running = {
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

export const optimizing = (beta1: number, beta2: number) => ({
  beta1: option(z.number().min(0).lt(1).default(beta1), "Optimizer", "AdamW's first decay"),
  beta2: option(z.number().min(0).lt(1).default(beta2), "Optimizer", "AdamW's second decay"),
  weightDecay: option(amount().default(0), "Optimizer", "AdamW's weight decay"),
  clip: option(amount().default(1), "Optimizer", "Largest global norm of the gradients; 0: no clipping"),
  warmup: option(z.number().int().nonnegative().default(20), "Optimizer", "Steps of linear warm-up", "steps"),
  precision: option(
    z.enum(["f32", "f16"]).default("f32"),
    "Optimizer",
    "How activations, and the weights that products read, are stored while training; f16 halves the memory of activations",
  ),
  recompute: option(
    z.boolean().default(false),
    "Optimizer",
    "Recompute blocks in the backward pass instead of keeping their activations: less memory, more time, the same results; in f16 but for rounding",
  ),
  lrEnd: option(
    z.number().min(0).max(1).default(0.1),
    "Optimizer",
    "Share of the rate that is left at the end",
  ),
});

export const sampling = {
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
