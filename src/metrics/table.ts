// The table of metrics: what each one scores, what it needs, and how it is computed. `tok eval` selects, checks and computes
// from this table alone; a new metric is one entry here. Entries of one name are scores that are always taken together.

import { LPIPS_SIDE } from "../models/lpips.ts";
import { TOY_CLASSIFIER_SIZE } from "../models/toy_classifier.ts";
import { openToyClassifier } from "../zoo/networks.ts";
import { collect, imageProgram } from "./batched.ts";
import { notDinov2L, withoutCls, withoutHead } from "./encoder_spaces.ts";
import { cmmd, kernelDistance } from "./fidelity.ts";
import { frechet, frechetAtInfinity, INFINITY_POINTS } from "./frechet.ts";
import { type Features, type Gaussian, gaussian } from "./moments.ts";
import { randomOrder, rowsOf } from "./gram.ts";
import { groupedSubset, isOutside, orderWithout } from "./jackknife.ts";
import { InceptionFeatures, type InceptionView, ReconstructionFrechet } from "./inception.ts";
import { nearest, predict } from "./linear_probe.ts";
import { LpipsScore } from "./lpips_score.ts";
import type {
  EncoderMetric,
  Hits,
  InceptionMetric,
  IntervalKind,
  Metric,
  ReconstructionContext,
  SetCompute,
  SetMetric,
  SixMetric,
} from "./metric.ts";
import { DENSITY_NEIGHBOURS, densityCoverage, NEIGHBOURS, precisionRecall } from "./precision_recall.ts";
import { SIX_SPACES, type SixSpace } from "./six_networks.ts";
import { comparedRows, mind } from "./sliced.ts";
import { closest, nearestTraining, shareOfCopies } from "./copies.ts";
import { ImageMean } from "./pairs.ts";
import { MS_SSIM_SIDE, mse, msSsim, psnr, ssim, SSIM_SIDE } from "./psnr_ssim.ts";
import { channelRanges, cknna, CKNNA_NEIGHBOURS } from "./representation.ts";

const OF_PAIRS = { of: ["tokenizer", "sets"], from: "reconstructions", interval: "images" } as const;

const pairsOf = (name: string, compare: ImageMean["compare"]) => ({
  ...OF_PAIRS,
  name,
  open: ({ n, size, height }: ReconstructionContext) =>
    new ImageMean(name.replace("-", "_"), n, size, compare, height),
});

type Kinds = Pick<SetMetric, "real" | "fake" | "onRequest" | "subset">;

/** The images of the fake set that MIND compares. */
const compared: SetMetric["subset"] = ({ features: a }, { features: b }, seed) => {
  const [real, fake] = [a, b] as [Features, Features];
  if (fake.rows <= real.rows) return fake;
  return rowsOf(fake, groupedSubset(comparedRows(fake, real.rows, seed, 1), fake.rows));
};

const onRequest = true;
const MOMENTS: Kinds = { real: "moments", fake: "moments" };
const FEATURES: Kinds = { real: "features", fake: "features" };
const REQUESTED: Kinds = { ...FEATURES, onRequest };
const EXTRAPOLATED: Kinds = { real: "moments", fake: "features", onRequest };

const GROUPED = { interval: "groups" } as const, HITS = { interval: "hits" } as const;

/** Which rows a classifier is right about. */
const right = (of: Hits["of"], predicted: ArrayLike<number>, labels: ArrayLike<number>): Hits => ({
  of,
  hits: Uint8Array.from(labels, (label, i) => predicted[i] === label ? 1 : 0),
});

/** @param minImages of both sets */
const byInception = (name: string, kinds: Kinds, minImages: number, compute: SetCompute): InceptionMetric => {
  const common = { of: ["model", "sets"], from: "inception", weights: "inception", ...GROUPED } as const;
  return { ...common, name, ...kinds, minImages, compute };
};

