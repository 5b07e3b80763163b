// Bytes from the device to the host. In Deno 2.9 the promise of mapAsync() settles no sooner than 10 ms after the device is
// done, but the bytes are there as soon as mapAsync() has returned. So small reads keep their buffers and take the bytes at
// once, which is worth seconds where a program runs for a few milliseconds and is read every time. A buffer of which no
// mapping was ever awaited must not be asked for its bytes (it ends the process), so the first read of each size waits.

import { setImmediate } from "node:timers";
import { GpuError } from "../errors.ts";
import { device, release } from "./device.ts";

/** Sizes of the buffers that are kept: powers of two. */
const LEAST = 4096, MOST = 4 * 1024 * 1024;

/** Whether bytes can be taken before the promise settles: an accident of the implementation, and so bound to it. */
const EAGER = Deno.version.deno.startsWith("2.9.");

/** Buffers of which a mapping was awaited before, by their size. They are the device's own: no program's memory. */
const kept = new WeakMap<GPUDevice, Map<number, GPUBuffer>>();

/** Copies `bytes` of a device buffer to the host, once all work that was submitted is done. */
export async function readBuffer(buffer: GPUBuffer, offset: number, bytes: number): Promise<ArrayBuffer> {
  const { gpu } = device();
  const size = Math.ceil(bytes / 4) * 4;
  const room = Math.max(LEAST, 2 ** Math.ceil(Math.log2(size)));
  if (!EAGER || room > MOST) return await readOnce(buffer, offset, size, bytes);
  let ready = kept.get(gpu);
  if (!ready) kept.set(gpu, ready = new Map());
  const known = ready.get(room), staging = known ?? newStaging(room);
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
    // Others get their turn as they would have while waiting: signals, messages of workers.
    if (known) await new Promise<void>((resolve) => void setImmediate(() => resolve()));
    else if (ready.has(room)) staging.destroy();
    else ready.set(room, staging);
    device().check();
    return read;
  } catch (error) {
    ready.delete(room);
    staging.destroy();
    throw await explained(mapped, bytes, error);
  }
}

/** The same with a buffer for this read alone. */
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
    throw await explained(mapped, bytes, error);
  } finally {
    release(staging);
  }
}

/** What a mapped buffer holds. */
function take(staging: GPUBuffer, size: number, bytes: number): ArrayBuffer {
  return staging.getMappedRange(0, size).slice(0, bytes);
}

/** The same, or undefined where the mapping is not there yet. */
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

/** What to throw for a read that failed. */
async function explained(mapped: Promise<void> | undefined, bytes: number, error: unknown): Promise<Error> {
  const failed = await mapped?.then(() => undefined, (reason: Error) => reason);
  device().check(); // a lost device, or what it reported, says more
  if (error instanceof GpuError) return error;
  const { message } = failed ?? (error instanceof Error ? error : new Error(String(error)));
  return new GpuError(`Cannot read ${bytes} bytes back from the device: ${message}`);
}
