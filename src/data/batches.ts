// Training batches. The batch of a step is a function of (seed, step), so that a resumed run sees the images that the
// interrupted one would have seen, and no state is saved. The next batches are loaded while the device works.

import { type CropName, cropsAt } from "./crops.ts";
import { ahead, depthOf } from "./prefetch.ts";
import { type Batch, batchIndices, flipsAt, gather, type ImageSource } from "./image_source.ts";

export interface BatchOptions {
  batchSize: number;
  imageSize: number;
  seed: number;
  /** First step (0). */
  step?: number;
  /** Step to stop before (none). */
  end?: number;
  /** Mirrors each image left to right with probability 1/2 (false). */
  flip?: boolean;
  /** How images become squares ("center"). */
  crop?: CropName;
}

/** Images of a step, and which of them are to be mirrored. */
export interface TrainingBatch extends Batch {
  /** 1 mirrors an image left to right, 0 does not; where some are mirrored. */
  flips?: Float32Array<ArrayBuffer>;
}

/** Batches of the steps `step` to `end` - 1. A damaged image's error comes when its step has come. */
export function batches(source: ImageSource, options: BatchOptions): AsyncGenerator<TrainingBatch, void> {
  const { batchSize, imageSize, seed, step = 0, end = Infinity, flip = false, crop = "center" } = options;
  const make = async (n: number): Promise<TrainingBatch> => {
    const indices = batchIndices(source.length, batchSize, seed, n);
    const batch = await gather(source, indices, imageSize, cropsAt(crop, imageSize, batchSize, seed, n));
    if (!flip) return batch;
    return { ...batch, flips: Float32Array.from(flipsAt(batchSize, seed, n), Number) };
  };
  const bytes = batchSize * imageSize ** 2 * 3;
  return ahead(make, { from: step, to: end, depth: depthOf(source, bytes) });
}
