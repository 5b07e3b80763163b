// From images to a folder of latents, and from there to batches for diffusion. Training always reads from the folder, one
// latent at a time, so that a million of them need no memory.

import { ahead } from "../io/ahead.ts";
import { type Latents, LatentsWriter } from "../io/latents.ts";
import { batchIndices, type ImageSource } from "../io/source.ts";
import { uniform } from "../philox.ts";
import { infer } from "../metrics/infer.ts";
import { noGrad } from "../autograd.ts";
import { capture } from "../gpu/program.ts";
import { flip } from "../ops/shape.ts";
import { input } from "../tensor.ts";
import type { ImageTokenizer } from "../models/tokenizer.ts";

/**
 * Encodes a whole source, seen as images of side `size`, into `folder`; mirrored copies too where `mirrored`, else the flipped
 * ones repeat the plain ones.
 */
export async function encodeTo(
  folder: string,
  tokenizer: ImageTokenizer,
  source: ImageSource,
  options: { size: number; batchSize: number; mirrored: boolean; onProgress?: (done: number) => void },
): Promise<void> {
  const { size } = options, side = tokenizer.side(size), C = tokenizer.channels;
  const writer = new LatentsWriter(folder, [C, side, side]);
  const x = input([options.batchSize, size, size, 3], "f32", "images");
  const program = await capture("encode", { x }, ({ x }) =>
    noGrad(() => {
      const z = tokenizer.encode(x);
      return { z, mirrored: options.mirrored ? tokenizer.encode(flip(x, 2)) : z };
    }), { runs: Math.ceil(source.length / options.batchSize) }).prepare();
  for await (const { first, count, labels, outputs } of infer(program, source)) {
    const planes = (z: Float32Array) => toPlanes(z, count, side * side, C);
    await writer.add(planes(outputs.z), planes(outputs.mirrored), labels);
    options.onProgress?.(first + count);
  }
  await writer.close();
  program.destroy();
}

/** [N, P, C] -> [N, C, P] */
function toPlanes(z: Float32Array, N: number, P: number, C: number): Float32Array {
  const out = new Float32Array(z.length);
  for (let n = 0; n < N; n++) {
    for (let p = 0; p < P; p++) {
      for (let c = 0; c < C; c++) out[(n * C + c) * P + p] = z[(n * P + p) * C + c] as number;
    }
  }
  return out;
}

const FLIP_STREAM = 0xf11b;

/** Normalised latents [B, side, side, C] and their labels. */
export interface LatentBatch {
  x: Float32Array;
  labels: Uint32Array<ArrayBuffer>;
}

/** Batches of the steps `step` to `end` - 1, each a function of (seed, step) alone. */
export function latentBatches(
  latents: Latents,
  options: { batchSize: number; seed: number; step: number; end: number; flip: boolean },
): AsyncGenerator<LatentBatch, void> {
  const make = (step: number) => latentBatch(latents, { ...options, step });
  return ahead(make, { from: options.step, to: options.end, depth: 1 });
}

async function latentBatch(
  latents: Latents,
  options: { batchSize: number; seed: number; step: number; flip: boolean },
): Promise<LatentBatch> {
  const { batchSize, seed, step } = options;
  const [C, H, W] = latents.shape, P = H * W;
  const indices = batchIndices(latents.length, batchSize, seed, step);
  const coins = options.flip ? uniform(seed, FLIP_STREAM, batchSize, step) : undefined;
  const x = new Float32Array(batchSize * P * C), labels = new Uint32Array(batchSize);
  await Promise.all(indices.map(async (i, n) => {
    const z = await latents.latent(i, coins !== undefined && (coins[n] as number) < 0.5);
    labels[n] = latents.labels[i] as number;
    for (let c = 0; c < C; c++) {
      const mean = latents.mean[c] as number, std = latents.std[c] as number;
      for (let p = 0; p < P; p++) x[(n * P + p) * C + c] = ((z[c * P + p] as number) - mean) / std;
    }
  }));
  return { x, labels };
}
