// A picture of samples for the report of a training: a column for each class, with guidance.

import type { ImageTokenizer } from "../models/tokenizer.ts";
import { join } from "@std/path";
import { NotFiniteError, OutOfMemoryError } from "../errors.ts";
import { makeFolder } from "../formats/files.ts";
import { grid, type Image, writePng } from "../image/image.ts";
import type { Log } from "../run/log.ts";
import type { DiffusionModel } from "../zoo/runs.ts";
import { generate } from "./generate.ts";
import type { SamplingOptions } from "./sampler.ts";

/** Classes in the picture, at most, and pixels along a side of a decoded batch: a decoder's maps are large. */
const COLUMNS = 10, BATCH_SIDE = 512;

/** Images of `side` pixels at a time, of `count`. */
export const batchSizeOf = (side: number, count: number): number =>
  Math.min(count, Math.max(1, Math.floor((BATCH_SIDE / side) ** 2)));

/** Samples at least 20 images of the first classes. */
export async function drawPreview(
  model: Pick<DiffusionModel, "dit" | "config">,
  tokenizer: ImageTokenizer,
  options: Omit<SamplingOptions, "batchSize">,
): Promise<Image> {
  const classes = model.config.classes.length, columns = Math.min(COLUMNS, classes || COLUMNS);
  const count = Math.max(20, 2 * columns), side = model.config.dit.input_size * tokenizer.factor;
  const labels = Array.from({ length: count }, (_, i) => classes && i % columns);
  const sampling = { ...options, batchSize: batchSizeOf(side, count), labels };
  const images: Uint8Array[] = [];
  for await (const { image } of generate(model, tokenizer, sampling)) images.push(image);
  return grid(images, side, columns);
}

/**
 * What `make` makes of a training's samples; undefined, with a warning, where they are not finite or the device's memory is too
 * small, since a training goes on without them.
 */
export async function unlessImpossible<T>(log: Log, make: () => Promise<T>): Promise<T | undefined> {
  try {
    return await make();
  } catch (error) {
    if (!(error instanceof NotFiniteError || error instanceof OutOfMemoryError)) throw error;
    log.warn(`${error.message}; the training goes on without it`);
    return undefined;
  }
}

/**
 * Writes a picture of samples as images/samples_with_guidance_W.png of a run; samples.png without classes. Nothing, with a warning,
 * where {@link unlessImpossible} says so.
 */
export async function writePreview(
  run: string,
  model: Parameters<typeof drawPreview>[0],
  tokenizer: ImageTokenizer,
  options: Omit<SamplingOptions, "batchSize">,
  log: Log,
): Promise<void> {
  const name = model.config.classes.length ? `samples_with_guidance_${options.cfg}` : "samples";
  const folder = join(run, "images");
  const picture = await unlessImpossible(log, () => drawPreview(model, tokenizer, options));
  if (!picture) return;
  makeFolder(folder);
  await writePng(join(folder, `${name}.png`), picture);
}
