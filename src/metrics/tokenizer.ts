// Scores of a tokenizer: reconstruction of held-out images (PSNR, SSIM, MSE on bytes, means over images), and how much its
// latents tell about classes (linear probe and 5 nearest neighbours on the flattened latent, trained on other images).

import { toBytes } from "../image/image.ts";
import type { ImageSource } from "../data/image_source.ts";
import type { ImageTokenizer } from "../models/tokenizer.ts";
import { unpackImages } from "../ops/pixels.ts";
import { collect, imageProgram, infer, type LabelledFeatures } from "./batched.ts";
import { accuracy, nearest, predict, trainProbe } from "./linear_probe.ts";
import { mse, psnr, ssim, SSIM_SIDE } from "./psnr_ssim.ts";

/** A score of images against their reconstructions, accumulated over batches. */
export interface PairScore {
  /** Adds a batch: RGB bytes [n,S,S,3] of both. */
  add(originals: Uint8Array, reconstructions: Uint8Array): Promise<void> | void;
  scores(): Promise<Record<string, number>> | Record<string, number>;
  destroy?(): void;
}

/** The mean over `n` images of a number computed from the bytes of both, [side,side,3]. */
export class ImageMean implements PairScore {
  #sum = 0;

  constructor(
    readonly name: string,
    readonly n: number,
    readonly side: number,
    readonly compare: (a: Uint8Array, b: Uint8Array, side: number) => number,
  ) {}

  add(a: Uint8Array, b: Uint8Array): void {
    const each = this.side ** 2 * 3;
    for (let at = 0; at < a.length; at += each) {
      this.#sum += this.compare(a.subarray(at, at + each), b.subarray(at, at + each), this.side) / this.n;
    }
  }

  scores(): Record<string, number> {
    return { [this.name]: this.#sum };
  }
}

/** PSNR, SSIM (if the images are large enough) and MSE. */
export function imageMeans(n: number, side: number): PairScore[] {
  const means = [new ImageMean("psnr", n, side, psnr)];
  if (side >= SSIM_SIDE) means.push(new ImageMean("ssim", n, side, (a, b) => ssim(a, b, side, side)));
  return [...means, new ImageMean("mse", n, side, mse)];
}

/** A prepared program x -> latent z for `n` images. */
export function encoderProgram(tokenizer: ImageTokenizer, batchSize: number, size: number, n: number) {
  return imageProgram("encode", (x) => ({ z: tokenizer.encode(x) }), { batchSize, size, n });
}

/** A prepared program x -> reconstruction y for `n` images. */
export function tokenizerProgram(tokenizer: ImageTokenizer, batchSize: number, size: number, n: number) {
  const options = { batchSize, size, n };
  return imageProgram("tokenize", (x) => ({ y: tokenizer.decode(tokenizer.encode(x)) }), options);
}

/**
 * Reconstructs all images of a source and scores them.
 * @param options.scores instead of imageMeans()
 * @param options.also more scores
 * @param visit called with each image and its reconstruction as bytes [size,size,3]
 * @returns the scores and the number of images `n`
 */
export async function scoreReconstruction(
  tokenizer: ImageTokenizer,
  source: ImageSource,
  options: { size: number; batchSize: number; scores?: readonly PairScore[]; also?: readonly PairScore[] },
  visit?: (
    index: number,
    original: Uint8Array<ArrayBuffer>,
    reconstruction: Uint8Array<ArrayBuffer>,
  ) => void | Promise<void>,
): Promise<{ n: number } & Record<string, number>> {
  const { size, batchSize } = options, n = source.length, each = size * size * 3;
  const scores = [...options.scores ?? imageMeans(n, size), ...options.also ?? []];
  const program = await tokenizerProgram(tokenizer, batchSize, size, n);
  try {
    for await (const { first, count, images, outputs } of infer(program, source, n)) {
      const originals = unpackImages(images as Uint32Array<ArrayBuffer>, size);
      const reconstructions = toBytes(outputs.y);
      for (const score of scores) await score.add(originals, reconstructions);
      for (let i = 0; visit && i < count; i++) {
        const pixels = (all: typeof originals) => all.subarray(i * each, (i + 1) * each);
        await visit(first + i, pixels(originals), pixels(reconstructions));
      }
    }
  } finally {
    program.destroy();
  }
  const all: Record<string, number> = {};
  for (const score of scores) Object.assign(all, await score.scores());
  return { ...all, n };
}

/** Maximum of rows x columns x classes of a linear probe: about a minute. */
const MAX_PROBE = 1e8;

/** Accuracy of a linear probe (where it is not too large to train) and of nearest neighbours on latents. */
export async function scoreLatents(
  tokenizer: ImageTokenizer,
  train: ImageSource,
  test: ImageSource,
  options: { size: number; batchSize: number },
): Promise<{ probe?: number; knn: number }> {
  const latents = await latentFeatures(tokenizer, train, test, options);
  const knn = neighbourAccuracy(latents.train, latents.test);
  if (!canProbe(tokenizer, train, options.size)) return { knn };
  const probe = trainProbe(latents.train.features, latents.train.labels, train.classes.length);
  return { probe: accuracy(predict(probe, latents.test.features), latents.test.labels), knn };
}

/** Whether {@link scoreLatents} trains a linear probe. */
export function canProbe(tokenizer: ImageTokenizer, train: ImageSource, size: number): boolean {
  const columns = tokenizer.side(size) ** 2 * tokenizer.channels;
  return train.length * columns * train.classes.length <= MAX_PROBE;
}

/** Latents of training and of test images. */
export async function latentFeatures(
  tokenizer: ImageTokenizer,
  train: ImageSource,
  test: ImageSource,
  options: { size: number; batchSize: number },
): Promise<{ train: LabelledFeatures; test: LabelledFeatures }> {
  const n = train.length + test.length;
  const program = await encoderProgram(tokenizer, options.batchSize, options.size, n);
  try {
    return { train: await collect(program, "z", train), test: await collect(program, "z", test) };
  } finally {
    program.destroy();
  }
}

/** Accuracy of the 5 nearest neighbours. */
export function neighbourAccuracy(train: LabelledFeatures, test: LabelledFeatures): number {
  return accuracy(nearest(train.features, train.labels, test.features), test.labels);
}
