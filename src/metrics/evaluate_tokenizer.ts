// Evaluation of a tokenizer: leaves out the metrics that the images do not allow, opens the networks, and computes the selected
// metrics of table.ts from reconstructions and latents.

import type { ImageSource } from "../data/image_source.ts";
import type { InputSource } from "../data/network_input.ts";
import { UsageError } from "../errors.ts";
import type { ImageTokenizer } from "../models/tokenizer.ts";
import type { Log } from "../run/log.ts";
import type { EncoderSource } from "../zoo/encoders.ts";
import { type LabelledFeatures, Rows } from "./batched.ts";
import { cautionOfFew } from "./cautions.ts";
import { ChannelHistograms } from "./channel_histograms.ts";
import { EncoderFeatures } from "./encoder_features.ts";
import type { Findings } from "./evaluation_page.ts";
import { accuraciesOf, type EvaluationOptions, learning } from "./evaluation_options.ts";
import { rowsOf } from "./gram.ts";
import { ImageScores } from "./image_scores.ts";
import type { Features } from "./moments.ts";
import { addPairs, allScores, bytesOf, OpenScores, type PairScore } from "./pairs.ts";
import { ShownImages, tokenMaps, writePcaPicture } from "./pca_picture.ts";
import { LatentSummary } from "./representation.ts";
import type { Results, Selection } from "./selection.ts";
import type { ReconstructionMetric } from "./metric.ts";
import { type LatentNoise, latentsOf, tokenized } from "./tokenizer.ts";

interface Images {
  /** Images that probes on latents learn from; undefined: those of even index of `all`, and the others test. */
  train: ImageSource | undefined;
  /** Seed of `train`, generated images. */
  seed?: number;
  /** Images that are reconstructed. */
  all: InputSource;
  /** Where they come from, for messages; undefined for generated images. */
  folder: string | undefined;
}

