// L-BFGS against known minima; the linear probe against other solvers, and what is recorded of it.

import { assert, assertAlmostEquals, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import fixture from "../fixtures/probe.json" with { type: "json" };
import { UsageError } from "../../src/errors.ts";
import { learning } from "../../src/metrics/evaluation_options.ts";
import { minimise, type Objective } from "../../src/metrics/lbfgs.ts";
import { cautionOfProbe, predict, trainProbe } from "../../src/metrics/linear_probe.ts";
import type { Features } from "../../src/metrics/moments.ts";
import { normal } from "../../src/philox.ts";

Deno.test("minimise() finds the minimum of Rosenbrock's function from the usual start", () => {
  const rosenbrock: Objective = (x, g) => {
    const [a, b] = x as unknown as [number, number], d = b - a * a;
    g.set([-400 * a * d - 2 * (1 - a), 200 * d]);
    return 100 * d * d + (1 - a) ** 2;
  };
  const start = Float64Array.of(-1.2, 1);
  const found = minimise(rosenbrock, start, { tolerance: 1e-10, maxIterations: 60 });
  assert(found.converged && found.iterations < 60 && found.evaluations < 90, JSON.stringify(found));
  for (const v of found.x) assertAlmostEquals(v, 1, 1e-9);
  assert(found.value < 1e-18);
  assertEquals(start, Float64Array.of(-1.2, 1));
  const few = minimise(rosenbrock, start, { tolerance: 1e-10, maxIterations: 5 });
  assert(!few.converged && few.iterations === 5 && few.gradient > 1e-10);
  assertEquals(minimise(rosenbrock, start, { tolerance: 1e-10, maxIterations: 60 }), found, "deterministic");
});

Deno.test("minimise() solves a quadratic with curvatures from 0.01 to 100, with little and much history", () => {
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
    const found = minimise(quadratic, new Float64Array(n), options);
    assert(found.converged, `history ${history}: ${JSON.stringify(found)}`);
    assertAlmostEquals(found.value, 3, 1e-12);
    found.x.forEach((v, i) => assertAlmostEquals(v, solution[i] as number, 1e-7));
  }
});

Deno.test("minimise() stays at a minimum, and bounds its step where the function is not finite", () => {
  const flat = minimise((_, g) => (g.fill(0), 5), Float64Array.of(1, 2), {
    tolerance: 0,
    maxIterations: 9,
  });
  assertEquals([flat.converged, flat.iterations, flat.evaluations, flat.gradient], [true, 0, 1, 0]);
  const barrier: Objective = ([x = 0], g) => {
    g[0] = 1 - 1e-3 / x;
    return x > 0 ? x - 1e-3 * Math.log(x) : NaN;
  };
  const found = minimise(barrier, Float64Array.of(0.5), { tolerance: 1e-9, maxIterations: 100 });
  assert(found.converged);
  assertAlmostEquals(found.x[0] as number, 1e-3, 1e-10);
});

const columns = fixture.columns;
const rowsOf = (data: number[]): Features => ({
  data: Float32Array.from(data),
  rows: data.length / columns,
  columns,
});

Deno.test("the probe is the minimum that SciPy's Newton method and torch.optim.LBFGS find", () => {
  const probe = trainProbe(rowsOf(fixture.train), fixture.labels, fixture.classes);
  assert(probe.fit.converged && probe.fit.iterations < 100, JSON.stringify(probe.fit));
  assertAlmostEquals(probe.fit.value, fixture.loss, 1e-8);
  const largest = Math.max(...fixture.weight.map(Math.abs));
  probe.weight.forEach((w, i) => assertAlmostEquals(w, fixture.weight[i] as number, 1e-4 * largest));
  assertEquals([...predict(probe, rowsOf(fixture.test))], fixture.predicted);
  // Standardisation removes scale and offset of the features.
  const other = trainProbe(rowsOf(fixture.train.map((v) => 2 * v + 1)), fixture.labels, fixture.classes);
  probe.weight.forEach((w, i) => assertAlmostEquals(other.weight[i] as number, w, 1e-3 * largest));
});

Deno.test("a probe that does not converge says so; the evaluation warns of it once", () => {
  const train = rowsOf(fixture.train), cut = trainProbe(train, fixture.labels, fixture.classes, 3);
  assertEquals([cut.fit.converged, cut.fit.iterations], [false, 3]);
  assertStringIncludes(cautionOfProbe(cut) ?? "", "after 3 iterations of L-BFGS the gradient is");
  assertEquals(cautionOfProbe(trainProbe(train, fixture.labels, fixture.classes)), undefined);
  const said: string[] = [], labels = Uint32Array.from(fixture.labels);
  const constant = { train: { features: train, labels }, test: { features: train, labels } };
  const options = { classes: 3, batchSize: 1, split: "by index", maxIterations: 2 } as const;
  const context = learning(constant, { ...options, warn: (text) => said.push(text) });
  context.probe();
  context.probe();
  assertEquals(said.length, 1);
  assertEquals(context.ingredients("probe").probe?.converged, false);
});

Deno.test("the ingredients of a probe are its training, the numbers of images, and how these are split", () => {
  const labels = Uint32Array.from(fixture.labels), train = { features: rowsOf(fixture.train), labels };
  const test = { features: rowsOf(fixture.test), labels: labels.subarray(0, 30) };
  const options = { classes: 3, batchSize: 1, warn() {} };
  const generated = learning({ train, test }, { ...options, split: { seed: 555 } });
  generated.probe();
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

Deno.test("a probe on more features than its memory holds is refused before anything is allocated", () => {
  const features = { data: new Float32Array(0), rows: 50_000, columns: 32_768 };
  const error = assertThrows(() => trainProbe(features, { length: 50_000 }, 10), UsageError);
  assert(/50000 images of 32768 features are more than 400000000 numbers; use fewer/.test(error.message));
});
