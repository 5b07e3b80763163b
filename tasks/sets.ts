// Sets of images that samples are compared with: files, NPZ, or generated shapes; and those that probes learn from.

import { generatedInputs, type Workers } from "../src/data/decode_pool.ts";
import { openNpzSet } from "../src/data/npz_images.ts";
import { Shapes } from "../src/data/toy_shapes.ts";
import type { Identity } from "../src/formats/provenance.ts";
import type { ImageSet } from "../src/metrics/image_set.ts";
import type { Log } from "../src/run/log.ts";
import { imageFiles, type Reading, SEEDS } from "./inputs.ts";

/** Generated images that probes learn from. */
export const PROBE_IMAGES = 2000;
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
    return { name: "generated shapes", images, identity: shapes.identity() };
  }
  if (/\.np[yz]$/i.test(path)) return { name: path, ...await openNpzSet(path, workers) };
  const images = await imageFiles(path, c, workers, log);
  return { name: path, images, identity: images.identity() };
}

/** Generated images for a probe, and their side. */
export const probeImages = (workers: Workers, side: number) => ({
  images: generatedInputs(workers, new Shapes(PROBE_IMAGES, SEEDS.probe), side),
  side,
});

/** Held-out generated images. */
export function generatedShapes(length: number, log: Log): Shapes {
  log.line("data: generated shapes");
  return new Shapes(length, SEEDS.heldOut);
}

/** Whether a model makes the generated shapes. */
export const makesShapes = (classes: readonly string[]) => classes.join() === new Shapes(1, 0).classes.join();
