// What --intervals keeps for each kind of figure: scores without a group equal those of the other images, accuracies have the
// intervals of their hits, and every metric has an interval or a reason.

import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { readJson } from "../../src/formats/files.ts";
import { writeNpz } from "../../src/formats/npz.ts";
import { writePng } from "../../src/image/image.ts";
import { GROUPS, groupsOf, intervalOf, resampledMeans } from "../../src/metrics/bootstrap.ts";
import { InceptionScore } from "../../src/metrics/fidelity.ts";
import { frechet, frechetAtInfinity } from "../../src/metrics/frechet.ts";
import { randomOrder, rowsOf } from "../../src/metrics/gram.ts";
import { FeatureStats, type InceptionFeatures, ReconstructionFrechet } from "../../src/metrics/inception.ts";
import { INTERVALS, Intervals, type StoredIntervals } from "../../src/metrics/intervals.ts";
import { orderWithout, rowsWithout } from "../../src/metrics/jackknife.ts";
import type { InceptionMetric, LatentMetric } from "../../src/metrics/metric.ts";
import { type Features, gaussian } from "../../src/metrics/moments.ts";
import { cknna, effectiveRank, LatentSummary } from "../../src/metrics/representation.ts";
import { SIX_SPACES } from "../../src/metrics/six_networks.ts";
import { METRICS } from "../../src/metrics/table.ts";
import { INCEPTION_WIDTHS } from "../../src/models/inception.ts";
import { normal } from "../../src/philox.ts";
import { testDevice } from "../helpers/check.ts";
import { inFolder, quietLog, run } from "../helpers/commands.ts";
import { evalScores } from "../helpers/eval.ts";
import { fixturePath } from "../helpers/published.ts";

function features(seed: number, rows: number, columns: number, shift = 0): Features {
  const data = normal(seed, 5, rows * columns).map((v, i) => v * (1 + i % columns) + shift);
  return { data, rows, columns };
}
const near = (got: number | undefined, expected: number, what: string) =>
  assertAlmostEquals((got ?? NaN) / expected, 1, 1e-9, `${what}: ${got}, not ${expected}`);
const stored = (folder: string) => readJson(join(folder, INTERVALS)) as StoredIntervals;

/** What an evaluation with these intervals writes. */
async function written(scores: Record<string, number>, add: (intervals: Intervals) => Promise<void> | void) {
  let file: StoredIntervals | undefined;
  await inFolder(async (folder) => {
    const intervals = new Intervals(quietLog().log);
    await add(intervals);
    intervals.write(folder, scores);
    file = stored(folder);
  });
  return file as StoredIntervals;
}

Deno.test("the Inception score without a group is that of the other images of each split, and of all images unchanged", () => {
  const n = 53, classes = 7, split = 20, groups = groupsOf(n), all = features(3, n, classes);
  const score = new InceptionScore(classes, split, groups);
  for (const [from, to] of [[0, 9], [9, 31], [31, n]] as const) {
    score.add(all.data.subarray(classes * from, classes * to));
  }
  const plain = new InceptionScore(classes, split);
  plain.add(all.data);
  assertEquals(score.score(), plain.score());
  const found = score.without();
  for (let g = 0; g < GROUPS; g++) {
    const splits = [0, 20, 40].map((first) => {
      const rows = Array.from({ length: Math.min(split, n - first) }, (_, i) => first + i);
      const direct = new InceptionScore(classes);
      direct.add(rowsOf(all, rows.filter((row) => groups[row] !== g)).data);
      return direct.score();
    });
    near(found[g], splits.reduce((a, b) => a + b) / 3, `group ${g}`);
  }
});

