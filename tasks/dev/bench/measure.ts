// Measures a program: time, rates, planned and allocated memory, share of the adapter's peak; for a whole step also the
// share of its time spent in GEMMs.

import { device } from "../../../src/gpu/device.ts";
import type { KernelTime } from "../../../src/gpu/profile.ts";
import type { Program } from "../../../src/gpu/program.ts";
import type { Bindable } from "../../../src/gpu/storage.ts";
import type { Precision } from "../../../src/tensor/tensor.ts";
import { median, type Peaks, timesOf } from "../../../src/bench/peak.ts";

type AnyProgram = Pick<
  Program<Record<string, Bindable>, Record<string, Bindable>>,
  "plan" | "profile" | "destroy"
>;

/** A captured program to measure; preparing it allocates and compiles. */
export interface Measurable {
  program: AnyProgram & { prepare(): Promise<unknown>; run(): void; repeat(times: number): void };
  /** Minimum memory traffic of a kernel in bytes; undefined for a whole step. */
  bytes?: number;
  destroy(): void;
}

/** One line of the benchmark. */
export interface Row {
  case: string;
  precision: Precision;
  /** Median of several runs. */
  ms: number;
  gflops: number;
  gbps?: number;
  launches: number;
  /** Bytes on the device: planned and allocated. */
  planned: number;
  measured: number;
  /** Planned bytes of activations; `pooled` is their share of the bytes without reuse. */
  activations: number;
  pooled?: number;
  /** Share of peak: the roofline's time over the measured time. */
  share: number;
  division?: Division;
}

/** Time in GEMMs of a step, by timestamps of each launch. */
export interface Division {
  /** Sum over all launches; the rest of the wall time is between launches. */
  kernelMs: number;
  /** Share of `kernelMs` in GEMMs, including those of convolution and attention. */
  gemmShare: number;
  /** GFLOP/s of these GEMMs, and its ratio to the baseline GEMM measured alternately with the step. */
  gemmGflops: number;
  ofBaseline: number;
}

/** Labels of GEMM kernels, including those of convolution and attention. */
const GEMM = /^gemm/;

/** Prepares and measures; the caller destroys what is returned. */
export async function measure(
  name: string,
  precision: Precision,
  make: () => Measurable | Promise<Measurable>,
  peaks: Peaks,
): Promise<{ row: Row; made: Measurable }> {
  const { memory } = device(), before = memory.live;
  memory.peak = before;
  const made = await make(), { program, bytes } = made;
  const times = await timesOfPrepared(made).catch((error) => {
    made.destroy(); // free memory for the next case
    throw error;
  });
  const measured = memory.peak - before;
  const ms = median(times);
  const { plan } = program;
  const rooflineMs = Math.max(plan.flops / peaks.fma, (bytes ?? 0) / copyRate(peaks, bytes ?? 0)) / 1e6;
  const row: Row = {
    case: name,
    precision,
    ms,
    gflops: plan.flops / ms / 1e6,
    ...bytes === undefined ? {} : { gbps: bytes / ms / 1e6 },
    launches: plan.launches.length,
    planned: plan.totalBytes,
    measured,
    activations: plan.bytes.activations,
    ...plan.unpooledBytes > 0 ? { pooled: plan.bytes.activations / plan.unpooledBytes } : {},
    share: rooflineMs / ms,
  };
  return { row, made };
}

/** A step is submitted once per run, as in training; a kernel many times per submission, to exclude its overhead. */
async function timesOfPrepared({ program, bytes }: Measurable): Promise<number[]> {
  await program.prepare();
  return await timesOf((runs) => {
    if (bytes !== undefined) return program.repeat(runs);
    for (let i = 0; i < runs; i++) program.run();
  });
}

/**
 * GB/s of a copy of about `bytes`: the faster of the next smaller and the next larger copy, so that a case that fits in
 * caches is compared with a copy that does.
 */
function copyRate({ copies }: Peaks, bytes: number): number {
  const smaller = copies.findLast((c) => c.bytes <= bytes), larger = copies.find((c) => c.bytes >= bytes);
  return Math.max(smaller?.rate ?? 0, larger?.rate ?? 0);
}

/** Rounds of which the median counts. */
const ROUNDS = 5;

/**
 * Measures the share of GEMMs in a prepared step, alternating with the baseline GEMM because the machine's speed drifts.
 * Undefined if the adapter has no timestamps.
 * @param baseline prepared and large enough to reach the adapter's best rate; see cases.ts
 */
export async function divide(program: AnyProgram, baseline: AnyProgram): Promise<Division | undefined> {
  if (!device().facts.features.includes("timestamp-query")) return undefined;
  const rounds: Division[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    const before = rateOf(await baseline.profile());
    const kernels = await program.profile();
    const best = (before + rateOf(await baseline.profile())) / 2;
    const gemms = kernels.filter(({ label }) => GEMM.test(label)), gemmGflops = rateOf(gemms);
    const kernelMs = total(kernels, "milliseconds");
    const gemmShare = total(gemms, "milliseconds") / kernelMs;
    rounds.push({ kernelMs, gemmShare, gemmGflops, ofBaseline: gemmGflops / best });
  }
  return rounds.sort((a, b) => a.ofBaseline - b.ofBaseline)[ROUNDS >> 1];
}

const total = (kernels: readonly KernelTime[], what: "milliseconds" | "flops") =>
  kernels.reduce((n, k) => n + k[what], 0);

/** GFLOP/s over all of `kernels`. */
const rateOf = (kernels: readonly KernelTime[]) =>
  total(kernels, "flops") / total(kernels, "milliseconds") / 1e6;
