// What runs leave for each other: tokenizers and diffusion models as folders of config.json and model.safetensors. In the
// same places published checkpoints are taken, so that every command works with either.

import { join } from "@std/path";
import { z } from "zod";
import { UsageError } from "../errors.ts";
import { exists, makeFolder, readJson, validated, writeJson } from "../io/files.ts";
import { cachedModel, isModelName } from "../io/hub.ts";
import { readStatistics } from "../io/latents.ts";
import { openModel } from "../io/shards.ts";
import { writeSafetensors } from "../io/safetensors.ts";
import { Dit, ditConfig } from "../models/dit.ts";
import {
  type ImageTokenizer,
  type LatentStatistics,
  Tokenizer,
  type TokenizerConfig,
  tokenizerConfig,
} from "../models/tokenizer.ts";
import { loadState, saveState } from "../nn.ts";
import { isFile, openAutoencoder, openLightningDit } from "./published.ts";

/**
 * A tokenizer from RUN/tokenizer or that folder itself, or a published autoencoder: a diffusers folder, its name in the
 * local Hugging Face cache, or a checkpoint file of LDM, SD-VAE or VA-VAE.
 * @param path undefined where the caller's model does not say which
 */
export async function openTokenizer(path: string | undefined): Promise<ImageTokenizer> {
  if (path === undefined) {
    throw new UsageError(
      "Cannot make images: a published diffusion model does not say which tokenizer its latents are of; " +
        "name it with --tokenizer",
    );
  }
  const folder = partOf(path, "tokenizer");
  if (folder === undefined) {
    const cached = !exists(path) && isModelName(path) ? cachedModel(path) : undefined;
    const autoencoder = await openAutoencoder(cached ?? path);
    if (autoencoder) return autoencoder;
    throw new UsageError(
      `Cannot use "${path}": it does not hold a tokenizer; make one with "tok align", or name a diffusers folder, one in ` +
        `the Hugging Face cache, or a checkpoint of LDM, SD-VAE or VA-VAE`,
    );
  }
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
  /** The tokenizer whose latents it makes; published models do not say. */
  tokenizer: z.string().optional(),
  classes: z.array(z.string()),
  /** Per-channel statistics of the latents that it was trained on: it works on (z - mean) / std. Published models lack them. */
  latent_mean: z.array(z.number()).optional(),
  latent_std: z.array(z.number()).optional(),
});
export type ModelConfig = z.infer<typeof modelConfig>;

export interface DiffusionModel {
  dit: Dit;
  config: ModelConfig;
}

/** A diffusion model from RUN/model or that folder itself, or from a checkpoint file of LightningDiT's authors. */
export async function openDit(path: string): Promise<DiffusionModel> {
  const folder = partOf(path, "model");
  if (folder === undefined) {
    if (!isFile(path)) {
      throw new UsageError(
        `Cannot use "${path}": it does not hold a diffusion model; make one with "tok train-dit", or name a checkpoint ` +
          `of LightningDiT`,
      );
    }
    const dit = await openLightningDit(path);
    const classes = Array.from({ length: dit.config.num_classes }, (_, i) => String(i));
    return { dit, config: { dit: dit.config, classes } };
  }
  const config = validated(modelConfig, readJson(join(folder, "config.json")), join(folder, "config.json"));
  const dit = new Dit(config.dit);
  await loadFrom(dit, folder);
  return { dit, config };
}

/**
 * A diffusion model with the tokenizer of its latents, and what those are normalised with.
 * @param options.tokenizer instead of the one that the model names
 * @param options.latents folder with the statistics of the latents that the model was trained on, instead of the model's or
 * the tokenizer's
 * @throws UsageError when the two do not fit, or nothing says the statistics
 */
export async function openGenerator(
  path: string,
  options: { tokenizer?: string | undefined; latents?: string | undefined } = {},
): Promise<{ model: DiffusionModel; tokenizer: ImageTokenizer; origin: string }> {
  const model = await openDit(path);
  const tokenizer = await openTokenizer(options.tokenizer ?? model.config.tokenizer);
  const C = model.config.dit.in_channels;
  if (C !== tokenizer.channels) {
    throw new UsageError(
      `Cannot sample from "${path}": it makes latents of ${C} channels, the tokenizer's have ${tokenizer.channels}; ` +
        `name another with --tokenizer`,
    );
  }
  const { mean, std, origin } = await statisticsOf(path, model.config, tokenizer, options.latents);
  if (mean.length !== C || std.length !== C) {
    throw new UsageError(
      `Cannot sample from "${path}": the latents' statistics are for ${mean.length} channels, it makes ${C}`,
    );
  }
  const config = { ...model.config, latent_mean: [...mean], latent_std: [...std] };
  return { model: { ...model, config }, tokenizer, origin };
}

async function statisticsOf(
  path: string,
  { latent_mean: mean, latent_std: std }: ModelConfig,
  tokenizer: ImageTokenizer,
  latents: string | undefined,
): Promise<LatentStatistics> {
  if (latents !== undefined) {
    const measured = await readStatistics(latents);
    if (measured) return { ...measured, origin: `"${measured.path}"` };
    throw new UsageError(
      `Cannot use the latents "${latents}": there is no "latents_stats.safetensors" or ".pt"`,
    );
  }
  if (mean && std) {
    return { mean: Float32Array.from(mean), std: Float32Array.from(std), origin: "the model's own" };
  }
  const own = await tokenizer.statistics();
  if (own) return own;
  throw new UsageError(
    `Cannot sample from "${path}": nothing says how its latents were normalised; put LightningDiT's ` +
      `"latents_stats.pt" beside the tokenizer, or name its folder with --latents`,
  );
}

export async function saveDit(run: string, dit: Dit, config: ModelConfig): Promise<void> {
  await saveTo(join(run, "model"), dit, config);
}

/** The folder that `tok` wrote, RUN/part or the one named; undefined where there is none. */
function partOf(run: string, part: string): string | undefined {
  return [join(run, part), run].find((folder) =>
    exists(join(folder, "config.json")) && exists(join(folder, "model.safetensors"))
  );
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