const byEncoder = (
  name: string,
  kinds: Kinds,
  minImages: number,
  compute: SetCompute,
  more: Partial<Pick<EncoderMetric, "space" | "excludes" | "named">> = {},
): EncoderMetric => {
  const common = { of: ["model", "sets"], from: "encoder", space: "patches", ...GROUPED } as const;
  return { ...common, name, ...kinds, minImages, compute, ...more };
};

const bySix = (name: string, key: string, kinds: Kinds, compute: SetCompute, ratio: boolean): SixMetric => {
  const common = { of: ["model", "sets"], from: "six", onRequest, minImages: 2, ...GROUPED } as const;
  const part = (value: number, i: number) => ratio ? value / (SIX_SPACES[i] as SixSpace).valFd : value;
  const mean = (values: readonly number[]) => values.map(part).reduce((a, b) => a + b, 0) / values.length;
  return { ...common, name, key, ...kinds, compute, mean };
};

const momentsOf = async (view: InceptionView): Promise<Gaussian> =>
  view.moments ??= await gaussian(view.features as Features);

const distance = (key: string): SetCompute => async (a, b) => ({
  [key]: await frechet(await momentsOf(a), await momentsOf(b)),
});

/** Scores of rows of features, by what their keys end with. */
const scoresOfFeatures = (end: "" | "_encoder") => {
  const rows = (a: InceptionView, b: InceptionView) =>
    [a.features as Features, b.features as Features] as const;
  /** Two scores that come out of one pass over all pairs of images. */
  const both =
    (what: string, compute: typeof precisionRecall | typeof densityCoverage): SetCompute =>
    async (a, b, { progress }) => {
      const shown = progress(what, 1, "of all pairs");
      const scores = await compute(...rows(a, b), (done, total) => shown.update(done / total))
        .finally(() => shown.end());
      return Object.fromEntries(Object.entries(scores).map(([key, value]) => [key + end, value]));
    };
  const kid: SetCompute = async (a, b, { seed, replicate }) => {
    const [x, y] = rows(a, replicate ? { features: replicate.of } : b);
    const keeps = replicate && isOutside(y.rows, replicate.without);
    return { [`kid${end}`]: await kernelDistance(x, y, { seed, ...keeps && { keeps } }) };
  };
  const sliced: SetCompute = async (a, b, { seed, progress }) => {
    const shown = progress("MIND", 1, "of all directions");
    const value = mind(...rows(a, b), { seed, onProgress: shown.update }).finally(() => shown.end());
    return { [`mind${end}`]: await value };
  };
  const infinity: SetCompute = async (a, { features }, { seed, replicate, progress }) => {
    const fake = features as Features, shown = progress("FD-infinity", INFINITY_POINTS, "distances");
    const order = replicate
      ? orderWithout(randomOrder(replicate.of, seed), replicate.without)
      : randomOrder(fake, seed);
    const options = { order, onPoint: shown.update };
    const value = frechetAtInfinity(await momentsOf(a), fake, options).finally(() => shown.end());
    return { [end ? `fd_infinity${end}` : "fid_infinity"]: await value };
  };
  const precision = both("precision and recall", precisionRecall);
  const density = both("density and coverage", densityCoverage);
  return { kid, precision, density, sliced, infinity };
};
const ofInception = scoresOfFeatures(""), ofEncoder = scoresOfFeatures("_encoder");

