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
import { accuracy, cautionOfProbe, nearest, predict, trainProbe } from "./linear_probe.ts";
import type { ImageScores } from "./image_scores.ts";
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

/** A batch of images with their latents and the reconstructions from these. */
export interface TokenizedBatch extends Omit<PairBatch, "reconstructions"> {
  /** [count, side, side, channels], without noise. */
  latents: Float32Array;
  labels: Uint32Array;
  /** For each level of noise. */
  reconstructions: Uint8Array<ArrayBuffer>[];
}

/**
 * All images of a source with their latents and reconstructions, batch by batch; each image is loaded and encoded once.
 * @param options.noises levels of noise on the latents before they are decoded; undefined: none; []: nothing is decoded
 */
export async function* tokenized(
  tokenizer: ImageTokenizer,
  source: ImageSource,
  options: { size: number; batchSize: number; noises: readonly (LatentNoise | undefined)[] },
): AsyncGenerator<TokenizedBatch> {
  const { size, batchSize, noises } = options, n = source.length, levels = noises.length;
  using programs = new DisposableStack();
  const encoder = await encoderProgram(tokenizer, batchSize, size, n);
  programs.defer(() => encoder.destroy());
  const encoded = infer(encoder, source, n), waiting: Inferred<"z">[] = [];
  const complete = ({ first, count, images, labels, outputs }: Inferred<"z">) => ({
    ...{ first, count, labels, latents: outputs.z },
    originals: unpackImages(images as Uint32Array<ArrayBuffer>, size),
  });
  if (levels === 0) {
    for await (const batch of encoded) yield { ...complete(batch), reconstructions: [] };
    return;
  }
  const decoder = await decoderProgram(tokenizer, batchSize, size);
  programs.defer(() => decoder.destroy());
  /** Latents of run `at / batchSize` of the decoder: each level of a batch in turn, incomplete ones filled with their last image. */
  const load = async (at: number) => {
    const level = at / batchSize % levels, noise = noises[level];
    if (level === 0) waiting.push((await encoded.next()).value as Inferred<"z">);
    const { first, count, outputs: { z } } = waiting.at(-1) as Inferred<"z">;
    const latents = new Float32Array(decoder.inputs.x.size), each = latents.length / batchSize;
    latents.set(noise ? withNoise(z, first, each, noise) : z);
    for (let i = count; i < batchSize; i++) latents.copyWithin(i * each, (count - 1) * each, count * each);
    return { images: latents, labels: new Uint32Array(batchSize) };
  };
  const imageOf = (at: number) =>
    Math.min(n - 1, Math.floor(at / batchSize / levels) * batchSize + at % batchSize);
  const runs = { n: Math.ceil(n / batchSize) * levels * batchSize, parallel: 0 };
  try {
    let reconstructions: Uint8Array<ArrayBuffer>[] = [];
    const nameOf = (at: number) => source.name(imageOf(at));
    for await (const { outputs } of inferBatches(decoder, load, { ...runs, nameOf })) {
      const [batch] = waiting as [Inferred<"z">], { count } = batch;
      reconstructions.push(toBytes(outputs.y.subarray(0, count * 3 * size * size)));
      if (reconstructions.length < levels) continue;
      waiting.shift();
      yield { ...complete(batch), reconstructions };
      reconstructions = [];
    }
  } finally {
    await encoded.return(undefined);
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

/** All images of a source with their reconstructions, batch by batch. */
async function* reconstructed(
  tokenizer: ImageTokenizer,
  source: ImageSource,
  { size, batchSize, noise }: { size: number; batchSize: number; noise?: LatentNoise | undefined },
): AsyncGenerator<PairBatch> {
  if (noise) {
    const options = { size, batchSize, noises: [noise] };
    for await (const { reconstructions: [y], ...batch } of tokenized(tokenizer, source, options)) {
      yield { ...batch, reconstructions: y as Uint8Array<ArrayBuffer> };
    }
    return;
  }
  const n = source.length, program = await tokenizerProgram(tokenizer, batchSize, size, n);
  try {
    for await (const { first, count, images, outputs } of infer(program, source, n)) {
      const originals = unpackImages(images as Uint32Array<ArrayBuffer>, size);
      yield { first, count, originals, reconstructions: toBytes(outputs.y) };
    }
  } finally {
    program.destroy();
  }
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
  const { batchSize, noise } = options;
  const pairs = reconstructed(tokenizer, source, { size, batchSize, noise });
  const all = await scorePairs(pairs, scores, async (batch, values) => {
    const { first, count, originals, reconstructions } = batch;
    table?.add(batch, values, (i) => source.name(i));
    for (let i = 0; visit && i < count; i++) {
      const pixels = (all: typeof originals) => all.subarray(i * each, (i + 1) * each);
      await visit(first + i, pixels(originals), pixels(reconstructions));
    }
  });
  return { ...all, n };
}

/** Maximum of rows x columns x classes of a linear probe: each of its hundred or so iterations takes up to 0.2 s. */
const MAX_PROBE = 1e8;

/**
 * Accuracy of a linear probe (where it is not too large to train) and of nearest neighbours on latents.
 * @param options.warn says that the probe did not converge
 */
export async function scoreLatents(
  tokenizer: ImageTokenizer,
  train: ImageSource,
  test: ImageSource,
  options: { size: number; batchSize: number; warn?(text: string): void },
): Promise<{ probe?: number; knn: number }> {
  const latents = await latentFeatures(tokenizer, train, test, options);
  const knn = await neighbourAccuracy(latents.train, latents.test);
  if (!canProbe(tokenizer, train, options.size)) return { knn };
  const probe = await trainProbe(latents.train.features, latents.train.labels, train.classes.length);
  const caution = cautionOfProbe(probe);
  if (caution) options.warn?.(caution);
  return { probe: accuracy(await predict(probe, latents.test.features), latents.test.labels), knn };
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

/** Flattened latents of images. */
export async function latentsOf(
  tokenizer: ImageTokenizer,
  images: ImageSource,
  { size, batchSize }: { size: number; batchSize: number },
): Promise<LabelledFeatures> {
  const program = await encoderProgram(tokenizer, batchSize, size, images.length);
  return await collect(program, "z", images).finally(() => program.destroy());
}

/** Accuracy of the 5 nearest neighbours. */
async function neighbourAccuracy(train: LabelledFeatures, test: LabelledFeatures): Promise<number> {
  return accuracy(await nearest(train.features, train.labels, test.features), test.labels);
}
