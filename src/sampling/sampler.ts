// Sampling latents from a diffusion model. A step of the grid is one program, replayed with other times and coefficients.

import type { SamplingConfig } from "../cli/sampling_conditions.ts";
import { noGrad } from "../tensor/autograd.ts";
import { keySteps } from "../cli/key_steps.ts";
import { UsageError } from "../errors.ts";
import { copy, fill } from "../gpu/memory.ts";
import { capture, type Program } from "../gpu/program.ts";
import type { Denoiser } from "../models/denoiser.ts";
import { pointwise } from "../ops/pointwise.ts";
import { normal, RandomState } from "../ops/random.ts";
import { slice } from "../ops/layout.ts";
import { input, type Tensor, variable } from "../tensor/tensor.ts";
import { Dopri5 } from "./dopri5.ts";
import { Guidance, type GuidanceOptions, guidanceOptions, type Terms } from "./guidance.ts";
import { STREAMS } from "./noise.ts";
import { ReusedEncoder } from "./reuse.ts";
import { gridOf, type GridSampler, type SamplerOptions, SAMPLERS } from "./samplers.ts";

export interface SamplingOptions extends GuidanceOptions, SamplerOptions {
  batchSize: number;
  seed: number;
  /** About how many batches will be sampled (many). */
  batches?: number;
  /** Records what x [B,S,S,C] becomes at the end of each step of the grid, at time `t` [1] (x itself). */
  constrain?: (x: Tensor, t: Tensor) => Tensor;
}

/** What may differ from batch to batch. */
export interface RunOptions {
  /** Noise [B,S,S,C] to start from, instead of that of the samples' numbers. */
  noise?: Float32Array<ArrayBuffer> | undefined;
  /** Called before each step of the grid with its time and terms; dopri5 has no grid. */
  onStep?: (t: number, terms: Terms) => void | Promise<void>;
}

type StepProgram = Program<Record<string, Tensor>, Record<string, Tensor>>;

/** Samples latents, a batch at a time. Sample i depends on (seed, i) and its class alone. */
export class Sampler {
  /** The latents [B,S,S,C], normalised: after {@link run} those of its batch. */
  readonly latents: Tensor;
  /** Evaluations of the network (NFE) that {@link run} used for each image of its batch: two of a step with two terms. */
  evaluations: readonly number[] = [];
  readonly #labels: Tensor;
  readonly #random: RandomState;
  readonly guidance: Guidance;
  /** undefined: dopri5. */
  readonly #sampler: GridSampler | undefined;
  readonly #dopri5: Dopri5 | undefined;
  /** t, next t and coefficients of each step. */
  readonly #grid: readonly Float32Array<ArrayBuffer>[];
  /** The numbers of the current step. */
  readonly #numbers: Tensor;
  readonly #history: readonly Tensor[];
  /** The network, where some steps run its second half only. */
  readonly #reused: ReusedEncoder | undefined;
  /** Terms of each step of the grid, and whether it runs the complete network. */
  readonly #plan: readonly { terms: Terms; complete: boolean }[];
  #start: StepProgram | undefined;
  /** Programs of steps by what they run. */
  readonly #steps = new Map<string, StepProgram>();

