// The stream of training batches: step s depends on (seed, s) alone, so a resumed run goes on with the very images that
// the interrupted one would have seen, and nothing has to be saved. The next batches are made while the device works.

import { uniform } from "../philox.ts";
import { ahead, depthOf } from "./prefetch.ts";
import { type Batch, batchIndices, gather, type ImageSource } from "./image_source.ts";

export interface BatchOptions {
  batchSize: number;
  imageSize: number;
  seed: number;
  /** First step (0). */
  step?: number;
  /** Step to stop before (none). */
  end?: number;
  /** Mirrors every second image or so, left to right (false). */
  flip?: boolean;
}

const FLIP_STREAM = 0xf11b;

/** Batches of the steps `step` to `end` - 1. A damaged image's error comes when its step has come. */
export function batches(source: ImageSource, options: BatchOptions): AsyncGenerator<Batch, void> {
  const { batchSize, imageSize, seed, step = 0, end = Infinity, flip = false } = options;
  const make = async (n: number): Promise<Batch> => {
    const batch = await gather(source, batchIndices(source.length, batchSize, seed, n), imageSize);
    if (flip) {
      const coins = uniform(seed, FLIP_STREAM, batchSize, n);
      coins.forEach((coin, i) => coin < 0.5 && mirror(batch.images, i, imageSize));
    }
    return batch;
  };
  return ahead(make, { from: step, to: end, depth: depthOf(source, 12 * batchSize * imageSize ** 2) });
}

/** Mirrors image `i` of `[B,size,size,3]` in place. */
function mirror(images: Float32Array, i: number, size: number): void {
  for (let y = 0; y < size; y++) {
    const row = images.subarray(3 * size * (i * size + y), 3 * size * (i * size + y + 1));
    for (let left = 0, right = size - 1; left < right; left++, right--) {
      for (let c = 0; c < 3; c++) {
        const kept = row[3 * left + c] as number;
        row[3 * left + c] = row[3 * right + c] as number;
        row[3 * right + c] = kept;
      }
    }
  }
}
