// What eval and sweep compare with: sets of images in files, NPZ, or generated shapes; those that probes learn from; and the
// encoder that a tokenizer was made from.

import { resolve } from "@std/path";
import { generatedImages, generatedInputs, type Workers } from "../src/data/decode_pool.ts";
import type { Sizes } from "../src/data/network_input.ts";
import { openNpzSet } from "../src/data/npz_images.ts";
import { Shapes } from "../src/data/toy_shapes.ts";
import type { Identity } from "../src/formats/provenance.ts";
import type { ImageSet } from "../src/metrics/image_set.ts";
import { UsageError } from "../src/errors.ts";
import type { Log } from "../src/run/log.ts";
import { Output } from "../src/run/output.ts";
import type { EncoderSource } from "../src/zoo/encoders.ts";
import { recordedEncoder } from "../src/zoo/recorded_encoder.ts";
import { chosenEncoder, imageFiles, type Reading, SEEDS } from "./inputs.ts";

/** Locks the files of --save-stats and --save-features. @throws UsageError if one is not writable, or is that of --real */
export function lockSaved(
  { real, saveStats, saveFeatures }: Partial<
    Record<"real" | "saveStats" | "saveFeatures", string | undefined>
  >,
): Disposable {
  using locks = new DisposableStack();
  for (const path of [saveStats, saveFeatures]) {
    if (path === undefined) continue;
    if (real !== undefined && resolve(real) === resolve(path)) {
      throw new UsageError(`Cannot write "${path}": it is the file of --real; choose another name`);
    }
    locks.use(Output.file(path));
  }
  return locks.move();
}

/** Generated images that probes learn from. */
const PROBE_IMAGES = 2000;
/** Least number of generated images that samples are compared with. */
const MIN_REAL = 500;

export interface SetContext {
  c: Reading & { num: number };
  workers: Workers;
  log: Log;
}

/** @param side of generated images, if there is no path */
export async function openSet(
  path: string | undefined,
  side: number,
  { c, workers, log }: SetContext,
): Promise<ImageSet & { identity: Identity }> {
  if (path === undefined) {
    const shapes = generatedShapes(Math.max(c.num, MIN_REAL), log);
    const images = generatedInputs(workers, shapes, side);
    return { name: "generated shapes", generated: true, images, identity: shapes.identity() };
  }
  if (/\.np[yz]$/i.test(path)) return { name: path, ...await openNpzSet(path, workers) };
  const images = await imageFiles(path, c, workers, log);
  return { name: path, images, identity: images.identity() };
}

/** Images that a tokenizer reconstructs; generated ones, or for want of `train` half of them, train its probes. @param sizes counts those of files */
export async function tokenizerImages(
  path: string | undefined,
  size: number,
  sizes: Sizes,
  { c, workers, log }: SetContext,
) {
  if (path === undefined) {
    const shapes = generatedShapes(c.num, log), all = generatedInputs(workers, shapes, size);
    const train = generatedImages(workers, new Shapes(PROBE_IMAGES, SEEDS.probe));
    return { all, train, seed: SEEDS.probe, folder: path, identity: shapes.identity() };
  }
  const all = await imageFiles(path, c, workers, log, sizes);
  return { all, train: undefined, folder: path, identity: all.identity() };
}

/** Generated images for a probe, their side and their seed. */
export const probeImages = (workers: Workers, side: number) => ({
  images: generatedInputs(workers, new Shapes(PROBE_IMAGES, SEEDS.probe), side),
  side,
  seed: SEEDS.probe,
});

/** Held-out generated images. */
function generatedShapes(length: number, log: Log): Shapes {
  log.line("data: generated shapes");
  return new Shapes(length, SEEDS.heldOut);
}

/** Whether a model makes the generated shapes. */
export const makesShapes = (classes: readonly string[]) => classes.join() === new Shapes(1, 0).classes.join();

/** The encoder that a tokenizer was made from: --encoder, or the one that its run records; or why it cannot be opened. */
export async function originalEncoder(
  c: Parameters<typeof chosenEncoder>[0],
  tokenizer: string,
  log: Log,
): Promise<EncoderSource | string | undefined> {
  const recorded = recordedEncoder(tokenizer);
  if (c.encoder === undefined && !recorded) return undefined;
  try {
    return await chosenEncoder({ ...c, encoder: c.encoder ?? recorded?.encoder }, log);
  } catch (error) {
    if (error instanceof UsageError) return error.message;
    throw error;
  }
}
