// The table of metrics: what each one scores, what it needs, and how it is computed. `tok eval` selects, checks and computes
// from this table alone; a new metric is one entry here. Entries of one name are scores that are always taken together.

import type { InputSource } from "../data/network_input.ts";
import type { Log } from "../run/log.ts";
import type { Inception, InceptionInput } from "../models/inception.ts";
import { type Lpips, LPIPS_SIDE } from "../models/lpips.ts";
import { TOY_CLASSIFIER_SIZE } from "../models/toy_classifier.ts";
import { openToyClassifier } from "../zoo/networks.ts";
import { collect, imageProgram, type LabelledFeatures } from "./batched.ts";
import { kernelDistance } from "./fidelity.ts";
import { type Features, frechet, type Gaussian, gaussian } from "./frechet.ts";
import {
  type FeatureKind,
  InceptionFeatures,
  type InceptionView,
  ReconstructionFrechet,
} from "./inception.ts";
import { accuracy, predict, type Probe } from "./linear_probe.ts";
import { LpipsScore } from "./lpips_score.ts";
import { NEIGHBOURS, precisionRecall } from "./precision_recall.ts";
import { mse, psnr, ssim, SSIM_SIDE } from "./psnr_ssim.ts";
import { ImageMean, neighbourAccuracy, type PairScore } from "./tokenizer.ts";

/** What is scored. */
export type Subject = "tokenizer" | "model" | "sets";

/** Values by their key in metrics.json. */
export type Scores = Record<string, number>;

interface Entry {
  /** As in --metrics. */
  name: string;
  of: readonly Subject[];
  /** The option that must name the weights of its network. */
  weights?: "inception" | "lpips";
  /** Smallest number of images (of either set) that defines it. */
  minImages?: number;
}

/** Computed from images and their reconstructions, batch by batch. */
export interface ReconstructionMetric extends Entry {
  from: "reconstructions";
  /** Smallest side of an image, pixels. */
  minSide?: number;
  /** Computed whenever images are reconstructed. */
  always?: true;
  open(context: ReconstructionContext): PairScore | Promise<PairScore>;
}

export interface ReconstructionContext {
  /** Number of images, their side, and how many come at a time. */
  n: number;
  size: number;
  batchSize: number;
  inception(): Promise<Inception>;
  inceptionInput: InceptionInput;
  lpips(): Promise<Lpips>;
}

/** Computed from labelled features: the latents of a tokenizer, or an encoder's features of real images. */
export interface LabelMetric extends Entry {
  from: "labels";
  /** Smallest number of training images of a class. */
  minPerClass?: number;
  compute(context: LabelContext): Scores | Promise<Scores>;
}

export interface LabelContext {
  train: LabelledFeatures;
  test: LabelledFeatures;
  /** A linear probe on `train`, trained once. */
  probe(): Probe;
  /** The generated images, their features and their side. */
  fake?: LabelledFeatures & { images: InputSource; side: number };
  batchSize: number;
}

/** Computed from an encoder's features of both sets. */
export interface EncoderMetric extends Entry {
  from: "encoder";
  compute(real: Features, fake: Features): Promise<Scores>;
}

/** Computed from Inception's features of both sets. */
export interface InceptionMetric extends Entry {
  from: "inception";
  /** Features that it needs of both sets, or of the fake one alone. */
  kind: FeatureKind;
  only?: "fake";
  /** Statistics of a set that serve instead of its images. */
  statistics?: "pooled" | "spatial";
  compute(
    real: InceptionView,
    fake: InceptionView,
    context: { seed: number; progress: Log["progress"] },
  ): Promise<Scores>;
}

export type Metric = ReconstructionMetric | LabelMetric | EncoderMetric | InceptionMetric;

const pairsOf = (name: string, compare: (a: Uint8Array, b: Uint8Array, side: number) => number) => ({
  name,
  of: ["tokenizer"] as const,
  from: "reconstructions" as const,
  open: ({ n, size }: ReconstructionContext) => new ImageMean(name, n, size, compare),
});

/** @param minImages of both sets */
const byInception = (
  name: string,
  kind: FeatureKind,
  minImages: number,
  compute: InceptionMetric["compute"],
  more: Pick<InceptionMetric, "only" | "statistics"> = {},
): InceptionMetric => {
  const common = { of: ["model", "sets"], from: "inception", weights: "inception" } as const;
  return { ...common, name, kind, minImages, compute, ...more };
};