/** Scores reconstructions and latents. Each image is read and encoded once, and decoded once for each level of noise. */
export async function evaluateTokenizer(
  tokenizer: ImageTokenizer,
  images: Images,
  size: number,
  selection: Selection,
  options: EvaluationOptions,
  results: Results,
  log: Log,
): Promise<Findings> {
  const { all, folder, train } = images, n = all.length, batchSize = Math.min(options.batchSize, n);
  selection.exclude((m) =>
    m.from === "labels" && folder !== undefined && noClasses(m.minPerClass, all, folder)
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
  const { intervals } = options;
  const repeated = intervals?.repeated(selection.from("reconstructions", "latents", "labels"), n);
  const reconstructions = selection.from("reconstructions"), labels = selection.from("labels");
  const few = reconstructions.some(({ name }) => name === "rfid") && cautionOfFew(n);
  if (few) log.warn(few);
  const noises = await noisesOf(tokenizer, reconstructions, options, log);
  const groups = reconstructions.some((metric) => repeated?.has(metric));
  using scores = await OpenScores.open(reconstructions, { ...options, n, size, batchSize, groups });
  const guarded = noises.map((_, k) =>
    (k === 0 ? scores.first : scores.again()).map((score) => results.guarded(score))
  );
  const table = new ImageScores(size), latentMetrics = selection.from("latents");
  const pass = async (noises: readonly (LatentNoise | undefined)[]) => {
    const shape = { cells: tokenizer.side(size) ** 2, channels: tokenizer.channels };
    const summary = new LatentSummary(shape, n, latentMetrics.some((metric) => repeated?.has(metric)));
    const channels = new ChannelHistograms(shape.channels);
    const rows = new Rows(), classes = new Uint32Array(n), shown = new ShownImages(n);
    const progress = log.progress("tokenizing", n, "images");
    try {
      for await (const batch of tokenized(tokenizer, all, { size, batchSize, noises })) {
        const { first, count, latents, originals } = batch, values: Record<string, ArrayLike<number>> = {};
        for (const [k, noise] of noises.entries()) {
          const pair = { originals, reconstructions: batch.reconstructions[k] as Uint8Array<ArrayBuffer> };
          Object.assign(values, noisy(await addPairs(pair, guarded[k] as PairScore[]), noise));
        }
        const [y] = batch.reconstructions;
        if (y) table.add({ ...batch, reconstructions: y }, values, (i) => all.name(i));
        if (selection.from("latents").length > 0) await summary.add(latents);
        channels.add(latents);
        shown.add(batch);
        if (labels.length > 0) rows.add(latents);
        classes.set(batch.labels, first);
        progress.update(first + count);
      }
    } finally {
      progress.end();
    }
    return { summary, channels, rows, classes, shown };
  };
  let found: Awaited<ReturnType<typeof pass>> | undefined;
  const attempt = async (noises: readonly (LatentNoise | undefined)[]) => {
    await results.add(async () => {
      found = await pass(noises);
      return {};
    });
  };
  await attempt(noises);
  for (const [k, noise] of noises.entries()) {
    if (!found) break;
    await results.add(async () => {
      const values = noisy(await allScores(guarded[k] as PairScore[]), noise);
      return noise ? values : { ...values, n };
    }, (key) => {
      const own = results.ofPairs(noise ? key.slice(0, key.lastIndexOf("_sigma_")) : key);
      return own && { ...own, ...noise && { latentNoise: noise.sigma } };
    });
    await intervals?.repeatPairs(guarded[k] as PairScore[], n, (scores) => noisy(scores, noise));
  }
  scores[Symbol.dispose](); // before other networks are opened
  if (found) await table.write(options.out, log);
  else if (noises.length > 0) await attempt([]); // the decoder failed; latents have scores of their own
  if (!found) return { images: table };
  const { summary, channels, rows, classes, shown } = found;
  let known: Promise<Features> | undefined;
  const features = () => known ??= featuresOf(original as EncoderSource, all, { size, batchSize }, options);
  for (const metric of latentMetrics) {
    const { compute, original: compares } = metric;
    const network = compares ? await identityOf(original as EncoderSource) : undefined;
    const own = { from: "latents", input: bytesOf(size), ...network && { network } } as const;
    await results.add(
      async () => ({ ...await compute(summary, features), n }),
      (key) => key === "n" ? undefined : own,
    );
    if (!repeated?.has(metric)) continue;
    await results.add(async () => {
      await intervals?.repeatLatents(metric, summary, features);
      return {};
    });
  }
  if (labels.length > 0) {
    await results.add(async () => {
      const known = { features: rows.features(n), labels: classes };
      const latents = train
        ? { train: await latentsOf(tokenizer, train, { size, batchSize }), test: known }
        : splitByIndex(known);
      const context = learning(latents, {
        ...{
          classes: all.classes.length,
          batchSize,
          split: train ? { seed: images.seed } : "by index" as const,
        },
        warn: (text) => log.warn(text),
        progress: log.progress.bind(log),
      });
      const own = { from: "labels", space: "latents", input: bytesOf(size) } as const;
      const test = (i: number) => all.name(train ? i : 2 * i + 1);
      for (const metric of labels) {
        const made = (key: string) => ({ ...own, ...context.ingredients(key) });
        await results.add(() => accuraciesOf(metric, context, { test, fake: test }, intervals), made);
      }
      return {};
    });
  }
  if (options.out !== undefined) {
    const encoder = typeof original === "object" ? original : undefined;
    await results.add(async () => {
      const tokens = encoder && await tokenMaps(encoder, all, shown.chosen, size);
      await writePcaPicture(options.out as string, size, shown, tokenizer.side(size), tokens, log);
      return {};
    });
  }
  return { images: table, channels };
}

/** Keys of scores of reconstructions from noisy latents have the standard deviation. */
const noisy = <T>(scores: Record<string, T>, noise: LatentNoise | undefined): Record<string, T> =>
  noise
    ? Object.fromEntries(Object.entries(scores).map(([key, v]) => [`${key}_sigma_${noise.sigma}`, v]))
    : scores;

/** Levels of noise by default, where `perturb` asks for them: about the errors of a diffusion model. */
const DEFAULT_NOISE = [0.2, 0.4];

/** The levels of noise to reconstruct with, without noise first; none if no score needs reconstructions. */
async function noisesOf(
  tokenizer: ImageTokenizer,
  metrics: readonly ReconstructionMetric[],
  { latentNoise, perturb = false, seed }: EvaluationOptions,
  log: Log,
): Promise<(LatentNoise | undefined)[]> {
  const byDefault = perturb && metrics.some(({ name }) => name === "psnr" || name === "rfid");
  const sigmas = [...new Set(latentNoise ?? (byDefault ? DEFAULT_NOISE : []))].filter((sigma) => sigma > 0);
  const std = sigmas.length ? (await tokenizer.statistics())?.std : undefined;
  if (sigmas.length > 0 && latentNoise && !(std && metrics.length > 0)) {
    throw new UsageError(
      `Cannot use --latent-noise: ${
        std
          ? "no score of reconstructions is selected"
          : "the tokenizer does not say how large its latents are"
      }; leave it out`,
    );
  }
  if (metrics.length === 0) return [];
  if (!std) {
    if (sigmas.length > 0) {
      log.line(
        "left out: reconstruction from noisy latents (the tokenizer does not say how large its latents are)",
      );
    }
    return [undefined];
  }
  if (!latentNoise) {
    log.line(
      `also decoding latents with noise of ${sigmas.join(" and ")} standard deviations: ${
        sigmas.length + 1
      } passes of the decoder instead of one; --latent-noise 0 leaves them out`,
    );
  }
  return [undefined, ...sigmas.map((sigma) => ({ sigma, std, seed }))];
}

/** Rows of even index to learn from and the others to test on. */
function splitByIndex(
  { features, labels }: LabelledFeatures,
): { train: LabelledFeatures; test: LabelledFeatures } {
  const part = (odd: 0 | 1) => {
    const chosen = Uint32Array.from(
      { length: Math.floor((features.rows + 1 - odd) / 2) },
      (_, i) => 2 * i + odd,
    );
    return { features: rowsOf(features, chosen), labels: chosen.map((i) => labels[i] as number) };
  };
  return { train: part(0), test: part(1) };
}

const NO_ORIGINAL = "it needs --encoder, the encoder that the tokenizer was made from: no run records it";

const identityOf = async (encoder: EncoderSource) => ({
  name: encoder.path,
  fingerprint: await encoder.fingerprint(),
});

/** An encoder's features of images, resized and cropped to the tokenizer's size first; kept where it is the one of distances. */
async function featuresOf(
  encoder: EncoderSource,
  images: InputSource,
  { size: square, batchSize }: { size: number; batchSize: number },
  { computed, encoder: judge }: EvaluationOptions,
): Promise<Features> {
  const extractor = await EncoderFeatures.open(encoder, { batchSize, n: images.length, square });
  try {
    const found = await extractor.extract(images);
    if (computed && await (await judge()).fingerprint() === await encoder.fingerprint()) {
      computed.set(images, new Map([["patches", found]]));
    }
    return found.features;
  } finally {
    extractor.destroy();
  }
}

/** Why these images give no labels to learn; undefined if they do. @param minPerClass training images of a class */
function noClasses(minPerClass: number | undefined, all: ImageSource, folder: string): string | undefined {
  const { classes } = all, train = Math.ceil(all.length / 2);
  if (classes.length < 2) return `the images in "${folder}" have no classes`;
  // In the order of a tar's members all images of a class may have even or odd indices, where classes alternate.
  const parts = [0, 1].map(() => new Set<number>());
  for (let i = 0; i < all.length; i++) parts[i % 2]!.add(all.label(i));
  const few = classes.filter((_, k) => parts.some((part) => !part.has(k)));
  if (few.length > 0) {
    return `classes without an image of even index, to learn from, or of odd index, to test on: ${
      few.slice(0, 3).map((name) => `"${name}"`).join(", ")
    }${few.length > 3 ? ` and ${few.length - 3} more` : ""}`;
  }
  if (minPerClass === 2 && train < 2 * classes.length) {
    return `${train} images to learn from are fewer than two for each of ${classes.length} classes`;
  }
  return undefined;
}
