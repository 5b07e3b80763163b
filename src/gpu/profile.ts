// Times of a program's launches: from timestamps where the adapter has them, else by waiting for each launch.

import { device, release } from "./device.ts";
import type { Launch } from "./launch.ts";
import { readBuffer } from "./readback.ts";
import type { StagedCopy } from "./software/staging.ts";

/** A prepared launch. */
export interface Step {
  pipeline: GPUComputePipeline;
  group: GPUBindGroup;
  grid: readonly [number, number, number];
  /** Copies before the dispatch: operands that software adapters read as textures. */
  copies: readonly StagedCopy[];
}

/** Time of one kernel over a run of a program. */
export interface KernelTime {
  label: string;
  launches: number;
  milliseconds: number;
  flops: number;
}

/** Sums the times of launches by kernel, longest first. @param times sums of earlier runs, which are added to */
export function timesByKernel(
  launches: readonly Launch[],
  milliseconds: readonly number[],
  times = new Map<string, KernelTime>(),
): KernelTime[] {
  launches.forEach(({ kernel: { label }, flops }, i) => {
    const sum = times.get(label) ?? { label, launches: 0, milliseconds: 0, flops: 0 };
    sum.launches++;
    sum.milliseconds += milliseconds[i] ?? 0;
    sum.flops += flops;
    times.set(label, sum);
  });
  return [...times.values()].sort((a, b) => b.milliseconds - a.milliseconds);
}

/** Whether the adapter writes timestamps. */
export const hasTimestamps = (): boolean => device().gpu.features.has("timestamp-query");

/** Milliseconds of each step, run in a pass of its own and submitted on return; wait for device().idle() once before. */
export function timeSteps(steps: readonly Step[], timestamps = hasTimestamps()): Promise<number[]> {
  return timestamps ? byTimestamps(steps) : byWaiting(steps);
}

/** Steps of one query set. */
const MAX_STEPS = 2000;

async function byTimestamps(steps: readonly Step[]): Promise<number[]> {
  const { gpu } = device(), size = 16 * Math.max(1, steps.length), sets: GPUQuerySet[] = [];
  const usage = GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC;
  const stamps = device().own(gpu.createBuffer({ size, usage, label: "timestamps" }), size);
  for (let from = 0; from < steps.length; from += MAX_STEPS) {
    const part = steps.slice(from, from + MAX_STEPS), encoder = gpu.createCommandEncoder();
    const querySet = gpu.createQuerySet({ type: "timestamp", count: 2 * part.length });
    sets.push(querySet);
    part.forEach((step, i) =>
      encode(encoder, step, { querySet, beginningOfPassWriteIndex: 2 * i, endOfPassWriteIndex: 2 * i + 1 })
    );
    encoder.resolveQuerySet(querySet, 0, 2 * part.length, stamps, 16 * from);
    device().submit(encoder.finish());
  }
  const times = new BigUint64Array(await readBuffer(stamps, 0, size));
  for (const set of sets) set.destroy();
  release(stamps);
  return steps.map((_, i) => Number((times[2 * i + 1] ?? 0n) - (times[2 * i] ?? 0n)) / 1e6);
}

async function byWaiting(steps: readonly Step[]): Promise<number[]> {
  const starts: number[] = [], waits: Promise<number>[] = [];
  for (const step of steps) {
    const encoder = device().gpu.createCommandEncoder();
    starts.push(performance.now());
    encode(encoder, step);
    device().submit(encoder.finish());
    waits.push(device().idle()); // where mappings are there at once, the device is idle when this returns
  }
  const ends = await Promise.all(waits);
  return ends.map((end, i) => end - Math.max(starts[i] as number, ends[i - 1] ?? 0));
}

function encode(
  encoder: GPUCommandEncoder,
  { pipeline, group, grid, copies }: Step,
  timestampWrites?: GPUComputePassTimestampWrites,
): void {
  for (const copy of copies) encoder.copyBufferToTexture(...copy);
  const pass = encoder.beginComputePass(timestampWrites ? { timestampWrites } : {});
  pass.setPipeline(pipeline);
  pass.setBindGroup(0, group);
  pass.dispatchWorkgroups(...grid);
  pass.end();
}
