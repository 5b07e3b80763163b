// Samplers against closed forms: orders on a flow between two Gaussians, the multistep and stochastic ones against the published
// formulas in f64, and the law of the stochastic differential equation.

import { assert, assertEquals } from "@std/assert";
import type { Denoiser } from "../../src/models/denoiser.ts";
import { embedding } from "../../src/ops/embedding.ts";
import { pointwise } from "../../src/ops/pointwise.ts";
import { normal } from "../../src/philox.ts";
import { Sampler, type SamplingOptions } from "../../src/sampling/sampler.ts";
import type { SamplerName } from "../../src/sampling/samplers.ts";
import { timeGrid } from "../../src/sampling/times.ts";
import { constant, readTensor, type Tensor, viewAs } from "../../src/tensor/tensor.ts";
import { relativeError, testDevice } from "../helpers/check.ts";
import {
  C,
  CURVED,
  curved,
  D,
  DEFAULTS,
  flowed,
  lambda,
  LINEAR,
  linear,
  M,
  POSTERIOR,
  posterior,
  sampled,
  SIZE,
  start,
} from "../helpers/flows.ts";

const maxError = (x: Float32Array, expected: readonly number[]) =>
  expected.reduce((worst, e, i) => Math.max(worst, Math.abs(e - (x[i] as number))), 0);

const ORDERS: [SamplerName, order: number, steps: readonly [number, number], Partial<SamplingOptions>][] = [
  ["euler", 1, [16, 32], {}],
  ["heun", 2, [16, 32], {}],
  ["midpoint", 2, [16, 32], {}],
  ["rk4", 4, [4, 8], {}],
  ["dpm++2m", 2, [24, 48], { spacing: "log-snr" }],
  ["unipc", 3, [24, 48], { spacing: "log-snr" }],
];
for (const [sampler, order, [few, many], options] of ORDERS) {
  Deno.test(`${sampler} solves a flow between Gaussians with order ${order}`, async () => {
    await testDevice();
    const expected = [...start()].map(flowed);
    const error = async (steps: number) =>
      maxError((await sampled(CURVED, { sampler, steps, ...options })).x, expected);
    const [coarse, fine] = [await error(few), await error(many)];
    const slope = Math.log(coarse / fine) / Math.log(many / few);
    assert(Math.abs(slope - order) < 0.2, `${sampler}: errors ${coarse} and ${fine}, slope ${slope}`);
  });
}

/** The samplers' f64 twins: x at time 1 from x0, for velocity v. */
type Solver = (x0: number, times: readonly number[], v: (x: number, t: number) => number) => number;

/** DPM-Solver++(2M), algorithm 2 of the paper, in the words of alpha = t and sigma = 1 - t. */
const dpmSolver2M: Solver = (x0, times, v) => {
  let x = x0, before = NaN;
  for (let i = 0; i + 1 < times.length; i++) {
    const t = times[i] as number, next = times[i + 1] as number;
    const data = x + (1 - t) * v(x, t), h = lambda(next) - lambda(t);
    const r = (lambda(t) - lambda(times[i - 1] as number)) / h;
    const isFirst = i === 0, isLast = i + 2 === times.length;
    const d = isFirst || isLast ? data : (1 + 1 / (2 * r)) * data - 1 / (2 * r) * before;
    x = (1 - next) / (1 - t) * x - next * (Math.exp(-h) - 1) * d;
    before = data;
  }
  return x;
};

/** UniPC-2 with B_2 in data prediction: the order conditions R rho = b of the paper, solved by Cramer's rule. */
const uniPc: Solver = (x0, times, v) => {
  const data: number[] = [];
  let predicted = x0, x = x0;
  for (let i = 0; i + 1 < times.length; i++) {
    const t = times[i] as number, next = times[i + 1] as number;
    data.push(predicted + (1 - t) * v(predicted, t));
    const [m0 = 0, m1 = 0, m2 = 0] = [data[i], data[i - 1], data[i - 2]];
    if (i === 0) x = predicted;
    else {
      const start = times[i - 1] as number, h = lambda(t) - lambda(start), hh = -h, B = Math.expm1(hh);
      let sum = 0.5 * (m0 - m1);
      if (i > 1) {
        const r1 = (lambda(times[i - 2] as number) - lambda(start)) / h;
        const phi2 = B / hh - 1, phi3 = phi2 / hh - 0.5;
        const [b1, b2] = [phi2 / B, 2 * phi3 / B];
        // Rows 1 1 and r1 1; r1 is -Infinity where that step began at the noise.
        const rho1 = r1 === -Infinity ? 0 : (b1 - b2) / (1 - r1), rho2 = b1 - rho1;
        sum = rho2 * (m0 - m1) + (rho1 === 0 ? 0 : rho1 * (m2 - m1) / r1);
      }
      x = (1 - t) / (1 - start) * x - t * B * m1 - t * B * sum;
    }
    const h = lambda(next) - lambda(t), B = Math.expm1(-h);
    const r1 = (lambda(times[i - 1] as number) - lambda(t)) / h;
    const slope = i === 0 || i + 2 === times.length ? 0 : 0.5 * (m1 - m0) / r1;
    predicted = (1 - next) / (1 - t) * x - next * B * (m0 + slope);
  }
  return predicted;
};

