// Dormand and Prince's method with a step size of each image, against the same method in f64.

import { assert, assertEquals, assertRejects } from "@std/assert";
import { UsageError } from "../../src/errors.ts";
import { copy } from "../../src/gpu/memory.ts";
import { capture } from "../../src/gpu/program.ts";
import type { Denoiser } from "../../src/models/denoiser.ts";
import { embedding } from "../../src/ops/embedding.ts";
import { reshape, slice } from "../../src/ops/layout.ts";
import { pointwise } from "../../src/ops/pointwise.ts";
import { dormandPrince } from "../../src/sampling/dopri5.ts";
import { Sampler } from "../../src/sampling/sampler.ts";
import { constant, readTensor, type Tensor, variable } from "../../src/tensor/tensor.ts";
import { relativeError, testDevice } from "../helpers/check.ts";
import { C, CURVED, curved, DEFAULTS, flowed, network, S, sampled, SIZE, start } from "../helpers/flows.ts";

/** Dormand and Prince's tableau, as Hairer, Norsett and Wanner print it (table II.5.2): stages, then orders 5 and 4. */
const STAGES: [c: number, ...a: number[]][] = [
  [0],
  [1 / 5, 1 / 5],
  [3 / 10, 3 / 40, 9 / 40],
  [4 / 5, 44 / 45, -56 / 15, 32 / 9],
  [8 / 9, 19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
  [1, 9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
  [1, 35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
];
const FIFTH = [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0];
const FOURTH = [5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40];

/** The slopes of a step's stages. */
function stages(x: Float64Array, t: number, step: number, v: (x: number, t: number) => number) {
  const ks: Float64Array[] = [];
  for (const [c, ...a] of STAGES) {
    ks.push(x.map((value, i) => v(value + step * weighted(ks, a, i), t + c * step)));
  }
  return ks;
}
const weighted = (ks: readonly Float64Array[], weights: readonly number[], i: number) =>
  weights.reduce((sum, w, j) => sum + w * (ks[j]?.[i] as number), 0);

/** x at time `to`, and the number of attempts. */
function dopri5(
  x0: Float64Array,
  [from, to]: readonly [number, number],
  v: (x: number, t: number) => number,
  { atol, rtol }: { atol: number; rtol: number },
): { x: Float64Array; attempts: number } {
  const rms = (f: (i: number) => number) =>
    Math.sqrt(x0.reduce((sum, _, i) => sum + f(i) ** 2, 0) / x0.length);
  const slopes = (x: Float64Array, t: number) => x.map((value) => v(value, t));
  let x = x0, t = from, attempts = 0;
  const scale = x.map((value) => atol + rtol * Math.abs(value)), k = slopes(x, t);
  const at = (array: Float64Array, i: number) => array[i] as number;
  const [d0, d1] = [rms((i) => at(x, i) / at(scale, i)), rms((i) => at(k, i) / at(scale, i))];
  const h0 = Math.min(to - from, d0 < 1e-5 || d1 < 1e-5 ? 1e-6 : 0.01 * d0 / d1);
  const moved = slopes(x.map((value, i) => value + h0 * at(k, i)), t + h0);
  const d2 = rms((i) => (at(moved, i) - at(k, i)) / at(scale, i)) / h0;
  const h1 = Math.max(d1, d2) <= 1e-15 ? Math.max(1e-6, h0 * 1e-3) : (0.01 / Math.max(d1, d2)) ** (1 / 5);
  let h = Math.min(100 * h0, h1);
  while (t < to) {
    attempts++;
    const step = Math.min(h, to - t), ks = stages(x, t, step, v);
    const next = x.map((value, i) => value + step * weighted(ks, FIFTH, i));
    const error = rms((i) =>
      step * (weighted(ks, FIFTH, i) - weighted(ks, FOURTH, i)) /
      (atol + rtol * Math.max(Math.abs(at(x, i)), Math.abs(at(next, i))))
    );
    if (error <= 1) [x, t] = [next, step >= to - t ? to : t + step];
    h = step * Math.min(10, Math.max(0.2, 0.9 * error ** -0.2));
  }
  return { x, attempts };
}

Deno.test("dopri5 takes the steps of Dormand and Prince's method, and its error follows the tolerance", async () => {
  await testDevice();
  const errors: number[] = [];
  for (const rtol of [1e-2, 1e-3, 1e-4]) {
    const tolerances = { rtol, atol: rtol / 100 };
    const { x, evaluations } = await sampled(CURVED, { sampler: "dopri5", ...tolerances });
    const twin = dopri5(Float64Array.from(start()), [0, 1], curved, tolerances);
    // Attempts are as many, but lengths of steps follow an error estimate in f32, on a GPU with another rounding of 2^-24.
    assert(relativeError(x, twin.x) < 1e-4, `tolerance ${rtol}: ${relativeError(x, twin.x)}`);
    assertEquals(evaluations, [2 + 6 * twin.attempts]);
    errors.push(relativeError(x, [...start()].map(flowed)));
    assert((errors.at(-1) as number) < rtol, `tolerance ${rtol}: error ${errors.at(-1)}`);
  }
  assert((errors[2] as number) < 0.1 * (errors[0] as number), `${errors}`);
});

/** x at time 1 after `steps` equal steps with the weights of order 5. */
function fixedSteps(x0: Float64Array, steps: number, v: (x: number, t: number) => number): Float64Array {
  let x = x0;
  for (let i = 0; i < steps; i++) {
    const ks = stages(x, i / steps, 1 / steps, v);
    x = x.map((value, i) => value + weighted(ks, FIFTH, i) / steps);
  }
  return x;
}

Deno.test("fixed steps of dopri5 are those of the tableau, whose order is 5", async () => {
  await testDevice();
  // The Gaussian path of standard deviation e^(sin 2t). On the curved one the error falls by 2^6 a halving until f64 ends.
  const x0 = Float64Array.from(start()), [few, many] = [32, 64] as const;
  const errorOf = (steps: number) => {
    const x = fixedSteps(x0, steps, (x, t) => 2 * Math.cos(2 * t) * x);
    return Math.max(...x.map((value, i) => Math.abs(value - (x0[i] as number) * Math.exp(Math.sin(2)))));
  };
  const order = Math.log2(errorOf(few) / errorOf(many));
  assert(Math.abs(order - 5) < 0.2, `errors ${errorOf(few)} and ${errorOf(many)}, order ${order}`);

  const x = variable([1, S, S, C]), slope = variable([1, S, S, C]), numbers = variable([2]);
  const velocity = (x: Tensor, t: Tensor) => CURVED.forward(x, t, x);
  using begin = await capture("slope", {}, () => {
    copy(velocity(x, constant(new Float32Array(1), [1])), slope);
    return {};
  }).prepare();
  using step = await capture("step", {}, () => {
    const [t, h] = [slice(numbers, 0, 0, 1), slice(numbers, 0, 1, 2)] as [Tensor, Tensor];
    const next = dormandPrince(velocity, { x, t, h, slope });
    copy(next.y, x);
    copy(next.slope, slope); // first same as last
    return {};
  }).prepare();
  for (const steps of [1, 2, 5]) {
    x.storage.write(Float32Array.from(start()));
    begin.run();
    for (let i = 0; i < steps; i++) {
      numbers.storage.write(Float32Array.of(i / steps, 1 / steps));
      step.run();
    }
    const error = relativeError(await readTensor(x), fixedSteps(x0, steps, curved));
    assert(error < 2e-6, `${steps} steps: ${error}`);
  }
  for (const { storage } of [x, slope, numbers]) storage.destroy();
});

/** Class y has velocity cos(k t) x / 2 with k = 2, 15 or 40: one class needs smaller steps than another. */
const BY_CLASS: Denoiser = {
  ...CURVED,
  forward: (x, t, y) =>
    pointwise(["0.5 * cos(x2 * x1) * x0"], [x, reshape(t, [t.size, 1, 1, 1]), frequencies(y)]),
};

function frequencies(y: Tensor): Tensor {
  const table = Float32Array.from({ length: 4 * C }, (_, i) => [2, 15, 40, 0][i >> 2] as number);
  return reshape(embedding(constant(table, [4, C]), y), [y.size, 1, 1, C]);
}

Deno.test("dopri5 gives an image the same steps in any batch, and stops where guidance begins and ends", async () => {
  await testDevice();
  const options = { sampler: "dopri5", rtol: 1e-3, atol: 1e-5 } as const;
  const three = await sampled(BY_CLASS, { ...options, batchSize: 3 });
  assert(new Set(three.evaluations).size > 1, `${three.evaluations}`);
  for (const i of [0, 2]) {
    const one = await sampled(BY_CLASS, options, i);
    assertEquals(one.x, three.x.slice(i * SIZE, (i + 1) * SIZE));
    assertEquals(one.evaluations[0], three.evaluations[i]);
  }
  // Both terms of guidance are equal here, so only the steps and their cost change.
  const cfgInterval = [0.25, 0.6] as const;
  const guided = await sampled(CURVED, { ...options, cfg: 3, cfgInterval });
  let x: Float64Array = Float64Array.from(start()), expected = 0;
  for (const [from, to, passes] of [[0, 0.25, 1], [0.25, 0.6, 2], [0.6, 1, 1]] as const) {
    const part = dopri5(x, [from, to], curved, options);
    x = part.x;
    expected += passes * (2 + 6 * part.attempts);
  }
  assertEquals(guided.evaluations, [expected]);
  assert(relativeError(guided.x, x) < 2e-5, `${relativeError(guided.x, x)}`);
});

Deno.test("rows of a batch that are padding are neither integrated nor counted", async () => {
  await testDevice();
  // Class 2 has velocity NaN.
  const model: Denoiser = {
    ...BY_CLASS,
    forward: (x, t, y) =>
      pointwise(["log(select(T(1.0), T(-1.0), x1 > T(39.0))) + x0"], [
        BY_CLASS.forward(x, t, y),
        frequencies(y),
      ]),
  };
  const options = { ...DEFAULTS, sampler: "dopri5", batchSize: 2 } as const;
  using sampler = await new Sampler(model, options).prepare();
  await assertRejects(() => sampler.run(Uint32Array.of(0, 2), 0), UsageError, "Cannot generate image 1");
  await sampler.run(Uint32Array.of(0, 2), 0, { count: 1 });
  assertEquals(sampler.evaluations, (await sampled(model, { sampler: "dopri5" })).evaluations);
});

Deno.test("dopri5 says which image does not reach the data, and why", async () => {
  await testDevice();
  const tight = { sampler: "dopri5", atol: 1e-12, rtol: 1e-12 } as const;
  await assertRejects(
    () => sampled(CURVED, tight, 5),
    UsageError,
    "Cannot generate image 5: dopri5 is at t = ",
  );
  const broken = network("log(0.5 - x1) + x0");
  await assertRejects(
    () => sampled(broken, { sampler: "dopri5" }, 5),
    UsageError,
    "Cannot generate image 5: the err",
  );
});
