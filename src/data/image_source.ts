// Sources of labelled images: a folder, an .npz file or the generator. Which images a step sees is a function of (seed, step),
// so that a resumed run sees the same without saved state.

import { BOUNDS } from "../bounds.ts";
import { UsageError } from "../errors.ts";
import { packImages, wordsOf } from "../ops/pixels.ts";
import { permutation, uniform } from "../philox.ts";
import { formatBytes } from "../formats/files.ts";
import type { Identity } from "../formats/provenance.ts";
import type { Crop } from "./crops.ts";

/** A numbered and labelled set. */
interface Labelled {
  readonly length: number;
  /** Class names; a label is an index into them. Empty where images have no classes. */
  readonly classes: readonly string[];
  /** Number of images that are loaded at the same time on other threads (0). */
  readonly parallel?: number;
  label(i: number): number;
  name(i: number): string;
}

/** A numbered set of labelled images. */
export interface ImageSource extends Labelled {
  /** Name and fingerprint of the images, for records of what was made from them. */
  identity?(): Identity;
  /** RGB bytes [size, size, 3]. @param crop ["center"]; generated images are squares already */
  bytes(i: number, size: number, crop?: Crop): Uint8Array | Promise<Uint8Array>;
}

/** Images as a network's preprocessing makes them. */
export interface NetworkInputs extends Labelled {
  /** The input [size, size, 3]. */
  floats(i: number, size: number): Float32Array | Promise<Float32Array>;
}

export interface Batch<A = Uint32Array<ArrayBuffer>> {
  images: A;
  labels: Uint32Array<ArrayBuffer>;
}

/** Images `indices` of a source, as {@link imageInput} takes them. @param crops of each image ["center"] */
export async function gather(
  source: ImageSource,
  indices: readonly number[],
  size: number,
  crops?: readonly Crop[],
): Promise<Batch> {
  checkBatch(indices.length, size);
  const each = size * wordsOf(size), images = new Uint32Array(indices.length * each);
  const load = async (k: number) => await source.bytes(indices[k] as number, size, crops?.[k]);
  const repeats = (k: number) => indices[k] === indices[k - 1] && crops?.[k] === crops?.[k - 1];
  const labels = await loadEach(source, indices, { load, repeats }, (image, k) => {
    packImages(image, size, images.subarray(k * each, (k + 1) * each));
  });
  return { images, labels };
}

/** Inputs `indices` of a network, [count, size, size, 3]. */
export async function gatherFloats(
  source: NetworkInputs,
  indices: readonly number[],
  size: number,
): Promise<Batch<Float32Array<ArrayBuffer>>> {
  checkBatch(indices.length, size);
  const each = size * size * 3, images = new Float32Array(indices.length * each);
  const load = async (k: number) => await source.floats(indices[k] as number, size);
  const repeats = (k: number) => indices[k] === indices[k - 1];
  const labels = await loadEach(source, indices, { load, repeats }, (image, k) => {
    images.set(image, k * each);
  });
  return { images, labels };
}

/**
 * Passes images on in the order of `indices`, so that of several damaged ones the first is reported. An image that repeats the one
 * before it, such as those that fill an incomplete batch, is not loaded again.
 * @returns labels
 */
async function loadEach<T>(
  source: Labelled,
  indices: readonly number[],
  { load, repeats }: { load: (k: number) => Promise<T>; repeats: (k: number) => boolean },
  use: (image: T, k: number) => void,
): Promise<Uint32Array<ArrayBuffer>> {
  const loading: Promise<T>[] = [];
  for (const k of indices.keys()) loading.push(repeats(k) ? loading[k - 1] as Promise<T> : load(k));
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

/** `length` images of a source: number i is image `at(i)`. */
export function subset(source: ImageSource, length: number, at = (i: number) => i): ImageSource {
  return {
    length,
    classes: source.classes,
    parallel: source.parallel ?? 0,
    label: (i) => source.label(at(i)),
    name: (i) => source.name(at(i)),
    bytes: (i, size, crop) => source.bytes(at(i), size, crop),
  };
}

/** Images from..to-1 of a source, as a source of their own. */
export function part(source: ImageSource, from: number, to: number): ImageSource {
  return subset(source, Math.max(0, to - from), (i) => from + i);
}
