// Running a captured program over any number of images: fixed batches, the last one padded, results cut to what is real.

import type { Program } from "../gpu/program.ts";
import { gather, type ImageSource } from "../io/source.ts";
import type { Tensor } from "../tensor.ts";
import type { Features } from "./frechet.ts";

/** What one batch gave: `count` real images, their indices, pixels and labels, and the outputs asked for. */
export interface Inferred<K extends string> {
  first: number;
  count: number;
  images: Float32Array;
  labels: Uint32Array;
  outputs: Record<K, Float32Array>;
}

/** Feeds images 0..n-1 of a source to a program with the input `x` [B,S,S,3]; yields batch by batch. */
export async function* infer<K extends string>(
  program: Program<{ x: Tensor }, Record<K, Tensor>>,
  source: ImageSource,
  n: number = source.length,
): AsyncGenerator<Inferred<K>> {
  const [B, S] = program.inputs.x.shape as [number, number];
  for (let first = 0; first < n; first += B) {
    const count = Math.min(B, n - first);
    const indices = Array.from({ length: B }, (_, i) => first + Math.min(i, count - 1));
    const batch = await gather(source, indices, S);
    program.run({ x: batch.images });
    const outputs = {} as Record<K, Float32Array>;
    for (const [name, tensor] of Object.entries(program.outputs) as [K, Tensor][]) {
      const all = await program.read(tensor);
      outputs[name] = all.subarray(0, all.length / B * count);
    }
    const pixels = batch.images.subarray(0, count * S * S * 3);
    yield { first, count, images: pixels, labels: batch.labels.subarray(0, count), outputs };
  }
}

/** One output over all images as rows of features, and the labels. */
export async function collect<K extends string>(
  program: Program<{ x: Tensor }, Record<K, Tensor>>,
  output: K,
  source: ImageSource,
  n: number = source.length,
): Promise<{ features: Features; labels: Uint32Array }> {
  const parts: Float32Array[] = [];
  const labels = new Uint32Array(n);
  for await (const batch of infer(program, source, n)) {
    parts.push(batch.outputs[output]);
    labels.set(batch.labels, batch.first);
  }
  const data = new Float32Array(parts.reduce((sum, p) => sum + p.length, 0));
  let at = 0;
  for (const part of parts) {
    data.set(part, at);
    at += part.length;
  }
  return { features: { data, rows: n, columns: data.length / n }, labels };
}