const TWINS: [SamplerName, Solver][] = [["dpm++2m", dpmSolver2M], ["unipc", uniPc]];
for (const [sampler, solver] of TWINS) {
  Deno.test(`each step of ${sampler} is the published formula`, async () => {
    await testDevice();
    // The first step, one after it, one in the middle, and the last.
    for (const steps of [1, 2, 3, 5]) {
      for (const spacing of ["shifted", "log-snr"] as const) {
        const { x } = await sampled(CURVED, { sampler, steps, spacing, shift: 0.5 });
        const times = timeGrid(steps, 0.5, spacing);
        const expected = [...start()].map((x0) => solver(x0, times, curved));
        const error = relativeError(x, expected);
        assert(error < 2e-6, `${steps} ${spacing} steps: relative error ${error}`);
      }
    }
  });
}

Deno.test("a batch does not see the one before it", async () => {
  await testDevice();
  for (const sampler of ["dpm++2m", "unipc"] as const) {
    const s = await new Sampler(CURVED, { ...DEFAULTS, sampler, steps: 3 }).prepare();
    await s.run(new Uint32Array(1), 4);
    const second = await readTensor(await s.run(new Uint32Array(1), 5));
    s.destroy();
    assertEquals(second, (await sampled(CURVED, { sampler, steps: 3 }, 5)).x);
  }
});

/** SiT's diffusion forms. */
const G: Record<NonNullable<SamplingOptions["diffusionForm"]>, (t: number) => number> = {
  constant: () => 1,
  sigma: (t) => 1 - t,
  linear: (t) => 1 - t,
  sbdm: (t) => t === 0 ? 0 : (1 - t) / t, // its first step has no noise
  decreasing: (t) => 0.25 * (Math.cos(Math.PI * t) + 1) ** 2,
  "increasing-decreasing": (t) => Math.sin(Math.PI * t) ** 2,
};

/** The noise of step `i` for image `row`. */
const stepNoise = (i: number, row: number) => normal(DEFAULTS.seed, 1, SIZE, i, row);

/** Euler-Maruyama as SiT's code has it, for an element with noise z of each step. */
function sde(
  x0: number,
  steps: number,
  size: number,
  form: keyof typeof G,
  lastStep: string,
  z: (i: number) => number,
  velocity = curved,
): number {
  let x = x0;
  for (let i = 0; i < steps; i++) {
    const t = (1 - size) * i / (steps - 1), isLast = i === steps - 1;
    const h = isLast ? size : (1 - size) / (steps - 1), g = G[form](t);
    const v = velocity(x, t), score = (t * v - x) / (1 - t);
    if (!isLast) x += h * (v + g * score) + Math.sqrt(2 * g * h) * z(i);
    else if (lastStep === "mean") x += h * (v + g * score);
    else if (lastStep === "euler") x += h * v;
    else x = x / t + (1 - t) ** 2 / t * score;
  }
  return x;
}

Deno.test("each step of sde is SiT's, in every diffusion form and last step, with noise of image and step", async () => {
  await testDevice();
  const seen = new Set<string>();
  const cases = [
    ...Object.keys(G).map((form) => [form, "mean", 0.04] as const),
    ["sigma", "euler", 0.04] as const,
    ["sigma", "tweedie", 0.04] as const,
    ["sigma", "mean", 0.2] as const,
  ];
  for (const [name, lastStep, lastStepSize] of cases) {
    const form = name as keyof typeof G, options = { diffusionForm: form, lastStep, lastStepSize };
    const { x } = await sampled(CURVED, { sampler: "sde", steps: 4, ...options }, 7);
    const noises = [0, 1, 2].map((i) => stepNoise(i, 7));
    const expected = [...start(7)].map((x0, e) =>
      sde(x0, 4, lastStepSize, form, lastStep, (i) => noises[i]?.[e] as number)
    );
    const error = relativeError(x, expected);
    assert(error < 5e-6, `${form}, ${lastStep}: relative error ${error}`);
    seen.add(x.join());
  }
  // On this path sigma = linear, and Tweedie's formula is a step of the ODE.
  assertEquals(seen.size, cases.length - 2);
});

Deno.test("each step of euler-stochastic adds new noise to the data prediction", async () => {
  await testDevice();
  const { x } = await sampled(CURVED, { sampler: "euler-stochastic", steps: 3, spacing: "uniform" }, 2);
  let expected = [...start(2)];
  for (let i = 0; i < 3; i++) {
    const z = stepNoise(i, 2), t = i / 3, next = (i + 1) / 3;
    expected = expected.map((x, e) => next * (x + (1 - t) * curved(x, t)) + (1 - next) * (z[e] as number));
  }
  assert(relativeError(x, expected) < 2e-6, `${relativeError(x, expected)}`);
});

