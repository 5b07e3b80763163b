// Sampling latents from a diffusion model. A step of the grid is one program, replayed with other times and coefficients.

import type { SamplingConfig } from "../cli/sampling_conditions.ts";
import { noGrad } from "../tensor/autograd.ts";
import { copy, fill } from "../gpu/memory.ts";
import { capture, type Program } from "../gpu/program.ts";
import type { Denoiser } from "../models/denoiser.ts";
import { dataPrediction, timeLeft } from "../models/prediction.ts";
import { pointwise } from "../ops/pointwise.ts";
import { normal, RandomState } from "../ops/random.ts";
import { slice } from "../ops/layout.ts";
import { input, type Tensor, variable } from "../tensor/tensor.ts";
import { Dopri5 } from "./dopri5.ts";
import { Guidance, type GuidanceOptions, guidanceOptions } from "./guidance.ts";
import { STREAMS } from "./noise.ts";
import { planOf, type Stretch } from "./plan.ts";
import { ReusedBlocks } from "./reuse.ts";
import { gridOf, type GridSampler, type SamplerOptions, SAMPLERS } from "./samplers.ts";

export interface SamplingOptions extends GuidanceOptions, SamplerOptions {
  batchSize: number;
  seed: number;
  /** About how many batches will be sampled (many). */
  batches?: number;
  /** Records what x [B,S,S,C] becomes at the end of each step of the grid, at time `t` [1] (x itself). */
  constrain?: (x: Tensor, t: Tensor) => Tensor;
  /** Whether {@link Sampler.prediction} is kept (false); dopri5 has none. */
  keepPrediction?: boolean;
}

/** What may differ from batch to batch. */
export interface RunOptions {
  /** Noise [B,S,S,C] to start from, instead of that of the samples' numbers. */
  noise?: Float32Array<ArrayBuffer> | undefined;
  /** Number of images (the batch size); the rest of the batch is padding. */
  count?: number;
  /** Called after step `i` of the grid; dopri5 has no grid. */
  onStep?: (i: number) => void | Promise<void>;
}

type StepProgram = Program<Record<string, Tensor>, Record<string, Tensor>>;

/** Samples latents, a batch at a time. Sample i depends on (seed, i) and its class alone. */
export class Sampler {
  /** The latents [B,S,S,C], normalised: after {@link run} those of its batch. */
  readonly latents: Tensor;
  /** With `keepPrediction`: the data [B,S,S,C] that the network predicted at the start of the latest step. */
  readonly prediction: Tensor | undefined;
  /** Evaluations of the network (NFE) that {@link run} used for each image: two of a step with two terms. */
  evaluations: readonly number[] = [];
  readonly plan: readonly Stretch[];
  readonly #labels: Tensor;
  readonly #random: RandomState;
  readonly guidance: Guidance;
  /** undefined: dopri5. */
  readonly #sampler: GridSampler | undefined;
  readonly #dopri5: Dopri5 | undefined;
  /** t, next t, time left and coefficients of each step. */
  readonly #grid: readonly Float32Array<ArrayBuffer>[];
  /** The numbers of the current step. */
  readonly #numbers: Tensor;
  readonly #history: readonly Tensor[];
  /** The network, where some steps run its second half only. */
  readonly #reused: ReusedBlocks | undefined;
  #start: StepProgram | undefined;
  /** Programs of steps by what they run. */
  readonly #steps = new Map<string, StepProgram>();

  /** @throws UsageError for options that the sampler or the model cannot take */
  constructor(model: Denoiser, readonly options: SamplingOptions) {
    const { input_size: S, in_channels: C } = model.config;
    const { batchSize: B, sampler, atol = 1e-6, rtol = 1e-3, batches, keepPrediction } = options;
    this.plan = planOf(model.config, options);
    this.latents = variable([B, S, S, C], { label: "samples" });
    this.#labels = input([B], "u32", "labels");
    this.#random = new RandomState(options.seed);
    this.prediction = keepPrediction ? variable([B, S, S, C], { label: "data prediction" }) : undefined;
    this.#reused = this.plan.every(({ complete }) => complete) ? undefined : new ReusedBlocks(model);
    this.guidance = new Guidance(this.#reused ?? model, options);
    this.#sampler = sampler === "dopri5" ? undefined : SAMPLERS[sampler];
    const { history = 0, coefficients } = this.#sampler ?? {}, grid = gridOf(options);
    this.#grid = grid.slice(0, -1).map((t, i) => {
      const left = timeLeft(model, t);
      return new Float32Array([
        t,
        grid[i + 1] as number,
        left,
        ...coefficients?.(grid, i, options, left) ?? [],
      ]);
    });
    this.#numbers = variable([this.#grid[0]?.length ?? 1], { label: "times and coefficients" });
    this.#history = Array.from({ length: history }, () => variable([B, S, S, C], { label: "history" }));
    if (this.#sampler) return;
    this.#dopri5 = new Dopri5({
      x: this.latents,
      velocity: (x, t, terms) => this.guidance.velocity(x, t, this.#labels, terms),
      segments: this.plan,
      inputs: { labels: this.#labels },
      atol,
      rtol,
      batches,
    });
  }

