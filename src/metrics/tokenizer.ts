// Scores of a tokenizer: reconstruction of held-out images (PSNR, SSIM, MSE on bytes, means over images), and how much its
// latents tell about classes (linear probe and 5 nearest neighbours on the flattened latent, trained on other images).

import { capture } from "../gpu/program.ts";
import { toBytes } from "../image/image.ts";
import type { ImageSource } from "../data/image_source.ts";
import type { ImageTokenizer } from "../models/tokenizer.ts";
import { unpackImages } from "../ops/pixels.ts";
import { normal } from "../philox.ts";
import { noGrad } from "../tensor/autograd.ts";
import { input, type Tensor } from "../tensor/tensor.ts";
import {
  collect,
  type ImageProgram,
  imageProgram,
  infer,
  inferBatches,
  type Inferred,
  type LabelledFeatures,
} from "./batched.ts";
import { accuracy, nearest, predict, trainProbe } from "./linear_probe.ts";
import type { ImageScores } from "./image_scores.ts";
import { LatentSummary } from "./representation.ts";
import { imageMeans, type PairBatch, type PairScore, scorePairs } from "./pairs.ts";

/** A prepared program x -> latent z for `n` images. */
export function encoderProgram(tokenizer: ImageTokenizer, batchSize: number, size: number, n: number) {
  return imageProgram("encode", (x) => ({ z: tokenizer.encode(x) }), { batchSize, size, n });
}

/** A prepared program latent -> image y; its input is called x. */
function decoderProgram(
  tokenizer: ImageTokenizer,
  batchSize: number,
  size: number,
): Promise<ImageProgram<"y">> {
  const side = tokenizer.side(size), x = input([batchSize, side, side, tokenizer.channels], "f32", "latents");
  const decode = ({ x }: { x: Tensor }) => noGrad(() => ({ y: tokenizer.decode(x) }));
  return capture("decode", { x }, decode, { batchInvariant: true }).prepare();
}

/** A prepared program x -> reconstruction y for `n` images. */
export function tokenizerProgram(tokenizer: ImageTokenizer, batchSize: number, size: number, n: number) {
  const options = { batchSize, size, n };
  return imageProgram("tokenize", (x) => ({ y: tokenizer.decode(tokenizer.encode(x)) }), options);
}

/** Gaussian noise on latents: how a decoder bears the errors of a diffusion model. */
export interface LatentNoise {
  /** Standard deviation of the noise, in units of `std`. */
  sigma: number;
  /** Standard deviation of each channel of the latents. */
  std: ArrayLike<number>;
  seed: number;
}

/** All images of a source with their reconstructions, batch by batch. */
async function* reconstructed(
  tokenizer: ImageTokenizer,
  source: ImageSource,
  options: { size: number; batchSize: number; noise?: LatentNoise | undefined },
): AsyncGenerator<PairBatch> {
  const { size, batchSize, noise } = options, n = source.length;
  const originalsOf = (images: Inferred<string>["images"]) =>
    unpackImages(images as Uint32Array<ArrayBuffer>, size);
  if (!noise) {
    const program = await tokenizerProgram(tokenizer, batchSize, size, n);
    try {
      for await (const { first, count, images, outputs } of infer(program, source, n)) {
        yield { first, count, originals: originalsOf(images), reconstructions: toBytes(outputs.y) };
      }
    } finally {
      program.destroy();
    }
    return;
  }
  const encoder = await encoderProgram(tokenizer, batchSize, size, n);
  const decoder = await decoderProgram(tokenizer, batchSize, size);
  const encoded = infer(encoder, source, n), waiting: Uint8Array<ArrayBuffer>[] = [];
  const load = async () => {
    const { first, images, outputs } = (await encoded.next()).value as Inferred<"z">;
    waiting.push(originalsOf(images));
    const latents = new Float32Array(decoder.inputs.x.size);
    latents.set(withNoise(outputs.z, first, latents.length / batchSize, noise));
    return { images: latents, labels: new Uint32Array(batchSize) };
  };
  try {
    const nameOf = (i: number) => source.name(i);
    for await (const { first, count, outputs } of inferBatches(decoder, load, { n, parallel: 0, nameOf })) {
      const originals = waiting.shift() as Uint8Array<ArrayBuffer>;
      yield { first, count, originals, reconstructions: toBytes(outputs.y) };
    }
  } finally {
    await encoded.return(undefined);
    encoder.destroy();
    decoder.destroy();
  }
}

/** Random stream of the noise on latents. */
const NOISE_STREAM = 0x1a7e;

/** Latents [n, ..., C] of the images from `first` on with noise, which is a function of the seed and the image. @param each numbers of a latent */
export function withNoise(
  latents: Float32Array,
  first: number,
  each: number,
  { sigma, std, seed }: LatentNoise,
): Float32Array {
  const noisy = latents.slice();
  for (let i = 0; i < latents.length / each; i++) {
    normal(seed, NOISE_STREAM, each, 0, first + i).forEach((v, k) => {
      const at = i * each + k;
      noisy[at] = (latents[at] as number) + sigma * (std[k % std.length] as number) * v;
    });
  }
  return noisy;
}

/**
 * Reconstructs all images of a source and scores them.
 * @param options.scores instead of imageMeans()
 * @param options.also more scores
 * @param options.table records the scores of each image
 * @param options.noise on the latents before they are decoded
 * @param visit called with each image and its reconstruction as bytes [size,size,3]
 * @returns the scores and the number of images `n`
 */
export async function scoreReconstruction(
  tokenizer: ImageTokenizer,
  source: ImageSource,
  options: {
    size: number;
    batchSize: number;
    scores?: readonly PairScore[];
    also?: readonly PairScore[];
    table?: ImageScores | undefined;
    noise?: LatentNoise | undefined;
  },
  visit?: (
    index: number,
    original: Uint8Array<ArrayBuffer>,
    reconstruction: Uint8Array<ArrayBuffer>,
  ) => void | Promise<void>,
): Promise<{ n: number } & Record<string, number>> {
  const { size, table } = options, n = source.length, each = size * size * 3;
  const scores = [...options.scores ?? imageMeans(n, size), ...options.also ?? []];
  const all = await scorePairs(reconstructed(tokenizer, source, options), scores, async (batch, values) => {
    const { first, count, originals, reconstructions } = batch;
    table?.add(batch, values, (i) => source.name(i));
    for (let i = 0; visit && i < count; i++) {
      const pixels = (all: typeof originals) => all.subarray(i * each, (i + 1) * each);
      await visit(first + i, pixels(originals), pixels(reconstructions));
    }
  });
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

/** A summary of the latents of all images. */
export async function summarisedLatents(
  tokenizer: ImageTokenizer,
  source: ImageSource,
  { size, batchSize }: { size: number; batchSize: number },
): Promise<LatentSummary> {
  const n = source.length, shape = { cells: tokenizer.side(size) ** 2, channels: tokenizer.channels };
  const summary = new LatentSummary(shape, n), program = await encoderProgram(tokenizer, batchSize, size, n);
  try {
    for await (const { outputs } of infer(program, source, n)) await summary.add(outputs.z);
  } finally {
    program.destroy();
  }
  return summary;
}

/** Accuracy of the 5 nearest neighbours. */
export function neighbourAccuracy(train: LabelledFeatures, test: LabelledFeatures): number {
  return accuracy(nearest(train.features, train.labels, test.features), test.labels);
}
