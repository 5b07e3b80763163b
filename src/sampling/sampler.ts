// Sampling latents from a diffusion model. A step of the grid is one program, replayed with other times.

import type { SampleConfig } from "../cli/config.ts";
import { noGrad } from "../tensor/autograd.ts";
import { copy } from "../gpu/memory.ts";
import { capture, type Program } from "../gpu/program.ts";
import type { Denoiser } from "../models/denoiser.ts";
import { pointwise } from "../ops/pointwise.ts";
import { normal, RandomState } from "../ops/random.ts";
import { slice } from "../ops/layout.ts";
import { input, type Tensor, variable } from "../tensor/tensor.ts";
import { Guidance, type GuidanceOptions, type Terms } from "./guidance.ts";
import { type SamplerName, SAMPLERS, timeGrid } from "./samplers.ts";

export interface SamplingOptions extends GuidanceOptions {
  batchSize: number;
  /** Steps of the grid. */
  steps: number;
  sampler: SamplerName;
  /** s of the time shift; 1 for none, below 1 spends more steps near the noise's end. */
  shift: number;
  seed: number;
  /** About how many batches will be sampled (many). */
  batches?: number;
}

type StepProgram = Program<Record<string, Tensor>, Record<string, Tensor>>;

/** Samples latents, a batch at a time. Sample i depends on (seed, i) and its class alone. */
export class Sampler {
  /** The latents [B,S,S,C], normalised: after {@link run} those of its batch. */
  readonly latents: Tensor;
  readonly #labels: Tensor;
  /** t, next t. */
  readonly #times: Tensor;
  readonly #random: RandomState;
  readonly guidance: Guidance;
  #start: StepProgram | undefined;
  /** Programs of steps by the key of their terms. */
  readonly #steps = new Map<string, StepProgram>();

  constructor(model: Denoiser, readonly options: SamplingOptions) {
    const { input_size: S, in_channels: C } = model.config;
    const B = options.batchSize;
    this.latents = variable([B, S, S, C], { label: "samples" });
    this.#labels = input([B], "u32", "labels");
    this.#times = variable([2], { label: "times" });
    this.#random = new RandomState(options.seed);
    this.guidance = new Guidance(model, options);
  }

  async prepare(): Promise<this> {
    const { steps, shift } = this.options;
    const times = timeGrid(steps, shift).slice(0, -1);
    this.#start = await capture("noise", {}, () => {
      copy(normal(this.latents.shape, this.#random, 0), this.latents);
      return {};
    }).prepare();
    for (const t of times) {
      const terms = this.guidance.terms(t);
      if (!this.#steps.has(terms.key)) this.#steps.set(terms.key, await this.capture(terms).prepare());
    }
    return this;
  }

  /**
   * Latents [B,S,S,C] (normalised, on the device) for classes of samples first, first + 1, ...
   * @param labels one class number for each sample of the batch
   */
  run(labels: Uint32Array, first: number): Tensor {
    const { steps, shift } = this.options;
    this.#labels.storage.write(labels);
    this.#random.set(0, first);
    this.#start?.run();
    const times = timeGrid(steps, shift);
    for (let i = 0; i < steps; i++) {
      const t = times[i] as number;
      this.#times.storage.write(new Float32Array([t, times[i + 1] as number]));
      this.#steps.get(this.guidance.terms(t).key)?.run();
    }
    return this.latents;
  }

  destroy(): void {
    for (const program of [this.#start, ...this.#steps.values()]) program?.destroy();
    for (const { storage } of [this.latents, this.#labels, this.#times, this.#random.tensor]) {
      storage.destroy();
    }
  }

  /** Records a step with these terms; the caller prepares it. */
  capture(terms: Terms): StepProgram {
    const { batchSize: B, sampler, steps, batches } = this.options;
    const record = () =>
      noGrad(() => {
        const t = slice(this.#times, 0, 0, 1), next = slice(this.#times, 0, 1, 2);
        const velocity = (x: Tensor, t: Tensor) =>
          this.guidance.velocity(x, pointwise(["x0"], [t], [], [B]), this.#labels, terms);
        copy(SAMPLERS[sampler](velocity, this.latents, t, next), this.latents);
        return {};
      });
    const runs = batches === undefined ? {} : { runs: batches * steps };
    const options = { ...runs, batchInvariant: true };
    return capture(terms.key ? `step with ${terms.key}` : "step", { labels: this.#labels }, record, options);
  }
}

/** The sampling options of a command. */
export function samplingOptions(
  c: Pick<SampleConfig, "steps" | "sampler" | "shift" | "cfg" | "cfgInterval" | "cfgChannels" | "seed"> & {
    batchSize: number;
  },
): SamplingOptions {
  const { cfgInterval: [from = 0, to = 1], cfgChannels } = c;
  return { ...c, cfgInterval: [from, to], cfgChannels: cfgChannels === "all" ? undefined : cfgChannels };
}
