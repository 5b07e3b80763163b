// Opens and saves the tokenizers and diffusion models of runs: folders with config.json and model.safetensors. Published
// checkpoints are opened by the same functions, so that every command works with either.

import { join } from "@std/path";
import { z } from "zod";
import { UsageError } from "../errors.ts";
import { checkStatistics } from "../formats/finite.ts";
import { exists, isFile, makeFolder, readJson, validated, writeJson } from "../formats/files.ts";
import { cachedModel, cacheProblem, isModelName, snapshotIn } from "../formats/hub.ts";
import {
  type Identity,
  identitySchema,
  provenanceSchema,
  WeightsFingerprint,
} from "../formats/provenance.ts";
import { openModel } from "../formats/shards.ts";
import type { TensorStore } from "../formats/tensors.ts";
import { writeSafetensors } from "../formats/safetensors.ts";
import { autoencoderConfig, TrainableAutoencoder } from "../models/autoencoder.ts";
import type { Denoiser } from "../models/denoiser.ts";
import { Dit, ditConfig } from "../models/dit.ts";
import { PREDICTIONS, velocitiesOf } from "../models/prediction.ts";
import { noSnapshots, rebuiltEma } from "../run/power_ema.ts";
import {
  type ImageTokenizer,
  Tokenizer,
  tokenizerConfig,
  type TokenizerIdentity,
  tokenizerIdentity,
} from "../models/tokenizer.ts";
import { loadState, saveState } from "../nn/layers.ts";
import { holdsAutoencoder, openAutoencoder, openPublishedDit } from "./published.ts";

/** A tokenizer whose weights were read from somewhere. */
export type KnownTokenizer = ImageTokenizer & { identity: TokenizerIdentity };

/**
 * Opens a tokenizer from RUN/tokenizer or that folder itself, or a published autoencoder: a diffusers folder, its name in the
 * local Hugging Face cache, or a checkpoint file of LDM, SD-VAE or VA-VAE.
 * @param path undefined if the caller's model does not name one, which is an error
 */
export async function openTokenizer(path: string | undefined): Promise<KnownTokenizer> {
  if (path === undefined) {
    throw new UsageError(
      "Cannot make images: a published diffusion model does not say which tokenizer its latents are of; " +
        "name it with --tokenizer",
    );
  }
  const folder = partOf(path, "tokenizer");
  if (folder === undefined) {
    const named = !exists(path) && isModelName(path);
    const cached = named ? cachedModel(path, holdsAutoencoder) : snapshotIn(path)?.path;
    const autoencoder = await openAutoencoder(cached ?? path);
    if (autoencoder?.identity) {
      return Object.assign(autoencoder, { identity: { ...autoencoder.identity, name: path } });
    }
    const problem = named && cached === undefined ? cacheProblem(path) : undefined;
    if (problem !== undefined) {
      throw new UsageError(
        `Cannot use "${path}": there is no such path, and the Hugging Face cache has it incompletely: ${problem}; fetch it ` +
          `again, or name a diffusers folder`,
      );
    }
    if (partOf(join(path, "best"), "tokenizer") !== undefined) {
      throw new UsageError(
        `Cannot use "${path}": its run is not finished; name its best tokenizer so far, "${
          join(path, "best")
        }"`,
      );
    }
    throw new UsageError(
      `Cannot use "${path}": it does not hold a tokenizer; make one with "tok align", or name a diffusers folder, one in ` +
        `the Hugging Face cache, or a checkpoint of LDM, SD-VAE or VA-VAE`,
    );
  }
  const config = readConfig(folder, savedTokenizer, "a tokenizer");
  const tokenizer = "type" in config ? new TrainableAutoencoder(config) : new Tokenizer(config);
  const weights = await loadFrom(tokenizer, folder);
  const { mean, std } = await tokenizer.statistics();
  checkStatistics(`"${folder}" (latent_mean, latent_std)`, mean, std);
  return Object.assign(tokenizer, { identity: tokenizerIdentity(path, weights) });
}

