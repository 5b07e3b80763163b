// Sampling: the ordinary differential equation dx/dt = v(x, t) from noise (t = 0) to data (t = 1), by Euler's or Heun's
// method on a shifted grid t' = s t / (1 + (s - 1) t), with classifier-free guidance (Ho and Salimans, 2022) inside an
// interval of times (Kynkaanniemi et al., 2024): v = v_u + w (v_c - v_u).

import { noGrad } from "../tensor/autograd.ts";
import { copy } from "../gpu/memory.ts";
import { capture, type Program } from "../gpu/program.ts";
import type { Dit } from "../models/dit.ts";
import { add, mul, sub } from "../ops/math.ts";
import { pointwise } from "../ops/pointwise.ts";
import { normal, RandomState } from "../ops/random.ts";
import { concat, slice } from "../ops/layout.ts";
import { constant, input, type Tensor, variable } from "../tensor/tensor.ts";

export const SAMPLERS = ["euler", "heun"] as const;
export type SamplerName = (typeof SAMPLERS)[number];

export interface SamplingOptions {
  batchSize: number;
  /** Steps of the grid. */
  steps: number;
  sampler: SamplerName;
  /** s of the time shift; 1 for none, below 1 spends more steps near the noise's end. */
  shift: number;
  /** w; 1 for no guidance. */
  cfg: number;
  /** Guidance acts for times in [from, to]. */
  cfgInterval: readonly [number, number];
  /** Channels that are guided; undefined for all. */
  cfgChannels?: number | undefined;
  seed: number;
  /** Batches that will be drawn, about (many). */
  batches?: number;
}

/** The grid of times, steps + 1 of them, from 0 to 1. */
export function timeGrid(steps: number, shift: number): number[] {
  return Array.from({ length: steps + 1 }, (_, i) => {
    const t = i / steps;
    return shift * t / (1 + (shift - 1) * t);
  });
}

type StepProgram = Program<Record<string, Tensor>, Record<string, Tensor>>;

/** Draws latents from a DiT, a batch at a time. Sample i depends on (seed, i) and its class alone. */
export class Sampler {
  readonly #x: Tensor;
  readonly #labels: Tensor;
  /** t, next t. */
  readonly #times: Tensor;
  readonly #random: RandomState;
  #start: StepProgram | undefined;
  #plain: StepProgram | undefined;
  #guided: StepProgram | undefined;

  constructor(readonly dit: Dit, readonly options: SamplingOptions) {
    const { input_size: S, in_channels: C } = dit.config;
    const B = options.batchSize;
    this.#x = variable([B, S, S, C], { label: "samples" });
    this.#labels = input([B], "u32", "labels");
    this.#times = variable([2], { label: "times" });
    this.#random = new RandomState(options.seed);
  }

  async prepare(progress?: (done: number, total: number) => void): Promise<this> {
    const { cfg, steps, shift, cfgInterval: [from, to] } = this.options;
    const times = timeGrid(steps, shift).slice(0, -1);
    const guided = (t: number) => cfg !== 1 && t >= from && t <= to;
    this.#start = await capture("noise", {}, () => {
      copy(normal(this.#x.shape, this.#random, 0), this.#x);
      return {};
    }).prepare();
    if (times.some((t) => !guided(t))) this.#plain = await this.capture(false).prepare(progress);
    if (times.some(guided)) this.#guided = await this.capture(true).prepare(progress);
    return this;
  }

  /**
   * Latents [B,S,S,C] (normalised, on the device) for classes of samples first, first + 1, ...
   * @param labels one class number for each sample of the batch
   */
  run(labels: Uint32Array, first: number, onStep?: () => void): Tensor {
    const { steps, shift, cfg, cfgInterval: [from, to] } = this.options;
    this.#labels.storage.write(labels);
    this.#random.set(0, first);
    this.#start?.run();
    const times = timeGrid(steps, shift);
    for (let i = 0; i < steps; i++) {
      const t = times[i] as number;
      this.#times.storage.write(new Float32Array([t, times[i + 1] as number]));
      (cfg !== 1 && t >= from && t <= to ? this.#guided : this.#plain)?.run();
      onStep?.();
    }
    return this.#x;
  }

  destroy(): void {
    for (const program of [this.#start, this.#plain, this.#guided]) program?.destroy();
    for (const tensor of [this.#x, this.#labels, this.#times, this.#random.tensor]) tensor.storage.destroy();
  }

  /** Records one step of the grid; the caller prepares it. */
  capture(guided: boolean): StepProgram {
    const { batchSize: B, sampler, steps, batches } = this.options;
    const record = () =>
      noGrad(() => {
        const t0 = slice(this.#times, 0, 0, 1), t1 = slice(this.#times, 0, 1, 2);
        const dt = sub(t1, t0);
        const velocity = (x: Tensor, t: Tensor) => this.#velocity(x, pointwise(["x0"], [t], [], [B]), guided);
        const v0 = velocity(this.#x, t0);
        const euler = add(this.#x, mul(v0, dt));
        if (sampler === "euler") copy(euler, this.#x);
        else {
          const v1 = velocity(euler, t1);
          copy(add(this.#x, mul(pointwise(["0.5 * (x0 + x1)"], [v0, v1]), dt)), this.#x);
        }
        return {};
      });
    const runs = batches === undefined ? {} : { runs: batches * steps };
    const options = { ...runs, batchInvariant: true };
    return capture(guided ? "guided step" : "step", { labels: this.#labels }, record, options);
  }

  #velocity(x: Tensor, t: Tensor, guided: boolean): Tensor {
    const { dit, options: { batchSize: B, cfg, cfgChannels } } = this;
    if (!guided) return dit.forward(x, t, this.#labels);
    const { in_channels: C, num_classes } = dit.config;
    const none = constant(new Uint32Array(B).fill(num_classes), [B], "no class");
    const both = dit.forward(concat([x, x], 0), concat([t, t], 0), concat([this.#labels, none], 0));
    const conditional = slice(both, 0, 0, B), unconditional = slice(both, 0, B, 2 * B);
    // Unguided channels keep the conditional velocity.
    const weights = Float32Array.from({ length: C }, (_, c) => c < (cfgChannels ?? C) ? cfg : 1);
    return add(unconditional, mul(sub(conditional, unconditional), constant(weights, [C], "guidance")));
  }
}