/** Both come out of one pass over all pairs of images. */
const bothOfPrecisionRecall: InceptionMetric["compute"] = async (real, fake, { progress }) => {
  const shown = progress("precision and recall", 1, "of all pairs");
  return await precisionRecall(
    real.features as Features,
    fake.features as Features,
    (done, total) => shown.update(done / total),
  ).finally(() => shown.end());
};

export const METRICS: readonly Metric[] = [
  pairsOf("psnr", psnr),
  { ...pairsOf("ssim", (a, b, side) => ssim(a, b, side, side)), minSide: SSIM_SIDE },
  { ...pairsOf("mse", mse), always: true },
  {
    name: "lpips",
    of: ["tokenizer"],
    from: "reconstructions",
    weights: "lpips",
    minSide: LPIPS_SIDE,
    open: async (c) => await LpipsScore.open(await c.lpips(), c),
  },
  {
    name: "rfid",
    of: ["tokenizer"],
    from: "reconstructions",
    weights: "inception",
    minImages: 2,
    open: async ({ size, batchSize, inception, inceptionInput: input }) =>
      new ReconstructionFrechet(
        await InceptionFeatures.open(await inception(), { size, batchSize, input, kinds: ["moments"] }),
      ),
  },
  {
    name: "fd-encoder",
    of: ["model", "sets"],
    from: "encoder",
    minImages: 2,
    compute: async (real, fake) => ({ fd_encoder: await frechet(gaussian(real), gaussian(fake)) }),
  },
  {
    name: "classes",
    of: ["model"],
    from: "labels",
    compute: ({ probe, fake }) =>
      fake ? { class_agreement: accuracy(predict(probe(), fake.features), fake.labels) } : {},
  },
  {
    name: "probe",
    of: ["tokenizer", "model"],
    from: "labels",
    minPerClass: 2,
    compute: ({ probe, test }) => ({ probe: accuracy(predict(probe(), test.features), test.labels) }),
  },
  {
    name: "knn",
    of: ["tokenizer", "model"],
    from: "labels",
    minPerClass: 1,
    compute: ({ train, test }) => ({ knn: neighbourAccuracy(train, test) }),
  },
  {
    name: "classes",
    of: ["model"],
    from: "labels",
    async compute({ fake, batchSize }) {
      if (fake?.side !== TOY_CLASSIFIER_SIZE) return {};
      const classifier = await openToyClassifier();
      const program = await imageProgram("features", (x) => ({ y: classifier.forward(x) }), {
        batchSize,
        size: TOY_CLASSIFIER_SIZE,
        n: fake.images.length,
      });
      const { features } = await collect(program, "y", fake.images).finally(() => program.destroy());
      return { class_agreement_independent: accuracy(argmax(features), fake.labels) };
    },
  },
  byInception("fid", "moments", 2, async ({ moments: a }, { moments: b }) => {
    return { fid: await frechet(a as Gaussian, b as Gaussian) };
  }, { statistics: "pooled" }),
  byInception("sfid", "spatial", 2, async ({ spatial: a }, { spatial: b }) => {
    return { sfid: await frechet(a as Gaussian, b as Gaussian) };
  }, { statistics: "spatial" }),
  byInception("is", "score", 1, async (_, { score }) => ({ is: score as number }), { only: "fake" }),
  byInception("kid", "features", 2, async ({ features: a }, { features: b }, { seed }) => {
    return { kid: await kernelDistance(a as Features, b as Features, { seed }) };
  }),
  byInception("precision", "features", NEIGHBOURS + 1, bothOfPrecisionRecall),
  byInception("recall", "features", NEIGHBOURS + 1, bothOfPrecisionRecall),
];

/** The values of --metrics. */
export const METRIC_NAMES = [...new Set(METRICS.map(({ name }) => name))];

function argmax({ data, rows, columns }: Features): Int32Array {
  return Int32Array.from({ length: rows }, (_, r) => {
    const row = data.subarray(r * columns, (r + 1) * columns);
    return row.indexOf(Math.max(...row));
  });
}
