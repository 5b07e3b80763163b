// Tokenizer and training data of tok train-dit: the latents of --latents, or those of the images of --data, encoded into the run's
// folder.

import { dirname, join } from "@std/path";
import type { TrainDitConfig } from "../src/cli/config.ts";
import type { Workers } from "../src/data/decode_pool.ts";
import type { ImageSource } from "../src/data/image_source.ts";
import { UsageError } from "../src/errors.ts";
import { exists, readJson } from "../src/formats/files.ts";
import { type Latents, openLatents } from "../src/formats/latents.ts";
import type { Provenance } from "../src/formats/provenance.ts";
import { Autoencoder, AUTOENCODER_SIZES } from "../src/models/autoencoder.ts";
import type { Log } from "../src/run/log.ts";
import { checkLatents } from "../src/train/encode_latents.ts";
import { IMAGENET } from "../src/train/epochs.ts";
import type { KnownTokenizer } from "../src/zoo/runs.ts";
import { imageSource, SEEDS } from "./inputs.ts";
import { encodeShown } from "./output.ts";

export interface TrainingLatents {
  /** Undefined in a dry run of images, which are not encoded. */
  latents: Latents | undefined;
  madeFrom: Provenance;
  /** Their names; none for an unconditional model. */
  classes: string[];
  /** Of one latent, [C, S, S]. */
  shape: readonly number[];
  /** Undefined in a dry run that is planned for ImageNet. */
  images: number | undefined;
  /** The images of the latents, in their order; undefined for a folder of latents. */
  source: ImageSource | undefined;
}

/**
 * Opens the latents that the options name; encodes images first.
 * @param out the run's folder; undefined: a dry run, for which no image is encoded
 */
export async function openTrainingLatents(
  c: TrainDitConfig,
  tokenizer: KnownTokenizer,
  workers: Workers,
  log: Log,
  out: string | undefined,
): Promise<TrainingLatents> {
  const size = c.imageSize ?? tokenizer.config.image_size, side = tokenizer.side(size);
  const generated = { length: c.images, seed: SEEDS.train + c.seed };
  // Without images a dry run of another preset, or of epochs, is planned for ImageNet.
  const imagenet = out === undefined && c.data === undefined && c.latents === undefined &&
    (c.epochs !== undefined || c.preset !== "tiny");
  const source = c.latents === undefined && !imagenet
    ? await imageSource(c.data, generated, c, workers, log)
    : undefined;
  const folder = c.latents ?? join(out ?? "", "latents");
  if (source && out !== undefined && !exists(join(folder, "latents_stats.safetensors"))) {
    await encodeShown(folder, tokenizer, source, { size, batchSize: 50, mirrored: c.flip }, log);
  }
  const latents = out === undefined && c.latents === undefined ? undefined : await openLatents(folder);
  const madeFrom = latents ? checkLatents(latents, tokenizer, { ...c, size, source, log }) : {};
  const known = latents?.record?.classes ?? source?.classes ?? [];
  const highest = imagenet
    ? IMAGENET.classes - 1
    : latents
    ? latents.labels.reduce((a, b) => Math.max(a, b), 0)
    : 0;
  const classes = c.unconditional
    ? []
    : known.length
    ? [...known]
    : Array.from({ length: highest + 1 }, (_, i) => String(i));
  const shape = latents?.shape ?? [tokenizer.channels, side, side];
  const misfit = shape[0] !== tokenizer.channels
    ? `its latents have ${shape[0]} channels, the tokenizer ${tokenizer.channels}`
    : c.imageSize !== undefined && shape[1] !== side
    ? `its latents are ${shape[1]} cells wide, images of side ${size} give ${side}`
    : undefined;
  if (misfit !== undefined) throw new UsageError(`Cannot train on "${folder}": ${misfit}`);
  const images = latents?.labels.length ?? source?.length;
  return { latents, madeFrom, classes, shape, images, source };
}

/** For a dry run without a tokenizer: the sizes of an f16d32, without weights. */
export function plannedTokenizer(log: Log): { tokenizer: KnownTokenizer } {
  log.line(
    "tokenizer: there is none; planned for latents of 32 channels, a cell for 16 x 16 pixels (f16d32)",
  );
  const identity = { name: "f16d32", fingerprint: "", latents: "" };
  return { tokenizer: Object.assign(new Autoencoder(AUTOENCODER_SIZES.vavae), { identity }) };
}

/** The tokenizer of the run that is resumed, which need not be the newest any more; undefined where it is not said. */
export function resumedTokenizer(
  { resume, out }: { resume?: string | undefined; out?: string | undefined },
  log: Log,
): string | undefined {
  if (resume === undefined) return undefined;
  const run = resume === "" ? out ?? "" : dirname(dirname(resume)), file = join(run, "config.json");
  const { tokenizer } = (exists(file) ? readJson(file) ?? {} : {}) as { tokenizer?: unknown };
  if (typeof tokenizer !== "string" || !exists(tokenizer)) return undefined;
  log.line(`tokenizer: ${tokenizer} (the run's)`);
  return tokenizer;
}