  /** @throws UsageError when the sampler cannot take so few steps */
  constructor(model: Denoiser, readonly options: SamplingOptions) {
    const { input_size: S, in_channels: C } = model.config;
    const { batchSize: B, sampler, atol = 1e-6, rtol = 1e-3, batches } = options;
    this.latents = variable([B, S, S, C], { label: "samples" });
    this.#labels = input([B], "u32", "labels");
    this.#random = new RandomState(options.seed);
    const isKey = keySteps(options.reuseEncoder, sampler === "dopri5" ? 1 : gridOf(options).length - 1);
    if (sampler === "dopri5" && options.reuseEncoder !== undefined) {
      throw new UsageError("Cannot reuse the encoder: dopri5 chooses its own steps; use another --sampler");
    }
    this.#reused = isKey.includes(false) ? new ReusedEncoder(model) : undefined;
    this.guidance = new Guidance(this.#reused ?? model, options);
    this.#sampler = sampler === "dopri5" ? undefined : SAMPLERS[sampler];
    const { history = 0, coefficients } = this.#sampler ?? {}, grid = gridOf(options);
    this.#grid = grid.slice(0, -1).map((t, i) =>
      new Float32Array([t, grid[i + 1] as number, ...coefficients?.(grid, i, options) ?? []])
    );
    const all = grid.slice(0, -1).map((t, i, { length }) => this.guidance.terms(t, i / length));
    // Other terms have other batches, whose tokens were not kept.
    this.#plan = all.map((terms, i) => ({
      terms,
      complete: isKey[i] === true || terms.key !== all[i - 1]?.key,
    }));
    this.#numbers = variable([this.#grid[0]?.length ?? 1], { label: "times and coefficients" });
    this.#history = Array.from({ length: history }, () => variable([B, S, S, C], { label: "history" }));
    if (this.#sampler) return;
    this.#dopri5 = new Dopri5({
      x: this.latents,
      velocity: (x, t, terms) => this.guidance.velocity(x, t, this.#labels, terms),
      segments: this.#segments(),
      inputs: { labels: this.#labels },
      atol,
      rtol,
      batches,
    });
  }

  async prepare(): Promise<this> {
    this.#start = await capture("noise", {}, () => {
      copy(normal(this.latents.shape, this.#random, STREAMS.start), this.latents);
      for (const kept of this.#history) fill(kept, 0);
      this.guidance.reset(this.latents.shape);
      return {};
    }).prepare();
    for (const { terms, complete } of this.#plan) {
      const name = nameOf(terms, complete);
      if (!this.#steps.has(name)) this.#steps.set(name, await this.capture(terms, complete).prepare());
    }
    await this.#dopri5?.prepare();
    return this;
  }

  /**
   * Latents [B,S,S,C] (normalised, on the device) for classes of samples first, first + 1, ...
   * @param labels one class number for each sample of the batch
   * @throws UsageError when an adaptive step size does not reach the data
   */
  async run(labels: Uint32Array, first: number, { noise, onStep }: RunOptions = {}): Promise<Tensor> {
    this.#labels.storage.write(labels);
    this.#random.set(0, first);
    this.#start?.run();
    if (noise) this.latents.storage.write(noise);
    if (this.#dopri5) {
      this.evaluations = await this.#dopri5.run(first);
      return this.latents;
    }
    const { evaluations = 0, stochastic } = this.#sampler ?? {};
    let total = 0;
    for (const [i, numbers] of this.#grid.entries()) {
      const { terms, complete } = this.#plan[i] as { terms: Terms; complete: boolean };
      await onStep?.(numbers[0] as number, terms);
      this.#numbers.storage.write(numbers);
      if (stochastic) this.#random.set(i, first);
      this.#steps.get(nameOf(terms, complete))?.run();
      const all = this.guidance.evaluations(terms), guide = Number(terms.guide);
      total += evaluations * ((all - guide) * (complete ? 1 : this.#reused?.share ?? 1) + guide);
    }
    this.evaluations = Array(this.options.batchSize).fill(total);
    return this.latents;
  }

  destroy(): void {
    this.#reused?.destroy();
    for (const program of [this.#start, this.#dopri5, ...this.#steps.values()]) program?.destroy();
    for (
      const { storage } of [
        this.latents,
        this.#labels,
        this.#numbers,
        this.#random.tensor,
        ...this.#history,
      ]
    ) storage.destroy();
    this.guidance.destroy();
  }

  /**
   * Records a step of the grid with these terms; the caller prepares it.
   * @param complete false: with the second half of the network only, after a complete step was recorded
   */
  capture(terms: Terms, complete = true): StepProgram {
    const { batchSize: B, batches, constrain = (x) => x } = this.options,
      { step } = this.#sampler as GridSampler;
    const record = () =>
      noGrad(() => {
        this.#reused?.beginStep(complete);
        const [t, next, ...c] = Array.from(
          { length: this.#numbers.size },
          (_, k) => slice(this.#numbers, 0, k, k + 1),
        ) as [Tensor, Tensor, ...Tensor[]];
        const [end, ...history] = step({
          velocity: (x, t) => this.guidance.velocity(x, pointwise(["x0"], [t], [], [B]), this.#labels, terms),
          x: this.latents,
          t,
          next,
          c,
          history: this.#history,
          noise: () => normal(this.latents.shape, this.#random, STREAMS.step),
        });
        const results = [constrain(end, next), ...history], kept = [this.latents, ...this.#history];
        // The oldest first: a step may pass history on.
        for (let k = kept.length - 1; k >= 0; k--) copy(results[k] as Tensor, kept[k] as Tensor);
        return {};
      });
    const runs = batches === undefined ? {} : { runs: batches * this.#grid.length };
    const options = { ...runs, batchInvariant: true };
    return capture(nameOf(terms, complete), { labels: this.#labels }, record, options);
  }

  /** The stretches of 0..1 between changes of the terms. */
  #segments() {
    const inside = this.guidance.boundaries().filter((t) => t > 0 && t < 1);
    const ends = [0, ...new Set(inside), 1].sort((a, b) => a - b);
    return ends.slice(0, -1).map((from, i) => {
      const to = ends[i + 1] as number, terms = this.guidance.terms((from + to) / 2);
      return { from, to, terms, evaluations: this.guidance.evaluations(terms) };
    });
  }
}

/** The name of the program of a step. */
const nameOf = ({ key }: Terms, complete: boolean) =>
  `${complete ? "step" : "second half of a step"}${key ? ` with ${key}` : ""}`;

/** The sampling options of a command. @param guide the model of --guide */
export function samplingOptions(
  c: SamplingConfig & { seed: number; batchSize: number },
  guide?: Denoiser,
): SamplingOptions {
  const { sampler, steps, shift, spacing, atol, rtol, diffusionForm, lastStep, lastStepSize, reuseEncoder } =
    c;
  const grid = { sampler, steps, shift, spacing, reuseEncoder };
  const ofSampler = { ...grid, atol, rtol, diffusionForm, lastStep, lastStepSize };
  return { seed: c.seed, batchSize: c.batchSize, ...ofSampler, ...guidanceOptions(c, guide) };
}
