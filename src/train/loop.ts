// The training loop of every recipe: run a step, now and then read the running metrics, save, and stop when asked. It never waits for
// the device in a step, except to keep the host from running far ahead of it.

import { GpuError, Interrupted, UsageError } from "../errors.ts";
import { checkConditions, holdOff } from "../interruption.ts";
import { readTensor, type Tensor } from "../tensor/tensor.ts";
import type { Optimizer } from "./optimizer.ts";

/**
 * What a run reports every `logEvery` steps: means over those that were applied, how many were skipped, the loss scale
 * where there is one, and as `data_wait` the share of the time spent waiting for data.
 */
export interface LogRow {
  step: number;
  [metric: string]: number;
}

export interface LoopOptions<D> {
  /** Steps already done, and the step to stop after. */
  from: number;
  to: number;
  /** The data of the next step. The time that the loop waits for them is reported. */
  data(): Promise<D>;
  /** Uploads and submits one step; does not wait. */
  step(n: number, data: D): Promise<void>;
  /** Sums of `metrics` over the applied steps, on the device; cleared at each reading. */
  runningMetrics: Tensor;
  metrics: readonly string[];
  /** The metrics count the first one's steps; the others may begin later. */
  optimizers: readonly Optimizer[];
  logEvery: number;
  /** Steps between checkpoints; 0 for only the last. */
  saveEvery: number;
  /** Bytes uploaded by a step: bounds how far the host runs ahead. */
  stepBytes: number;
  onLog(row: LogRow): void;
  /** Steps were skipped: how many, and why. */
  onSkipped?(message: string): void;
  onStep?(n: number): void;
  /** Saves the state after `n` steps. */
  save(n: number): Promise<void>;
  /** Asked between steps; true saves and returns. */
  stopping(): boolean;
}

/** From so many skipped steps in a row on, nothing is learned any more: a loss scale of 2^24 has come down to 1 in 24. */
const STALLED = 50;

const AHEAD_BYTES = 256 * 1024 * 1024;

/** What a loop did. */
export interface LoopResult {
  /** Steps done in all; fewer than `to` when it was stopped. */
  done: number;
  /** Share of the time, 0..1, that was spent waiting for data: what more workers could win at most. */
  dataWait: number;
}