/** config.json of a tokenizer: a vision encoder's, or a convolutional autoencoder's, which says its type. */
const savedAutoencoder = autoencoderConfig.extend({ type: z.literal("autoencoder") });
const savedTokenizer = z.union([savedAutoencoder, tokenizerConfig]);

/** The tensors of a tokenizer in RUN/tokenizer or that folder itself; undefined if tok wrote none there. */
export async function openSavedTokenizer(path: string): Promise<TensorStore | undefined> {
  const folder = partOf(path, "tokenizer");
  if (folder === undefined) return undefined;
  readConfig(folder, savedTokenizer, "a tokenizer");
  return await openModel(folder);
}

export async function saveTokenizer(run: string, tokenizer: Tokenizer | TrainableAutoencoder): Promise<void> {
  const config: z.infer<typeof savedTokenizer> = tokenizer instanceof Tokenizer
    ? tokenizer.config
    : { type: "autoencoder", ...tokenizer.config };
  await saveTo(join(run, "tokenizer"), tokenizer, config);
}

/** config.json of a diffusion model: architecture and training data. */
export const modelConfig = z.object({
  dit: ditConfig,
  /** What the network outputs; absent: velocities. */
  prediction: z.enum(PREDICTIONS).optional(),
  /** The tokenizer of its latents; absent in published models. */
  tokenizer: z.string().optional(),
  classes: z.array(z.string()),
  /** Per-channel statistics of the training latents: it works on (z - mean) / std. Absent in published models. */
  latent_mean: z.array(z.number()).optional(),
  latent_std: z.array(z.number()).optional(),
  /** Absent in models of tok 0.2.0. */
  made_from: z.object({
    /** With places to look for it: an absolute path, a path relative to the model, or a name in a cache. */
    tokenizer: identitySchema.extend({ latents: z.string(), places: z.array(z.string()) }),
    /** Provenance of the training latents: encoding weights, images, image size. */
    latents: provenanceSchema,
  }).optional(),
});
export type ModelConfig = z.infer<typeof modelConfig>;

export interface DiffusionModel {
  /** Outputs velocities, whatever the network does. */
  dit: Denoiser;
  /** The network, whose parameters have the names of files. */
  network: Dit;
  config: ModelConfig;
  /** The folder or file that it was read from. */
  path: string;
  identity: Identity;
  /** Lines for people about what a published file does not say. */
  notes?: string[];
}

/**
 * Opens a diffusion model from RUN/model or that folder itself, or from a checkpoint of LightningDiT's authors.
 * @param options.ema width of the average of the weights to rebuild from the snapshots of the run, see run/power_ema.ts
 * @param options.say called with a line about that average
 */
export async function openDit(
  path: string,
  { ema, say = () => {} }: { ema?: number | undefined; say?: (line: string) => void } = {},
): Promise<DiffusionModel> {
  const folder = partOf(path, "model");
  if (folder === undefined) {
    if (!isFile(path)) {
      throw new UsageError(
        `Cannot use "${path}": it does not hold a diffusion model; make one with "tok train-dit", or name a checkpoint ` +
          `of LightningDiT`,
      );
    }
    if (ema !== undefined) throw noSnapshots(path);
    const { dit, fingerprint, notes } = await openPublishedDit(path);
    const classes = Array.from({ length: dit.config.num_classes }, (_, i) => String(i));
    return {
      dit,
      network: dit,
      config: { dit: dit.config, classes },
      path,
      identity: { name: path, fingerprint },
      notes,
    };
  }
  const config = readConfig(folder, modelConfig, "a diffusion model");
  const network = new Dit(config.dit), dit = velocitiesOf(network, config.prediction);
  if (ema !== undefined) {
    const average = await rebuiltEma(path, ema), weights = new WeightsFingerprint();
    say(`weights: ${average.about}`);
    try {
      await loadState(network, weights.through(average));
    } finally {
      average.close();
    }
    const identity = { name: path, fingerprint: weights.value() };
    return { dit, network, config, path: folder, identity };
  }
  const fingerprint = (await loadFrom(network, folder)).value();
  const identity = { name: path, fingerprint };
  return { dit, network, config, path: folder, identity };
}

