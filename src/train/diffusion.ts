// Training of a LightningDiT by flow matching on normalised latents: x_t = t x1 + (1 - t) x0 with data x1 and noise x0,
// target v = x1 - x0, t logit-normal; loss mean (v - v')^2 + mean (1 - cos(v, v')) over channels. Lipman et al. (2023);
// the direction term and the time distribution are LightningDiT's.

import { UsageError } from "../errors.ts";
import type { Log } from "../run/log.ts";
import { removeSnapshotsAfter, saveSnapshot } from "../run/power_ema.ts";
import type { Resumed } from "../run/resume.ts";
import { full, grad, noGrad } from "../tensor/autograd.ts";
import { within } from "../gpu/scope.ts";
import type { DitConfig } from "../models/dit_config.ts";
import type { Denoiser } from "../models/denoiser.ts";
import { normalised } from "../models/normalisation.ts";
import { type Prediction, velocitiesOf, velocityTowards } from "../models/prediction.ts";
import { fileShape, parameters, savedTensor, state } from "../nn/layers.ts";
import { ParameterSet } from "../nn/parameter_set.ts";
import { add, mul, sub } from "../ops/math.ts";
import { dropLabels, normal, RandomState } from "../ops/random.ts";
import { reshape } from "../ops/layout.ts";
import { input, type Precision, type Tensor, variable } from "../tensor/tensor.ts";
import type { Plan } from "../gpu/plan.ts";
import { diffusionLosses, type DiffusionLossWeights, lossNames } from "./diffusion_losses.ts";
import type { LatentBatch, LatentSource } from "./latent_source.ts";
import { weightedSum } from "./losses.ts";
import { Optimizer, refreshWorkingCopies } from "./optimizer.ts";
import { hyperAt, type OptimizerOptions, type Recipe, schedule, type ScheduleOptions } from "./recipe.ts";
import type { Repa } from "./repa.ts";
import { StepProgram, stepRandom } from "./step_program.ts";
import { randomTimes, type TimeOptions } from "./times.ts";

export interface DiffusionOptions extends TimeOptions, DiffusionLossWeights {
  /** Latents of a micro-batch. */
  batchSize: number;
  /** Micro-batches of a step (1). */
  accumulate?: number;
  /** Share of labels replaced by "no class". */
  labelDropout: number;
  /** What the network outputs ["velocity"]. */
  prediction?: Prediction;
  /** An average of the weights, or power-function averages of these relative widths; see {@link Optimizer}. */
  ema: boolean | readonly number[];
  /** Updates {@link isHiddenMatrix hidden matrices} with Muon and the rest with AdamW, instead of all with AdamW. */
  muon?: { lr: number; momentum: number } | undefined;
  seed: number;
  /** Of the DiT's activations (f32). */
  precision?: Precision;
  /** Where the latents come from; without it they are the input `x`, normalised, [B,S,S,C]. */
  source?: LatentSource;
  /** Recomputes the DiT's blocks in the backward pass instead of keeping their activations (false). */
  recompute?: boolean;
}

/** The running metrics of a step without optional losses, in this order. */
export const DIFFUSION_METRICS: readonly string[] = metricsOf({ inner: false, repa: false });

function metricsOf(has: { inner: boolean; repa: boolean }): string[] {
  return ["loss", ...lossNames(has), "grad_norm2"];
}

type DiffusionProgram = StepProgram<Record<string, Tensor>>;

/** Streams of randomness inside a step. */
const STREAMS = { noise: 1, time: 2, dropout: 3 };

/** Whether Muon updates a parameter: the matrices of blocks, as Jordan et al. (2024) and RAEv2 do, adaLN's included. */
export const isHiddenMatrix = (name: string, { rank }: Tensor): boolean =>
  rank === 2 && /(^|\.)blocks\.\d+\./.test(name);

export class Diffusion {
  /** What AdamW updates. */
  readonly set: ParameterSet;
  /** The network's parameters: that and what Muon updates. */
  readonly sets: readonly ParameterSet[];
  readonly optimizer: Optimizer;
  readonly random: RandomState;
  /** The network as one of velocities. */
  readonly model: Denoiser;
  /** Names of the running metrics. */
  readonly metrics: readonly string[];
  readonly runningMetrics: Tensor;

  /** @param repa aligns inner tokens of `dit` with an encoder's */
  constructor(readonly dit: Denoiser, readonly options: DiffusionOptions, readonly repa?: Repa) {
    this.model = velocitiesOf(dit, options.prediction);
    this.metrics = metricsOf({ inner: dit.config.inner_head > 0, repa: repa !== undefined });
    this.runningMetrics = variable([this.metrics.length], { label: "running metrics" });
    const { precision, ema, muon } = options, isMuons = muon ? isHiddenMatrix : () => false;
    this.set = new ParameterSet("model", dit, precision, (...parameter) => !isMuons(...parameter));
    const hidden = muon ? [new ParameterSet("hidden", dit, precision, isMuons)] : [];
    this.sets = [this.set, ...hidden];
    this.optimizer = new Optimizer("optimizer", [
      { set: this.set, ema },
      ...hidden.map((set) => ({ set, ema, muon: true })),
      ...repa ? [{ set: repa.set }] : [],
    ]);
    this.random = new RandomState(options.seed);
  }