export const METRICS: readonly Metric[] = [
  pairsOf("psnr", psnr),
  { ...pairsOf("ssim", ssim), minSide: SSIM_SIDE },
  { ...pairsOf("ms-ssim", msSsim), minSide: MS_SSIM_SIDE },
  { ...pairsOf("mse", mse), always: true },
  {
    ...OF_PAIRS,
    name: "lpips",
    weights: "lpips",
    square: true,
    minSide: LPIPS_SIDE,
    open: async (c) => await LpipsScore.open(await c.lpips(), c),
  },
  {
    ...OF_PAIRS,
    name: "rfid",
    weights: "inception",
    square: true,
    minImages: 2,
    ...GROUPED,
    open: async ({ n, size, batchSize, inception, inceptionInput: input, groups }) =>
      new ReconstructionFrechet(
        await InceptionFeatures.open(await inception(), { size, batchSize, input, kinds: ["moments"] }),
        groups ? n : undefined,
      ),
  },
  {
    name: "channels",
    of: ["tokenizer"],
    interval: { none: "an extreme over the channels, which resampling of images misses" },
    from: "latents",
    compute: ({ channels }) => channelRanges(channels),
  },
  {
    name: "effective-rank",
    of: ["tokenizer"],
    from: "latents",
    ...GROUPED,
    minImages: 2,
    compute: async (latents) => ({ effective_rank: await latents.effectiveRank() }),
  },
  {
    name: "cknna",
    of: ["tokenizer"],
    from: "latents",
    ...GROUPED,
    original: true,
    minImages: CKNNA_NEIGHBOURS + 1,
    compute: async (latents, features) => ({ cknna: await cknna(latents.means(), await features()) }),
  },
  byEncoder("fd-encoder", MOMENTS, 2, distance("fd_encoder")),
  byEncoder("copies", FEATURES, 2, async (a, b, { show }) => {
    const nearest = await nearestTraining(a.features as Features, b.features as Features);
    await show("nearest.png", "images above their nearest real ones", closest(nearest, 10));
    return { copies: shareOfCopies(nearest) };
  }, { named: true }),
  {
    name: "classes",
    of: ["model"],
    from: "labels",
    ...HITS,
    compute: async ({ probe, fake }) => {
      if (!fake) return {};
      const predicted = await predict(await probe(), fake.features, "generated images");
      return { class_agreement: right("fake", predicted, fake.labels) };
    },
  },
  {
    name: "probe",
    of: ["tokenizer", "model"],
    from: "labels",
    minPerClass: 2,
    ...HITS,
    compute: async ({ probe, test }) => ({
      probe: right("test", await predict(await probe(), test.features), test.labels),
    }),
  },
  {
    name: "knn",
    of: ["tokenizer", "model"],
    from: "labels",
    minPerClass: 1,
    ...HITS,
    compute: async ({ train, test }) => ({
      knn: right("test", await nearest(train.features, train.labels, test.features), test.labels),
    }),
  },
  {
    name: "classes",
    of: ["model"],
    from: "labels",
    ...HITS,
    input: "the images, by the toy classifier that comes with tok",
    async compute({ fake, batchSize }) {
      if (fake?.side !== TOY_CLASSIFIER_SIZE) return {};
      const classifier = await openToyClassifier();
      const program = await imageProgram("features", (x) => ({ y: classifier.forward(x) }), {
        batchSize,
        size: TOY_CLASSIFIER_SIZE,
        n: fake.images.length,
      });
      const { features } = await collect(program, "y", fake.images).finally(() => program.destroy());
      return { class_agreement_independent: right("fake", argmax(features), fake.labels) };
    },
  },
  byInception("fid", MOMENTS, 2, distance("fid")),
  byInception("sfid", { real: "spatial", fake: "spatial" }, 2, async ({ spatial: a }, { spatial: b }) => {
    return { sfid: await frechet(a as Gaussian, b as Gaussian) };
  }),
  byInception("is", { fake: "score" }, 1, (_, { score }) => Promise.resolve({ is: score as number })),
  byInception("kid", FEATURES, 2, ofInception.kid),
  byInception("precision", FEATURES, NEIGHBOURS + 1, ofInception.precision),
  byInception("recall", FEATURES, NEIGHBOURS + 1, ofInception.precision),
  byInception("density", REQUESTED, DENSITY_NEIGHBOURS + 1, ofInception.density),
  byInception("coverage", REQUESTED, DENSITY_NEIGHBOURS + 1, ofInception.density),
  byInception("mind", { ...REQUESTED, subset: compared }, 2, ofInception.sliced),
  byInception("fid-infinity", EXTRAPOLATED, INFINITY_POINTS + 1, ofInception.infinity),
  byEncoder("fd-cls", { ...MOMENTS, onRequest }, 2, distance("fd_cls"), {
    space: "cls",
    excludes: withoutCls,
  }),
  byEncoder("fd-pooled", { ...MOMENTS, onRequest }, 2, distance("fd_pooled"), {
    space: "pooled",
    excludes: withoutHead,
  }),
  byEncoder("fd-dinov2", { ...MOMENTS, onRequest }, 2, distance("fd_dinov2"), {
    space: "dinov2",
    excludes: notDinov2L,
  }),
  byEncoder("cmmd", REQUESTED, 1, async (a, b, { progress }) => {
    const shown = progress("CMMD", 1, "of all pairs");
    const value = cmmd(a.features as Features, b.features as Features, shown.update);
    return { cmmd: await value.finally(() => shown.end()) };
  }, { space: "embedding" }),
  byEncoder("kid-encoder", REQUESTED, 2, ofEncoder.kid),
  byEncoder("precision-encoder", REQUESTED, NEIGHBOURS + 1, ofEncoder.precision),
  byEncoder("recall-encoder", REQUESTED, NEIGHBOURS + 1, ofEncoder.precision),
  byEncoder("density-encoder", REQUESTED, DENSITY_NEIGHBOURS + 1, ofEncoder.density),
  byEncoder("coverage-encoder", REQUESTED, DENSITY_NEIGHBOURS + 1, ofEncoder.density),
  byEncoder("mind-encoder", { ...REQUESTED, subset: compared }, 2, ofEncoder.sliced),
  byEncoder("fd-infinity-encoder", EXTRAPOLATED, INFINITY_POINTS + 1, ofEncoder.infinity),
  bySix("fdr6", "fd", MOMENTS, distance("fd"), true),
  bySix("mind6", "mind", { ...FEATURES, subset: compared }, ofInception.sliced, false),
];