  /** Allocates memory and compiles the programs; if that fails, frees everything. */
  async prepare(): Promise<this> {
    try {
      await this.#prepare();
    } catch (error) {
      this.destroy();
      throw error;
    }
    return this;
  }

  async #prepare(): Promise<void> {
    this.#start = await capture("noise", {}, () => {
      copy(normal(this.latents.shape, this.#random, STREAMS.start), this.latents);
      for (const kept of this.#history) fill(kept, 0);
      this.guidance.reset(this.latents.shape);
      return {};
    }).prepare();
    if (this.#dopri5) return await this.#dopri5.prepare();
    for (const planned of this.plan) {
      const name = nameOf(planned);
      if (!this.#steps.has(name)) this.#steps.set(name, await this.capture(planned).prepare());
    }
  }

  /**
   * Latents [B,S,S,C] (normalised, on the device) for classes of samples first, first + 1, ...
   * @param labels one class number for each sample of the batch
   * @throws UsageError when an adaptive step size does not reach the data
   */
  async run(
    labels: Uint32Array,
    first: number,
    { noise, onStep, count = this.options.batchSize }: RunOptions = {},
  ): Promise<Tensor> {
    this.#labels.storage.write(labels);
    this.#random.set(0, first);
    this.#start?.run();
    if (noise) this.latents.storage.write(noise);
    if (this.#dopri5) {
      this.evaluations = await this.#dopri5.run(first, count);
      return this.latents;
    }
    for (const [i, planned] of this.plan.entries()) {
      this.#numbers.storage.write(this.#grid[i] as Float32Array<ArrayBuffer>);
      if (this.#sampler?.stochastic) this.#random.set(i, first);
      this.#steps.get(nameOf(planned))?.run();
      await onStep?.(i);
    }
    this.evaluations = Array(count).fill(this.plan.reduce((sum, { evaluations }) => sum + evaluations, 0));
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
        ...this.prediction ? [this.prediction] : [],
      ]
    ) storage.destroy();
    this.guidance.destroy();
  }

  [Symbol.dispose](): void {
    this.destroy();
  }

  /** Records a step of the grid; the caller prepares it. One that is not complete comes after a complete one. */
  capture({ terms, complete }: Pick<Stretch, "terms" | "complete">): StepProgram {
    const { batchSize: B, batches, constrain = (x) => x } = this.options,
      { step } = this.#sampler as GridSampler;
    const record = () =>
      noGrad(() => {
        this.#reused?.beginStep(complete);
        const [t, next, left, ...c] = Array.from(
          { length: this.#numbers.size },
          (_, k) => slice(this.#numbers, 0, k, k + 1),
        ) as [Tensor, Tensor, Tensor, ...Tensor[]];
        /** The first velocity of the step, at its x and t. */
        let first: Tensor | undefined;
        const velocity = (x: Tensor, t: Tensor) => {
          const times = pointwise(["x0"], [t], [], [B]);
          const v = this.guidance.velocity(x, times, this.#labels, terms);
          first ??= v;
          return v;
        };
        const data = () => dataPrediction(this.latents, first ?? velocity(this.latents, t), left);
        const [end, ...history] = step({
          velocity,
          data,
          x: this.latents,
          t,
          next,
          c,
          history: this.#history,
          noise: () => normal(this.latents.shape, this.#random, STREAMS.step),
        });
        this.guidance.endStep();
        if (this.prediction) copy(data(), this.prediction);
        const results = [constrain(end, next), ...history], kept = [this.latents, ...this.#history];
        // The oldest first: a step may pass history on.
        for (let k = kept.length - 1; k >= 0; k--) copy(results[k] as Tensor, kept[k] as Tensor);
        return {};
      });
    const runs = batches === undefined ? {} : { runs: batches * this.#grid.length };
    const options = { ...runs, batchInvariant: true };
    return capture(nameOf({ terms, complete }), { labels: this.#labels }, record, options);
  }
}

/** The name of the program of a step. */
const nameOf = ({ terms: { key }, complete }: Pick<Stretch, "terms" | "complete">) =>
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
