// Opens published checkpoints: LDM-family autoencoders from a file or a diffusers folder, with the statistics of their latents,
// and diffusion transformers. Weights go to the device one tensor at a time.

import { dirname, join } from "@std/path";
import { z } from "zod";
import { BOUNDS, count, countOrNone } from "../bounds.ts";
import { UsageError } from "../errors.ts";
import { exists, isFile, readJson, validated } from "../formats/files.ts";
import { type LatentsRecord, readStatistics } from "../formats/latents.ts";
import { differences, WeightsFingerprint } from "../formats/provenance.ts";
import { type TensorStore, unreadNote } from "../formats/tensors.ts";
import { openModel } from "../formats/shards.ts";
import { Autoencoder, type AutoencoderConfig } from "../models/autoencoder.ts";
import { autoencoderIn, inferAutoencoder } from "../models/autoencoder_names.ts";
import { Dit } from "../models/dit.ts";
import { DIT_ANCHOR, inferDit, PROJECTORS } from "../models/dit_config.ts";
import { type LatentStatistics, tokenizerIdentity } from "../models/tokenizer.ts";
import { underNote, unwrapped, wrapperOf } from "../models/wrappers.ts";
import { loadState } from "../nn/layers.ts";

/** diffusers' file names of weights. */
const DIFFUSERS_WEIGHTS = [
  "diffusion_pytorch_model.safetensors",
  "diffusion_pytorch_model.fp16.safetensors",
  "diffusion_pytorch_model.bin",
];

const values = z.array(z.number()).nullish();

/** The fields of diffusers' AutoencoderKL configuration that affect the computation. */
const diffusersConfig = z.object({
  _class_name: z.literal("AutoencoderKL"),
  act_fn: z.enum(["silu", "swish"]).default("silu"),
  block_out_channels: z.array(count("channels")).min(1).max(BOUNDS.levels),
  layers_per_block: countOrNone("layers").default(1),
  latent_channels: count("channels").default(4),
  norm_num_groups: count("channels").default(32),
  sample_size: z.union([count("pixels"), z.array(count("pixels")).min(1)]).default(32),
  scaling_factor: z.number().positive().default(0.18215),
  shift_factor: z.number().nullish(),
  latents_mean: values,
  latents_std: values,
  use_quant_conv: z.boolean().default(true),
  use_post_quant_conv: z.boolean().default(true),
  mid_block_add_attention: z.boolean().default(true),
});
type DiffusersConfig = z.infer<typeof diffusersConfig>;

/** Training size and norm groups of LDM's, SD's and VA-VAE's autoencoders, which no file contains. */
const LDM = { imageSize: 256, groups: 32 };
/** Stable Diffusion's scale factor of its four-channel latents. */
const SD_SCALE = 0.18215;

/** Where an autoencoder's weights and configuration are: a file, a diffusers folder, or its `vae` folder. */
export function autoencoderPlace(path: string): { weights: string; folder: string } | undefined {
  return isFile(path) ? { weights: path, folder: dirname(path) } : diffusersFolder(path);
}

/** Opens an autoencoder from a file, or from a diffusers folder or its `vae` folder; undefined if there is none. */
export async function openAutoencoder(path: string): Promise<Autoencoder | undefined> {
  const place = autoencoderPlace(path);
  if (!place) return undefined;
  const store = await openModel(place.weights);
  try {
    const { source, layout } = autoencoderIn(store);
    const file = join(place.folder, "config.json");
    const config = layout === "diffusers" && exists(file) ? readDiffusersConfig(file) : undefined;
    const made = inferAutoencoder(source, config ? sizesOf(config) : LDM);
    if (config) checkAgreement(made, config, file);
    const statistics = await statisticsOf(place.folder, made.embed_dim, config && { config, file }, store);
    const autoencoder = new Autoencoder(made, statistics), weights = new WeightsFingerprint();
    await loadState(autoencoder, weights.through(source));
    autoencoder.identity = tokenizerIdentity(path, weights);
    const [difference] = differences(statistics?.record?.made_from ?? {}, {
      tokenizer: { name: path, fingerprint: autoencoder.identity.latents },
    });
    if (difference !== undefined) {
      throw new UsageError(
        `Cannot use ${statistics?.origin} for "${path}": ${difference}; keep latents separate from other tokenizers`,
      );
    }
    return autoencoder;
  } finally {
    store.close();
  }
}

/** Whether a folder is a diffusers autoencoder, or has one as `vae`. */
export const holdsAutoencoder = (folder: string): boolean => diffusersFolder(folder) !== undefined;

function diffusersFolder(path: string): { weights: string; folder: string } | undefined {
  return [path, join(path, "vae")].flatMap((folder) =>
    DIFFUSERS_WEIGHTS.map((name) => ({ weights: join(folder, name), folder }))
  ).find(({ weights, folder }) => exists(weights) && exists(join(folder, "config.json")));
}

