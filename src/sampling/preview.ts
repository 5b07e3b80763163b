// A picture of samples for the report of a training: a column for each class, with guidance.

import type { ImageTokenizer } from "../models/tokenizer.ts";
import { grid, type Image } from "../image/image.ts";
import type { DiffusionModel } from "../zoo/runs.ts";
import { generate } from "./generate.ts";
import type { SamplingOptions } from "./sampler.ts";

/** Classes in the picture, at most, and pixels along a side of a decoded batch: a decoder's maps are large. */
const COLUMNS = 10, BATCH_SIDE = 512;

/** Samples at least 20 images of the first classes. */
export async function drawPreview(
  model: Pick<DiffusionModel, "dit" | "config">,
  tokenizer: ImageTokenizer,
  options: Omit<SamplingOptions, "batchSize">,
): Promise<Image> {
  const classes = model.config.classes.length,
    columns = Math.min(COLUMNS, classes || COLUMNS),
    count = Math.max(20, 2 * columns);
  const side = model.config.dit.input_size * tokenizer.factor;
  const batchSize = Math.min(count, Math.max(1, Math.floor((BATCH_SIDE / side) ** 2)));
  const labels = Array.from({ length: count }, (_, i) => classes && i % columns);
  const images: Uint8Array[] = [];
  for await (
    const { image } of generate(model, tokenizer, {
      ...options,
      ...classes ? {} : { cfg: 1 },
      batchSize,
      labels,
    })
  ) {
    images.push(image);
  }
  return grid(images, side, columns);
}
