// What runs leave for each other: tokenizers and diffusion models as folders of config.json and model.safetensors, and
// encoders in Hugging Face layout. The embedded encoder goes through the same loader as a published one.

import { fromFileUrl, join } from "@std/path";
import { z } from "zod";
import { UsageError } from "../errors.ts";
import { exists, makeFolder, readJson, writeJson } from "../io/files.ts";
import { openModel } from "../io/shards.ts";
import { writeSafetensors } from "../io/safetensors.ts";
import { Dit, ditConfig } from "../models/dit.ts";
import { Tokenizer, type TokenizerConfig, tokenizerConfig } from "../models/tokenizer.ts";
import { type Vit, type VitConfig, vitConfig } from "../models/vit.ts";
import { loadState, saveState, type TensorSource } from "../nn.ts";

/** The encoder that comes with tok: trained by tasks/dev/pretrain_encoder.ts on generated images. */
export const EMBEDDED_ENCODER = fromFileUrl(new URL("../models/tiny", import.meta.url));

const preprocessor = z.object({
  image_mean: z.array(z.number()).length(3).default([0.485, 0.456, 0.406]),
  image_std: z.array(z.number()).length(3).default([0.229, 0.224, 0.225]),
  size: z.union([
    z.object({ shortest_edge: z.number().int().positive() }),
    z.object({ height: z.number().int().positive(), width: z.number().int().positive() }),
  ]).default({ shortest_edge: 256 }),
  crop_size: z.object({ height: z.number().int().positive(), width: z.number().int().positive() }).optional(),
  do_center_crop: z.boolean().default(true),
  resample: z.number().int().default(3),
});

/** An encoder folder: architecture, preprocessing, and the weights ready to be read. */
export interface EncoderFolder {
  path: string;
  config: VitConfig;
  mean: number[];
  std: number[];
  /** Side that the shorter edge is resized to, and the side of the centre crop. */
  resize: number;
  crop: number;
  filter: "box" | "bilinear" | "bicubic" | "lanczos";
  load(vit: Vit): Promise<void>;
}

/** Reads an encoder folder's configuration. @throws UsageError when something is missing or unsupported */
export function openEncoder(path: string = EMBEDDED_ENCODER): EncoderFolder {
  if (!exists(join(path, "config.json"))) {
    throw new UsageError(
      `Cannot load the encoder "${path}": there is no "config.json" in it; check the path`,
    );
  }
  const raw = readJson(join(path, "config.json"));
  const config = parsed(vitConfig, raw, join(path, "config.json"));
  const file = join(path, "preprocessor_config.json");
  const p = parsed(preprocessor, exists(file) ? readJson(file) : {}, file);
  const resize = "shortest_edge" in p.size ? p.size.shortest_edge : p.size.height;
  const filter = ({ 0: "box", 1: "lanczos", 2: "bilinear", 3: "bicubic" } as const)[p.resample];
  if (!filter) {
    throw new UsageError(`Cannot use "${file}": the resample filter ${p.resample} is not supported`);
  }
  return {
    path,
    config,
    mean: p.image_mean,
    std: p.image_std,
    resize,
    crop: p.do_center_crop ? p.crop_size?.height ?? resize : resize,
    filter,
    async load(vit) {
      const store = await openModel(path);
      try {
        await loadEncoder(vit, store);
      } finally {
        store.close();
      }
    },
  };
}

/** Classification checkpoints wrap the encoder: their prefix is taken off, and their head is left out. */
async function loadEncoder(vit: Vit, store: TensorSource): Promise<void> {
  const keys = [...store.shapes.keys()];
  const prefix = ["dinov2.", "dinov2_with_registers."].find((p) => keys.some((key) => key.startsWith(p))) ??
    "";
  await loadState(vit, store, { prefix, ignore: /^classifier\./ });
}

/** A tokenizer from RUN/tokenizer, or from its folder itself. */
export async function openTokenizer(run: string): Promise<Tokenizer> {
  const folder = partOf(run, "tokenizer", 'a tokenizer; make one with "tok align"');
  const config = parsed(tokenizerConfig, readJson(join(folder, "config.json")), join(folder, "config.json"));
  const tokenizer = new Tokenizer(config);
  await loadFrom(tokenizer, folder);
  return tokenizer;
}

export async function saveTokenizer(run: string, tokenizer: Tokenizer): Promise<void> {
  await saveTo(join(run, "tokenizer"), tokenizer, tokenizer.config satisfies TokenizerConfig);
}

/** A diffusion model's own description: its architecture, and what it was trained on. */
export const modelConfig = z.object({
  dit: ditConfig,
  /** The tokenizer run whose latents it makes. */
  tokenizer: z.string(),
  classes: z.array(z.string()),
  /** Per-channel statistics of the latents that it was trained on: it works on (z - mean) / std. */
  latent_mean: z.array(z.number()),
  latent_std: z.array(z.number()),
});
export type ModelConfig = z.infer<typeof modelConfig>;

/** A diffusion model from RUN/model, or from its folder itself. */
export async function openDit(run: string): Promise<{ dit: Dit; config: ModelConfig }> {
  const folder = partOf(run, "model", 'a diffusion model; make one with "tok train-dit"');
  const config = parsed(modelConfig, readJson(join(folder, "config.json")), join(folder, "config.json"));
  const dit = new Dit(config.dit);
  await loadFrom(dit, folder);
  return { dit, config };
}

export async function saveDit(run: string, dit: Dit, config: ModelConfig): Promise<void> {
  await saveTo(join(run, "model"), dit, config);
}

function partOf(run: string, part: string, what: string): string {
  for (const folder of [join(run, part), run]) {
    if (exists(join(folder, "config.json")) && exists(join(folder, "model.safetensors"))) return folder;
  }
  throw new UsageError(`Cannot use "${run}": it does not hold ${what}`);
}

async function loadFrom(module: object, folder: string): Promise<void> {
  const store = await openModel(folder);
  try {
    await loadState(module, store);
  } finally {
    store.close();
  }
}

/** Weights first: a folder with a config.json is complete. */
async function saveTo(folder: string, module: object, config: unknown): Promise<void> {
  makeFolder(folder);
  await writeSafetensors(join(folder, "model.safetensors"), await saveState(module), { format: "pt" });
  writeJson(join(folder, "config.json"), config);
}

function parsed<T>(schema: z.ZodType<T>, value: unknown, path: string): T {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const { path: at, message } = result.error.issues[0] as z.core.$ZodIssue;
  throw new UsageError(`Cannot use "${path}": ${at.join(".") || "the file"}: ${message}`);
}