Deno.test("sFID, IS and FID-infinity have intervals of the scores without each group; 19 images have none", async () => {
  const real = features(1, 40, 5), fake = features(2, 33, 5, 0.3), groups = groupsOf(33);
  const metrics = ["sfid", "is", "fid-infinity"].map((name) =>
    METRICS.find((metric) => metric.name === name) as InceptionMetric
  );
  const reference = { moments: await gaussian(real), spatial: await gaussian(real) },
    { log, lines } = quietLog();
  const view = {
    spatialFeatures: fake,
    features: fake,
    scoreWithout: { rows: 33, scores: [...Array(10).keys()] },
  };
  const options = { seed: 4, reported: (scores: Record<string, number>) => scores };
  const { without_group: found, images } = await written(
    { sfid: 3, is: 4, fid_infinity: 5 },
    (intervals) => intervals.repeatSets(metrics, reference, view, options),
  );
  assertEquals(images, { sfid: 33, is: 33, fid_infinity: 33 });
  assertEquals(found.is, [...Array(10).keys()]);
  const order = randomOrder(fake, 4);
  for (let g = 0; g < GROUPS; g++) {
    const others = rowsWithout(fake, g), left = order.filter((row) => groups[row] !== g);
    near(found.sfid![g], await frechet(reference.spatial, await gaussian(others)), `sfid ${g}`);
    // The same subsets but for the group.
    const own = orderWithout(order, g);
    assertEquals(rowsOf(others, own).data, rowsOf(fake, left).data);
    near(found.fid_infinity![g], await frechetAtInfinity(reference.moments, others, { order: own }), `${g}`);
  }
  const few = rowsOf(fake, [...Array(19).keys()]);
  await new Intervals(log).repeatSets(metrics, reference, { spatialFeatures: few }, options);
  assertEquals(lines, [
    "no interval of sfid: 19 images are fewer than 20",
    "no interval of is: it is of stored statistics, without features of their images",
    "no interval of fid-infinity: it is of stored statistics, without features of their images",
  ]);
});

Deno.test("Inception's features keep rows and scores without groups only where these are computed", async () => {
  const widths = INCEPTION_WIDTHS as { pooled: number; spatial: number; logits: number },
    before = { ...widths };
  Object.assign(widths, { pooled: 6, spatial: 5, logits: 4 });
  try {
    const [pooled, spatial, logits] = [features(1, 25, 6), features(2, 25, 5), features(3, 25, 4)];
    const outputs = { pooled: pooled.data, spatial: spatial.data, logits: logits.data };
    const view = async (...[images]: [number?]) => {
      using stats = new FeatureStats(["moments", "spatial", "score"], images);
      await stats.add(outputs);
      return await stats.view();
    };
    const plain = await view(), kept = await view(25), score = new InceptionScore(4, undefined, groupsOf(25));
    score.add(logits.data);
    assertEquals(Object.keys(plain), ["moments", "spatial", "score"]);
    assertEquals({ ...kept, ...plain }, kept);
    assertEquals([kept.features, kept.spatialFeatures], [pooled, spatial]);
    assertEquals(kept.scoreWithout, { rows: 25, scores: score.without() });

    // rFID: pairs are left out, of both sets; another reconstruction of the same originals, too.
    const inception = {
      ingredients: {},
      add: (images: Uint8Array, stats: FeatureStats) =>
        stats.add({ pooled: features(images[0]!, 25, 6).data }),
    } as unknown as InceptionFeatures;
    const first = new ReconstructionFrechet(inception, 25), again = first.again(), shown: string[] = [];
    for (const [rfid, seed] of [[first, 8], [again, 9]] as const) {
      await rfid.add(Uint8Array.of(7), Uint8Array.of(seed));
      await rfid.scores();
      const { rfid: found } = await rfid.withoutGroups(() => {});
      for (let g = 0; g < GROUPS; g++) {
        const [a, b] = [7, seed].map((s) => gaussian(rowsWithout(features(s, 25, 6), g)));
        near(found![g], await frechet(await a!, await b!), `rfid ${g}`);
      }
    }
    // Progress is shown only of what is computed: of too few images nothing is kept.
    const progress = (label: string) => (shown.push(label), { update: () => {}, end: () => {} });
    const intervals = new Intervals({ line: () => {}, progress });
    await intervals.repeatPairs([new ReconstructionFrechet(inception)], 5);
    assertEquals(shown, []);
    await intervals.repeatPairs([first], 25);
    assertEquals(shown, ["intervals (rfid)"]);
  } finally {
    Object.assign(widths, before);
  }
});

