// Inputs of the commands: encoder, tokenizer, the newest run, images in files or generated, and the threads that decode.

import { generatedImages, Workers } from "../src/data/decode_pool.ts";
import { heldOutOf, type Split, splitOff } from "../src/data/held_out.ts";
import type { BadImage, Images } from "../src/data/images.ts";
import { openImages } from "../src/data/open_images.ts";
import type { ImageSource } from "../src/data/image_source.ts";
import type { Sizes } from "../src/data/network_input.ts";
import { Shapes } from "../src/data/toy_shapes.ts";
import { UsageError } from "../src/errors.ts";
import { device } from "../src/gpu/device.ts";
import { newestRun, type RunKind } from "../src/run/checkpoint.ts";
import type { Log } from "../src/run/log.ts";
import { type KnownTokenizer, openTokenizer } from "../src/zoo/runs.ts";
import { RUNS } from "./command.ts";

export { chosenEncoder } from "./encoders.ts";

/**
 * Opens the tokenizer `run` for images of side --image-size, else of its training size.
 * @throws UsageError if it cannot tokenize images of that side
 */
export async function openTokenizerFor(
  { imageSize }: { imageSize?: number | undefined },
  run: string,
): Promise<{ tokenizer: KnownTokenizer; size: number }> {
  const tokenizer = await openTokenizer(run), size = imageSize ?? tokenizer.config.image_size;
  tokenizer.side(size);
  return { tokenizer, size };
}

/** The given run, or the newest one of this kind. @throws UsageError if there is none */
export function inputRun(given: string | undefined, kind: RunKind, log: Log): string {
  if (given !== undefined) return given;
  const run = newestRun(RUNS, kind);
  if (run === undefined) {
    const maker = kind === "tokenizer" ? "tok align" : "tok train-dit";
    throw new UsageError(
      `Cannot find a ${kind} under "${RUNS}": run "${maker}" first, or name one with --${kind}`,
    );
  }
  log.line(`${kind}: ${run} (the newest)`);
  return run;
}

/** Options of everything that reads images. */
export interface Reading {
  badImage?: BadImage | undefined;
  imageColumn?: string | undefined;
  labelColumn?: string | undefined;
}

/** The given images, or `length` generated shapes from `seed`. */
export async function imageSource(
  data: string | undefined,
  generated: { length: number; seed: number },
  reading: Reading,
  workers: Workers,
  log: Log,
): Promise<ImageSource> {
  if (data === undefined) {
    const column = reading.imageColumn ?? reading.labelColumn;
    if (column !== undefined) {
      throw new UsageError(`Cannot use the column "${column}" of generated images; name Parquet files`);
    }
    log.line(`data: generated shapes`);
    return generatedImages(workers, new Shapes(generated.length, generated.seed));
  }
  return await imageFiles(data, reading, workers, log);
}

/** Maximum number of class names in a log line. */
const NAMED_CLASSES = 10;

/** Opens images in files; logs their number, the classes and what is left out. */
export async function imageFiles(
  data: string,
  reading: Reading,
  workers: Workers,
  log: Log,
  sizes?: Sizes,
): Promise<Images> {
  const { badImage, imageColumn, labelColumn } = reading, onBad = (message: string) => log.warn(message);
  const columns = { image: imageColumn, label: labelColumn };
  const images = await openImages(data, { badImage, workers, sizes, columns, onBad });
  await images.bytes(0, 16); // a file that is no image is an error before any output
  const { length, classes, leftOut } = images;
  const first = classes.slice(0, NAMED_CLASSES).join(", "), more = classes.length - NAMED_CLASSES;
  const named = `, ${classes.length} classes: ${first}${more > 0 ? `, and ${more} more` : ""}`;
  log.line(`data: ${length} images in "${data}"${classes.length ? named : ""}`);
  if (images.note) log.warn(images.note);
  if (leftOut.names.length > 0) log.warn(`left out of "${data}": ${leftOut}`);
  return images;
}

/** Seeds of generated images; held-out images differ from training images. */
export const SEEDS = { train: 1, heldOut: 999, probe: 555 };

/** Training images, held-out ones, and labelled ones for a linear probe; with `validation`, those of --val. */
export type TrainingImages = Split & { all: ImageSource; validation?: ImageSource };

/** Opens the images that the options name, or generates them, and holds some out. */
export async function splitImages(
  c: Reading & { data?: string | undefined; val?: string | undefined; heldOut: number; seed: number },
  workers: Workers,
  log: Log,
): Promise<TrainingImages> {
  const generated = { length: 1_000_000, seed: SEEDS.train + c.seed };
  const all = await imageSource(c.data, generated, c, workers, log);
  const name = c.data ?? "generated shapes";
  if (c.val !== undefined) {
    const validation = await imageFiles(c.val, c, workers, log);
    return { all, validation, ...heldOutOf(all, validation, c.heldOut, { train: name, validation: c.val }) };
  }
  if (c.data !== undefined) return { all, ...splitOff(all, c.heldOut, name, (line) => log.line(line)) };
  // Generated images of other seeds.
  const shapes = (n: number, seed: number): ImageSource => generatedImages(workers, new Shapes(n, seed));
  return { all, train: all, heldOut: shapes(c.heldOut, SEEDS.heldOut), probe: shapes(500, SEEDS.probe) };
}

/** Default limit of image threads; a software adapter needs the cores itself. */
const MAX_WORKERS = { gpu: 8, software: 1 };

/** Starts the image threads: --workers, else one per core but one, up to the limit. Needs an open device. */
export function openWorkers(
  { workers, imageMemory }: { workers?: number | undefined; imageMemory?: number | undefined },
): Workers {
  const most = device().facts.software ? MAX_WORKERS.software : MAX_WORKERS.gpu;
  const count = workers ?? Math.max(0, Math.min(most, navigator.hardwareConcurrency - 1));
  return new Workers(count, imageMemory === undefined ? undefined : imageMemory * 1e6);
}