function readDiffusersConfig(file: string): DiffusersConfig {
  const raw = readJson(file);
  const name = (raw as { _class_name?: unknown } | null)?._class_name;
  if (typeof name === "string" && name !== "AutoencoderKL") {
    throw new UsageError(`Cannot load "${dirname(file)}": it is a "${name}"; supported is "AutoencoderKL"`);
  }
  return validated(diffusersConfig, raw, file);
}

function sizesOf({ sample_size, norm_num_groups }: DiffusersConfig) {
  return { imageSize: [sample_size].flat()[0] as number, groups: norm_num_groups };
}

/** @throws UsageError if the configuration contradicts the tensors */
function checkAgreement(made: AutoencoderConfig, config: DiffusersConfig, file: string): void {
  const { encoder, decoder } = made;
  const widths = encoder.ch_mult.map((m) => Math.round(m * encoder.ch));
  const facts: [keyof DiffusersConfig, unknown][] = [
    ["block_out_channels", widths],
    ["layers_per_block", encoder.num_res_blocks],
    ["layers_per_block", decoder.num_res_blocks],
    ["latent_channels", made.embed_dim],
    ["use_quant_conv", made.quant_conv],
    ["use_post_quant_conv", made.post_quant_conv],
    ["mid_block_add_attention", encoder.mid_attention],
    ["mid_block_add_attention", decoder.mid_attention],
  ];
  for (const key of ["latents_mean", "latents_std"] as const) {
    const given = config[key];
    if (given && given.length !== made.embed_dim) {
      throw new UsageError(
        `Cannot load "${dirname(file)}": "config.json" has ${given.length} numbers in ${key} for ` +
          `${made.embed_dim} channels`,
      );
    }
  }
  for (const [key, found] of facts) {
    if (JSON.stringify(config[key]) !== JSON.stringify(found)) {
      throw new UsageError(
        `Cannot load "${dirname(file)}": "config.json" says ${key} ${JSON.stringify(config[key])}, ` +
          `the tensors say ${JSON.stringify(found)}; fetch both again`,
      );
    }
  }
}

/** The statistics file of LightningDiT's tools, else the scale and shift of the configuration or checkpoint. */
async function statisticsOf(
  folder: string,
  channels: number,
  published: { config: DiffusersConfig; file: string } | undefined,
  store: TensorStore,
): Promise<LatentStatistics & { record?: LatentsRecord | undefined } | undefined> {
  const measured = await readStatistics(folder);
  if (measured) {
    if (measured.mean.length !== channels) {
      throw new UsageError(
        `Cannot use "${measured.path}": it is for ${measured.mean.length} channels, the tokenizer has ${channels}`,
      );
    }
    return { ...measured, origin: `"${measured.path}"` };
  }
  // diffusers: (z - mean) * scaling_factor / std
  const every = (list: readonly number[] | null | undefined, value: number) =>
    Float32Array.from({ length: channels }, (_, c) => list?.[c] ?? value);
  if (published) {
    const { scaling_factor, shift_factor, latents_mean, latents_std } = published.config;
    return {
      mean: every(latents_mean, shift_factor ?? 0),
      std: every(latents_std, 1).map((s) => s / scaling_factor),
      origin: `scaling_factor ${scaling_factor} of "${published.file}"`,
    };
  }
  const scale = [...store.shapes.keys()].find((key) => /(^|\.)scale_factor$/.test(key));
  const factor = scale === undefined ? channels === 4 ? SD_SCALE : undefined : (await store.read(scale))[0];
  return factor === undefined
    ? undefined
    : { mean: every(undefined, 0), std: every(undefined, 1 / factor), origin: `the scale factor ${factor}` };
}

/**
 * Opens a LightningDiT, SiT or DiT-DH from its authors' checkpoint, the EMA weights if it has them.
 * @returns also lines for people about what the file does not say
 */
export async function openPublishedDit(
  path: string,
): Promise<{ dit: Dit; fingerprint: string; notes: string[] }> {
  const store = await openModel(path);
  try {
    if (wrapperOf(store.shapes.keys(), DIT_ANCHOR) === undefined) {
      throw new UsageError(
        `Cannot load a diffusion model from "${path}": it has no "${DIT_ANCHOR}"` +
          `${underNote(store.shapes.keys(), DIT_ANCHOR)}; supported are ` +
          `LightningDiT, SiT and RAE's DiT-DH${unreadNote(store.unread)}`,
      );
    }
    const source = unwrapped(store, DIT_ANCHOR);
    const dit = new Dit(inferDit(path, source.shapes)), weights = new WeightsFingerprint();
    const notes = [
      ...dit.config.learn_sigma
        ? [
          `"${path}" is read as SiT's, which predicts a velocity; a file of DiT's has the same tensors, predicts noise, and ` +
          `gives no images here`,
        ]
        : [],
      ...dit.config.inner_head
        ? [
          `"${path}" does not say which block its inner head follows: it is read as Internal Guidance's, block ` +
          `${dit.config.inner_head}`,
        ]
        : [],
    ];
    await loadState(dit, weights.through(source), { ignore: PROJECTORS });
    return { dit, fingerprint: weights.value(), notes };
  } finally {
    store.close();
  }
}
