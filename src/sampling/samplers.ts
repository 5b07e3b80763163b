// Samplers: plain functions that record one step from noise (t = 0) to data (t = 1) on the path x_t = alpha x1 + sigma x0 with
// alpha = t and sigma = 1 - t, for a network that predicts dx/dt = v. What a formula computes from times alone comes from the
// host in f64, as coefficients, so that every step of the grid replays one program. Dormand-Prince is in dopri5.ts. One more is
// a function, its entry in SAMPLERS, and a value of --sampler.

import type { SampleConfig } from "../cli/config.ts";
import { UsageError } from "../errors.ts";
import { add, mul, sub } from "../ops/math.ts";
import { pointwise } from "../ops/pointwise.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { lambda, type Spacing, timeGrid } from "./times.ts";

export type SamplerName = SampleConfig["sampler"];

export interface SamplerOptions {
  sampler: SamplerName;
  /** Steps of the grid. */
  steps: number;
  /** s of the time shift; 1 for none, below 1 spends more steps near the noise's end. */
  shift: number;
  spacing?: Spacing;
  /** The grid itself, in place of the three; descending for the ODE from data to noise. */
  times?: readonly number[];
  /** Tolerances of dopri5: the error of a step is at most atol + rtol |x|, as a root mean square over an image. */
  atol?: number;
  rtol?: number;
  /** g of sde. */
  diffusionForm?: SampleConfig["diffusionForm"];
  /** The last step of sde, and its size in time. */
  lastStep?: SampleConfig["lastStep"];
  lastStepSize?: number;
  /** Schedule of the key steps of reuse.ts; undefined: every step runs the complete network. */
  reuseEncoder?: string | undefined;
}

/** What a step is recorded from. */
export interface StepContext {
  /** dx/dt at x [B,S,S,C] and times [1]; of a network of data bounded near t = 1, see prediction.ts. */
  velocity(x: Tensor, t: Tensor): Tensor;
  /** The data X [B,S,S,C] that the network predicts at the step's x and t. */
  data(): Tensor;
  /** The latents [B,S,S,C] at time `t`. */
  readonly x: Tensor;
  /** Times [1] at which the step starts and ends. */
  readonly t: Tensor;
  readonly next: Tensor;
  /** The coefficients of the step, [1] each. */
  readonly c: readonly Tensor[];
  /** The tensors that the step before returned after x; zeros in the first step. */
  readonly history: readonly Tensor[];
  /** Standard normal numbers [B,S,S,C] that are a function of seed, image and step. */
  noise(): Tensor;
}

/** Records a step: x at time `next`, then the tensors that the step after it gets as history. */
export type SamplerStep = (step: StepContext) => readonly [x: Tensor, ...history: Tensor[]];

export interface GridSampler {
  step: SamplerStep;
  /** Evaluations of the velocity in a step. */
  evaluations: number;
  /** Number of tensors that a step keeps for the next one (0). */
  history?: number;
  /** Whether steps draw noise (false). */
  stochastic?: true;
  /** The grid, where it is not {@link timeGrid}. */
  times?(options: SamplerOptions): number[];
  /**
   * The coefficients of step `i` of the grid, the same number for every step.
   * @param left the velocity at the start of the step is (X - x) / left, see timeLeft()
   */
  coefficients?(times: readonly number[], i: number, options: SamplerOptions, left: number): number[];
}

/** Euler's method (Euler, 1768): Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, section I.7. */
export const sampleEuler: SamplerStep = ({ velocity, x, t, next }) => [
  add(x, mul(velocity(x, t), sub(next, t))),
];

/**
 * Heun's method (Heun, 1900), the explicit trapezoidal rule: the mean of the velocities at both ends of the step. As Karras et al.
 * (2022), arXiv 2206.00364, algorithm 1, but with two velocities in the last step, too.
 */
export const sampleHeun: SamplerStep = ({ velocity, x, t, next }) => {
  const dt = sub(next, t), v0 = velocity(x, t), v1 = velocity(add(x, mul(v0, dt)), next);
  return [add(x, mul(pointwise(["0.5 * (x0 + x1)"], [v0, v1]), dt))];
};

/** The midpoint method (Runge, 1895): the velocity after half an Euler step. Hairer, Norsett and Wanner, section II.1. */
export const sampleMidpoint: SamplerStep = ({ velocity, x, t, next }) => {
  const dt = sub(next, t), middle = pointwise(["x0 + 0.5 * x1"], [t, dt]);
  return [add(x, mul(velocity(advanced(x, velocity(x, t), dt, 0.5), middle), dt))];
};