/** The values of --metrics. */
export const METRIC_NAMES = [...new Set(METRICS.map(({ name }) => name))];

/** Those that are computed only on request. */
export const REQUESTED_NAMES = METRICS.flatMap(({ name, onRequest }) => onRequest ? [name] : []);

/** Metrics of which a larger value is better, and those of which neither is; of the others a smaller one is. */
const HIGHER = "psnr|ssim|ms-ssim|is|precision|recall|density|coverage|cknna|probe|knn|class-agreement";
const NEITHER = "latent|effective-rank|copies";

/** The key of a figure as --metrics writes it, without the noise on latents. */
const metricOf = (key: string) => key.replace(/_sigma_.*$/, "").replaceAll("_", "-");

/** Which values of a figure are better; undefined where neither larger nor smaller ones are. */
export function betterOf(key: string): "higher" | "lower" | undefined {
  const name = metricOf(key);
  if (new RegExp(`^(${NEITHER})`).test(name)) return undefined;
  return new RegExp(`^(${HIGHER})(-encoder|-independent)?$`).test(name) ? "higher" : "lower";
}

/** Whether a figure is one of a metric, a value of --metrics. */
export function isFigureOf(key: string, metric: string): boolean {
  const prefix = { channels: "latent-", classes: "class-agreement" }[metric], name = metricOf(key);
  return name === metric || prefix !== undefined && name.startsWith(prefix);
}

/** How a figure gets its interval; undefined for a figure of no metric. */
export function intervalKindOf(key: string): IntervalKind | undefined {
  return METRICS.find((metric) =>
    isFigureOf(key, metric.name) ||
    metric.from === "six" && SIX_SPACES.some((six) => key === `${metric.key}_${six.key}`)
  )?.interval;
}

function argmax({ data, rows, columns }: Features): Int32Array {
  return Int32Array.from({ length: rows }, (_, r) => {
    const row = data.subarray(r * columns, (r + 1) * columns);
    return row.indexOf(Math.max(...row));
  });
}
