// The training loop of every recipe: runs steps, logs the running metrics, saves, and stops when asked. A step does not wait
// for the device, except to bound how far the host runs ahead of it.

import { GpuError, Interrupted, UsageError } from "../errors.ts";
import { checkConditions, holdOff } from "../interruption.ts";
import { readTensor } from "../tensor/tensor.ts";
import type { Optimizer } from "./optimizer.ts";
import type { Recipe } from "./recipe.ts";

/**
 * Logged every `logEvery` steps: means over applied steps of the metrics and of the gradient norm of each module
 * (`grad_norm/NAME`, before clipping), the learning rate and that of Muon (`muon_lr`), the number of skipped steps, the loss scale if there is one, and
 * `data_wait`, the share of the time spent waiting for data.
 */
export interface LogRow {
  step: number;
  [metric: string]: number;
}

export interface LoopOptions {
  /** Steps already done. */
  from: number;
  logEvery: number;
  /** Steps between checkpoints; 0 for only the last. */
  saveEvery: number;
  /** Whether a checkpoint is also due after `n` steps. */
  keeps?(n: number): boolean;
  onLog(row: LogRow): void | Promise<void>;
  /** Called when steps were skipped, with their number and the cause. */
  onSkipped?(message: string): void;
  onStep?(n: number): void;
  /** Saves the state after `n` steps. */
  save(n: number): Promise<void>;
  /** Called after each step but the last; may score the weights. @returns whether it saved the state */
  validate?(n: number): Promise<boolean>;
  /** Asked between steps; true saves and returns. */
  stopping(): boolean;
}

/** Skipped steps in a row that end a run; a loss scale of 2^24 takes 24 of them to fall to 1. */
const STALLED = 50;

/** Bytes of uploads that may wait for the device. */
const AHEAD_BYTES = 256 * 1024 * 1024;

/** What the loop needs of a recipe. */
export type Steps<D> = Pick<
  Recipe<D>,
  | "steps"
  | "optimizers"
  | "metrics"
  | "runningMetrics"
  | "stepBytes"
  | "steadied"
  | "data"
  | "step"
  | "afterStep"
>;

/**
 * Runs the steps `from` to `recipe.steps` - 1. From the first step on, a signal ends the process only after the state is saved.
 * @returns the steps done in all, fewer where it was stopped, and the share of the time spent waiting for data
 */