Deno.test("samplers that use the data prediction get that of a network of data, the others velocities bounded near the data", async () => {
  await testDevice();
  const steps = 25, times = timeGrid(steps, 1); // the last from t = 0.96, within the bound
  const v = (x: number, t: number) => (posterior(x, t) - x) / (1 - t);
  const z = (i: number, e: number) => stepNoise(i, 0)[e] as number;
  const noisy = (x0: number, e: number) => {
    let x = x0;
    for (let i = 0; i < steps; i++) {
      const next = times[i + 1] as number;
      x = next * posterior(x, times[i] as number) + (1 - next) * z(i, e);
    }
    return x;
  };
  const bounded = (x0: number) =>
    times.slice(1).reduce((x, next, i) => {
      const t = times[i] as number;
      return x + (next - t) * (posterior(x, t) - x) / Math.max(1 - t, 0.05);
    }, x0);
  const ofSde = (lastStep: string) => (x0: number, e: number) =>
    sde(x0, steps, 0.04, "constant", lastStep, (i) => z(i, e), v);
  const cases: [SamplerName, Partial<SamplingOptions>, (x0: number, e: number) => number][] = [
    ["dpm++2m", {}, (x0) => dpmSolver2M(x0, times, v)],
    ["unipc", {}, (x0) => uniPc(x0, times, v)],
    ["euler-stochastic", {}, noisy],
    ...(["mean", "euler", "tweedie"] as const).map((lastStep): typeof cases[number] => [
      "sde",
      { diffusionForm: "constant", lastStep },
      ofSde(lastStep),
    ]),
    ["euler", {}, bounded],
  ];
  for (const [sampler, options, twin] of cases) {
    const { x } = await sampled(POSTERIOR, { sampler, steps, ...options });
    const error = relativeError(x, [...start()].map(twin));
    assert(error < 1e-5, `${sampler} ${options.lastStep ?? ""}: relative error ${error}`);
  }
});

Deno.test("every sampler advances the momentum once a step", async () => {
  await testDevice();
  // c = 1 and c - u = 1/2 everywhere. With eta 1 the velocity of step i is 1 + 2 (1/2) (1 + 0.9 + ... + 0.9^i).
  const forward = (x: Tensor, _: Tensor, y: Tensor) => {
    const values = embedding(constant(Float32Array.of(1, 1, 1, 0.5), [4, 1]), y);
    return pointwise(["x0"], [viewAs(values, [x.dim(0), 1, 1, 1])], [], x.shape);
  };
  const network: Denoiser = {
    config: CURVED.config,
    forward,
    outputs: (x, t, y) => ({ velocity: forward(x, t, y) }),
  };
  const apg = { eta: 1, norm: Infinity, momentum: 0.9 }, expected = 1 + (1 + 1.9 + 2.71) / 3;
  const options = { ...DEFAULTS, cfg: 3, apg, steps: 3 };
  for (const sampler of ["euler", "heun", "rk4"] as const) {
    using s = await new Sampler(network, { ...options, sampler }).prepare();
    const x = await readTensor(await s.run(Uint32Array.of(0), 0, { noise: new Float32Array(SIZE) }));
    assert(x.every((v) => Math.abs(v - expected) < 1e-5), `${sampler}: ${x[0]} instead of ${expected}`);
  }
});

Deno.test("8,192 samples of sde have the mean and the variance of the data, within 4 standard errors", async () => {
  await testDevice();
  const steps = 100, n = 8192;
  for (const diffusionForm of ["sigma", "sbdm"] as const) {
    const { x } = await sampled(LINEAR, {
      sampler: "sde",
      steps,
      diffusionForm,
      batchSize: n / (16 * 16 * C),
    });
    assertEquals(x.length, n);
    const mean = x.reduce((a, b) => a + b, 0) / n, variance = x.reduce((a, b) => a + (b - mean) ** 2, 0) / n;
    // Of the equation in this number of steps, by its linear recursion; of the data.
    let [m, v] = [0, 1];
    for (let i = 0; i < steps; i++) {
      const t = 0.96 * i / (steps - 1), h = i < steps - 1 ? 0.96 / (steps - 1) : 0.04;
      const g = G[diffusionForm](t), { p, q } = linear(t);
      const factor = 1 + h * (p + g * (t * p - 1) / (1 - t));
      m = factor * m + h * (q + g * t * q / (1 - t));
      v = factor ** 2 * v + (i < steps - 1 ? 2 * g * h : 0);
    }
    for (const [law, [a, b]] of Object.entries({ discretised: [m, v], data: [M, D * D] } as const)) {
      const [meanError, varianceError] = [Math.sqrt(b / n), b * Math.sqrt(2 / n)];
      const what = `${diffusionForm}, ${law}: mean ${mean} and ${a}, variance ${variance} and ${b}`;
      assert(Math.abs(mean - a) < 4 * meanError && Math.abs(variance - b) < 4 * varianceError, what);
    }
  }
});