  /** Records one step, for {@link prepareProgram}: inputs are those of the source, class numbers `labels` [B], the random state. */
  capture(): DiffusionProgram {
    const { batchSize: B, accumulate = 1, source } = this.options;
    const { input_size: S, in_channels: C } = this.dit.config;
    const inputs: Record<string, Tensor> = {
      ...source?.inputs(B) ?? { x: input([B, S, S, C], "f32", "latents") },
      labels: input([B], "u32", "labels"),
      random: this.random.tensor,
      ...this.repa?.inputs(B),
    };
    return StepProgram.capture("diffusion", inputs, accumulate, {
      optimizers: [this.optimizer],
      saved: [],
      gradients: (inputs) => this.#gradients(inputs),
      update: (means) => {
        this.optimizer.report([...means, this.optimizer.update(means)], this.runningMetrics);
      },
    });
  }

  /** Losses of one micro-batch, and its part of the gradients. */
  #gradients(inputs: Record<string, Tensor>) {
    const { options } = this, { batchSize: B, accumulate = 1, labelDropout, prediction, source } = options;
    const { precision = "f32", recompute = false } = options;
    const { input_size: S, in_channels: C, num_classes, inner_head } = this.dit.config;
    const { x: stored, labels, images, flips } = inputs as Record<
      "x" | "labels" | "images" | "flips",
      Tensor
    >;
    const { optimizer, repa } = this;
    const { xt, v, t, y } = noGrad(() => {
      const x = source ? normalised(source.latents(inputs), source) : stored;
      const x0 = normal([B, S, S, C], this.random, STREAMS.noise);
      const times = randomTimes(B, this.random, STREAMS.time, options);
      const y = dropLabels(labels, labelDropout, num_classes, this.random, STREAMS.dropout);
      const xt = add(x0, mul(times, sub(x, x0))), t = reshape(times, [B]);
      return { xt, v: prediction === "data" ? velocityTowards(x, xt, t) : sub(x, x0), t, y };
    });
    const compared = within({ recompute, precision }, () => {
      if (!repa) {
        return inner_head ? this.model.outputs(xt, t, y) : { velocity: this.model.forward(xt, t, y) };
      }
      const { features, ...outputs } = this.model.outputs(xt, t, y, { features: repa.options.block });
      return {
        ...outputs,
        repa: repa.compared(features as Tensor, { images, flips }),
      };
    });
    const losses = diffusionLosses({ ...compared, target: v }, this.options);
    const loss = weightedSum(losses.filter(([, weight]) => weight > 0));
    const fraction = optimizer.scaled(full([], 1 / accumulate)); // micro-batches accumulate the gradients of the mean
    return {
      values: [loss, ...losses.map(([value]) => value)],
      gradients: [grad(loss, optimizer.parameters, fraction)],
    };
  }

  /** The parameters of all networks. */
  get #allSets(): ParameterSet[] {
    return [...this.sets, ...this.repa ? [this.repa.set, this.repa.frozen] : []];
  }

  /** Makes a captured step ready to run, with the parameters as they are: first values or those of a checkpoint. */
  async prepareProgram(
    program: DiffusionProgram,
    progress?: (done: number, total: number) => void,
  ): Promise<void> {
    await program.prepare(progress);
    await refreshWorkingCopies(this.#allSets);
  }

  /** Names and tensors of a checkpoint. */
  state(): Map<string, Tensor> {
    const model = [...state(this.dit)].map(([key, tensor]) => [`model.${key}`, tensor] as const);
    return new Map([...model, ...this.repa?.state() ?? [], ...this.optimizer.state()]);
  }

  /** Frees what only training needs; the model keeps its weights. */
  destroy(): void {
    this.optimizer.destroy();
    this.random.tensor.storage.destroy();
    this.runningMetrics.storage.destroy();
    this.repa?.destroy();
  }
}

export interface DiffusionRecipeOptions extends DiffusionOptions, OptimizerOptions {
  steps: number;
  lr: number;
  /** Decay of the weight average; 0 for none. */
  emaDecay: number;
  /** As in {@link Recipe.steadied}. */
  steadied?: readonly string[];
  /** Saves the power-function averages every `every` steps, and after the last one, in a run's folder. */
  snapshots?: { run: string; every: number } | undefined;
}