export async function trainLoop<D>(
  recipe: Steps<D>,
  o: LoopOptions,
): Promise<{ done: number; dataWait: number }> {
  const { steps, optimizers, metrics, runningMetrics } = recipe;
  using holds = new DisposableStack();
  const ahead = Math.max(1, Math.min(16, Math.floor(AHEAD_BYTES / Math.max(1, recipe.stepBytes))));
  let logged = o.from, saved = o.from;
  const begin = () => ({ began: performance.now(), waited: 0 }); // milliseconds
  const all = begin();
  let recent = begin();
  const share = ({ began, waited }: typeof all) => waited / Math.max(1e-3, performance.now() - began);
  const progress = () => Promise.all(optimizers.map(async (optimizer) => await optimizer.readProgress()));
  let before = await progress();
  /** Whether steps are being skipped: a checkpoint now would replace an older, good one. */
  const stalling = async () => (await progress()).some(({ inARow }) => inARow >= 3);
  const log = async (n: number) => {
    if (n === logged) return;
    const sums = await readTensor(runningMetrics);
    runningMetrics.storage.write(new Float32Array(metrics.length));
    const row: LogRow = { step: n };
    const now = await progress();
    const since = now.map((p, i) => ({
      applied: p.applied - (before[i]?.applied ?? 0),
      skipped: p.skipped - (before[i]?.skipped ?? 0),
    }));
    before = now;
    const [{ applied }] = since as [typeof since[number]];
    if (applied > 0) metrics.forEach((name, i) => row[name] = (sums[i] as number) / applied);
    for (const [i, optimizer] of optimizers.entries()) {
      const steps = since[i]?.applied ?? 0;
      for (const [name, sum] of await optimizer.readNorms()) {
        if (steps > 0) row[`grad_norm/${name}`] = sum / steps;
      }
    }
    const { lr = 0, muonLr } = optimizers[0] ?? {};
    Object.assign(row, { lr }, muonLr === undefined ? {} : { muon_lr: muonLr });
    row.skipped = since.reduce((sum, { skipped }) => sum + skipped, 0);
    const scale = Math.min(...now.map((p) => p.lossScale));
    if (now.some((p) => p.lossScale > 1)) row.loss_scale = scale;
    row.data_wait = share(recent);
    recent = begin();
    for (const [i, { skipped }] of since.entries()) {
      if (skipped === 0) continue;
      const optimizer = optimizers[i] as Optimizer, { inARow, lossScale } = now[i] as typeof now[number];
      const cause = await causeOf(optimizer, i === 0 ? metrics : []);
      o.onSkipped?.(
        `${skipped} of the steps ${
          logged + 1
        } to ${n} were skipped, and changed nothing (${optimizer.label}): ${cause}` +
          (row.loss_scale === undefined ? "" : `; the loss scale is ${lossScale}`),
      );
      // A loss scale above 1 can still fall, and then steps are applied again.
      const most = n === steps && 2 * inARow > n - o.from && lossScale <= 1;
      if (inARow >= STALLED || most) {
        throw new GpuError(
          `Cannot go on: nothing is learned any more, the last ${inARow} steps were skipped (${optimizer.label}): ` +
            `${cause}; ${await remedyOf(optimizer, {
              learned: inARow < n - o.from,
              scaled: row.loss_scale !== undefined,
              more: recipe.steadied ?? [],
            })}`,
        );
      }
    }
    logged = n;
    await o.onLog(row);
  };
  const stream = recipe.data(o.from, steps);
  for (let n = o.from; n < steps; n++) {
    const asked = performance.now();
    let data: D;
    try {
      data = (await stream.next()).value as D;
    } catch (error) {
      // For example a damaged image: save what was learned before it.
      if (error instanceof UsageError && n > o.from && n !== saved) await o.save(n);
      throw error;
    }
    for (const time of [all, recent]) time.waited += performance.now() - asked;
    try {
      await recipe.step(n, data);
    } catch (error) {
      // Stopped while kernels of this step were compiled: the state is that after n steps.
      if (!(error instanceof Interrupted) || n === o.from) throw error;
      await log(n);
      await o.save(n);
      return { done: n, dataWait: share(all) };
    }
    if (n === o.from) holds.use(holdOff());
    o.onStep?.(n + 1);
    checkConditions();
    const done = n + 1;
    let stop = o.stopping();
    if (done % o.logEvery === 0 || done === steps || stop) await log(done);
    else if (done % ahead === 0) await readTensor(runningMetrics); // waits for the device
    try {
      await recipe.afterStep?.(done);
      if (!stop && done < steps && await o.validate?.(done)) saved = done;
    } catch (error) {
      if (error instanceof UsageError && done !== saved) await o.save(done);
      if (!(error instanceof Interrupted)) throw error;
      stop = true;
      await log(done);
    }
    const due = o.saveEvery > 0 && done % o.saveEvery === 0 || o.keeps?.(done);
    if (saved !== done && (stop || done === steps || (due && !await stalling()))) await o.save(saved = done);
    if (stop && done < steps) return { done, dataWait: share(all) };
  }
  return { done: steps, dataWait: share(all) };
}

/** Describes what was not finite. */
async function causeOf(optimizer: Optimizer, metrics: readonly string[]): Promise<string> {
  const { kind, value } = await optimizer.readFault();
  if (kind === "update") {
    return "the update overflows or takes weights beyond 1e6, the learning rate is too large";
  }
  if (kind === "gradient") return "a gradient is not finite";
  if (!metrics.length) return "its loss is not finite";
  // The last metric is the norm of the gradients; the gradient norms of adaptive weights follow the others.
  const name = metrics.slice(0, -1)[value];
  return name === undefined
    ? "a gradient norm of an adaptive weight is not finite"
    : `"${name}" is not finite`;
}

/**
 * What may help.
 * @param run.learned whether any step was applied
 * @param run.scaled whether there is a loss scale
 * @param run.more options of the recipe that help against divergence
 */
async function remedyOf(
  optimizer: Optimizer,
  { learned, scaled, more }: { learned: boolean; scaled: boolean; more: readonly string[] },
): Promise<string> {
  const rates = ["a smaller --lr", ...optimizer.muonLr === undefined ? [] : ["a smaller --muon-lr"]];
  if ((await optimizer.readFault()).kind === "update") return `use ${rates.join(" or ")}`;
  const { name, magnitude } = await optimizer.readLargest();
  const weights = `the largest weight is ${magnitude.toPrecision(2)} ("${name}")`;
  if (learned) {
    const options = [...rates, "a smaller --clip", ...scaled ? ["--precision f32"] : [], ...more];
    return `${weights}, the training has diverged: go on from an earlier checkpoint or begin again, with ` +
      `${options.slice(0, -1).join(", ")} or ${options.at(-1)}`;
  }
  return `${weights}, and no step was applied, so numbers overflow in the networks: ` +
    (scaled ? "use --precision f32" : "use other weights, or leave a loss out");
}
