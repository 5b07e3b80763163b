// 95 % intervals of scores: their coverage on generated data, and that differences of paired images are known better.

import { assert, assertAlmostEquals, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import {
  difference,
  GROUPS,
  groupSizes,
  groupsOf,
  type Interval,
  intervalOf,
  type Replicates,
  resampledMeans,
} from "../../src/metrics/bootstrap.ts";
import { generatedInputs, Workers } from "../../src/data/decode_pool.ts";
import { Shapes } from "../../src/data/toy_shapes.ts";
import { UsageError } from "../../src/errors.ts";
import { exists, readJson } from "../../src/formats/files.ts";
import { type NpzArray, writeNpz } from "../../src/formats/npz.ts";
import { EncoderFeatures } from "../../src/metrics/encoder_features.ts";
import { SetEvaluation } from "../../src/metrics/evaluate.ts";
import { kernelDistance } from "../../src/metrics/fidelity.ts";
import { frechet } from "../../src/metrics/frechet.ts";
import { orderByContent, randomOrder, randomRows, rowsOf } from "../../src/metrics/gram.ts";
import { INTERVALS, Intervals, type StoredIntervals, withoutGroups } from "../../src/metrics/intervals.ts";
import { groupedSubset, isOutside } from "../../src/metrics/jackknife.ts";
import type { InceptionMetric, Scores } from "../../src/metrics/metric.ts";
import { type Features, type Gaussian, gaussian, Moments } from "../../src/metrics/moments.ts";
import { Results, Selection } from "../../src/metrics/selection.ts";
import { METRICS } from "../../src/metrics/table.ts";
import { openEncoder } from "../../src/zoo/encoders.ts";
import { normal, permutation } from "../../src/philox.ts";
import { testDevice } from "../helpers/check.ts";
import { inFolder, quietLog, run } from "../helpers/commands.ts";
import { evalScores } from "../helpers/eval.ts";

const mean = (values: ArrayLike<number>) => Array.from(values).reduce((sum, v) => sum + v, 0) / values.length;
const width = ({ low, high }: Interval) => high - low;
const holds = ({ low, high }: Interval, value: number) => low <= value && value <= high;
/** 3.3 standard errors of a share of 1 in `trials`: one test in a thousand fails by chance; the seeds are fixed. */
const band = (share: number, trials: number) => 3.3 * Math.sqrt(share * (1 - share) / trials);

Deno.test("the bootstrap interval of a mean holds the true one as often as theory says", () => {
  const trials = 300, n = 40;
  // A percentile interval is mean +- 1.96 s sqrt((n - 1) / n): Student's t with 39 degrees of freedom is inside in 93.9 %.
  const expected = 0.939;
  let inside = 0;
  for (let trial = 0; trial < trials; trial++) {
    const column = normal(7, trial, n), options = { stream: trial, resamples: 300 };
    const [means] = resampledMeans([column], options) as [Replicates];
    if (holds(intervalOf(mean(column), means) as Interval, 0)) inside++;
  }
  assertAlmostEquals(inside / trials, expected, band(expected, trials));
});

Deno.test("the difference of two runs on the same images has a narrower interval than that of other images", () => {
  const n = 60, common = normal(1, 1, n);
  const a = common.map((v, i) => v + 0.1 * (normal(1, 2, n)[i] as number));
  const b = common.map((v, i) => v + 0.1 * (normal(1, 3, n)[i] as number) - 0.2);
  const [x, y] = resampledMeans([a, b], { stream: 1 }) as [Replicates, Replicates];
  const [other] = resampledMeans([b], { stream: 2 }) as [Replicates];
  const value = mean(a) - mean(b), of = (z: Replicates) => intervalOf(value, difference(x, z)!) as Interval;
  const paired = of(y), unpaired = of(other);
  // Standard errors: 0.1 sqrt(2 / n) against sqrt(2 (1 + 0.01) / n), a factor of 10.
  assert(width(unpaired) > 7 * width(paired), `${width(unpaired)} ${width(paired)}`);
  assert(holds(paired, 0.2) && !holds(paired, 0) && holds(unpaired, 0));
});

Deno.test("equal seeds give equal resamples, other streams other ones; what is not finite has no interval", () => {
  const column = normal(3, 1, 21),
    values = (stream: number) => resampledMeans([column], { stream })[0]!.values;
  assertEquals(values(1), values(1));
  assert(values(1)[0] !== values(2)[0]);
  assertEquals(values(1).length, 1000);
  assertEquals(intervalOf(Infinity, { of: "resamples", values: [1, Infinity] }), undefined);
  assertEquals(difference({ of: "groups", values: [1] }, { of: "resamples", values: [1] }), undefined);
});

/** Rows of normal numbers: the standard deviation of column c is 1 + c. */
function features(seed: number, rows: number, columns: number, shift = 0): Features {
  const data = normal(seed, 5, rows * columns).map((v, i) => v * (1 + i % columns) + shift);
  return { data, rows, columns };
}

const parted = ({ data, rows, columns }: Features, keep: (row: number) => boolean): Features => {
  const kept = Array.from({ length: rows }, (_, i) => i).filter(keep);
  return {
    data: Float32Array.from(kept.flatMap((i) => [...data.subarray(i * columns, (i + 1) * columns)])),
    rows: kept.length,
    columns,
  };
};

Deno.test("moments without a group are those of the other images", async () => {
  const all = features(11, 47, 5, 3), groups = groupsOf(47), view = { features: all, spatialFeatures: all };
  const counts = Array.from({ length: GROUPS }, (_, g) => groups.filter((v) => v === g).length);
  assert(counts.every((count) => count === 4 || count === 5), `${counts}`);
  let group = 0;
  for await (
    const { moments, spatial, features } of withoutGroups(view, ["moments", "spatial", "features"])
  ) {
    const others = parted(all, (row) => groups[row] !== group), expected = await gaussian(others);
    assertEquals(features, others);
    for (const key of ["mean", "covariance"] as const) {
      for (const [i, v] of moments![key].entries()) assertAlmostEquals(v, expected[key][i]!, 1e-12);
    }
    assertEquals(spatial, moments);
    group++;
  }
  assertEquals(group, GROUPS);
});

Deno.test("the jackknife interval of a Frechet distance holds its expectation in 95 % of the samples", async () => {
  const trials = 200,
    reference: Gaussian = {
      mean: new Float64Array(3),
      covariance: Float64Array.of(1, 0, 0, 0, 2, 0, 0, 0, 3),
    };
  const found: [value: number, interval: Interval][] = [];
  for (let trial = 0; trial < trials; trial++) {
    const fake = features(100 + trial, 100, 3, 0.5), values: number[] = [];
    for await (const { moments } of withoutGroups({ features: fake }, ["moments"])) {
      values.push(await frechet(reference, moments!));
    }
    const value = await frechet(reference, await gaussian(fake));
    found.push([value, intervalOf(value, { of: "groups", values })!]);
  }
  const expectation = mean(found.map(([value]) => value));
  const inside = found.filter(([, interval]) => holds(interval, expectation)).length / trials;
  assertAlmostEquals(inside, 0.95, band(0.95, trials));
  // The interval is no wider than it must be: four standard deviations of the distances, up to the t quantile and noise.
  const std = Math.sqrt(mean(found.map(([value]) => (value - expectation) ** 2)));
  assertAlmostEquals(mean(found.map(([, interval]) => width(interval))) / (2 * 2.262 * std), 1, 0.15);
});

const deviation = (values: readonly number[]) =>
  Math.sqrt(mean(values.map((v) => (v - mean(values)) ** 2)) * values.length / (values.length - 1));

Deno.test("the interval of MIND of more images than the reference has is that of its subset", async () => {
  await testDevice();
  const metric = METRICS.find(({ name }) => name === "mind") as InceptionMetric;
  const real = { features: features(1, 40, 6) },
    n = 120,
    context = { seed: 0, reported: (all: Scores) => all };
  const shown = { progress: () => ({ update: () => {}, end: () => {} }), show: () => Promise.resolve() };
  const values: number[] = [], errors: number[] = [];
  await inFolder(async (folder) => {
    for (let trial = 0; trial < 30; trial++) {
      const fake = { features: features(100 + trial, n, 6, 0.5) }, intervals = new Intervals(quietLog().log);
      const { mind } = await metric.compute(real, fake, { seed: 0, ...shown }) as { mind: number };
      await intervals.repeatSets([metric], real, fake, context);
      intervals.write(folder, { mind });
      const stored = readJson(join(folder, INTERVALS)) as StoredIntervals,
        [low, high] = stored.interval.mind!;
      assertEquals(stored.images.mind, 40); // those that are compared
      values.push(mind);
      errors.push((high - low) / (2 * 2.262));
    }
  });
  // Other random subsets in place of each group make it twice as wide.
  assertAlmostEquals(mean(errors) / deviation(values), 1.1, 0.35);
  // The images of the subset keep their groups: those of other spaces, which are of other images, pair.
  const chosen = permutation(1, 1, 1203).subarray(0, 500), subset = groupedSubset(chosen, 1203);
  assertEquals(subset.toSorted(), chosen.toSorted());
  const own = groupsOf(500), all = groupsOf(1203);
  assert(subset.filter((image, row) => own[row] === all[image]).length > 400);
});

Deno.test("the subsets of KID without a group are those of all images less the group", async () => {
  await testDevice();
  const n = 60, real = features(1, n, 4), settings = { subsets: 3, size: 16 }, order = orderByContent(real);
  const values: number[] = [], errors: number[] = [];
  for (let trial = 0; trial < 30; trial++) {
    const fake = features(100 + trial, n, 4, 0.7), without: number[] = [];
    for (let g = 0; g < GROUPS; g++) {
      without.push(await kernelDistance(real, fake, { ...settings, keeps: isOutside(n, g) }));
    }
    const value = await kernelDistance(real, fake, settings);
    values.push(value);
    errors.push(
      width(intervalOf(value, { of: "groups", values: without, images: n }) as Interval) / (2 * 2.262),
    );
    if (trial > 0) continue;
    let sum = 0; // of complete sets, which are their only subset
    for (let s = 0; s < settings.subsets; s++) {
      const x = randomRows(real, 16, 0, 2 * s, order), keeps = isOutside(n, 4);
      const chosen = randomOrder(fake, 0, 2 * s + 1).subarray(0, 16).filter(keeps);
      sum += unbiasedMmd(x, rowsOf(fake, chosen)) / settings.subsets;
    }
    assertAlmostEquals(without[4]! / sum, 1, 1e-5);
  }
  // New subsets in place of each group make it 1.8 times as wide.
  assertAlmostEquals(mean(errors) / deviation(values), 1, 0.3);
  const few = features(2, 20, 4), fake = features(3, n, 4), found: Record<string, readonly number[]> = {};
  const kid = METRICS.find(({ name }) => name === "kid") as InceptionMetric;
  const intervals = new Intervals(quietLog().log), options = { seed: 0, reported: (all: Scores) => all };
  intervals.addGroups = (scores) => Object.assign(found, scores);
  await intervals.repeatSets([kid], { features: few }, { features: fake }, options);
  assertEquals(found.kid![3], await kernelDistance(few, fake, { keeps: isOutside(n, 3) }));
});

/** MMD^2 with KID's kernel, unbiased for sets of different sizes. */
function unbiasedMmd(a: Features, b: Features): number {
  const d = a.columns, row = ({ data }: Features, i: number) => data.subarray(i * d, (i + 1) * d);
  const average = (x: Features, y: Features) => {
    let sum = 0;
    for (let i = 0; i < x.rows; i++) {
      for (let j = 0; j < y.rows; j++) {
        const dot = row(x, i).reduce((all, v, c) => all + v * row(y, j)[c]!, 0);
        if (x !== y || i !== j) sum += (dot / d + 1) ** 3;
      }
    }
    return sum / x.rows / (x === y ? y.rows - 1 : y.rows);
  };
  return average(a, a) + average(b, b) - 2 * average(a, b);
}

Deno.test("groups of unequal sizes: no bias widens an interval, and that of a mean is its standard error", () => {
  for (const n of [40, 43, 47, 5003]) {
    const groups = groupsOf(n), sizes = groupSizes(n);
    assertEquals(sizes, Array.from({ length: GROUPS }, (_, g) => groups.filter((v) => v === g).length));
    const at = (values: number[], value: number) =>
      width(intervalOf(value, { of: "groups", values, images: n }) as Interval) / (2 * 2.262157);
    // A score that is nothing but its bias, 7 / n, does not vary.
    assertAlmostEquals(at(sizes.map((size) => 7 / (n - size)), 7 / n), 0, 1e-12);
    // The mean of numbers of which those of a group are equal: the weighted squares of their differences from it.
    const inGroup = Array.from(normal(4, n, GROUPS)),
      sum = mean(inGroup.map((v, g) => v * sizes[g]!)) * GROUPS;
    const without = inGroup.map((v, g) => (sum - v * sizes[g]!) / (n - sizes[g]!)), value = sum / n;
    const squares = inGroup.map((v, g) => (v - value) ** 2 / (n / sizes[g]! - 1));
    assertAlmostEquals(at(without, value) / Math.sqrt(mean(squares)), 1, 1e-9);
  }
  const values = [...Array(GROUPS).keys()], plain: Replicates = { of: "groups", values };
  assertEquals(intervalOf(4.5, plain), intervalOf(4.5, { ...plain, images: 40 }));
  assertEquals(difference({ ...plain, images: 40 }, { ...plain, images: 41 }), undefined);
  assertEquals(intervalOf(4.5, { ...plain, images: 9 }), undefined);
});

/** A file of features in the space of the embedded encoder. */
const featureFile = (path: string, { data, rows, columns }: Features) =>
  writeNpz(path, [{ name: "features_patches", shape: [rows, columns], data: new Float32Array(data) }]);

Deno.test("--intervals writes what the distances are without each group, and changes no score", async () => {
  await inFolder(async (root) => {
    const at = (name: string) => join(root, name), real = at("real.npz"), fake = at("fake.npz");
    const sets = { real: features(1, 30, 96), fake: features(2, 25, 96, 0.1) };
    await featureFile(real, sets.real);
    await featureFile(fake, sets.fake);
    const metrics = ["fd-encoder"];
    const score = (out: string, more = {}) => evalScores({ real, fake, metrics, out: at(out), ...more });
    const plain = await score("plain"), repeated = await score("repeated", { intervals: true });
    assertEquals([plain.error, repeated.error], [undefined, undefined]);
    assertEquals(repeated.scores, plain.scores);
    assertEquals(exists(join(at("plain"), INTERVALS)), false);
    const stored = readJson(join(at("repeated"), INTERVALS)) as StoredIntervals;
    assertEquals([stored.images, Object.keys(stored.without_group)], [{ fd_encoder: 25 }, ["fd_encoder"]]);
    const reference = await gaussian(sets.real), groups = groupsOf(25);
    for (const [g, value] of stored.without_group.fd_encoder!.entries()) {
      const others = await gaussian(parted(sets.fake, (row) => groups[row] !== g));
      assertAlmostEquals(value / await frechet(reference, others), 1, 1e-9);
    }
    for (const [key, [low, high]] of Object.entries(stored.interval)) {
      assert(low < plain.scores[key]! && plain.scores[key]! < high && high - low > 0, key);
    }
    // Both are the same figure: the difference is 0, and only one has an interval.
    const { result } = await run("eval", "--compare", at("plain"), at("repeated"));
    const { values, intervals } = (result.figures as Record<string, Record<string, unknown[]>>).fd_encoder!;
    const same = plain.scores.fd_encoder!;
    assertEquals([values, intervals], [[same, same], [null, stored.interval.fd_encoder]]);
    assertEquals(stored.value, { fd_encoder: same });
    // Another evaluation in the folder has no intervals.
    const again = await score("repeated");
    assertEquals([again.error, exists(join(at("repeated"), INTERVALS))], [undefined, false]);
    await featureFile(fake, features(2, 19, 96));
    const few = await score("few", { intervals: true });
    assert(few.lines.includes("no interval of fd-encoder: 19 images are fewer than 20"));
    await assertRejects(
      () => run("eval", "--compare", at("plain"), at("few")),
      UsageError,
      "the number of images is 25 in one and 19 in the other",
    );
    await assertRejects(
      () => run("eval", "--tokenizer", "x", "--intervals", "--metrics", "psnr,channels"),
      UsageError,
      "Cannot use --intervals: it is for figures that are no means over images, and none is selected",
    );
  });
});

Deno.test("a distance of stored statistics has an interval only from features that have these statistics", async () => {
  await inFolder(async (root) => {
    const at = (name: string) => join(root, name), rows = features(2, 24, 96, 0.1);
    await featureFile(at("real.npz"), features(1, 30, 96));
    const images = Uint8Array.from(normal(3, 1, 24 * 192), (v) => 128 + 40 * v);
    const arrays = {
      images: { name: "arr_0", shape: [24, 8, 8, 3], data: images },
      features: { name: "features_patches", shape: [24, 96], data: rows.data },
    };
    const score = async (name: string, of: Features, more: NpzArray[], metrics: string[]) => {
      const { mean, covariance } = await gaussian(of), fake = at(`${name}.npz`), out = at(name);
      await writeNpz(fake, [
        ...more,
        { name: "mu_patches", shape: [96], data: mean },
        { name: "sigma_patches", shape: [96, 96], data: covariance },
      ]);
      const done = await evalScores({ real: at("real.npz"), fake, metrics, intervals: true, out });
      assertEquals(done.error, undefined);
      const { interval } = exists(join(out, INTERVALS))
        ? readJson(join(out, INTERVALS)) as StoredIntervals
        : {};
      const reasons = done.lines.filter((line) => line.startsWith("no interval of "));
      return { keys: Object.keys(interval ?? {}), reasons };
    };
    const other = features(9, 40, 96), none = "no interval of fd-encoder: it is of stored statistics";
    // The images' own features serve MIND, and are not those of the statistics.
    assertEquals(await score("both", other, [arrays.images], ["fd-encoder", "mind-encoder"]), {
      ...{ keys: ["mind_encoder"], reasons: [`${none}, and the features are of other images`] },
    });
    assertEquals(await score("statistics", other, [arrays.images], ["fd-encoder"]), {
      ...{ keys: [], reasons: [`${none}, without features of their images`] },
    });
    assertEquals(await score("other", other, [arrays.features], ["fd-encoder"]), {
      ...{ keys: [], reasons: [`${none}, and the features are of other images`] },
    });
    assertEquals(await score("same", rows, [arrays.features], ["fd-encoder"]), {
      ...{ keys: ["fd_encoder"], reasons: [] },
    });
  });
});

Deno.test("the moments of the real set are computed once for all sets that are scored against it", async () => {
  await testDevice();
  const { gaussian } = Moments.prototype, encoder = await openEncoder(), { log } = quietLog();
  const set = (seed: number) => ({
    name: `${seed}`,
    spaces: { patches: { features: features(seed, 8, 96) } },
  });
  const real = set(1), never = () => Promise.reject(new Error("not needed"));
  const networks = { inception: never, lpips: never, encoder: () => Promise.resolve(encoder) };
  const options = { ...networks, batchSize: 4, seed: 0, inceptionInput: "adm" } as const;
  const selection = new Selection("sets", { metrics: ["fd-encoder"] });
  using evaluation = await SetEvaluation.open(selection, options, real, set(2), log);
  using workers = new Workers(0);
  const train = { images: generatedInputs(workers, new Shapes(2, 1), 32), side: 32 };
  let computed = 0;
  Moments.prototype.gaussian = function () {
    computed++;
    return gaussian.call(this);
  };
  try {
    for (const [k, expected] of [2, 3, 4].entries()) {
      await evaluation.score(real, set(2 + k), train, new Results());
      assertEquals(computed, expected);
    }
    await evaluation.score(set(9), set(2), train, new Results());
    assertEquals(computed, 6);
  } finally {
    Moments.prototype.gaussian = gaussian;
  }
});

Deno.test("one extractor is on the device at a time, and is opened again only for another space", async () => {
  await testDevice();
  const encoder = await openEncoder(), { log } = quietLog(), opened: string[] = [];
  using workers = new Workers(0);
  const images = (seed: number) => ({
    name: `${seed}`,
    images: generatedInputs(workers, new Shapes(4, seed), 32),
  });
  const real = images(1), { open } = EncoderFeatures, { destroy } = EncoderFeatures.prototype;
  const never = () => Promise.reject(new Error("not needed"));
  const networks = { inception: never, lpips: never, encoder: () => Promise.resolve(encoder) };
  const options = { ...networks, batchSize: 4, seed: 0, inceptionInput: "adm" } as const;
  const selection = new Selection("sets", { metrics: ["fd-encoder", "mind-encoder", "fd-cls"] });
  let live = 0;
  EncoderFeatures.open = (encoder, options) => {
    opened.push(options.space ?? "patches");
    assertEquals(live++, 0);
    return open.call(EncoderFeatures, encoder, options);
  };
  EncoderFeatures.prototype.destroy = function () {
    live--;
    destroy.call(this);
  };
  try {
    {
      using evaluation = await SetEvaluation.open(selection, options, real, images(2), log);
      const results = new Results();
      await evaluation.score(real, images(2), { images: real.images, side: 32 }, results);
      results.rethrow();
      assert(["fd_encoder", "fd_cls"].every((key) => results.scores[key]! > 0));
    }
    assertEquals(opened, ["patches", "cls"]);
    assertEquals(live, 0);
  } finally {
    EncoderFeatures.open = open;
    EncoderFeatures.prototype.destroy = destroy;
  }
});
