// Scores of a tokenizer: reconstruction on held-out images (PSNR, SSIM, MSE on bytes, means over images), and what its latents
// still know about classes (linear probe and 5 nearest neighbours on the flattened latent, trained on other images).

import { capture } from "../gpu/program.ts";
import { toBytes, toFloat } from "../image/image.ts";
import type { ImageSource } from "../data/image_source.ts";
import type { ImageTokenizer } from "../models/tokenizer.ts";
import { noGrad } from "../tensor/autograd.ts";
import { input } from "../tensor/tensor.ts";
import type { Features } from "./frechet.ts";
import { collect, infer } from "./batched.ts";
import { accuracy, nearest, predict, trainProbe } from "./linear_probe.ts";
import { mse, psnr, ssim } from "./psnr_ssim.ts";

export interface ReconstructionScores {
  psnr: number;
  ssim: number;
  mse: number;
  n: number;
}

/** A score of reconstructions that takes more than bytes: both images in -1..1, as files would hold them. */
export interface PairScore {
  /** Adds originals and their reconstructions, [n,S,S,3] each. */
  add(originals: Float32Array, made: Float32Array): Promise<void>;
  scores(): Promise<Record<string, number>>;
}

/** A prepared program x -> latent z for `n` images. */
export function encoderProgram(tokenizer: ImageTokenizer, batchSize: number, size: number, n: number) {
  return capture(
    "encode",
    { x: input([batchSize, size, size, 3], "f32", "images") },
    ({ x }) => noGrad(() => ({ z: tokenizer.encode(x) })),
    { runs: Math.ceil(n / batchSize), batchInvariant: true },
  ).prepare();
}

/** A prepared program x -> reconstruction y for `n` images. */
export function tokenizerProgram(tokenizer: ImageTokenizer, batchSize: number, size: number, n: number) {
  return capture(
    "tokenize",
    { x: input([batchSize, size, size, 3], "f32", "images") },
    ({ x }) => noGrad(() => ({ y: tokenizer.decode(tokenizer.encode(x)) })),
    { runs: Math.ceil(n / batchSize), batchInvariant: true },
  ).prepare();
}

/**
 * Reconstructs `n` images.
 * @param options.ssim false leaves it 0, for images that are too small for it
 * @param options.pairs more scores of them; theirs are added to the result
 * @param visit gets each image and its reconstruction as bytes
 */
export async function scoreReconstruction(
  tokenizer: ImageTokenizer,
  source: ImageSource,
  options: { size: number; batchSize: number; n?: number; ssim?: boolean; pairs?: readonly PairScore[] },
  visit?: (
    index: number,
    original: Uint8Array<ArrayBuffer>,
    reconstruction: Uint8Array<ArrayBuffer>,
  ) => void | Promise<void>,
): Promise<ReconstructionScores & Record<string, number>> {
  const { size, batchSize, n = source.length, ssim: similarity = true, pairs = [] } = options;
  const program = await tokenizerProgram(tokenizer, batchSize, size, n);
  const sums = { psnr: 0, ssim: 0, mse: 0 };
  try {
    const length = size * size * 3;
    for await (const { first, count, images, outputs } of infer(program, source, n)) {
      const original = toBytes(images), made = toBytes(outputs.y);
      for (let i = 0; i < count; i++) {
        const a = original.subarray(i * length, (i + 1) * length),
          b = made.subarray(i * length, (i + 1) * length);
        sums.psnr += psnr(a, b) / n;
        if (similarity) sums.ssim += ssim(a, b, size, size) / n;
        sums.mse += mse(a, b) / n;
        await visit?.(first + i, a, b);
      }
      const reconstruction = pairs.length ? toFloat(made) : undefined;
      for (const pair of pairs) if (reconstruction) await pair.add(images, reconstruction);
    }
  } finally {
    program.destroy();
  }
  const more: Record<string, number> = {};
  for (const pair of pairs) Object.assign(more, await pair.scores());
  return { ...sums, ...more, n };
}

/** Accuracy of a linear probe and of nearest neighbours on latents. */
export async function scoreLatents(
  tokenizer: ImageTokenizer,
  train: ImageSource,
  test: ImageSource,
  options: { size: number; batchSize: number },
): Promise<{ probe: number; knn: number }> {
  const latents = await latentFeatures(tokenizer, train, test, options);
  return { probe: probeAccuracy(latents), knn: neighbourAccuracy(latents) };
}

/** Latents of images to learn from and of images to test on. */
export async function latentFeatures(
  tokenizer: ImageTokenizer,
  train: ImageSource,
  test: ImageSource,
  options: { size: number; batchSize: number },
): Promise<LabelledFeatures> {
  const n = train.length + test.length;
  const program = await encoderProgram(tokenizer, options.batchSize, options.size, n);
  try {
    const classes = train.classes.length;
    return {
      train: await collect(program, "z", train),
      test: await collect(program, "z", test),
      classes,
    };
  } finally {
    program.destroy();
  }
}

/** Features with the labels of their images, of two sets that share their classes. */
export interface LabelledFeatures {
  train: { features: Features; labels: Uint32Array };
  test: { features: Features; labels: Uint32Array };
  classes: number;
}

export function probeAccuracy({ train, test, classes }: LabelledFeatures): number {
  const probe = trainProbe(train.features, train.labels, classes);
  return accuracy(predict(probe, test.features), test.labels);
}

export function neighbourAccuracy({ train, test }: LabelledFeatures): number {
  return accuracy(nearest(train.features, train.labels, test.features), test.labels);
}
