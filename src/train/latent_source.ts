// Where the latents of a diffusion training come from: a folder of them, or images that the step itself encodes. The batch of a
// step is a function of (seed, step), so that a resumed run sees the same; latents are read one by one, so that the memory does
// not grow with their number.

import { batches } from "../data/batches.ts";
import type { CropName } from "../data/crops.ts";
import { batchIndices, flipsAt, type ImageSource } from "../data/image_source.ts";
import { ahead } from "../data/prefetch.ts";
import type { Latents } from "../formats/latents.ts";
import type { HostArray } from "../gpu/storage.ts";
import { ChannelStatistics } from "../formats/channel_statistics.ts";
import { capture } from "../gpu/program.ts";
import { throwIfStopped } from "../interruption.ts";
import type { ImageTokenizer } from "../models/tokenizer.ts";
import { permute } from "../ops/layout.ts";
import { imageInput, pixels } from "../ops/pixels.ts";
import { noGrad } from "../tensor/autograd.ts";
import { input, type Tensor } from "../tensor/tensor.ts";

/** Inputs of a step by name, and the class number of each latent. */
export type LatentBatch = Record<string, HostArray> & { labels: Uint32Array<ArrayBuffer> };

export interface LatentSource {
  /** Per channel: training works on (z - mean) / std. */
  readonly mean: Float32Array;
  readonly std: Float32Array;
  /** Bytes of the inputs of one latent. */
  readonly bytes: number;
  /** Whether the inputs are images and their flips, which REPA can read, too. */
  readonly givesImages: boolean;
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
  readonly givesImages = false;

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

/** Most images of a batch of {@link EncodedImages.measureStatistics}. */
const MEASURED = 32;

/** Images, which the step encodes: each time with another crop and flip. */
export class EncodedImages implements LatentSource {
  mean: Float32Array;
  std: Float32Array;
  readonly bytes: number;
  readonly givesImages = true;

  /** @param images undefined for a dry run */
  constructor(
    private readonly tokenizer: ImageTokenizer,
    private readonly images: ImageSource | undefined,
    private readonly options: { size: number; seed: number; flip: boolean; crop: CropName },
  ) {
    const C = tokenizer.channels;
    this.mean = new Float32Array(C);
    this.std = new Float32Array(C).fill(1);
    this.bytes = 3 * options.size ** 2;
  }

  inputs(B: number): Record<string, Tensor> {
    return { images: imageInput(B, this.options.size), flips: input([B], "f32", "flips") };
  }

  latents({ images, flips }: Readonly<Record<string, Tensor>>): Tensor {
    return this.tokenizer.encode(pixels(images as Tensor, flips));
  }

  async *batches(batchSize: number, from: number, to: number): AsyncGenerator<LatentBatch, void> {
    const { size, seed, flip, crop } = this.options;
    const options = { batchSize, imageSize: size, seed, step: from, end: to, flip, crop };
    for await (const { images, labels, flips } of batches(this.images as ImageSource, options)) {
      yield { images, labels, flips: flips ?? new Float32Array(batchSize) };
    }
  }

  /**
   * Measures mean and deviation of the latents' channels over the first `count` images of the run, as the training crops and flips
   * them; they become those of this source.
   */
  async measureStatistics(count: number, onProgress?: (done: number) => void): Promise<void> {
    const B = Math.min(MEASURED, count), steps = Math.ceil(count / B);
    const found = new ChannelStatistics(this.tokenizer.channels);
    const record = (inputs: Record<string, Tensor>) => noGrad(() => ({ z: this.latents(inputs) }));
    const program = await capture("encode", this.inputs(B), record, { runs: steps }).prepare();
    let done = 0;
    try {
      for await (const { labels: _, ...data } of this.batches(B, 0, steps)) {
        throwIfStopped();
        program.run(data);
        const z = await program.read(program.outputs.z), added = Math.min(B, count - done);
        found.add(z.subarray(0, added * z.length / B), 1);
        done += added;
        onProgress?.(done);
      }
    } finally {
      program.destroy();
    }
    this.mean = Float32Array.from(found.mean);
    this.std = Float32Array.from(found.std());
  }
}