Deno.test("a score that is not finite without a group, and a mean of parts of other images, are said to have no interval", async () => {
  const { log, lines } = quietLog(), intervals = new Intervals(log), values = [...Array(GROUPS).keys()];
  intervals.addGroups({ kid: [NaN, ...values.slice(1)], a: values, c: values }, 30);
  intervals.addGroups({ b: values }, 31);
  intervals.combine("mean", ["a", "b"], ([first]) => first!);
  intervals.combine("same", ["a", "c"], ([first]) => first!);
  await inFolder((folder) => {
    intervals.write(folder, { kid: 1, mean: 1, same: 1 });
    assertEquals(Object.keys(stored(folder).interval), ["same"]);
    return Promise.resolve();
  });
  assertEquals(lines.slice(0, 2), [
    "no interval of mean: its parts have none, or are of other images",
    "no interval of kid: one of its scores is not finite",
  ]);
});

Deno.test("effective rank and CKNNA without a group are those of the other images", async () => {
  await testDevice();
  const n = 26,
    cells = 4,
    channels = 3,
    latents = features(5, n, cells * channels),
    encoded = features(6, n, 8);
  const summary = new LatentSummary({ cells, channels }, n, true);
  for (const [from, to] of [[0, 10], [10, n]] as const) {
    await summary.add(latents.data.subarray(12 * from, 12 * to));
  }
  const metric = (name: string) => METRICS.find((metric) => metric.name === name) as LatentMetric;
  const { without_group: found } = await written({ effective_rank: 2, cknna: 0.1 }, async (intervals) => {
    for (const name of ["effective-rank", "cknna"]) {
      await intervals.repeatLatents(metric(name), summary, () => Promise.resolve(encoded));
    }
  });
  for (let g = 0; g < GROUPS; g++) {
    const own = rowsWithout(latents, g), direct = new LatentSummary({ cells, channels }, own.rows);
    await direct.add(own.data);
    near(found.effective_rank![g], await direct.effectiveRank(), `effective rank ${g}`);
    near(found.cknna![g], await cknna(direct.means(), rowsWithout(encoded, g)), `CKNNA ${g}`);
  }
  const { covariance } = await gaussian({ data: latents.data, rows: n * cells, columns: channels });
  near(await summary.effectiveRank(), await effectiveRank(covariance, channels), "of all");
});

Deno.test("--intervals of fdr6 from stored features: the mean over the spaces without each group", async () => {
  await inFolder(async (root) => {
    const out = join(root, "out"), sets = { real: features(1, 24, 3), fake: features(2, 22, 3, 0.4) };
    for (const [name, { data, rows, columns }] of Object.entries(sets)) {
      const array = (space: string, k: number) => ({
        name: `features_${space}`,
        shape: [rows, columns],
        data: data.map((v) => v * (1 + k)),
      });
      await writeNpz(join(root, `${name}.npz`), SIX_SPACES.map(({ space }, k) => array(space, k)));
    }
    const files = { real: join(root, "real.npz"), fake: join(root, "fake.npz") };
    const { error, scores } = await evalScores({ ...files, metrics: ["fdr6"], intervals: true, out });
    assertEquals(error, undefined);
    const { without_group: found, interval } = stored(out), reference = await gaussian(sets.real);
    assertEquals(Object.keys(found), [...SIX_SPACES.map(({ key }) => `fd_${key}`), "fdr6"]);
    for (let g = 0; g < GROUPS; g++) {
      const value = await frechet(reference, await gaussian(rowsWithout(sets.fake, g)));
      // Features scaled by s have s^2 times the distance.
      const terms = SIX_SPACES.map(({ valFd }, k) => (1 + k) ** 2 * value / valFd);
      assertAlmostEquals(found.fdr6![g]! / (terms.reduce((a, b) => a + b) / 6), 1, 1e-6);
    }
    const [low, high] = interval.fdr6!;
    assert(low < scores.fdr6! && scores.fdr6! < high);
  });
});

