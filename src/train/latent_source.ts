// Where the latents of a diffusion training come from: a folder of them. The batch of a step is a function of (seed, step), so that
// a resumed run sees the same; latents are read one by one, so that the memory does not grow with their number.

import { batchIndices, flipsAt } from "../data/image_source.ts";
import { ahead } from "../data/prefetch.ts";
import type { Latents } from "../formats/latents.ts";
import type { HostArray } from "../gpu/storage.ts";
import { permute } from "../ops/layout.ts";
import { input, type Tensor } from "../tensor/tensor.ts";

/** Inputs of a step by name, and the class number of each latent. */
export type LatentBatch = Record<string, HostArray> & { labels: Uint32Array<ArrayBuffer> };

export interface LatentSource {
  /** Per channel: training works on (z - mean) / std. */
  readonly mean: Float32Array;
  readonly std: Float32Array;
  /** Bytes of the inputs of one latent. */
  readonly bytes: number;
  /** Inputs of a program of `B` latents, besides the labels. */
  inputs(B: number): Record<string, Tensor>;
  /** Records the latents of these inputs as the tokenizer makes them, [B, side, side, C]. */
  latents(inputs: Readonly<Record<string, Tensor>>): Tensor;
  /** Batches of the steps `from` to `to` - 1, in order. */
  batches(batchSize: number, from: number, to: number): AsyncGenerator<LatentBatch, void>;
}

/** Latents of a folder, [B, C, side, side] as files hold them. */
export class StoredLatents implements LatentSource {
  readonly mean: Float32Array;
  readonly std: Float32Array;
  readonly bytes: number;

  /**
   * @param shape of one latent, [C, side, side]
   * @param folder undefined for a dry run
   * @param options.flip whether a half of the batch, at random, are the latents of mirrored images
   */
  constructor(
    private readonly shape: readonly [number, number, number],
    private readonly folder: Latents | undefined,
    private readonly options: { seed: number; flip: boolean },
  ) {
    const [C] = shape;
    this.mean = folder?.mean ?? new Float32Array(C);
    this.std = folder?.std ?? new Float32Array(C).fill(1);
    this.bytes = 4 * shape.reduce((a, b) => a * b);
  }

  inputs(B: number): Record<string, Tensor> {
    return { x: input([B, ...this.shape], "f32", "latents") };
  }

  latents({ x }: Readonly<Record<string, Tensor>>): Tensor {
    return permute(x as Tensor, [0, 2, 3, 1]);
  }

  batches(batchSize: number, from: number, to: number): AsyncGenerator<LatentBatch, void> {
    return ahead((step) => this.#batch(batchSize, step), { from, to, depth: 1 });
  }

  async #batch(batchSize: number, step: number): Promise<LatentBatch> {
    const { seed, flip } = this.options, latents = this.folder as Latents;
    const size = this.bytes / 4, indices = batchIndices(latents.length, batchSize, seed, step);
    const flips = flip ? flipsAt(batchSize, seed, step) : [];
    const x = new Float32Array(batchSize * size), labels = new Uint32Array(batchSize);
    await Promise.all(indices.map(async (i, n) => {
      x.set(await latents.latent(i, flips[n] ?? false), n * size);
      labels[n] = latents.labels[i] as number;
    }));
    return { x, labels };
  }
}
