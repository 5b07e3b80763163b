// Measures a program: time, rates, memory planned and found on the device, share of what the adapter can do at most, and
// for a whole step the division of its time between products and the rest.

import { device } from "../../../src/gpu/device.ts";
import type { KernelTime, Program } from "../../../src/gpu/program.ts";
import type { Bindable } from "../../../src/gpu/storage.ts";
import type { Precision } from "../../../src/tensor/tensor.ts";
import { median, type Peaks, timesOf } from "../../../src/bench/peak.ts";

type AnyProgram = Pick<
  Program<Record<string, Bindable>, Record<string, Bindable>>,
  "plan" | "profile" | "destroy"
>;

/** Something to measure, captured; preparing it allocates and compiles. */
export interface Measurable {
  program: AnyProgram & { prepare(): Promise<unknown>; run(): void; repeat(times: number): void };
  /** Bytes that must be moved at least; a whole step has no such number. */
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
  /** Bytes on the device: as the plan says, and as they were found. */
  planned: number;
  measured: number;
  /** Activations as planned, and their share of what keeping every intermediate would take. */
  activations: number;
  pooled?: number;
  /** The time that the adapter's ceiling allows, over the time taken. */
  share: number;
  division?: Division;
}

/** Where the time of a step goes, by timestamps around each launch. */
export interface Division {
  /** Sum over all launches; the rest of the wall time is between launches. */
  kernelMs: number;
  /** Of `kernelMs` in products, those of convolutions and of attention included. */
  products: number;
  /** GFLOP/s of the products, and its share of what a large square product reaches beside the step. */
  gemmGflops: number;
  ofBest: number;
}

/** Kernels that are products at heart: GEMM, also of convolutions and of attention. */
const PRODUCT = /^gemm/;

/** Measures; frees nothing, unless it fails. */
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
    made.destroy(); // what the next case needs
    throw error;
  });
  const measured = memory.peak - before;
  const ms = median(times);
  const { plan } = program;
  const least = Math.max(plan.flops / peaks.fma, (bytes ?? 0) / copyRate(peaks, bytes ?? 0)) / 1e6;
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
    share: least / ms,
  };
  return { row, made };
}

/** A step is submitted by itself, as in training; of a kernel, the submission is no part. */
async function timesOfPrepared({ program, bytes }: Measurable): Promise<number[]> {
  await program.prepare();
  return await timesOf((runs) => {
    if (bytes !== undefined) return program.repeat(runs);
    for (let i = 0; i < runs; i++) program.run();
  });
}

/**
 * GB/s of a copy that moves about `bytes`, the faster one of the next smaller and the next larger: what stays in caches is
 * held against a copy that does, too.
 */
function copyRate({ copies }: Peaks, bytes: number): number {
  const smaller = copies.findLast((c) => c.bytes <= bytes), larger = copies.find((c) => c.bytes >= bytes);
  return Math.max(smaller?.rate ?? 0, larger?.rate ?? 0);
}

/** Rounds of a division. */
const ROUNDS = 5;

/**
 * Divides the time of a prepared step, in turn with a large product, since a machine's speed changes within minutes: the
 * round with the middle share of the best. Undefined where the adapter has no timestamps.
 * @param square prepared, and large enough for the adapter's best rate; see cases.ts
 */
export async function divide(program: AnyProgram, square: AnyProgram): Promise<Division | undefined> {
  if (!device().facts.features.includes("timestamp-query")) return undefined;
  const rounds: Division[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    const before = rateOf(await square.profile());
    const kernels = await program.profile();
    const best = (before + rateOf(await square.profile())) / 2;
    const products = kernels.filter(({ label }) => PRODUCT.test(label)), gemmGflops = rateOf(products);
    const kernelMs = total(kernels, "milliseconds");
    const share = total(products, "milliseconds") / kernelMs;
    rounds.push({ kernelMs, products: share, gemmGflops: gemmGflops, ofBest: gemmGflops / best });
  }
  return rounds.sort((a, b) => a.ofBest - b.ofBest)[ROUNDS >> 1];
}

const total = (kernels: readonly KernelTime[], what: "milliseconds" | "flops") =>
  kernels.reduce((n, k) => n + k[what], 0);

/** GFLOP/s of kernels together. */
const rateOf = (kernels: readonly KernelTime[]) =>
  total(kernels, "flops") / total(kernels, "milliseconds") / 1e6;
