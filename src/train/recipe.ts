// What a training run is made of: recipes, one after another. A recipe says what a step is, where its data come from and
// which tensors a checkpoint holds; run.ts does everything else.

import type { Condition } from "../cli/conditions.ts";
import type { AlignConfig } from "../cli/config.ts";
import type { Hyper } from "../ops/adamw.ts";
import type { Plan } from "../gpu/plan.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Optimizer } from "./optimizer.ts";

export interface Recipe<D = unknown> {
  /** In progress, log and messages; the stage, where a run has several recipes. */
  readonly name: string;
  readonly steps: number;
  /** The running metrics count the steps of the first one; the others may begin later. */
  readonly optimizers: readonly Optimizer[];
  /** Names of the running metrics; the squared norm of the gradients is the last. */
  readonly metrics: readonly string[];
  /** Sums of the metrics over the applied steps, on the device; cleared at each reading. */
  readonly runningMetrics: Tensor;
  /** Bytes uploaded by a step: bounds how far the host runs ahead. */
  readonly stepBytes: number;
  /** Options that make the training less likely to diverge, besides those of every optimizer; for messages. */
  readonly steadied?: readonly string[];
  /** Plan of the largest step; nothing is allocated. */
  plan(): Plan;
  /** Data of the steps `from` to `to` - 1, in order. */
  data(from: number, to: number): AsyncGenerator<D, void>;
  /** Prepares step `from`. The state is restored from a checkpoint if `from` > 0, else new. */
  prepare(from: number, progress?: (done: number, total: number) => void): Promise<void>;
  /** Uploads the data and submits step `n`; does not wait for the device. */
  step(n: number, data: D): Promise<void>;
  /** Called after `n` steps, before anything else of the run looks at the state; may wait for the device. */
  afterStep?(n: number): Promise<void>;
  /** Tensors of a checkpoint, by name. */
  state(): Map<string, Tensor>;
  /** Runs `use` with the weights that would be the result now: the averages, where the recipe keeps them. */
  withResult<T>(use: () => Promise<T>): Promise<T>;
  /** Called after the last step. */
  finish(): Promise<void>;
  destroy(): void;
}

/** AdamW's options. */
export type OptimizerOptions = Pick<
  AlignConfig,
  "beta1" | "beta2" | "weightDecay" | "clip" | "warmup" | "lrSchedule" | "lrEnd"
>;

/** How the learning rate changes during a run. */
export type ScheduleOptions = Pick<AlignConfig, "warmup" | "lrSchedule" | "lrEnd">;

/**
 * Hyper-parameters of step `n` of `steps`.
 * @param muon learning rate and momentum of sets that Muon updates
 * @param ema decay of the weight average; smaller in the first steps, so that the initial weights are forgotten
 */
export function hyperAt(
  n: number,
  { steps, lr, ema, muon }: {
    steps: number;
    lr: number;
    ema: number;
    muon?: { lr: number; momentum: number } | undefined;
  },
  options: OptimizerOptions,
): Hyper {
  const { beta1, beta2, weightDecay, clip } = options;
  return {
    lr: lr * schedule(n, steps, options),
    beta1,
    beta2,
    eps: 1e-8,
    weightDecay,
    clip,
    emaDecay: Math.min(ema, (1 + n) / (10 + n)),
    ...muon ? { momentum: muon.momentum, muonLr: muon.lr * schedule(n, steps, options) } : {},
  };
}

/** The decays from 1 to `last`, at the fraction `t` of a run. */
const SCHEDULES: Readonly<Record<ScheduleOptions["lrSchedule"], (t: number, last: number) => number>> = {
  linear: (t, last) => last + (1 - last) * (1 - t),
  cosine: (t, last) => last + (1 - last) * (1 + Math.cos(Math.PI * t)) / 2,
  constant: () => 1,
};

/** Condition of --lr-end. */
export const DECAYS: Condition<Pick<ScheduleOptions, "lrSchedule">> = [
  ({ lrSchedule }) => lrSchedule !== "constant",
  "--lr-schedule constant has no decay",
  "choose another --lr-schedule",
];

/** Factor of the learning rate of step `n` of `steps`: linear warm-up times the decay. */
export function schedule(n: number, steps: number, { warmup, lrSchedule, lrEnd }: ScheduleOptions): number {
  return Math.min(1, (n + 1) / Math.max(1, warmup)) * SCHEDULES[lrSchedule](n / steps, lrEnd);
}
