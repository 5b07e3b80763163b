// A strip of pictures between two images of a job: their noise is interpolated on the sphere, and the embeddings of their classes
// linearly. The first and the last picture are those of the job.

import { UsageError } from "../errors.ts";
import type { Image } from "../image/image.ts";
import { grid } from "../image/image.ts";
import type { ImageTokenizer } from "../models/tokenizer.ts";
import { constant, readTensor } from "../tensor/tensor.ts";
import type { Denoiser } from "../models/denoiser.ts";
import type { ModelConfig } from "../zoo/runs.ts";
import { generate, type GenerateOptions } from "./generate.ts";
import { noiseOf, slerp } from "./noise.ts";
import type { Evaluations } from "./sampler_options.ts";

export interface Ends {
  /** Number of the image whose noise is used, and its class. */
  number: number;
  label: number;
}

/**
 * Pictures from one end to the other, side by side.
 * @param options.frames number of pictures, 2 or more
 * @param options.evaluations counts those of the pictures
 */
export async function interpolate(
  { dit, config }: { dit: Denoiser; config: ModelConfig },
  tokenizer: ImageTokenizer,
  [from, to]: readonly [Ends, Ends],
  { frames, evaluations, onProgress, ...options }:
    & Omit<GenerateOptions, "labels" | "first" | "needed" | "noise">
    & { frames: number; evaluations: Evaluations },
): Promise<Image> {
  const { input_size: S, in_channels: C } = dit.config;
  const [a, b] = await noiseOf(options.seed, [S, S, C], [from.number, to.number]) as [
    Float32Array,
    Float32Array,
  ];
  const parts = Array.from({ length: frames }, (_, i) => i / (frames - 1));
  const images: Uint8Array[] = [];
  using between = await withClassesBetween(dit, from.label, to.label, parts);
  const made = generate({ dit, config }, tokenizer, {
    ...options,
    ...onProgress ? { onProgress } : {},
    labels: between.labels,
    noise: (i) => slerp(a, b, parts[i] as number),
  });
  for await (const { image } of evaluations.of(made)) images.push(image);
  return grid(images, S * tokenizer.factor, frames);
}

/**
 * Gives a model more rows in its table of classes, e = (1 - t) e_a + t e_b for each part t, until the result is disposed.
 * @returns the label of each part
 */
async function withClassesBetween(
  dit: Denoiser,
  a: number,
  b: number,
  parts: readonly number[],
): Promise<Disposable & { labels: number[] }> {
  if (a === b) return { labels: parts.map(() => a), [Symbol.dispose]: () => {} };
  const { classTable } = dit;
  if (!classTable) throw new UsageError("Cannot interpolate between classes: the model has no table of them");
  const { weight } = classTable;
  const [rows, C] = weight.shape as [number, number];
  const table = await readTensor(weight), more = new Float32Array((rows + parts.length) * C);
  more.set(table);
  parts.forEach((t, k) => {
    for (let c = 0; c < C; c++) {
      more[(rows + k) * C + c] = (1 - t) * (table[a * C + c] as number) + t * (table[b * C + c] as number);
    }
  });
  classTable.weight = constant(more, [rows + parts.length, C], "classes and those between");
  return {
    labels: parts.map((_, k) => rows + k),
    [Symbol.dispose]: () => {
      classTable.weight.storage.destroy();
      classTable.weight = weight;
    },
  };
}
