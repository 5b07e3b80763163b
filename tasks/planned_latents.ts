// What a plan of tok train-dit assumes before anything is encoded, and without a tokenizer.

import type { TrainDitConfig } from "../src/cli/config.ts";
import type { ImageSource } from "../src/data/image_source.ts";
import { type Latents, openLatents } from "../src/formats/latents.ts";
import { Autoencoder, AUTOENCODER_SIZES } from "../src/models/autoencoder.ts";
import type { Log } from "../src/run/log.ts";
import { IMAGENET } from "../src/train/epochs.ts";
import { EncodedImages } from "../src/train/latent_source.ts";
import type { KnownTokenizer } from "../src/zoo/runs.ts";

/** Side of the images. */
export const sizeOf = (c: TrainDitConfig, tokenizer: KnownTokenizer) =>
  c.imageSize ?? tokenizer.config.image_size;

/** What plans before anything is encoded assume. */
interface PlannedLatents {
  /** Side of the images. */
  size: number;
  /** Of one latent, [C, S, S]. */
  shape: readonly number[];
  /** Number of classes. */
  classes: number;
  /** Undefined for encoded latents. */
  source: EncodedImages | undefined;
}

/** The latents that --memory is planned for: those of --latents, else of the tokenizer's image size with ImageNet's classes. */
export async function plannedLatents(c: TrainDitConfig, tokenizer: KnownTokenizer): Promise<PlannedLatents> {
  const size = sizeOf(c, tokenizer), side = tokenizer.side(size), source = plannedSource(c, tokenizer);
  if (c.latents === undefined || c.memory === undefined) {
    const shape = [tokenizer.channels, side, side];
    return { size, shape, classes: c.unconditional ? 0 : IMAGENET.classes, source };
  }
  const latents = await openLatents(c.latents), { shape } = latents;
  latents.close();
  return { size, shape, classes: c.unconditional ? 0 : classesOfLatents(latents).length, source };
}

/** Where the latents of a dry run would come from; undefined for encoded ones. */
export function plannedSource(c: TrainDitConfig, tokenizer: KnownTokenizer): EncodedImages | undefined {
  return c.online ? new EncodedImages(tokenizer, undefined, { ...c, size: sizeOf(c, tokenizer) }) : undefined;
}

/** The names of their classes, or else numbers up to the highest label. */
export function classesOfLatents({ record, labels }: Latents, images?: ImageSource): readonly string[] {
  const known = record?.classes.length ? record.classes : images?.classes ?? [];
  return known.length ? known : numbered(1 + labels.reduce((a, b) => Math.max(a, b), 0));
}

export const numbered = (count: number) => Array.from({ length: count }, (_, i) => String(i));

/** For a dry run without a tokenizer: the sizes of an f16d32, without weights. */
export function plannedTokenizer(log: Log): { tokenizer: KnownTokenizer } {
  log.line(
    "tokenizer: there is none; planned for latents of 32 channels, a cell for 16 x 16 pixels (f16d32)",
  );
  const identity = { name: "f16d32", fingerprint: "", latents: "" };
  return { tokenizer: Object.assign(new Autoencoder(AUTOENCODER_SIZES.vavae), { identity }) };
}
