// A grid over time: a row for each image, a column for each time. A column shows the decoded data prediction X = x + (1 - t) v of
// the sampler's step from that time, what the model expects of the image; the state x itself decodes to noise until near the end.

import type { Image } from "../image/image.ts";
import { grid } from "../image/image.ts";
import type { ImageTokenizer } from "../models/tokenizer.ts";
import { readTensor, type Tensor } from "../tensor/tensor.ts";
import type { DiffusionModel } from "../zoo/runs.ts";
import { decodeLatents } from "./decode.ts";
import { batchNoise, type GenerateOptions } from "./generate.ts";
import { channelsFirst } from "./noise.ts";
import { Sampler } from "./sampler.ts";

/** Maximum number of rows and columns. */
export const MAX_ROWS = 8, MAX_TIMES = 8;

/**
 * Draws the data predictions of images at up to 8 times, and the images themselves in the last column.
 * @param options.labels one for each row
 * @param options.sampler one with a grid of times: not dopri5, whose times differ from image to image
 */
export async function drawTrajectory(
  { dit, config }: Pick<DiffusionModel, "dit" | "config">,
  tokenizer: ImageTokenizer,
  options: Pick<GenerateOptions, "labels" | "first" | "noise"> & ConstructorParameters<typeof Sampler>[1],
): Promise<Image> {
  const { labels, first = 0, steps } = options, B = labels.length;
  const sampling = { ...options, batchSize: B, batches: 1, keepPrediction: true };
  using sampler = await new Sampler(dit, sampling).prepare();
  const [, S, , C] = sampler.latents.shape as [number, number, number, number], size = S * S * C;
  const count = Math.min(steps, MAX_TIMES);
  const shown = new Set(Array.from({ length: count }, (_, k) => Math.floor(k * steps / count)));
  const noise = options.noise && await batchNoise(labels.map((_, i) => first + i), options.noise, size, B);
  const columns: Float32Array[] = [];
  const keep = async (latents: Tensor) => columns.push(await readTensor(latents));
  await sampler.run(Uint32Array.from(labels), first, {
    noise,
    onStep: async (i) => {
      if (shown.has(i)) await keep(sampler.prediction as Tensor);
    },
  });
  await keep(sampler.latents);
  const across = columns.length;
  const latents = {
    length: B * across,
    shape: [C, S, S] as const,
    latent(i: number) {
      const row = Math.floor(i / across), column = columns[i % across] as Float32Array;
      return channelsFirst(column.subarray(row * size, (row + 1) * size), C);
    },
  };
  const { latent_mean: mean = [], latent_std: std = [] } = config, images: Uint8Array[] = [];
  for await (
    const { image } of decodeLatents(tokenizer, latents, { batchSize: B, statistics: { mean, std } })
  ) {
    images.push(image);
  }
  return grid(images, S * tokenizer.factor, across);
}
