// Sources of labelled images: a folder, an .npz file or the generator. Which images a step sees is a function of (seed, step),
// so that a resumed run sees the same without saved state.

import { BOUNDS } from "../bounds.ts";
import { UsageError } from "../errors.ts";
import { wordsOf } from "../ops/pixels.ts";
import { permutation, uniform } from "../philox.ts";
import { formatBytes } from "../formats/files.ts";
import type { Identity } from "../formats/provenance.ts";

/** A numbered set of labelled images. */
export interface ImageSource {
  readonly length: number;
  /** Class names; a label is an index into them. Empty where images have no classes. */
  readonly classes: readonly string[];
  /** Number of images that are loaded at the same time on other threads (0). */
  readonly parallel?: number;
  /** Name and fingerprint of the images, for records of what was made from them. */
  identity?(): Identity;
  label(i: number): number;
  name(i: number): string;
  /** Pixels in [-1,1], channels-last [size, size, 3]. */
  image(i: number, size: number): Float32Array | Promise<Float32Array>;
  /** The same as RGB bytes, where images are bytes. */
  bytes?(i: number, size: number): Promise<Uint8Array>;
}

export interface Batch<A = Float32Array<ArrayBuffer>> {
  /** As {@link imageInput} takes them: floats [count, size, size, 3], or packed bytes. */
  images: A;
  labels: Uint32Array<ArrayBuffer>;
}

/** Images that are uploaded: floats, or packed bytes. */
export type Upload = Float32Array<ArrayBuffer> | Uint32Array<ArrayBuffer>;

/** Images `indices` of a source, one after another, as floats in -1..1. */
export async function gather(source: ImageSource, indices: readonly number[], size: number): Promise<Batch> {
  checkBatch(indices.length, size);
  const images = new Float32Array(indices.length * size * size * 3);
  const labels = await loadEach(source, indices, async (i) => await source.image(i, size), (image, k) => {
    images.set(image, k * size * size * 3);
  });
  return { images, labels };
}

/** The same as bytes, where the images are bytes: a quarter of the memory. Rows are padded to whole u32s. */
export async function gatherForUpload(
  source: ImageSource,
  indices: readonly number[],
  size: number,
): Promise<Batch<Upload>> {
  if (!source.bytes) return await gather(source, indices, size);
  checkBatch(indices.length, size);
  const images = new Uint32Array(indices.length * size * wordsOf(size)), all = new Uint8Array(images.buffer);
  const row = 3 * size, padded = 4 * wordsOf(size);
  const load = (i: number) => bytesOf(source)(i, size);
  const labels = await loadEach(source, indices, load, (image, k) => {
    if (row === padded) return all.set(image, k * size * row);
    for (let y = 0; y < size; y++) all.set(image.subarray(y * row, (y + 1) * row), (k * size + y) * padded);
  });
  return { images, labels };
}

const bytesOf = (source: ImageSource) => source.bytes?.bind(source) as NonNullable<ImageSource["bytes"]>;

/** Passes images on in the order of `indices`, so that of several damaged ones the first is reported. @returns labels */
async function loadEach<T>(
  source: ImageSource,
  indices: readonly number[],
  load: (i: number) => Promise<T>,
  use: (image: T, k: number) => void,
): Promise<Uint32Array<ArrayBuffer>> {
  const loading = indices.map(load);
  loading.forEach((image) => image.catch(() => {}));
  for (let k = 0; k < loading.length; k++) use(await loading[k] as T, k);
  return Uint32Array.from(indices, (i) => source.label(i));
}

/** @throws UsageError for more images than are supported at a time */
function checkBatch(count: number, size: number): void {
  const bytes = count * size * size * 3 * 4;
  if (bytes > BOUNDS.batchBytes) {
    throw new UsageError(
      `Cannot load ${count} images of ${size} x ${size} at a time: they take ${
        formatBytes(bytes)
      }, at most ` +
        `${formatBytes(BOUNDS.batchBytes)} are supported; use a smaller --batch-size or --image-size`,
    );
  }
}

/** Indices of the images of a step: each epoch is a new permutation of the source. */
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

/** Random stream of {@link flipsAt}. */
const FLIP_STREAM = 0xf11b;

/** Which images of a step's batch are mirrored, each with probability 1/2. */
export function flipsAt(batchSize: number, seed: number, step: number): boolean[] {
  return Array.from(uniform(seed, FLIP_STREAM, batchSize, step), (coin) => coin < 0.5);
}

let latest: { key: string; order: Uint32Array<ArrayBuffer> } | undefined;

/** The permutation of an epoch; the latest is cached. */
function orderOf(seed: number, epoch: number, length: number): Uint32Array<ArrayBuffer> {
  const key = `${seed} ${epoch} ${length}`;
  if (latest?.key !== key) latest = { key, order: new Uint32Array(permutation(seed, epoch, length)) };
  return latest.order;
}

/** `length` images of a source as floats: number i is image `at(i)`. */
export function subset(source: ImageSource, length: number, at = (i: number) => i): ImageSource {
  return {
    length,
    classes: source.classes,
    parallel: source.parallel ?? 0,
    label: (i) => source.label(at(i)),
    name: (i) => source.name(at(i)),
    image: (i, size) => source.image(at(i), size),
  };
}

/** Images from..to-1 of a source, as a source of their own. */
export function part(source: ImageSource, from: number, to: number): ImageSource {
  return {
    ...subset(source, Math.max(0, to - from), (i) => from + i),
    ...source.bytes ? { bytes: (i: number, size: number) => bytesOf(source)(from + i, size) } : {},
  };
}

/** Images of even index to train on, those of odd index to test on. */
export function splitInHalf(source: ImageSource): [ImageSource, ImageSource] {
  const half = (odd: 0 | 1) => subset(source, Math.floor((source.length + 1 - odd) / 2), (i) => 2 * i + odd);
  return [half(0), half(1)];
}