/** Flow matching as a recipe. */
export class DiffusionRecipe extends Diffusion implements Recipe<LatentBatch> {
  readonly name = "diffusion";
  readonly steps: number;
  readonly stepBytes: number;
  readonly optimizers: readonly Optimizer[];
  readonly steadied: readonly string[];
  declare readonly options: DiffusionRecipeOptions;
  readonly #program: DiffusionProgram;

  constructor(
    dit: Denoiser,
    options: DiffusionRecipeOptions,
    private readonly source: LatentSource,
    repa?: Repa,
  ) {
    super(dit, { ...options, source }, repa);
    this.steps = options.steps;
    this.steadied = options.steadied ?? [];
    this.stepBytes = options.batchSize * (options.accumulate ?? 1) * (source.bytes + (repa?.imageBytes ?? 0));
    this.optimizers = [this.optimizer];
    this.#program = this.capture();
  }

  plan(): Plan {
    return this.#program.plan;
  }

  async *data(from: number, to: number): AsyncGenerator<LatentBatch, void> {
    const { batchSize, accumulate = 1 } = this.options, size = batchSize * accumulate;
    const images = this.source.givesImages ? undefined : this.repa?.batches(size, from, to);
    for await (const batch of this.source.batches(size, from, to)) {
      yield { ...batch, ...(await images?.next())?.value ?? {} };
    }
  }

  async prepare(from: number, progress?: (done: number, total: number) => void): Promise<void> {
    const { snapshots } = this.options;
    if (snapshots) removeSnapshotsAfter(snapshots.run, from);
    if (from === 0) {
      for (const set of this.sets) await set.materialise();
      await this.optimizer.startEma();
    }
    await this.prepareProgram(this.#program, progress);
  }

  // deno-lint-ignore require-await
  async step(n: number, { labels, ...data }: LatentBatch): Promise<void> {
    const { steps, lr, emaDecay: ema, muon, seed } = this.options;
    this.optimizer.set(hyperAt(n, { steps, lr, ema, muon }, this.options));
    const conditional = this.dit.config.num_classes > 0; // else the only label is "no class", 0
    this.#program.run({
      ...data,
      labels: conditional ? labels : new Uint32Array(labels.length),
      random: stepRandom(seed, n, this.options),
    });
  }

  async afterStep(n: number): Promise<void> {
    const { snapshots, steps, ema } = this.options;
    if (!snapshots || !Array.isArray(ema) || n % snapshots.every !== 0 && n !== steps) return;
    const { applied } = await this.optimizer.readProgress();
    if (applied === 0) return;
    const averages = ema.map((sigmaRel: number) => ({
      sigmaRel,
      tensors: [...parameters(this.dit)].map(([name, parameter]) => ({
        name,
        shape: fileShape(parameter),
        read: async () =>
          savedTensor(name, parameter, await this.optimizer.readAverage(sigmaRel, parameter)).data,
      })),
    }));
    await saveSnapshot(snapshots.run, { step: n, applied, averages });
  }

  withResult<T>(use: () => Promise<T>): Promise<T> {
    return this.optimizer.withEma(use);
  }

  /** The weight average becomes the weights. */
  async finish(): Promise<void> {
    for (const [i, set] of this.sets.entries()) await this.optimizer.readEmaInto(i, set);
  }

  override destroy(): void {
    this.#program.destroy();
    super.destroy();
  }
}

/** What the record of a run says of it. */
interface RunRecord {
  steps: number;
  headWidth: number;
  reversed_time: boolean;
}

/**
 * Reports how another number of steps changes the learning rate.
 * @throws UsageError when they are done already, or the checkpoint's network has another direction of time
 */
export function checkResumable(
  { path, step, config }: Resumed,
  { reversed_time: now }: DitConfig,
  c: Pick<DiffusionRecipeOptions, "steps" | "lr"> & ScheduleOptions,
  log: Log,
): void {
  // A checkpoint without the direction is of a version that did not take over that of --init.
  const record = config as Partial<RunRecord>, { steps: before = c.steps, headWidth = 0 } = record;
  const { reversed_time = headWidth > 0 } = record;
  if (reversed_time !== now) {
    throw new UsageError(
      `Cannot resume from "${path}": the time of its network is ${
        now ? "not " : ""
      }reversed, and that of this run's is${
        now ? "" : " not"
      }; give the --init that it began with, or begin again`,
    );
  }
  if (before === c.steps) return;
  if (c.steps < step) {
    throw new UsageError(
      `Cannot resume from "${path}": it has done ${step} steps, and --steps is ${c.steps}; ask for more`,
    );
  }
  const rate = (steps: number) => (c.lr * schedule(step, steps, c)).toPrecision(3);
  log.line(
    `--steps was ${before} and is ${c.steps}` +
      (c.lrSchedule === "constant"
        ? ""
        : `: the learning rate now falls until step ${c.steps}, and goes from ` +
          `${rate(before)} to ${rate(c.steps)} at step ${step}`),
  );
}
