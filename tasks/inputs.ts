// Inputs of the commands: encoder, tokenizer, the newest run, image folders or generated images, and the threads that decode.

import { generatedImages, Workers } from "../src/data/decode_pool.ts";
import { type BadImage, type Folder, openFolder } from "../src/data/image_folder.ts";
import type { ImageSource } from "../src/data/image_source.ts";
import type { Sizes } from "../src/data/network_input.ts";
import { Shapes } from "../src/data/toy_shapes.ts";
import { UsageError } from "../src/errors.ts";
import { device } from "../src/gpu/device.ts";
import { newestRun, type RunKind } from "../src/run/checkpoint.ts";
import type { Log } from "../src/run/log.ts";
import { type EncoderSource, openEncoder } from "../src/zoo/encoders.ts";
import { type KnownTokenizer, openTokenizer } from "../src/zoo/runs.ts";
import { RUNS } from "./command.ts";

/** Opens the encoder that the options select. @throws UsageError as openEncoder() */
export async function chosenEncoder(
  c: {
    encoder?: string | undefined;
    download: boolean;
    interpolateOffset?: number | undefined;
    dryRun?: boolean;
  },
  log: Log,
): Promise<EncoderSource> {
  const { download, interpolateOffset, dryRun = false } = c;
  const say = (line: string) => {
    log.begin(); // a download takes a while
    log.line(line);
  };
  return await openEncoder(c.encoder, { download, interpolateOffset, planOnly: dryRun, say });
}

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

/** The given folder of images, or `length` generated shapes from `seed`. */
export async function imageSource(
  data: string | undefined,
  generated: { length: number; seed: number },
  badImage: BadImage | undefined,
  workers: Workers,
  log: Log,
): Promise<ImageSource> {
  if (data === undefined) {
    log.line(`data: generated shapes`);
    return generatedImages(workers, new Shapes(generated.length, generated.seed));
  }
  return await imageFolder(data, badImage, workers, log);
}

/** Maximum number of class names in a log line. */
const NAMED_CLASSES = 10;

/** Opens a folder of images; logs its contents and what is left out. */
export async function imageFolder(
  data: string,
  badImage: BadImage | undefined,
  workers: Workers,
  log: Log,
  sizes?: Sizes,
): Promise<Folder> {
  const folder = await openFolder(data, { badImage, workers, sizes, onBad: (message) => log.warn(message) });
  await folder.bytes(0, 16); // a file that is no image is an error before any output
  const { length, classes, leftOut } = folder;
  const first = classes.slice(0, NAMED_CLASSES).join(", "), more = classes.length - NAMED_CLASSES;
  const named = `, ${classes.length} classes: ${first}${more > 0 ? `, and ${more} more` : ""}`;
  log.line(`data: ${length} images in "${data}"${classes.length ? named : ""}`);
  if (leftOut.names.length > 0) log.warn(`left out of "${data}": ${leftOut}`);
  return folder;
}

/** Seeds of generated images; held-out images differ from training images. */
export const SEEDS = { train: 1, heldOut: 999, probe: 555 };

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
