// Samplers: plain functions that record one step of the ordinary differential equation dx/dt = v(x, t), from noise (t = 0) to
// data (t = 1), and the grid of times. One more is a function, its entry in SAMPLERS, and a value of --sampler.

import type { SampleConfig } from "../cli/config.ts";
import { add, mul, sub } from "../ops/math.ts";
import { pointwise } from "../ops/pointwise.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** dx/dt at x [B,S,S,C] and time t [1]. */
export type Velocity = (x: Tensor, t: Tensor) => Tensor;

/** Records x at time `next` from x at time `t`. */
export type SamplerStep = (velocity: Velocity, x: Tensor, t: Tensor, next: Tensor) => Tensor;

/** Euler's method. */
export const sampleEuler: SamplerStep = (velocity, x, t, next) => add(x, mul(velocity(x, t), sub(next, t)));

/** Heun's method: the mean of the velocities at both ends of the step. */
export const sampleHeun: SamplerStep = (velocity, x, t, next) => {
  const dt = sub(next, t), v0 = velocity(x, t), v1 = velocity(add(x, mul(v0, dt)), next);
  return add(x, mul(pointwise(["0.5 * (x0 + x1)"], [v0, v1]), dt));
};

export type SamplerName = SampleConfig["sampler"];

export const SAMPLERS: Readonly<Record<SamplerName, SamplerStep>> = { euler: sampleEuler, heun: sampleHeun };

/** The grid of times, steps + 1 of them from 0 to 1: t' = s t / (1 + (s - 1) t). */
export function timeGrid(steps: number, shift: number): number[] {
  return Array.from({ length: steps + 1 }, (_, i) => {
    const t = i / steps;
    return shift * t / (1 + (shift - 1) * t);
  });
}
