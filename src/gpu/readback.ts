// Copies bytes from the device to the host. In Deno 2.9 the promise of mapAsync() settles 10 ms or more after the device is done,
// but the bytes are there when mapAsync() returns. So small reads keep their buffers and take the bytes at once, which saves
// seconds where a program of a few milliseconds is read after each run. getMappedRange() of a buffer that was never awaited ends
// the process, so the first read of each size waits. Other implementations of WebGPU map within a millisecond, and are awaited.

import { setImmediate } from "node:timers";
import { GpuError } from "../errors.ts";
import { device, release } from "./device.ts";

/** Smallest and largest size of a buffer that is kept; sizes are powers of two. */
const MIN_BYTES = 4096, MAX_BYTES = 4 * 1024 * 1024;

/** Buffers whose mapping was awaited before, by size. They belong to the device and count for no program. */
const kept = new WeakMap<GPUDevice, Map<number, GPUBuffer>>();

/** Copies `bytes` of a device buffer to the host, after all submitted work. */
export async function readBuffer(buffer: GPUBuffer, offset: number, bytes: number): Promise<ArrayBuffer> {
  const { gpu, provider } = device();
  const size = Math.ceil(bytes / 4) * 4;
  const capacity = Math.max(MIN_BYTES, 2 ** Math.ceil(Math.log2(size)));
  if (!provider.mapsAtOnce || capacity > MAX_BYTES) return await readOnce(buffer, offset, size, bytes);
  let ready = kept.get(gpu);
  if (!ready) kept.set(gpu, ready = new Map());
  const known = ready.get(capacity), staging = known ?? newStaging(capacity);
  let mapped: Promise<void> | undefined;
  try {
    mapped = map(buffer, offset, staging, size);
    mapped.catch(() => {}); // unmap() rejects it where it was not awaited
    let read = known && takeNow(staging, size, bytes);
    if (!read) {
      await mapped;
      read = take(staging, size, bytes);
    }
    staging.unmap();
    // Lets signals and messages of workers be handled, as awaiting the mapping would.
    if (known) await new Promise<void>((resolve) => void setImmediate(() => resolve()));
    else if (ready.has(capacity)) staging.destroy();
    else ready.set(capacity, staging);
    device().check();
    return read;
  } catch (error) {
    ready.delete(capacity);
    staging.destroy();
    throw await readError(mapped, bytes, error);
  }
}

/** The same with a buffer that is destroyed afterwards. */
async function readOnce(
  buffer: GPUBuffer,
  offset: number,
  size: number,
  bytes: number,
): Promise<ArrayBuffer> {
  const staging = device().own(newStaging(size), size);
  let mapped: Promise<void> | undefined;
  try {
    await (mapped = map(buffer, offset, staging, size));
    device().check();
    return take(staging, size, bytes);
  } catch (error) {
    throw await readError(mapped, bytes, error);
  } finally {
    release(staging);
  }
}

/** The contents of a mapped buffer. */
function take(staging: GPUBuffer, size: number, bytes: number): ArrayBuffer {
  return staging.getMappedRange(0, size).slice(0, bytes);
}

/** The same, or undefined if the buffer is not mapped yet. */
function takeNow(staging: GPUBuffer, size: number, bytes: number): ArrayBuffer | undefined {
  try {
    return take(staging, size, bytes);
  } catch {
    return undefined;
  }
}

function newStaging(size: number): GPUBuffer {
  return device().gpu.createBuffer({ size, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
}

/** Submits the copy and asks for the mapping. */
function map(buffer: GPUBuffer, offset: number, staging: GPUBuffer, size: number): Promise<void> {
  const encoder = device().gpu.createCommandEncoder();
  encoder.copyBufferToBuffer(buffer, offset, staging, 0, size);
  device().submit(encoder.finish());
  return staging.mapAsync(GPUMapMode.READ, 0, size);
}

/** The error to throw for a read that failed. */
async function readError(mapped: Promise<void> | undefined, bytes: number, error: unknown): Promise<Error> {
  const failed = await mapped?.then(() => undefined, (reason: Error) => reason);
  device().check(); // a lost device, or what it reported, says more
  if (error instanceof GpuError) return error;
  const { message } = failed ?? (error instanceof Error ? error : new Error(String(error)));
  return new GpuError(`Cannot read ${bytes} bytes back from the device: ${message}`);
}
