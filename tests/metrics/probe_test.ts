// L-BFGS against known minima; the linear probe against other solvers, and what is recorded of it.

import { assert, assertAlmostEquals, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import fixture from "../fixtures/probe.json" with { type: "json" };
import { Interrupted, NotFiniteError, UsageError } from "../../src/errors.ts";
import { endIf } from "../../src/interruption.ts";
import { accuraciesOf, learning } from "../../src/metrics/evaluation_options.ts";
import { minimise, type Objective } from "../../src/metrics/lbfgs.ts";
import { cautionOfProbe, nearest, predict, trainProbe } from "../../src/metrics/linear_probe.ts";
import type { LabelMetric } from "../../src/metrics/metric.ts";
import type { Features } from "../../src/metrics/moments.ts";
import { Results } from "../../src/metrics/selection.ts";
import { METRICS } from "../../src/metrics/table.ts";
import { normal } from "../../src/philox.ts";
import { inFolder, run, writeImages } from "../helpers/commands.ts";
import { fixturePath } from "../helpers/published.ts";

Deno.test("minimise() finds the minimum of Rosenbrock's function from the usual start", async () => {
  const rosenbrock: Objective = (x, g) => {
    const [a, b] = x as unknown as [number, number], d = b - a * a;
    g.set([-400 * a * d - 2 * (1 - a), 200 * d]);
    return 100 * d * d + (1 - a) ** 2;
  };
  const start = Float64Array.of(-1.2, 1);
  const found = await minimise(rosenbrock, start, { tolerance: 1e-10, maxIterations: 60 });
  assert(found.converged && found.iterations < 60 && found.evaluations < 90, JSON.stringify(found));
  for (const v of found.x) assertAlmostEquals(v, 1, 1e-9);
  assert(found.value < 1e-18);
  assertEquals(start, Float64Array.of(-1.2, 1));
  const few = await minimise(rosenbrock, start, { tolerance: 1e-10, maxIterations: 5 });
  assert(!few.converged && few.iterations === 5 && few.gradient > 1e-10);
  assertEquals(
    await minimise(rosenbrock, start, { tolerance: 1e-10, maxIterations: 60 }),
    found,
    "deterministic",
  );
});

Deno.test("minimise() solves a quadratic with curvatures from 0.01 to 100, with little and much history", async () => {
  const n = 12, solution = normal(1, 2, n), directions = normal(1, 3, n);
  const length = Math.hypot(...directions);
  // A = Q D Q with the reflection Q = 1 - 2 u u^T
  const reflect = (x: Float64Array) => {
    const along = x.reduce((sum, v, i) => sum + v * (directions[i] as number) / length, 0);
    return x.map((v, i) => v - 2 * along * (directions[i] as number) / length);
  };
  const curvature = (i: number) => 10 ** (-2 + 4 * i / (n - 1));
  const quadratic: Objective = (x, g) => {
    const e = x.map((v, i) => v - (solution[i] as number));
    g.set(reflect(reflect(e).map((v, i) => v * curvature(i))));
    return e.reduce((sum, v, i) => sum + v * (g[i] as number) / 2, 3);
  };
  for (const history of [3, 10, 30]) {
    const options = { tolerance: 1e-11, maxIterations: 1000, history };
    const found = await minimise(quadratic, new Float64Array(n), options);
    assert(found.converged, `history ${history}: ${JSON.stringify(found)}`);
    assertAlmostEquals(found.value, 3, 1e-12);
    found.x.forEach((v, i) => assertAlmostEquals(v, solution[i] as number, 1e-7));
  }
});

Deno.test("minimise() stays at a minimum, and bounds its step where the function is not finite", async () => {
  const flat = await minimise((_, g) => (g.fill(0), 5), Float64Array.of(1, 2), {
    tolerance: 0,
    maxIterations: 9,
  });
  assertEquals([flat.converged, flat.iterations, flat.evaluations, flat.gradient], [true, 0, 1, 0]);
  const barrier: Objective = ([x = 0], g) => {
    g[0] = 1 - 1e-3 / x;
    return x > 0 ? x - 1e-3 * Math.log(x) : NaN;
  };
  const found = await minimise(barrier, Float64Array.of(0.5), { tolerance: 1e-9, maxIterations: 100 });
  assert(found.converged);
  assertAlmostEquals(found.x[0] as number, 1e-3, 1e-10);
});

Deno.test("minimise() refuses a start that is not finite, and does not step to points that are not", async () => {
  const options = { tolerance: 1e-9, maxIterations: 100 };
  const at = (value: number, slope: number): Objective => (_, g) => (g.fill(slope), value);
  for (const [value, slope] of [[NaN, 1], [1, NaN], [Infinity, 1], [1, -Infinity], [-Infinity, 0]] as const) {
    const error = await assertRejects(() => minimise(at(value, slope), new Float64Array(2), options));
    assert(error instanceof NotFiniteError && /at the start the value is/.test(error.message), `${error}`);
  }
  // (x - 1)^2 with a hole: a finite value with a gradient that is not, or the reverse.
  for (const hole of [[0, NaN], [0, Infinity], [-Infinity, 0], [NaN, 0]] as const) {
    const holed: Objective = ([x = 0], g) => {
      g[0] = x > 1.5 ? hole[1] : 2 * (x - 1);
      return x > 1.5 ? hole[0] : (x - 1) ** 2;
    };
    const found = await minimise(holed, Float64Array.of(0.8), options);
    assert(found.converged, `${hole}: ${JSON.stringify(found)}`);
    assertAlmostEquals(found.x[0] as number, 1, 1e-8);
  }
});

const columns = fixture.columns;
const rowsOf = (data: number[]): Features => ({
  data: Float32Array.from(data),
  rows: data.length / columns,
  columns,
});

Deno.test("the probe is the minimum that SciPy's Newton method and torch.optim.LBFGS find", async () => {
  const probe = await trainProbe(rowsOf(fixture.train), fixture.labels, fixture.classes);
  assert(probe.fit.converged && probe.fit.iterations < 100, JSON.stringify(probe.fit));
  assertAlmostEquals(probe.fit.value, fixture.loss, 1e-8);
  const largest = Math.max(...fixture.weight.map(Math.abs));
  probe.weight.forEach((w, i) => assertAlmostEquals(w, fixture.weight[i] as number, 1e-4 * largest));
  assertEquals([...await predict(probe, rowsOf(fixture.test))], fixture.predicted);
  // Standardisation removes scale and offset of the features.
  const other = await trainProbe(
    rowsOf(fixture.train.map((v) => 2 * v + 1)),
    fixture.labels,
    fixture.classes,
  );
  probe.weight.forEach((w, i) => assertAlmostEquals(other.weight[i] as number, w, 1e-3 * largest));
});

Deno.test("a probe that does not converge says so; the evaluation warns of it once", async () => {
  const train = rowsOf(fixture.train),
    cut = await trainProbe(train, fixture.labels, fixture.classes, {
      maxIterations: 3,
    });
  assertEquals([cut.fit.converged, cut.fit.iterations], [false, 3]);
  assertStringIncludes(cautionOfProbe(cut) ?? "", "after 3 iterations of L-BFGS the gradient is");
  assertEquals(cautionOfProbe(await trainProbe(train, fixture.labels, fixture.classes)), undefined);
  const said: string[] = [], labels = Uint32Array.from(fixture.labels);
  const constant = { train: { features: train, labels }, test: { features: train, labels } };
  const options = { classes: 3, batchSize: 1, split: "by index", maxIterations: 2 } as const;
  const context = learning(constant, { ...options, warn: (text) => said.push(text) });
  await context.probe();
  await context.probe();
  assertEquals(said.length, 1);
  assertEquals(context.ingredients("probe").probe?.converged, false);
});

Deno.test("the ingredients of a probe are its training, the numbers of images, and how these are split", async () => {
  const labels = Uint32Array.from(fixture.labels), train = { features: rowsOf(fixture.train), labels };
  const test = { features: rowsOf(fixture.test), labels: labels.subarray(0, 30) };
  const options = { classes: 3, batchSize: 1, warn() {} };
  const generated = learning({ train, test }, { ...options, split: { seed: 555 } });
  await generated.probe();
  const { split, probe } = generated.ingredients("probe");
  assertEquals(split, {
    ...{ train: 60, test: 30 },
    ...{ by: "generated shapes train, other images test", seed: 555 },
  });
  assertEquals([probe?.penalty, probe?.converged], [1e-4, true]);
  assertStringIncludes(probe?.optimizer ?? "", "L-BFGS");
  assertEquals(generated.ingredients("class_agreement").split?.test, undefined);
  assertEquals(generated.ingredients("knn").probe, undefined);
  const byIndex = learning({ train, test }, { ...options, split: "by index" }).ingredients("knn").split;
  assertEquals(byIndex, { train: 60, test: 30, by: "images of even index train, those of odd index test" });
});

Deno.test("a probe on more features or logits than its memory holds is refused before anything is allocated", async () => {
  for (const [rows, columns, classes] of [[50_000, 32_768, 10], [350_000, 1000, 1000]] as const) {
    const features = { data: new Float32Array(0), rows, columns };
    const error = await assertRejects(() => trainProbe(features, { length: rows }, classes), UsageError);
    const what =
      `${rows} images of ${columns} features and ${classes} classes are more than 400000000 numbers`;
    assertStringIncludes(error.message, `${what}; use fewer images`);
  }
});

Deno.test("a probe, its predictions and nearest neighbours refuse features that are not finite, by their set", async () => {
  const good = rowsOf(fixture.train),
    { labels, classes } = fixture,
    probe = await trainProbe(good, labels, classes);
  for (const value of [NaN, Infinity, -Infinity]) {
    const bad = { ...good, data: good.data.slice() };
    bad.data[4 * columns + 1] = value;
    const fault = `those of image 4 hold ${value}`;
    const refused = async (of: string, compute: () => Promise<unknown>) => {
      const { message } = await assertRejects(compute, NotFiniteError);
      assertStringIncludes(message, `Cannot use the features of the ${of}: ${fault}`);
      assert(!message.includes("\n"));
    };
    await refused("training images", () => trainProbe(bad, labels, classes));
    await refused("test images", () => predict(probe, bad));
    await refused("training images", () => nearest(bad, labels, good));
    await refused("test images", () => nearest(good, labels, bad));
    // In an evaluation: one failure of the metric, which ends the command with exit 2, and no figure.
    const results = new Results(), data = { features: bad, labels: Uint32Array.from(labels) };
    const options = { classes, batchSize: 1, split: "by index", warn() {} } as const;
    const context = learning({ train: { ...data, features: good }, test: data }, options);
    const metric = METRICS.find(({ name, from }) => name === "probe" && from === "labels") as LabelMetric;
    const name = (i: number) => `${i}`;
    await results.add(() => accuraciesOf(metric, context, { test: name, fake: name }, undefined));
    assertEquals(results.scores, {});
    await refused("test images", () => Promise.resolve().then(() => results.rethrow()));
  }
});

/** Replaces performance.now() of this file's thread. */
function stubbedClock(now: () => number): Disposable {
  const original = performance.now;
  performance.now = now;
  return { [Symbol.dispose]: () => void (performance.now = original) };
}

/** 40 classes of 9,000 images by 100 features: several parts of both GEMMs. */
function large() {
  const rows = 9000,
    columns = 100,
    classes = 40,
    labels = Uint32Array.from({ length: rows }, (_, r) => r % classes);
  const data = Float32Array.from(normal(5, 1, rows * columns), (v, i) => {
    const r = Math.floor(i / columns);
    return v + (i % columns === labels[r] ? 2 : 0);
  });
  return { features: { data, rows, columns }, labels, classes };
}

Deno.test("a probe of several parts is the minimum of the objective; other work runs meanwhile, and a signal ends it", async () => {
  const { features, labels, classes } = large(), { data, rows } = features, shown: number[] = [];
  // A clock of the test's own, by which every 20th opportunity to yield is taken, on processors of any speed.
  let time = 0, timers = 0;
  using _clock = stubbedClock(() => time += 5);
  const timer = setInterval(() => timers++, 1), atUpdates: number[] = [];
  const progress = (_: string, total: number) => ({
    update: (done: number) => void (assert(done < total), shown.push(done), atUpdates.push(timers)),
    end: () => void shown.push(total),
  });
  const { mean, std, weight, fit } = await trainProbe(features, labels, classes, { progress });
  clearInterval(timer);
  assert(fit.converged);
  assert(
    atUpdates[0]! > 0 && timers > atUpdates[0]!,
    `before iterations ${atUpdates[0]} timers, ${timers} in all`,
  );
  assertEquals(shown, shown.toSorted((a, b) => a - b));
  assertEquals([shown.length, shown.at(-1)], [fit.iterations + 1, 100]);
  let loss = 0;
  const D = features.columns + 1;
  for (let r = 0; r < rows; r++) {
    const logits = Array.from({ length: classes }, (_, k) => {
      let sum = weight[k * D + D - 1]!;
      for (let c = 0; c < D - 1; c++) {
        sum += weight[k * D + c]! * (data[r * (D - 1) + c]! - mean[c]!) / std[c]!;
      }
      return sum;
    });
    loss += (Math.log(logits.reduce((sum, v) => sum + Math.exp(v), 0)) - logits[labels[r]!]!) / rows;
  }
  for (const w of weight) loss += 1e-4 / 2 * w * w;
  assertAlmostEquals(fit.value, loss, 1e-10);
  let stopped = false;
  using _ = endIf(() => {
    if (stopped) throw new Interrupted();
  });
  for (
    const work of [() => trainProbe(features, labels, classes), () => nearest(features, labels, features)]
  ) {
    stopped = false;
    setTimeout(() => stopped = true);
    await assertRejects(work, Interrupted);
  }
});

Deno.test("the split of a probe goes by the names of the files, whatever their order on disk and the batches", () =>
  inFolder(async (folder) => {
    const at = (name: string) => join(folder, name), n = 12;
    await writeImages(at("images"), n);
    const paths = Array.from(
      { length: n },
      (_, i) => `${"ab"[i >> 1 & 1]}/${String(i).padStart(2, "0")}.png`,
    );
    for (const [copy, order] of [["forward", paths], ["reversed", paths.toReversed()]] as const) {
      for (const path of order) {
        await Deno.mkdir(join(at(copy), path[0]!), { recursive: true });
        await Deno.copyFile(at(`images/${paths.indexOf(path)}.png`), join(at(copy), path));
      }
    }
    const score = async (data: string, batch: number) => {
      const out = at(`${data}-${batch}`),
        options = ["--batch-size", `${batch}`, "--workers", "0", "--image-size", "8", "--intervals"];
      const tokenizer = ["--tokenizer", fixturePath("vavae_tiny.pt"), "--data", at(data)];
      await run("eval", ...tokenizer, ...options, "--metrics", "probe,knn", "--out", out);
      const json = (name: string) => JSON.parse(Deno.readTextFileSync(join(out, name)));
      const { probe, knn, ingredients: { probe: { split, probe: training } } } = json("metrics.json");
      return { probe, knn, split, training, right: json("intervals.json").right };
    };
    const first = await score("forward", 1), [{ names }] = first.right;
    const tested = paths.toSorted().filter((_, i) => i % 2 === 1);
    assertEquals(names.toSorted(), tested.toSorted());
    assertEquals([first.split.train, first.split.test], [6, 6]);
    for (const [data, batch] of [["forward", 5], ["reversed", 1], ["reversed", 12]] as const) {
      assertEquals(await score(data, batch), first, `${data} ${batch}`);
    }
  }));

Deno.test("classes that alternate in a tar have no accuracy: one would train and the other test", () =>
  inFolder(async (folder) => {
    const at = (name: string) => join(folder, name), n = 12;
    for (const name of ["a", "b"]) await writeImages(at(name), n);
    const score = async (labelOf: (i: number) => number) => {
      const members = Array.from({ length: n }, (_, i) => `${"ab"[labelOf(i)]}/${i}.png`);
      await new Deno.Command("tar", { args: ["-cf", at("data.tar"), "-C", folder, ...members] }).output();
      const tokenizer = ["--tokenizer", fixturePath("vavae_tiny.pt"), "--data", at("data.tar")];
      return run("eval", ...tokenizer, "--image-size", "8", "--metrics", "knn", "--out", at("out"));
    };
    await assertRejects(() => score((i) => i % 2), UsageError, 'to test on: "a", "b"');
    assertEquals(typeof (await score((i) => i >> 1 & 1)).result.knn, "number");
  }));
