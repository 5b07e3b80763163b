// The formulas of guidance, as functions of the network's velocities c (with classes) and u (without), of the velocity b of a
// weaker network, and of weights w. Statistics are per image over all of its elements.

import { add, mul, square, sub } from "../ops/math.ts";
import { mean, sum } from "../ops/reduce.ts";
import { pointwise } from "../ops/pointwise.ts";
import { constant, type Tensor, viewAs } from "../tensor/tensor.ts";

/**
 * How the weight of classifier-free guidance grows with the time t, from 1 at the noise to w at the data: w(t) = 1 + (w - 1) f(t).
 * Wang et al. (2024), arXiv 2404.13040.
 */
export const SCHEDULES = {
  constant: { f: () => 1, wgsl: undefined },
  linear: { f: (t: number) => t, wgsl: "x0" },
  cosine: {
    f: (t: number) => (1 - Math.cos(Math.PI * t)) / 2,
    wgsl: "0.5 - 0.5 * cos(3.14159265358979 * x0)",
  },
  // t = 0 has no logarithm.
  power: { f: (t: number, p: number) => t ** p, wgsl: "select(pow(x0, T(s0)), T(0.0), x0 <= T(0.0))" },
} as const;

export type ScheduleName = keyof typeof SCHEDULES;

/** The weight w and its schedule. */
export interface Weight {
  readonly w: number;
  readonly schedule: ScheduleName;
  /** The exponent p of the schedule "power", f(t) = t^p. */
  readonly power: number;
}

const isConstant = ({ schedule, power }: Weight) =>
  schedule === "constant" || schedule === "power" && power === 0;

/** The weight at time `t`. */
export function weightAt(weight: Weight, t: number): number {
  const { w, schedule, power } = weight;
  return isConstant(weight) ? w : 1 + (w - 1) * SCHEDULES[schedule].f(t, power);
}

/** A constant [C]: `on` for the first `guided` channels, and `off` for the others. */
export function channelwise(C: number, guided: number, on: number, off: number): Tensor {
  return constant(Float32Array.from({ length: C }, (_, c) => c < guided ? on : off), [C], "guidance");
}

/**
 * Records the weight of each channel at times t [B], as [C] or [B,1,1,C]: 1 for all but the first channels.
 * @param guided number of channels with the weight
 */
export function weightsOf(weight: Weight, t: Tensor, C: number, guided = C): Tensor {
  const { w, schedule, power } = weight, { wgsl } = SCHEDULES[schedule];
  if (isConstant(weight) || wgsl === undefined) return channelwise(C, guided, w, 1);
  const f = viewAs(pointwise([wgsl], [t], schedule === "power" ? [power] : []), [t.dim(0), 1, 1, 1]);
  return pointwise(["1.0 + x0 * x1"], [f, channelwise(C, guided, w - 1, 0)]);
}

/** b + w (c - b): classifier-free guidance with b = u (Ho and Salimans, 2022), autoguidance, internal guidance. */
export const extrapolate = (b: Tensor, c: Tensor, w: Tensor): Tensor => add(b, mul(sub(c, b), w));

/** The sum over each image of x [B,S,S,C], as [B,1,1,1]. */
const perImage = (x: Tensor) => sum(x, [1, 2, 3], { keepDims: true });
const dot = (a: Tensor, b: Tensor) => perImage(mul(a, b));

/** CFG-Zero*: s u + w (c - s u) with the scale s = <c, u> / |u|^2 of the image. Fan et al. (2025), arXiv 2503.18886. */
export function zeroStar(u: Tensor, c: Tensor, w: Tensor): Tensor {
  const s = pointwise(["x0 / max(x1, T(1e-8))"], [dot(c, u), perImage(square(u))]);
  return extrapolate(mul(u, s), c, w);
}

export interface ProjectionOptions {
  /** Factor of the part of the difference that is parallel to c. */
  readonly eta: number;
  /** r: the difference of an image is scaled down to this norm; Infinity for none. */
  readonly norm: number;
}

/**
 * Adaptive projected guidance: c + (w - 1) (across + eta along), where across and along are the parts of min(1, r / |d|) d
 * orthogonal and parallel to c. Sadat et al. (2024), arXiv 2410.02416, on velocities.
 * @param d c - u, or its running mean
 */
export function projected(c: Tensor, d: Tensor, w: Tensor, { eta, norm }: ProjectionOptions): Tensor {
  // across + eta along = d - (1 - eta) k c, with k = <d, c> / |c|^2.
  const k = pointwise(["x0 / max(x1, T(1e-20))"], [dot(d, c), perImage(square(c))]);
  let update = eta === 1 ? d : pointwise(["x0 - s0 * x1 * x2"], [d, k, c], [1 - eta]);
  if (norm < Infinity) {
    const s = pointwise(["min(T(1.0), s0 / sqrt(max(x0, T(1e-20))))"], [perImage(square(d))], [norm]);
    update = mul(update, s);
  }
  return pointwise(["x0 + (x1 - 1.0) * x2"], [c, w, update]);
}

/**
 * Moves the standard deviation of each image of v towards that of c: v (1 + phi (std(c) / std(v) - 1)). Lin et al. (2023),
 * arXiv 2305.08891, section 3.4.
 * @param phi [C], the share of each channel
 */
export function rescaled(v: Tensor, c: Tensor, phi: Tensor): Tensor {
  const variance = (x: Tensor) => {
    const centred = sub(x, mean(x, [1, 2, 3], { keepDims: true }));
    return perImage(square(centred));
  };
  const ratio = pointwise(["sqrt(x0 / max(x1, T(1e-20)))"], [variance(c), variance(v)]);
  return pointwise(["x0 * (1.0 + x1 * (x2 - 1.0))"], [v, phi, ratio]);
}
