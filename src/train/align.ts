// The alignment from beginning to end: stages in order, checkpoints between them, resume to the same bits. What it leaves
// is a function of the config, the encoder and the images alone.

import type { Batch, ImageSource } from "../data/image_source.ts";
import { batches } from "../data/batches.ts";
import { restore, type SavedTensor, snapshot, type TensorSource } from "../nn/layers.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { type Alignment, type AlignmentOptions, RUNNING_METRICS, type Stage, StageRun } from "./alignment.ts";
import { type LogRow, schedule, trainLoop } from "./loop.ts";

export interface AlignRun {
  alignment: Alignment;
  stages: readonly Stage[];
  options: AlignmentOptions;
  source: ImageSource;
  optimizer: {
    beta1: number;
    beta2: number;
    weightDecay: number;
    clip: number;
    warmup: number;
    lrEnd: number;
    ganLr: number;
  };
  seed: number;
  flip: boolean;
  logEvery: number;
  saveEvery: number;
  hooks: AlignHooks;
}

export interface AlignHooks {
  onStage(stage: Stage, index: number): void;
  onCompile(done: number, total: number): void;
  onStep(stage: Stage, n: number): void;
  onLog(stage: Stage, row: LogRow): void;
  /** Steps were skipped: how many, and why. */
  onSkipped(message: string): void;
  /** Stage `index` is over; the tokenizer is as it leaves it. @param dataWait share of its time spent waiting for data */
  onStageEnd(stage: Stage, index: number, dataWait: number): Promise<void>;
  /** Saves a checkpoint after `step` steps in all. */
  save(step: number, tensors: SavedTensor[]): Promise<void>;
  stopping(): boolean;
}

/** Runs (the rest of) an alignment. @returns whether it came to its end */
export async function runAlignment(
  run: AlignRun,
  resume?: { step: number; source: TensorSource },
): Promise<boolean> {
  const { alignment, stages, hooks, options } = run;
  let begin = 0; // steps before this stage
  for (const [index, stage] of stages.entries()) {
    const end = begin + stage.steps;
    // A checkpoint at the very end of a stage belongs to that stage: what follows it is done again.
    if (resume && resume.step > end) {
      begin = end;
      continue;
    }
    const stageRun = new StageRun(alignment, stage, options);
    const state = () => new Map<string, Tensor>([...alignment.state(), ...stageRun.state()]);
    let from = 0;
    if (resume && resume.step > begin) {
      await restore(state(), resume.source);
      from = resume.step - begin;
    } else if (stage.ema > 0) await stageRun.optimizer.startEma();
    resume = undefined;
    hooks.onStage(stage, index);
    const offset = begin;
    const stream = batches(run.source, {
      batchSize: options.batchSize * options.accumulate,
      imageSize: options.imageSize,
      seed: run.seed,
      step: offset + from,
      end: offset + stage.steps,
      flip: run.flip,
    });
    if (from < stage.steps) await stageRun.program(from, hooks.onCompile);
    const { done, dataWait } = await trainLoop({
      from,
      to: stage.steps,
      runningMetrics: stageRun.runningMetrics,
      metrics: RUNNING_METRICS,
      optimizers: [
        stageRun.optimizer,
        ...stageRun.discriminatorOptimizer ? [stageRun.discriminatorOptimizer] : [],
      ],
      logEvery: run.logEvery,
      saveEvery: run.saveEvery,
      stepBytes: options.batchSize * options.accumulate * options.imageSize ** 2 * 12,
      data: async () => (await stream.next()).value as Batch,
      async step(n, { images }) {
        const { optimizer } = run;
        const hyper = {
          lr: stage.lr * schedule(n, stage.steps, optimizer.warmup, optimizer.lrEnd),
          beta1: optimizer.beta1,
          beta2: optimizer.beta2,
          eps: 1e-8,
          weightDecay: optimizer.weightDecay,
          clip: optimizer.clip,
          // A young average forgets faster, so that the start of the stage does not stay in it.
          emaDecay: Math.min(stage.ema, (1 + n) / (10 + n)),
        };
        stageRun.optimizer.set(hyper);
        stageRun.discriminatorOptimizer?.set({ ...hyper, lr: optimizer.ganLr, weightDecay: 0 });
        (await stageRun.program(n)).run({ x: images });
      },
      onStep: (n) => hooks.onStep(stage, n),
      onLog: (row) => hooks.onLog(stage, { ...row, step: offset + row.step }),
      onSkipped: hooks.onSkipped,
      save: async (n) => hooks.save(offset + n, await snapshot(state())),
      stopping: hooks.stopping,
    });
    if (done < stage.steps) {
      stageRun.destroy();
      return false;
    }
    await stageRun.finish();
    if (stage.name === "latent") await alignment.setAnchor();
    await hooks.onStageEnd(stage, index, dataWait);
    stageRun.destroy();
    begin = end;
  }
  return true;
}
