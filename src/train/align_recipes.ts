// AlignTok's stages as recipes. The result of an alignment depends only on the config, the encoder and the images.

import type { Plan } from "../gpu/plan.ts";
import { batches, type TrainingBatch } from "../data/batches.ts";
import type { ImageSource } from "../data/image_source.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Alignment, AlignmentOptions } from "./alignment.ts";
import { RUNNING_METRICS, type Stage, StageRun } from "./stage_run.ts";
import type { Optimizer } from "./optimizer.ts";
import { hyperAt, type OptimizerOptions, type Recipe } from "./recipe.ts";

export interface AlignRecipeOptions extends AlignmentOptions, OptimizerOptions {
  /** Learning rate of the discriminator. */
  ganLr: number;
  seed: number;
  flip: boolean;
}

/** A recipe for each stage. @param source training images; undefined for a dry run */
export function alignRecipes(
  alignment: Alignment,
  stages: readonly Stage[],
  options: AlignRecipeOptions,
  source: ImageSource | undefined,
): Recipe<TrainingBatch>[] {
  let before = 0;
  return stages.map((stage) => {
    const first = before;
    before += stage.steps;
    return new StageRecipe(alignment, stage, options, source, first);
  });
}

class StageRecipe implements Recipe<TrainingBatch> {
  readonly name: string;
  readonly steps: number;
  readonly metrics = RUNNING_METRICS;
  readonly stepBytes: number;
  readonly optimizers: readonly Optimizer[];
  readonly runningMetrics: Tensor;
  readonly #run: StageRun;

  /** @param first steps of earlier stages: the batch of step n is that of step first + n of the run */
  constructor(
    private readonly alignment: Alignment,
    private readonly stage: Stage,
    private readonly options: AlignRecipeOptions,
    private readonly source: ImageSource | undefined,
    private readonly first: number,
  ) {
    const { batchSize, accumulate, imageSize } = options;
    this.name = stage.name;
    this.steps = stage.steps;
    const bytes = source?.bytes !== undefined;
    this.stepBytes = batchSize * accumulate * imageSize ** 2 * (bytes ? 3 : 12);
    this.#run = new StageRun(alignment, stage, { ...options, bytes });
    const { optimizer, discriminatorOptimizer, runningMetrics } = this.#run;
    this.optimizers = discriminatorOptimizer ? [optimizer, discriminatorOptimizer] : [optimizer];
    this.runningMetrics = runningMetrics;
  }

  plan(): Plan {
    return this.#run.capture(this.optimizers.length > 1 && this.stage.ganStart < this.steps).plan;
  }

  data(from: number, to: number): AsyncGenerator<TrainingBatch, void> {
    const { batchSize, accumulate, imageSize, seed, flip } = this.options;
    return batches(this.source as ImageSource, {
      batchSize: batchSize * accumulate,
      imageSize,
      seed,
      step: this.first + from,
      end: this.first + to,
      flip,
    });
  }

  async prepare(from: number, progress?: (done: number, total: number) => void): Promise<void> {
    if (from === 0 && this.stage.ema > 0) await this.#run.optimizer.startEma();
    if (from < this.steps) await this.#run.program(from, progress);
  }

  async step(n: number, { images, flips }: TrainingBatch): Promise<void> {
    const { optimizer, discriminatorOptimizer } = this.#run;
    const hyper = hyperAt(n, this.stage, this.options);
    optimizer.set(hyper);
    discriminatorOptimizer?.set({ ...hyper, lr: this.options.ganLr, weightDecay: 0 });
    (await this.#run.program(n)).run({ x: images, ...flips ? { flips } : {} });
  }

  state(): Map<string, Tensor> {
    return new Map([...this.alignment.state(), ...this.#run.state()]);
  }

  async finish(): Promise<void> {
    await this.#run.finish();
    if (this.stage.name === "latent") await this.alignment.setAnchor();
  }

  destroy(): void {
    this.#run.destroy();
  }
}