/** Runs steps from..to-1. From the first step until it returns, the end of the process is held off. */
export async function trainLoop<D>(o: LoopOptions<D>): Promise<LoopResult> {
  using holds = new DisposableStack();
  const ahead = Math.max(1, Math.min(16, Math.floor(AHEAD_BYTES / Math.max(1, o.stepBytes))));
  let logged = o.from, saved = o.from;
  const begin = () => ({ began: performance.now(), waited: 0 }); // milliseconds
  const all = begin();
  let recent = begin();
  const share = ({ began, waited }: typeof all) => waited / Math.max(1e-3, performance.now() - began);
  const progress = () => Promise.all(o.optimizers.map(async (optimizer) => await optimizer.readProgress()));
  let before = await progress();
  /** Checkpoints of a run that may have gone wrong would push out the good ones. */
  const stalling = async () => (await progress()).some(({ inARow }) => inARow >= 3);
  const log = async (n: number) => {
    if (n === logged) return;
    const sums = await readTensor(o.runningMetrics);
    o.runningMetrics.storage.write(new Float32Array(o.metrics.length));
    const row: LogRow = { step: n };
    const now = await progress();
    const since = now.map((p, i) => ({
      applied: p.applied - (before[i]?.applied ?? 0),
      skipped: p.skipped - (before[i]?.skipped ?? 0),
    }));
    before = now;
    const [{ applied }] = since as [typeof since[number]];
    if (applied > 0) o.metrics.forEach((name, i) => row[name] = (sums[i] as number) / applied);
    row.skipped = since.reduce((sum, { skipped }) => sum + skipped, 0);
    const scale = Math.min(...now.map((p) => p.lossScale));
    if (now.some((p) => p.lossScale > 1)) row.loss_scale = scale;
    row.data_wait = share(recent);
    recent = begin();
    for (const [i, { skipped }] of since.entries()) {
      if (skipped === 0) continue;
      const optimizer = o.optimizers[i] as Optimizer, { inARow, lossScale } = now[i] as typeof now[number];
      const cause = await causeOf(optimizer, i === 0 ? o.metrics : []);
      o.onSkipped?.(
        `${skipped} of the steps ${
          logged + 1
        } to ${n} were skipped, and changed nothing (${optimizer.label}): ${cause}` +
          (row.loss_scale === undefined ? "" : `; the loss scale is ${lossScale}`),
      );
      // A loss scale that can still fall will do so, and let the next steps pass.
      const most = n === o.to && 2 * inARow > n - o.from && lossScale <= 1;
      if (inARow >= STALLED || most) {
        throw new GpuError(
          `Cannot go on: nothing is learned any more, the last ${inARow} steps were skipped (${optimizer.label}): ` +
            `${cause}; ${await remedyOf(optimizer, inARow < n - o.from, row.loss_scale !== undefined)}`,
        );
      }
    }
    logged = n;
    o.onLog(row);
  };
  for (let n = o.from; n < o.to; n++) {
    const asked = performance.now();
    let data: D;
    try {
      data = await o.data();
    } catch (error) {
      // Such as a damaged image or latent: what was learned before it stays.
      if (error instanceof UsageError && n > o.from && n !== saved) await o.save(n);
      throw error;
    }
    for (const time of [all, recent]) time.waited += performance.now() - asked;
    try {
      await o.step(n, data);
    } catch (error) {
      // Kernels that are needed from this step on were being compiled: the state is that after n steps.
      if (!(error instanceof Interrupted) || n === o.from) throw error;
      await log(n);
      await o.save(n);
      return { done: n, dataWait: share(all) };
    }
    if (n === o.from) holds.use(holdOff());
    o.onStep?.(n + 1);
    checkConditions();
    const done = n + 1, stop = o.stopping();
    if (done % o.logEvery === 0 || done === o.to || stop) await log(done);
    else if (done % ahead === 0) await readTensor(o.runningMetrics); // waits for the device
    const due = o.saveEvery > 0 && done % o.saveEvery === 0;
    if (stop || done === o.to || (due && !await stalling())) await o.save(saved = done);
    if (stop && done < o.to) return { done, dataWait: share(all) };
  }
  return { done: o.to, dataWait: share(all) };
}

/** What was not finite, in words. */
async function causeOf(optimizer: Optimizer, metrics: readonly string[]): Promise<string> {
  const { kind, value } = await optimizer.readFault();
  if (kind === "update") {
    return "the update overflows or takes weights beyond 1e6, the learning rate is too large";
  }
  if (kind === "gradient") return "a gradient is not finite";
  // The last metric is the norm of the gradients; the norms that weigh the adversarial loss follow the others.
  return metrics.length
    ? `"${metrics.slice(0, -1)[value] ?? "gan_weight"}" is not finite`
    : "its loss is not finite";
}

/** What may help, by what overflowed and by whether the run has changed weights at all. */
async function remedyOf(optimizer: Optimizer, learned: boolean, scaled: boolean): Promise<string> {
  if ((await optimizer.readFault()).kind === "update") return "use a smaller --lr";
  const { name, magnitude } = await optimizer.readLargest();
  const weights = `the largest weight is ${magnitude.toPrecision(2)} ("${name}")`;
  if (learned) {
    return `${weights}, the training has diverged: go on from an earlier checkpoint or begin again, with a smaller --lr`;
  }
  return `${weights}, and no step was applied, so numbers overflow in the networks: ` +
    (scaled ? "use --precision f32" : "use other weights, or leave a loss out");
}

/** Rate of a step: linear warm-up, then a straight line from 1 down to `last` at the end. */
export function schedule(n: number, steps: number, warmup: number, last: number): number {
  return Math.min(1, (n + 1) / Math.max(1, warmup)) * (last + (1 - last) * (1 - n / steps));
}
