// Power-function averages: their exponents, updates on the device, and averages that are rebuilt from tracked ones, against direct
// f64 loops over a trajectory of weights.

import { assert, assertAlmostEquals, assertEquals, assertRejects } from "@std/assert";
import { UsageError } from "../../src/errors.ts";
import { capture } from "../../src/gpu/program.ts";
import { powerEma } from "../../src/ops/power_ema.ts";
import { fitAverage, gammaOf, MAX_WIDTH, rebuiltEma, TRACKED_WIDTHS } from "../../src/run/power_ema.ts";
import { input, readTensor, variable } from "../../src/tensor/tensor.ts";
import { PROFILES, randomArray, relativeError, testDevice } from "../helpers/check.ts";
import { inFolder } from "../helpers/commands.ts";

const WEIGHTS = 32, STEPS = 400;
/** The decay of step t from 1 on. */
const powerDecay = (sigmaRel: number) => (t: number) => (1 - 1 / t) ** (gammaOf(sigmaRel) + 1);

/** Weights that decay from their first values, with noise, as a training's do. */
const trajectory = (() => {
  const first = randomArray(WEIGHTS, 1), last = randomArray(WEIGHTS, 2);
  return Array.from({ length: STEPS }, (_, t) => {
    const noise = randomArray(WEIGHTS, 10 + t), left = Math.exp(-4 * t / STEPS);
    return Float64Array.from(first, (x, i) => x * left + (last[i] as number) + 0.1 * (noise[i] as number));
  });
})();

/** The averages after each step. */
function track(decay: (t: number) => number): Float64Array[] {
  let ema = new Float64Array(WEIGHTS);
  return trajectory.map((p, t) => ema = ema.map((x, i) => x + (1 - decay(t + 1)) * ((p[i] as number) - x)));
}

Deno.test("sigma_rel 0.05 and 0.10 are the exponents of the paper, and the widest average is the plain mean", () => {
  assertAlmostEquals(gammaOf(0.05), 16.97, 5e-3);
  assertAlmostEquals(gammaOf(0.1), 6.94, 5e-3);
  assertAlmostEquals(gammaOf(MAX_WIDTH), 0, 1e-9);
});

Deno.test("an average rebuilt from twenty snapshots of the two tracked ones equals a directly tracked one to 1e-3", () => {
  const saved = TRACKED_WIDTHS.map((sigmaRel) => ({ sigmaRel, after: track(powerDecay(sigmaRel)) }));
  const snapshots = Array.from({ length: 20 }, (_, k) => (k + 1) * STEPS / 20).flatMap((steps) =>
    saved.map(({ sigmaRel, after }) => ({ steps, sigmaRel, ema: after[steps - 1] as Float64Array }))
  );
  const constant = (d: number) => (t: number) => d * (1 - d ** (t - 1)) / (1 - d ** t); // from zero, bias-corrected
  const directly = (width: number) =>
    track(width < MAX_WIDTH ? powerDecay(width) : constant(width)).at(-1) as Float64Array;
  for (const width of [0.05, 0.06, 0.07, 0.1, 0.13, 0.15, 0.97, 0.98]) {
    const { coefficients, error } = fitAverage(snapshots, width), expected = directly(width);
    const sum = new Float64Array(WEIGHTS);
    snapshots.forEach(({ ema }, k) =>
      ema.forEach((x, i) => sum[i] = (sum[i] as number) + (coefficients[k] as number) * x)
    );
    const off = relativeError(sum, expected),
      nearest = Math.min(
        ...saved.map(({ after }) => relativeError(after.at(-1) as Float64Array, expected)),
      );
    assert(off < 1e-3, `${width}: ${off}`);
    assert(error < 0.01, `${width}: the error of its profile is ${error}`);
    if (![0.05, 0.1].includes(width)) {
      assert(nearest > 5 * off, `${width}: a tracked one is as near, ${nearest} and ${off}`);
    }
  }
  for (const [width, least] of [[0.01, 0.2], [0.6, 0.1]] as const) {
    assert(fitAverage(snapshots, width).error > least, `${width} is narrower than snapshots can represent`);
  }
});

Deno.test("snapshots of every step, whose first profiles are equal, and one of 80,000 steps have finite coefficients of sum 1", () => {
  const every = Array.from(
    { length: 10 },
    (_, k) => TRACKED_WIDTHS.map((sigmaRel) => ({ steps: k + 1, sigmaRel })),
  ).flat();
  for (const tracked of [every, TRACKED_WIDTHS.map((sigmaRel) => ({ steps: 80_000, sigmaRel }))]) {
    const { coefficients, error } = fitAverage(tracked, 0.07);
    assertAlmostEquals(coefficients.reduce((a, b) => a + b, 0), 1, 1e-12);
    assert(tracked === every ? error < 1e-9 : error > 0.01 && error < 0.5, `${error}`);
  }
});

Deno.test("powerEma() follows the f64 loop from the first step and after a million, and leaves a skipped step out", async () => {
  for (const profile of PROFILES) {
    await testDevice(profile);
    const progress = variable([4]), norm2 = variable([1]), n = 1000, gamma = gammaOf(0.1);
    const ema = variable([n], { init: () => randomArray(n, 7) });
    const program = await capture("ema", { p: input([n]) }, ({ p }) => {
      powerEma(p, ema, { gamma, progress, norm2 });
      return {};
    }).prepare();
    const run = async (t: number, seed: number, norm = 1) => {
      progress.storage.write(new Float32Array([t, 0, 1, 0]));
      norm2.storage.write(new Float32Array([norm]));
      const before = Float64Array.from(await readTensor(ema)), p = randomArray(n, seed);
      program.run({ p });
      const after = await readTensor(ema),
        moved = Float64Array.from(after, (x, i) => x - (before[i] as number));
      const part = -Math.expm1((gamma + 1) * Math.log1p(-1 / t));
      return { moved, expected: before.map((x, i) => part * ((p[i] as number) - x)) };
    };
    for (const [t, tolerance] of [[1, 1e-6], [2, 1e-5], [31, 1e-5], [32, 1e-5], [500, 1e-4]] as const) {
      const { moved, expected } = await run(t, 20 + t);
      assert(relativeError(moved, expected) < tolerance, `${t} in ${profile}`);
    }
    // From 0, so that what is added is not rounded.
    ema.storage.write(new Float32Array(n));
    const { moved, expected } = await run(1e6, 5);
    assert(relativeError(moved, expected, 1e-9) < 1e-5, `a million steps in ${profile}`);
    const skipped = await run(3, 6, NaN);
    assertEquals(skipped.moved, new Float64Array(n));
    program.destroy();
  }
});

Deno.test("an average of a folder without snapshots, and one of no width, are refused", async () => {
  await inFolder(async (folder) => {
    await assertRejects(() => rebuiltEma(folder, 0.07), UsageError, "there are no snapshots");
    await assertRejects(() => rebuiltEma(folder, 1), UsageError, "between 0 and 1");
  });
});
