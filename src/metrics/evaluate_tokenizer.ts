// Evaluation of a tokenizer: leaves out the metrics that the images do not allow, opens the networks, and computes the selected
// metrics of table.ts from reconstructions and latents.

import { UsageError } from "../errors.ts";
import type { ImageSource } from "../data/image_source.ts";
import type { InputSource } from "../data/network_input.ts";
import type { ImageTokenizer } from "../models/tokenizer.ts";
import type { Log } from "../run/log.ts";
import type { EncoderSource } from "../zoo/encoders.ts";
import { cautionOfFew } from "./cautions.ts";
import { EncoderFeatures } from "./encoder_features.ts";
import type { Features } from "./moments.ts";
import { type EvaluationOptions, labelContext } from "./evaluation_options.ts";
import { ImageScores } from "./image_scores.ts";
import type { PairScore } from "./pairs.ts";
import type { Results, Selection } from "./selection.ts";
import type { Scores } from "./table.ts";
import { latentFeatures, scoreReconstruction, summarisedLatents } from "./tokenizer.ts";

/**
 * Scores reconstructions and latents.
 * @param images.train images that probes on latents learn from; `test` are also reconstructed
 * @param images.folder where they come from, for messages; undefined for generated images
 */
export async function evaluateTokenizer(
  tokenizer: ImageTokenizer,
  images: { train: ImageSource; test: ImageSource; all: InputSource; folder: string | undefined },
  size: number,
  selection: Selection,
  options: EvaluationOptions,
  results: Results,
  log: Log,
): Promise<void> {
  const { all, train, test, folder } = images, n = all.length, batchSize = Math.min(options.batchSize, n);
  selection.exclude((m) =>
    m.from === "labels" && folder !== undefined && noClasses(m.minPerClass, all, train, folder)
  );
  selection.exclude((m) =>
    m.from === "reconstructions" && m.minSide !== undefined && size < m.minSide &&
    `images of ${size} x ${size} are too small, it takes ${m.minSide} x ${m.minSide}`
  );
  selection.exclude(({ minImages = 1 }) => n < minImages && `it takes ${minImages} images or more`);
  const { original } = options;
  selection.exclude((m) =>
    m.from === "latents" && m.original &&
    (typeof original === "string" ? original : original === undefined && NO_ORIGINAL)
  );
  selection.settle((line) => log.line(line));
  const reconstructions = selection.from("reconstructions"), labels = selection.from("labels");
  const std = options.latentNoise && await stdOf(tokenizer, reconstructions.length);
  if (reconstructions.length > 0) {
    const few = reconstructions.some(({ name }) => name === "rfid") && cautionOfFew(n);
    if (few) log.warn(few);
    const context = { ...options, n, size, batchSize };
    for (const sigma of [0, ...options.latentNoise ?? []]) {
      const scores: PairScore[] = [], table = sigma === 0 ? new ImageScores(size) : undefined;
      for (const metric of reconstructions) scores.push(await metric.open(context));
      const guarded = scores.map((score) => results.guarded(score));
      const noise = std && sigma > 0 ? { sigma, std, seed: options.seed } : undefined;
      await results.add(async () => {
        const all = await scoreReconstruction(tokenizer, images.all, {
          size,
          batchSize,
          scores: guarded,
          table,
          noise,
        });
        await table?.write(options.out, log);
        return noise ? noisyScores(all, sigma) : all;
      });
      for (const score of scores) score.destroy?.();
    }
  }
  const latentMetrics = selection.from("latents");
  if (latentMetrics.length > 0) {
    await results.add(async () => {
      const summary = await summarisedLatents(tokenizer, all, { size, batchSize });
      const features = () => featuresOf(original as EncoderSource, all, { size, batchSize });
      for (const { compute } of latentMetrics) await results.add(() => compute(summary, features));
      return { n };
    });
  }
  if (labels.length > 0) {
    await results.add(async () => {
      const latents = await latentFeatures(tokenizer, train, test, { size, batchSize });
      const context = labelContext(latents, train.classes.length, batchSize);
      for (const { compute } of labels) await results.add(() => compute(context));
      return {};
    });
  }
}

const NO_ORIGINAL = "it needs --encoder, the encoder that the tokenizer was made from: no run records it";

/** An encoder's features of images, resized and cropped to the tokenizer's size first. */
async function featuresOf(
  encoder: EncoderSource,
  images: InputSource,
  { size: square, batchSize }: { size: number; batchSize: number },
): Promise<Features> {
  const extractor = await EncoderFeatures.open(encoder, { batchSize, n: images.length, square });
  try {
    return (await extractor.extract(images)).features;
  } finally {
    extractor.destroy();
  }
}

/** Standard deviation of each channel. @param scores number of scores of reconstructions @throws UsageError if noise has no effect */
async function stdOf(tokenizer: ImageTokenizer, scores: number): Promise<Float32Array> {
  const std = (await tokenizer.statistics())?.std;
  if (std && scores > 0) return std;
  throw new UsageError(
    `Cannot use --latent-noise: ${
      std ? "no score of reconstructions is selected" : "the tokenizer does not say how large its latents are"
    }; leave it out`,
  );
}

/** Scores of reconstructions from noisy latents, under keys with the standard deviation. */
const noisyScores = (scores: Scores, sigma: number): Scores =>
  Object.fromEntries(
    Object.entries(scores).filter(([key]) => key !== "n").map(([key, v]) => [`${key}_sigma_${sigma}`, v]),
  );

/** Why these images give no labels to learn; undefined if they do. @param minPerClass training images of a class */
function noClasses(
  minPerClass: number | undefined,
  all: ImageSource,
  train: ImageSource,
  folder: string,
): string | undefined {
  const { classes } = all;
  if (classes.length < 2) return `the images in "${folder}" have no classes`;
  const counts = new Uint32Array(classes.length);
  for (let i = 0; i < all.length; i++) counts[all.label(i)]!++;
  const few = classes.filter((_, k) => (counts[k] as number) < 2);
  if (few.length > 0) {
    return `classes with fewer than two images, one to learn from and one to test on: ${
      few.slice(0, 3).map((name) => `"${name}"`).join(", ")
    }${few.length > 3 ? ` and ${few.length - 3} more` : ""}`;
  }
  if (minPerClass === 2 && train.length < 2 * classes.length) {
    return `${train.length} images to learn from are fewer than two for each of ${classes.length} classes`;
  }
  return undefined;
}