/** Tensors and configuration of a diffusion model in RUN/model or that folder itself; undefined if tok wrote none there. */
export async function openSavedDit(
  path: string,
): Promise<{ store: TensorStore; config: ModelConfig } | undefined> {
  const folder = partOf(path, "model");
  if (folder === undefined) return undefined;
  const config = readConfig(folder, modelConfig, "a diffusion model");
  return { store: await openModel(folder), config };
}

export async function saveDit(run: string, dit: Dit, config: ModelConfig): Promise<void> {
  await saveTo(join(run, "model"), dit, config);
}

/** The fingerprint that a tokenizer was saved with; undefined if there is none. */
export function savedFingerprint(path: string): unknown {
  try {
    const folder = partOf(path, "tokenizer");
    const config = folder === undefined ? {} : readJson(join(folder, "config.json"));
    return (config as { fingerprint?: unknown } | null)?.fingerprint;
  } catch (error) {
    if (error instanceof UsageError) return undefined; // opening it reports the error
    throw error;
  }
}

/** Kinds of config.json by a characteristic key, with the remedy if another kind was expected. */
const KINDS = [
  { key: "dit", kind: "a diffusion model", remedy: 'name it with --model, as "tok sample" does' },
  { key: "decoder", kind: "a tokenizer", remedy: "name it with --tokenizer" },
  {
    key: "model_type",
    kind: "an encoder",
    remedy: 'make a tokenizer of it with "tok align --encoder", and name that',
  },
];

/** Reads the config.json of a folder. @throws UsageError for a config of another kind, and for wrong fields */
function readConfig<T>(folder: string, schema: z.ZodType<T>, wanted: string): T {
  const path = join(folder, "config.json"), value = readJson(path);
  const fields = typeof value === "object" && value !== null ? value : {};
  const found = KINDS.find(({ key }) => key in fields);
  if (found && found.kind !== wanted) {
    throw new UsageError(`Cannot use "${folder}" as ${wanted}: it holds ${found.kind}; ${found.remedy}`);
  }
  return validated(schema, value, path);
}

/** RUN/part or the folder itself, if tok wrote it; else undefined. */
function partOf(run: string, part: string): string | undefined {
  return [join(run, part), run].find((folder) =>
    exists(join(folder, "config.json")) && exists(join(folder, "model.safetensors"))
  );
}

/** @throws UsageError if config.json was written with other weights */
async function loadFrom(module: object, folder: string): Promise<WeightsFingerprint> {
  const store = await openModel(folder), weights = new WeightsFingerprint();
  try {
    await loadState(module, weights.through(store));
  } finally {
    store.close();
  }
  const file = join(folder, "config.json"), { fingerprint } = readJson(file) as { fingerprint?: unknown };
  if (fingerprint !== undefined && fingerprint !== weights.value()) {
    throw new UsageError(
      `Cannot use "${folder}": its weights (${weights.value()}) are not those that config.json was written with ` +
        `(${fingerprint}); copy both files again, or remove "fingerprint" from config.json if they were changed on purpose`,
    );
  }
  return weights;
}

/** config.json is written last: a folder with it is complete. */
async function saveTo(folder: string, module: object, config: object): Promise<void> {
  makeFolder(folder);
  const tensors = await saveState(module), weights = new WeightsFingerprint();
  for (const { name, shape, data } of tensors) weights.add(name, shape, data);
  await writeSafetensors(join(folder, "model.safetensors"), tensors, { format: "pt" });
  writeJson(join(folder, "config.json"), { ...config, fingerprint: weights.value() });
}