Deno.test("the bootstrap interval of an accuracy holds the true one in 95 % of the samples", async () => {
  const trials = 300, n = 80, p = 0.7;
  let inside = 0;
  for (let trial = 0; trial < trials; trial++) {
    const hits = normal(9, trial, n).map((v) => v < 0.5244 ? 1 : 0); // the 70 % quantile of the normal distribution
    const value = hits.reduce((a, b) => a + b) / n;
    const [means] = resampledMeans([hits], { stream: trial, resamples: 300 });
    const { low, high } = intervalOf(value, means!)!;
    if (low <= p && p <= high) inside++;
  }
  // Wald's interval of 80 trials of 0.7 holds it in 93.6 to 95.2 %; 3.3 standard errors.
  assertAlmostEquals(inside / trials, 0.945, 3.3 * Math.sqrt(0.945 * 0.055 / trials));

  const hits = Uint8Array.from({ length: n }, (_, i) => i % 10 < 7 ? 1 : 0),
    names = [...hits.keys()].map(String);
  const file = await written({ probe: p, knn: p }, (intervals) => {
    intervals.addHits("probe", names, hits);
    intervals.addHits("knn", names, hits);
  });
  assertEquals(file.right.map(({ names: all, hits }) => [all.length, Object.keys(hits)]), [[n, [
    "probe",
    "knn",
  ]]]);
  assertEquals([file.images.probe, file.interval.probe], [n, file.interval.knn]);
  const [low, high] = file.interval.probe!, wald = 1.96 * Math.sqrt(p * (1 - p) / n);
  assertAlmostEquals((high - low) / (2 * wald), 1, 0.1);
});

Deno.test("a tokenizer's accuracies and effective rank have intervals, which --compare pairs by image", async () => {
  await inFolder(async (root) => {
    for (let i = 0; i < 40; i++) {
      const data = Uint8Array.from(normal(i, 1, 192), (v, k) => 128 + 40 * v + (k % 3 === i % 2 ? 30 : 0));
      const folder = join(root, "data", i % 4 < 2 ? "a" : "b");
      await Deno.mkdir(folder, { recursive: true });
      await writePng(join(folder, `${i}.png`), { width: 8, height: 8, data });
    }
    const given = {
      tokenizer: fixturePath("vavae_tiny.pt"),
      data: join(root, "data"),
      imageSize: 8,
      batchSize: 16,
    };
    const metrics = ["knn", "probe", "effective-rank", "channels"];
    const score = (name: string, more = {}) =>
      evalScores({ ...given, metrics, out: join(root, name), ...more });
    const plain = await score("plain"), all = await score("all", { intervals: true });
    assertEquals([plain.error, all.error], [undefined, undefined]);
    assertEquals(all.scores, plain.scores);
    assert(
      all.lines.some((line) => line.startsWith("no interval of channels: an extreme over the channels")),
    );
    const { interval, right, images } = stored(join(root, "all"));
    assertEquals(images, { effective_rank: 40, probe: 20, knn: 20 });
    assertEquals(Object.keys(interval), ["effective_rank", "probe", "knn"]);
    const [{ hits, names }] = right as [StoredIntervals["right"][number]];
    for (const key of ["probe", "knn"] as const) {
      assertAlmostEquals(hits[key]!.reduce((a: number, b) => a + b, 0) / 20, all.scores[key]!, 1e-12);
    }
    assertEquals(new Set(names.map((name) => name.split("/")[0])), new Set(["a", "b"]));
    const { result, lines } = await run("eval", "--compare", join(root, "plain"), join(root, "all"));
    const figures = result.figures as Record<string, { intervals: unknown[] }>;
    for (const [key, ends] of Object.entries(interval)) {
      assertEquals(figures[key]!.intervals, [null, ends], key);
    }
    assert(lines.some((line) => line.includes("no interval of effective_rank of plain, probe of plain")));
    assert(lines.some((line) => line.startsWith("no interval of latent_mean_min, ")), lines.join("\n"));
  });
});

Deno.test("the README names the interval of every metric, or why it has none", () => {
  const text = Deno.readTextFileSync(new URL("../../src/metrics/README.md", import.meta.url));
  const rows = text.split("\n## Intervals")[1]!.split("\n## ")[0]!.split("\n").filter((line) =>
    /^\| `/.test(line)
  );
  const found = Object.fromEntries(rows.flatMap((row) => {
    const [, names = "", how = ""] = row.split("|");
    return [...names.matchAll(/`([\w-]+)`/g)].map(([, name]) => [name, how.trim()]);
  }));
  const kinds = { images: "bootstrap of", hits: "bootstrap of the images", groups: "jackknife" };
  for (const { name, interval } of METRICS) {
    const expected = typeof interval === "object" ? `none: ${interval.none}` : kinds[interval];
    assert(found[name]?.startsWith(expected), `${name}: ${found[name]}`);
  }
});
