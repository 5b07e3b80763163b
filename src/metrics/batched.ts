// Running a captured program over any number of images: fixed batches, the last one padded, results cut to what is real.
// The next batch runs, and more are made, while the caller looks at the latest one. Between batches a command can be stopped.

import { UsageError } from "../errors.ts";
import type { Program } from "../gpu/program.ts";
import { throwIfStopped } from "../interruption.ts";
import { ahead, depthOf } from "../data/prefetch.ts";
import { notFinite } from "../formats/finite.ts";
import { type Batch, gather, type ImageSource } from "../data/image_source.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Features } from "./frechet.ts";

/** A program over images `x` [B,S,S,3] in -1..1. */
export type ImageProgram<K extends string> = Program<{ x: Tensor }, Record<K, Tensor>>;

/** What one batch gave: `count` real images, their indices, pixels and labels, and the outputs asked for. */
export interface Inferred<K extends string> {
  first: number;
  count: number;
  images: Float32Array;
  labels: Uint32Array;
  outputs: Record<K, Float32Array>;
}

/**
 * Feeds images of a source to a program; yields batch by batch.
 * @param n those before it
 * @param from the first one, a multiple of the batch size
 */
export async function* infer<K extends string>(
  program: ImageProgram<K>,
  source: ImageSource,
  n: number = source.length,
  from = 0,
): AsyncGenerator<Inferred<K>> {
  const [B, S] = program.inputs.x.shape as [number, number];
  const make = (k: number) =>
    gather(source, Array.from({ length: B }, (_, i) => Math.min(k * B + i, n - 1)), S);
  const batches = ahead(make, {
    from: from / B,
    to: Math.ceil(n / B),
    depth: depthOf(source, 12 * B * S * S),
  });
  const start = async (): Promise<Batch | undefined> => {
    const { value } = await batches.next();
    if (value) program.run({ x: value.images });
    return value ?? undefined;
  };
  let batch = await start();
  for (let first = from; batch; first += B) {
    throwIfStopped();
    const count = Math.min(B, n - first), { images, labels } = batch;
    const outputs = await readOutputs(
      program,
      count,
      (i) => `image ${first + i} ("${source.name(first + i)}")`,
    );
    const next = start();
    next.catch(() => {}); // reported when its turn comes, if it does
    yield {
      first,
      count,
      images: images.subarray(0, count * S * S * 3),
      labels: labels.subarray(0, count),
      outputs,
    };
    batch = await next;
  }
}

/** Feeds images that are at hand, [n,S,S,3]; yields the outputs of batch after batch. */
export async function* inferImages<K extends string>(
  program: ImageProgram<K>,
  images: Float32Array,
): AsyncGenerator<Record<K, Float32Array>> {
  const { size } = program.inputs.x, B = program.inputs.x.dim(0), each = size / B;
  for (let at = 0; at < images.length; at += size) {
    const part = images.subarray(at, at + size), x = new Float32Array(size);
    x.set(part);
    throwIfStopped();
    program.run({ x });
    yield await readOutputs(program, part.length / each, (i) => `image ${at / each + i}`);
  }
}

/** @throws UsageError when what it makes of an image is not finite: no picture, feature or score is made of that */
async function readOutputs<K extends string>(
  program: ImageProgram<K>,
  count: number,
  nameOf: (i: number) => string,
): Promise<Record<K, Float32Array>> {
  const B = program.inputs.x.dim(0);
  const outputs = {} as Record<K, Float32Array>, read = new Map<Tensor, Float32Array>();
  for (const [name, tensor] of Object.entries(program.outputs) as [K, Tensor][]) {
    const all = read.get(tensor) ?? await program.read(tensor); // two names may stand for one tensor
    read.set(tensor, all);
    const each = all.length / B;
    outputs[name] = all.subarray(0, each * count);
    if (notFinite(outputs[name]) === undefined) continue;
    for (let i = 0; i < count; i++) {
      const fault = notFinite(all.subarray(i * each, (i + 1) * each));
      if (fault === undefined) continue;
      throw new UsageError(
        `Cannot use what "${program.label}" makes of ${
          nameOf(i)
        }: ${name} holds ${fault}, numbers overflow in the ` +
          `network; use other weights, or leave the image out`,
      );
    }
  }
  return outputs;
}

/** One output over all images as rows of features, and the labels. */
export async function collect<K extends string>(
  program: ImageProgram<K>,
  output: K,
  source: ImageSource,
  n: number = source.length,
): Promise<{ features: Features; labels: Uint32Array }> {
  const rows = new Rows();
  const labels = new Uint32Array(n);
  for await (const batch of infer(program, source, n)) {
    rows.add(batch.outputs[output]);
    labels.set(batch.labels, batch.first);
  }
  return { features: rows.features(n), labels };
}

/** Rows that come bit by bit, as one array. */
export class Rows {
  readonly #parts: Float32Array[] = [];

  add(part: Float32Array): void {
    this.#parts.push(part);
  }

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
