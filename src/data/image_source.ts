// Where images come from: a folder, or the generator. Batches are a function of (seed, step) alone, so a resumed run
// sees the same images without any saved state.

import { BOUNDS } from "../bounds.ts";
import { UsageError } from "../errors.ts";
import { permutation } from "../philox.ts";
import { formatBytes } from "../formats/files.ts";
import type { Identity } from "../formats/provenance.ts";

/** A numbered set of labelled images. */
export interface ImageSource {
  readonly length: number;
  /** Class names; a label is an index into them. Empty where images have no classes. */
  readonly classes: readonly string[];
  /** How many images are made at the same time, off the calling thread (0). */
  readonly parallel?: number;
  /** Which images they are, for records of what was made from them. */
  identity?(): Identity;
  label(i: number): number;
  name(i: number): string;
  /** Pixels in [-1,1], channels-last [size, size, 3]. */
  image(i: number, size: number): Float32Array | Promise<Float32Array>;
}

export interface Batch {
  /** [count, size, size, 3] */
  images: Float32Array<ArrayBuffer>;
  labels: Uint32Array<ArrayBuffer>;
  indices: number[];
}

/** Images `indices` of a source, one after another. */
export async function gather(source: ImageSource, indices: readonly number[], size: number): Promise<Batch> {
  const bytes = indices.length * size * size * 3 * 4;
  if (bytes > BOUNDS.batchBytes) {
    throw new UsageError(
      `Cannot load ${indices.length} images of ${size} x ${size} at a time: they take ${
        formatBytes(bytes)
      }, at most ` +
        `${formatBytes(BOUNDS.batchBytes)} are supported; use a smaller --batch-size or --image-size`,
    );
  }
  const images = new Float32Array(bytes / 4);
  const labels = new Uint32Array(indices.length);
  const made = indices.map(async (i) => await source.image(i, size));
  made.forEach((image) => image.catch(() => {}));
  // One after another, so that of several damaged images the first one is reported.
  for (const [k, i] of indices.entries()) {
    images.set(await made[k] as Float32Array, k * size * size * 3);
    labels[k] = source.label(i);
  }
  return { images, labels, indices: [...indices] };
}

/** Which images step `step` sees: consecutive parts of a new order of the whole source in every epoch. */
export function batchIndices(length: number, batchSize: number, seed: number, step: number): number[] {
  const indices: number[] = [];
  let epoch = -1;
  let order = new Uint32Array(0);
  for (let at = step * batchSize; at < (step + 1) * batchSize; at++) {
    if (Math.floor(at / length) !== epoch) {
      epoch = Math.floor(at / length);
      order = orderOf(seed, epoch, length);
    }
    indices.push(order[at % length] as number);
  }
  return indices;
}

let latest: { key: string; order: Uint32Array<ArrayBuffer> } | undefined;

/** The order of an epoch; the last one is kept, since a run asks for it at every step. */
function orderOf(seed: number, epoch: number, length: number): Uint32Array<ArrayBuffer> {
  const key = `${seed} ${epoch} ${length}`;
  if (latest?.key !== key) latest = { key, order: new Uint32Array(permutation(seed, epoch, length)) };
  return latest.order;
}

/** Images from..to-1 of a source, as a source of their own. */
export function part(source: ImageSource, from: number, to: number): ImageSource {
  return {
    length: Math.max(0, to - from),
    classes: source.classes,
    parallel: source.parallel ?? 0,
    label: (i) => source.label(from + i),
    name: (i) => source.name(from + i),
    image: (i, size) => source.image(from + i, size),
  };
}

/** Every second image to learn from, the others to test on. */
export function halves(source: ImageSource): [ImageSource, ImageSource] {
  const half = (odd: number): ImageSource => ({
    length: Math.floor((source.length + 1 - odd) / 2),
    classes: source.classes,
    parallel: source.parallel ?? 0,
    label: (i) => source.label(2 * i + odd),
    name: (i) => source.name(2 * i + odd),
    image: (i, size) => source.image(2 * i + odd, size),
  });
  return [half(0), half(1)];
}