/** The classical Runge-Kutta method of order 4 (Kutta, 1901): Hairer, Norsett and Wanner, section II.1, table 1.2. */
export const sampleRk4: SamplerStep = ({ velocity, x, t, next }) => {
  const dt = sub(next, t), middle = pointwise(["x0 + 0.5 * x1"], [t, dt]);
  const k1 = velocity(x, t);
  const k2 = velocity(advanced(x, k1, dt, 0.5), middle);
  const k3 = velocity(advanced(x, k2, dt, 0.5), middle);
  const k4 = velocity(advanced(x, k3, dt, 1), next);
  const sum = "x0 + x5 * (x1 + 2.0 * x2 + 2.0 * x3 + x4) * 0.16666667";
  return [pointwise([sum], [x, k1, k2, k3, k4, dt])];
};

/** x + part dt v */
const advanced = (x: Tensor, v: Tensor, dt: Tensor, part: number) =>
  pointwise(["x0 + s0 * x2 * x1"], [x, v, dt], [part]);

/**
 * DPM-Solver++(2M): Lu et al. (2022), arXiv 2211.01095, algorithm 2, with the alpha and sigma of the flow:
 * x' = (sigma' / sigma) x - alpha' (e^-h - 1) (X + (X - X_previous) / 2r). The first step and the last are of order 1.
 */
export const sampleDpmSolver2M: SamplerStep = ({ data, x, c, history: [previous] }) => {
  const [onX, onData, onPrevious] = c as [Tensor, Tensor, Tensor];
  const X = data(), next = "x1 * x0 + x3 * x2 + x5 * x4";
  return [pointwise([next], [x, onX, X, onData, previous as Tensor, onPrevious]), X];
};

function dpmSolver2MCoefficients(times: readonly number[], i: number): number[] {
  const { decay, weight, r } = exponentialStep(times, i);
  // With log-SNR from -Infinity or to Infinity the formula's limit is order 1.
  const slope = i > 0 && i < times.length - 2 ? weight / (2 * r) : 0;
  return [decay, weight + slope, -slope];
}

/**
 * UniPC of order 2 with B(h) = e^h - 1, in data prediction: Zhao et al. (2023), arXiv 2302.04867, algorithms 1 and 2 (UniP-2, and
 * UniC-2 on the evaluation that the next step needs anyway). The first step and the last are of order 1; the last has no corrector.
 */
export const sampleUniPc: SamplerStep = ({ data, x, c: k, history }) => {
  const [start, data1, data2] = history as [Tensor, Tensor, Tensor], X = data();
  const weighted = (terms: readonly (readonly [Tensor, Tensor | undefined])[]) =>
    terms.map(([x, weight]) => mul(x, weight as Tensor)).reduce(add);
  const corrected = weighted([[x, k[0]], [start, k[1]], [X, k[2]], [data1, k[3]], [data2, k[4]]]);
  return [weighted([[corrected, k[5]], [X, k[6]], [data1, k[7]]]), corrected, X, data1];
};

function uniPcCoefficients(times: readonly number[], i: number): number[] {
  const { decay, weight, r } = exponentialStep(times, i);
  const slope = i > 0 && i < times.length - 2 ? weight / (2 * r) : 0;
  return [...uniCorrector(times, i), decay, weight + slope, -slope];
}

/** UniC's weights of the predicted x, of x at the step before, and of X here, one step before and two steps before. */
function uniCorrector(times: readonly number[], i: number): number[] {
  if (i === 0) return [1, 0, 0, 0, 0];
  const { h, decay, weight, r } = exponentialStep(times, i - 1);
  // x = decay x' + weight (X' + rho0 (X'' - X') / -r + rho1 (X - X')); order 1 has rho1 = 1/2 alone.
  if (i === 1) return [0, decay, weight / 2, weight / 2, 0];
  // The functions of -h that the order conditions R rho = b compare: b1 = phi2 / B, b2 = 2 phi3 / B.
  const phi1 = Math.expm1(-h), phi2 = phi1 / -h - 1, phi3 = phi2 / -h - 1 / 2;
  const b1 = phi2 / phi1, b2 = 2 * phi3 / phi1;
  const rho0 = (b1 - b2) / (1 + r), rho1 = b1 - rho0;
  return [0, decay, weight * rho1, weight * (1 - rho1 + rho0 / r), -weight * rho0 / r];
}

/**
 * The exponential step i of dx = (sigma' / sigma) x + ... in half log-SNR: its length h, decay = sigma' / sigma, weight =
 * alpha' (1 - e^-h), and r = h of the step before / h.
 */
function exponentialStep(times: readonly number[], i: number) {
  const [before = NaN, t, next] = [times[i - 1], times[i] as number, times[i + 1] as number];
  const sigma = (t: number) => 1 - t, h = lambda(next) - lambda(t);
  const r = (lambda(t) - lambda(before)) / h;
  return { h, decay: sigma(next) / sigma(t), weight: -next * Math.expm1(-h), r };
}

