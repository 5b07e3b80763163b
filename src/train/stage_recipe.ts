// A stage as a recipe of a training run: its batches, hyper-parameters and checkpoints. The result of an alignment depends only
// on the config, the encoder and the images.

import type { AlignConfig } from "../cli/config.ts";
import { batches, type TrainingBatch } from "../data/batches.ts";
import type { ImageSource } from "../data/image_source.ts";
import type { Plan } from "../gpu/plan.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Alignment, AlignmentOptions } from "./alignment.ts";
import type { Optimizer } from "./optimizer.ts";
import { hyperAt, type OptimizerOptions, type Recipe } from "./recipe.ts";
import { type Stage, StageRun } from "./stage_run.ts";

type StageOptions =
  & AlignmentOptions
  & OptimizerOptions
  & Pick<AlignConfig, "ganLr" | "seed" | "flip" | "crop">;

class StageRecipe extends StageRun implements Recipe<TrainingBatch> {
  readonly name: string = this.stage.name;
  readonly steps: number = this.stage.steps;
  readonly stepBytes: number;
  readonly optimizers: readonly Optimizer[];

  /** @param first steps of earlier stages: the batch of step n is that of step first + n of the run */
  constructor(
    alignment: Alignment,
    stage: Stage,
    override readonly options: StageOptions,
    private readonly source: ImageSource | undefined,
    private readonly first: number,
  ) {
    super(alignment, stage, options);
    const { batchSize, accumulate, imageSize } = options;
    this.stepBytes = batchSize * accumulate * imageSize ** 2 * 3;
    this.optimizers = this.discriminatorOptimizer
      ? [this.optimizer, this.discriminatorOptimizer]
      : [this.optimizer];
  }

  plan(): Plan {
    return this.capture().plan;
  }

  data(from: number, to: number): AsyncGenerator<TrainingBatch, void> {
    const { batchSize, accumulate, imageSize, seed, flip, crop } = this.options;
    return batches(this.source as ImageSource, {
      batchSize: batchSize * accumulate,
      imageSize,
      seed,
      step: this.first + from,
      end: this.first + to,
      flip,
      crop,
    });
  }

  async prepare(from: number, progress?: (done: number, total: number) => void): Promise<void> {
    if (from === 0 && this.stage.ema > 0) await this.optimizer.startEma();
    if (from < this.steps) await this.program(from, progress);
  }

  async step(n: number, { images, flips }: TrainingBatch): Promise<void> {
    const hyper = hyperAt(n, this.stage, this.options);
    this.optimizer.set(hyper);
    this.discriminatorOptimizer?.set({ ...hyper, lr: this.options.ganLr, weightDecay: 0 });
    (await this.program(n)).run({
      x: images,
      ...flips ? { flips } : {},
      ...this.randomInput(this.options.seed, this.first + n),
    });
  }

  override state(): Map<string, Tensor> {
    return new Map([...this.alignment.state(), ...super.state()]);
  }

  async withResult<T>(use: () => Promise<T>): Promise<T> {
    try {
      return await this.optimizer.withEma(async () => {
        await this.applyLora();
        return await use();
      });
    } finally {
      await this.applyLora();
    }
  }

  override async finish(): Promise<void> {
    await super.finish();
    if (this.stage.name === "latent") await this.alignment.setAnchor();
  }
}

/** A recipe for each stage. @param source training images; undefined for a dry run */
export function stageRecipes(
  alignment: Alignment,
  stages: readonly Stage[],
  options: StageOptions,
  source: ImageSource | undefined,
): Recipe<TrainingBatch>[] {
  let end = 0;
  return stages.map((stage) =>
    new StageRecipe(alignment, stage, options, source, (end += stage.steps) - stage.steps)
  );
}
