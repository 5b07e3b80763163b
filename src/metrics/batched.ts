// Batched inference: runs a captured program over any number of images in batches of fixed size; the last batch is padded and
// its outputs are cut. The next batch is loaded and uploaded while one runs, and runs while the caller uses the outputs of the
// last one: the device waits only for loading or a caller that take longer than a batch. Ctrl-C is checked between batches.
// Images in memory: the running batch, the next one, and prefetched ones (128 MiB, at least one batch), held twice until batched.

import { NotFiniteError } from "../errors.ts";
import { capture, type Program } from "../gpu/program.ts";
import { throwIfStopped } from "../interruption.ts";
import { ahead, depthOf } from "../data/prefetch.ts";
import { notFinite } from "../formats/finite.ts";
import {
  type Batch,
  gather,
  gatherFloats,
  type ImageSource,
  type NetworkInputs,
} from "../data/image_source.ts";
import { noGrad } from "../tensor/autograd.ts";
import { imageInput, packImages, pixels } from "../ops/pixels.ts";
import { input, type Tensor } from "../tensor/tensor.ts";
import type { Features } from "./moments.ts";

/** A program over images `x`: an {@link imageInput}, or a network's input [B,H,W,3]. */
export type ImageProgram<K extends string> = Program<{ x: Tensor }, Record<K, Tensor>>;

/**
 * A prepared program over images; the outputs of an image do not depend on its batch.
 * @param fn gets the pixels [B,S,S,3] in -1..1
 * @param options.n number of images it will run on
 * @param options.floats runs on {@link NetworkInputs} instead of images
 */
export function imageProgram<K extends string>(
  label: string,
  fn: (x: Tensor) => Record<K, Tensor>,
  options: { batchSize: number; size: number; n?: number; floats?: boolean },
): Promise<ImageProgram<K>> {
  const { batchSize: B, size: S, n, floats = false } = options;
  const inputs = { x: floats ? input([B, S, S, 3], "f32", "images") : imageInput(B, S) };
  return capture(label, inputs, ({ x }) => noGrad(() => fn(floats ? x : pixels(x))), {
    ...n === undefined ? {} : { runs: Math.ceil(n / B) },
    batchInvariant: true,
  }).prepare();
}

type Upload = Uint32Array<ArrayBuffer> | Float32Array<ArrayBuffer>;

/** One batch: `count` images from index `first` on as they were uploaded, their labels, and the program's outputs. */
export interface Inferred<K extends string> {
  first: number;
  count: number;
  images: Upload;
  labels: Uint32Array;
  outputs: Record<K, Float32Array>;
}

/** Runs a program on images 0 to `n - 1` of a source, or on a network's inputs. */
export function infer<K extends string>(
  program: ImageProgram<K>,
  source: ImageSource | NetworkInputs,
  n: number = source.length,
): AsyncGenerator<Inferred<K>> {
  const [B, S] = program.inputs.x.shape as [number, number];
  const make = (first: number): Promise<Batch<Upload>> => {
    const indices = Array.from({ length: B }, (_, i) => Math.min(first + i, n - 1));
    return "floats" in source ? gatherFloats(source, indices, S) : gather(source, indices, S);
  };
  return inferBatches(program, make, { n, parallel: source.parallel ?? 0, nameOf: (i) => source.name(i) });
}

/**
 * Runs a program on batches that `make` loads, each from its first image on.
 * @param options.from a multiple of the batch size (0)
 * @param options.parallel how many images are loaded at the same time, off this thread
 */
export async function* inferBatches<K extends string>(
  program: ImageProgram<K>,
  make: (first: number) => Promise<Batch<Upload>>,
  options: { n: number; from?: number; parallel: number; nameOf: (i: number) => string },
): AsyncGenerator<Inferred<K>> {
  const { n, from = 0, parallel, nameOf } = options;
  const { size } = program.inputs.x, B = program.inputs.x.dim(0), each = size / B;
  const depth = depthOf({ parallel }, 4 * size);
  const load = async (k: number) => ({ ...await make(k * B), first: k * B, count: Math.min(B, n - k * B) });
  const batches = ahead(load, { from: from / B, to: Math.ceil(n / B), depth });
  const describe = ({ first }: { first: number }, b: number) => `image ${first + b} ("${nameOf(first + b)}")`;
  for await (const { batch, outputs } of runBatches(program, batches, describe)) {
    const { first, count, images, labels } = batch;
    yield {
      first,
      count,
      images: images.subarray(0, count * each),
      labels: labels.subarray(0, count),
      outputs,
    };
  }
}

