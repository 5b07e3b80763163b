// What runs leave for each other: tokenizers and diffusion models as folders of config.json and model.safetensors.

import { join } from "@std/path";
import { z } from "zod";
import { UsageError } from "../errors.ts";
import { exists, makeFolder, readJson, validated, writeJson } from "../io/files.ts";
import { openModel } from "../io/shards.ts";
import { writeSafetensors } from "../io/safetensors.ts";
import { Dit, ditConfig } from "../models/dit.ts";
import { Tokenizer, type TokenizerConfig, tokenizerConfig } from "../models/tokenizer.ts";
import { loadState, saveState } from "../nn.ts";

/** A tokenizer from RUN/tokenizer, or from its folder itself. */
export async function openTokenizer(run: string): Promise<Tokenizer> {
  const folder = partOf(run, "tokenizer", 'a tokenizer; make one with "tok align"');
  const config = validated(
    tokenizerConfig,
    readJson(join(folder, "config.json")),
    join(folder, "config.json"),
  );
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
  const config = validated(modelConfig, readJson(join(folder, "config.json")), join(folder, "config.json"));
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