/**
 * Euler-Maruyama for dx = (v + g s) dt + sqrt(2 g) dW with the score s = (t v - x) / (1 - t): SiT, Ma et al. (2024), arXiv
 * 2401.08740, and its official code. The last step, of size `lastStepSize`, draws no noise.
 */
export const sampleSde: SamplerStep = ({ velocity, x, t, c, noise }) => {
  const [onX, onVelocity, onNoise] = c as [Tensor, Tensor, Tensor];
  const next = "x1 * x0 + x3 * x2 + x5 * x4";
  return [pointwise([next], [x, onX, velocity(x, t), onVelocity, noise(), onNoise])];
};

/** SiT's diffusion forms g(t) for the linear path, of norm 1. */
export const DIFFUSION_FORMS: Readonly<
  Record<NonNullable<SamplerOptions["diffusionForm"]>, (t: number) => number>
> = {
  constant: () => 1,
  sigma: (t) => 1 - t,
  linear: (t) => 1 - t,
  sbdm: (t) => (1 - t) / t,
  decreasing: (t) => (Math.cos(Math.PI * t) + 1) ** 2 / 4,
  "increasing-decreasing": (t) => Math.sin(Math.PI * t) ** 2,
};

function sdeTimes({ steps, shift, spacing, lastStepSize: last = 0.04 }: SamplerOptions): number[] {
  if (steps < 2) {
    throw new UsageError(
      `Cannot sample with sde in ${steps} step: it needs a noise-free last step after others; use --steps 2 or more`,
    );
  }
  return [...timeGrid(steps - 1, shift, spacing).map((t) => (1 - last) * t), 1];
}

function sdeCoefficients(
  times: readonly number[],
  i: number,
  { diffusionForm = "sigma", lastStep = "mean" }: SamplerOptions,
  left: number,
): number[] {
  const t = times[i] as number, h = times[i + 1] as number - t, unbounded = left / (1 - t);
  // sbdm is infinite at t = 0. There x is noise, whose distribution the diffusion keeps: the step is one of the ODE.
  const form = DIFFUSION_FORMS[diffusionForm](t), g = Number.isFinite(form) ? form : 0;
  /** x + h (v + g s), without the bound on v. */
  const drift = (g: number) => [1 - h * g / (1 - t), h * (1 + g * t / (1 - t)) * unbounded];
  if (i < times.length - 2) return [...drift(g), Math.sqrt(2 * g * h)];
  switch (lastStep) {
    case "mean":
      return [...drift(g), 0];
    case "euler":
      return [...drift(0), 0];
    case "tweedie": // x / alpha + sigma^2 / alpha s
      return [1 / t - (1 - t) / t, left, 0];
  }
}

/**
 * Stochastic Euler: the data prediction with new noise, x' = alpha' X + sigma' z (the consistency models' multistep sampling, Song
 * et al., 2023, arXiv 2303.01469, algorithm 1; `stochastic_sampling` of diffusers' FlowMatchEulerDiscreteScheduler).
 */
export const sampleStochasticEuler: SamplerStep = ({ data, next, c: [sigma], noise }) => [
  pointwise(["x1 * x0 + x3 * x2"], [data(), next, noise(), sigma as Tensor]),
];

export const SAMPLERS: Readonly<Record<Exclude<SamplerName, "dopri5">, GridSampler>> = {
  euler: { step: sampleEuler, evaluations: 1 },
  heun: { step: sampleHeun, evaluations: 2 },
  midpoint: { step: sampleMidpoint, evaluations: 2 },
  rk4: { step: sampleRk4, evaluations: 4 },
  "dpm++2m": {
    step: sampleDpmSolver2M,
    evaluations: 1,
    history: 1,
    coefficients: dpmSolver2MCoefficients,
  },
  unipc: { step: sampleUniPc, evaluations: 1, history: 3, coefficients: uniPcCoefficients },
  sde: {
    step: sampleSde,
    evaluations: 1,
    stochastic: true,
    times: sdeTimes,
    coefficients: sdeCoefficients,
  },
  "euler-stochastic": {
    step: sampleStochasticEuler,
    evaluations: 1,
    stochastic: true,
    coefficients: (times, i) => [1 - (times[i + 1] as number)],
  },
};

/** The times of the steps, by default from 0 to 1; none for dopri5. @throws UsageError when there are too few steps */
export function gridOf(options: SamplerOptions): number[] {
  const { sampler, steps, shift, spacing } = options;
  if (sampler === "dopri5") return [];
  if (options.times) return [...options.times];
  return SAMPLERS[sampler].times?.(options) ?? timeGrid(steps, shift, spacing);
}