/** A batch to run: the first `count` of its images are not padding. Without any, nothing runs. */
export interface Loaded extends Batch<Upload> {
  count: number;
}

/**
 * Runs a program on batches in the order in which they are loaded; see the header.
 * @param batches ends with its iterator, or with an undefined value
 * @param nameOf image `b` of a batch, for error messages
 */
export async function* runBatches<K extends string, L extends Loaded>(
  program: ImageProgram<K>,
  batches: AsyncIterator<L | undefined, void>,
  nameOf: (batch: L, b: number) => string,
): AsyncGenerator<{ batch: L; outputs: Record<K, Float32Array> }> {
  const upload = async () => {
    const { value } = await batches.next();
    if (value?.count) program.inputs.x.storage.write(value.images); // takes effect after the run that is under way
    return value ?? undefined;
  };
  let batch = await upload();
  if (batch?.count) program.run();
  while (batch) {
    throwIfStopped();
    const current = batch;
    const next = upload(), loaded = await next.catch(() => undefined); // its error is thrown after the outputs of this batch
    const outputs = await readOutputs(program, current.count, (b) => nameOf(current, b));
    if (loaded?.count) program.run();
    yield { batch, outputs };
    batch = await next;
  }
}

/** Labels and outputs of images from index `first` on. */
export type Extracted<K extends string> = Omit<Inferred<K>, "images">;

/** Runs a program on images in memory, RGB bytes [n,S,S,3]; yields the outputs of each batch. */
export async function* inferImages<K extends string>(
  program: ImageProgram<K>,
  images: Uint8Array,
): AsyncGenerator<Record<K, Float32Array>> {
  const { size } = program.inputs.x, [B, S] = program.inputs.x.shape as [number, number], each = 3 * S * S;
  for (let at = 0; at < images.length; at += B * each) {
    const part = images.subarray(at, at + B * each), x = new Uint32Array(size);
    packImages(part, S, x);
    throwIfStopped();
    program.run({ x });
    yield await readOutputs(program, part.length / each, (i) => `image ${at / each + i}`);
  }
}

/** @throws NotFiniteError for outputs that are not finite */
async function readOutputs<K extends string>(
  program: ImageProgram<K>,
  count: number,
  nameOf: (i: number) => string,
): Promise<Record<K, Float32Array>> {
  const B = program.inputs.x.dim(0);
  const outputs = {} as Record<K, Float32Array>, read = new Map<Tensor, Float32Array>();
  if (count === 0) return outputs;
  for (const [name, tensor] of Object.entries(program.outputs) as [K, Tensor][]) {
    const all = read.get(tensor) ?? await program.read(tensor); // two names may be one tensor
    read.set(tensor, all);
    const each = all.length / B;
    outputs[name] = all.subarray(0, each * count);
    if (notFinite(outputs[name]) === undefined) continue;
    for (let i = 0; i < count; i++) {
      const fault = notFinite(all.subarray(i * each, (i + 1) * each));
      if (fault === undefined) continue;
      throw new NotFiniteError(
        `Cannot use the output "${name}" of "${program.label}" for ${nameOf(i)}: it holds ${fault}, ` +
          `numbers overflow in the network; use other weights, or remove the image`,
      );
    }
  }
  return outputs;
}

/** Features of images with the labels of those. */
export interface LabelledFeatures {
  features: Features;
  labels: Uint32Array;
}

/** One output for all images of a source as rows of features, and the labels. @param batches of the source */
export async function collect<K extends string>(
  program: ImageProgram<K>,
  output: K,
  source: ImageSource | NetworkInputs,
  batches: AsyncIterable<Extracted<K>> = infer(program, source),
): Promise<LabelledFeatures> {
  const rows = new Rows(), n = source.length;
  const labels = new Uint32Array(n);
  for await (const batch of batches) {
    rows.add(batch.outputs[output]);
    labels.set(batch.labels, batch.first);
  }
  return { features: rows.features(n), labels };
}

/** Collects rows batch by batch. */
export class Rows {
  readonly #parts: Float32Array[] = [];

  add(part: Float32Array): void {
    this.#parts.push(part);
  }

  /** All rows as one array; may be called once. */
  features(rows: number): Features {
    const data = new Float32Array(this.#parts.reduce((sum, p) => sum + p.length, 0));
    let at = 0;
    for (let part = this.#parts.shift(); part; part = this.#parts.shift()) {
      data.set(part, at);
      at += part.length;
    }
    return { data, rows, columns: data.length / rows };
  }
}
