// Peaks of an adapter: multiply-adds without memory traffic, and a copy without arithmetic. The baselines that benchmarks and
// `tok doctor --bench` compare kernels with, always in the same run.

import { GpuError } from "../errors.ts";
import { device } from "../gpu/device.ts";
import { capture, type Program } from "../gpu/program.ts";
import type { Bindable } from "../gpu/storage.ts";
import { multiplyAdds } from "./peak_kernel.ts";
import { matmul } from "../ops/matmul.ts";
import { pointwise } from "../ops/pointwise.ts";
import { input } from "../tensor/tensor.ts";

type Any = Program<Record<string, Bindable>, Record<string, Bindable>>;

/** What {@link measurePeaks} found. */
export interface Peaks {
  /** GFLOP/s of multiply-adds in registers. */
  fma: number;
  /** GB/s of a copy too large for any cache; read and write counted. */
  copy: number;
  /** GB/s of copies by the bytes that they read and write: the smaller ones stay in caches. */
  copies: { bytes: number; rate: number }[];
  /** GFLOP/s of a square GEMM. */
  gemm: number;
}

type Timing = [batchMs?: number, tries?: number];

/** Above this a run is timed alone, and less often. */
const LONG_MS = 400;

/** A GPU that had nothing to do for a second clocks down to a sixth, and works this long before it is at full speed again. */
const WARM_MS = 250;
const COLD_MS = 1000;
/** When the device was last seen at work. */
let worked = -Infinity;

/** Milliseconds of one run, shortest first; short ones are timed in batches. @param run submits runs, does not wait */
export async function timesOf(run: (runs: number) => void, batchMs = 100, tries = 5): Promise<number[]> {
  const batch = async (n: number) => {
    await device().idle();
    const began = performance.now();
    run(n);
    worked = await device().idle();
    return (worked - began) / n;
  };
  const cold = !device().facts.software && performance.now() - worked > COLD_MS;
  await batch(1);
  let single = Math.min(await batch(1), await batch(1));
  const runsIn = (ms: number) => Math.min(400, Math.max(1, Math.ceil(ms / Math.max(0.005, single))));
  const until = performance.now() + (cold ? WARM_MS : 0);
  while (performance.now() < until) single = await batch(runsIn(10));
  const n = runsIn(batchMs);
  const times: number[] = [];
  for (let i = 0; i < (single > LONG_MS ? 3 : tries); i++) times.push(await batch(n));
  return times.sort((a, b) => a - b);
}

/** The middle of sorted numbers. */
export const median = (sorted: readonly number[]): number => {
  const half = sorted.length / 2;
  return ((sorted[Math.floor(half - 0.5)] ?? NaN) + (sorted[Math.floor(half)] ?? NaN)) / 2;
};

/** Measures the adapter's peaks, the best of several runs each. */
export async function measurePeaks(): Promise<Peaks> {
  // How many chains fill an adapter without running out of its registers differs; more than these never helped.
  let fma = 0;
  const cpu = device().profile === "cpu";
  const { facts: { software }, limits } = device();
  // On a software adapter, kernels for GPUs run for tests only: fewer repetitions of less work.
  const forTests = software && !cpu, timing: Timing = forTests ? [20, 2] : [];
  for (const chains of [2, 3, 4]) fma = Math.max(fma, await measureMultiplyAdds(chains, ...timing));
  const copies: Peaks["copies"] = [];
  const sizes = [1 << 20, 1 << 22, 1 << 24, 1 << 26, ...software ? [] : [1 << 28, 1 << 30]]; // caches of GPUs hold 1 << 26
  for (const bytes of sizes.filter((n) => n / 2 <= limits.maxStorageBufferBindingSize)) {
    const program = capture("copy", { x: input([bytes / 8]) }, ({ x }) => ({ y: pointwise(["x0"], [x]) }));
    try {
      copies.push({ bytes, rate: bytes / await best(program, ...timing) / 1e6 });
    } catch (error) {
      if (!(error instanceof GpuError) || copies.length === 0) throw error;
      break; // not enough memory: the copies so far are the baseline
    } finally {
      program.destroy();
    }
  }
  const S = cpu ? 512 : forTests ? 256 : 2048;
  const product = capture(
    "product",
    { a: input([S, S]), b: input([S, S]) },
    ({ a, b }) => ({ y: matmul(a, b) }),
  );
  const gemm = 2 * S ** 3 / await best(product, ...timing) / 1e6;
  product.destroy();
  return { fma, copy: copies.at(-1)?.rate ?? NaN, copies, gemm };
}

/** GFLOP/s of multiply-adds in registers, in `chains` independent chains. @param timing batchMs and tries of {@link timesOf} */
export async function measureMultiplyAdds(chains: number, ...timing: Timing) {
  const n = device().profile === "cpu" ? 1 << 16 : 1 << 20;
  const program = capture("fma", { x: input([n]) }, ({ x }) => ({ y: multiplyAdds(x, chains, 32) }));
  const rate = program.plan.flops / await best(program, ...timing) / 1e6;
  program.destroy();
  return rate;
}

async function best(program: Any, ...timing: Timing): Promise<number> {
  await program.prepare();
  const [shortest] = await timesOf((runs) => program.repeat(runs), ...timing);
  return shortest as number;
}
