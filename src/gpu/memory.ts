// Fill, copy and sum of whole storages: what the engine and autograd need before any op exists.

import source from "../../kernels/memory.wgsl" with { type: "text" };
import { GpuError } from "../errors.ts";
import { fold, kernel } from "./kernel.ts";
import type { Bindable } from "./storage.ts";

const WORDS_PER_GROUP = 1024;

function run(entry: string, buffers: Record<string, Bindable>, y: Bindable, bits = 0): void {
  const count = y.storage.bytes / 4;
  for (const { storage } of Object.values(buffers)) {
    if (storage.bytes !== y.storage.bytes) {
      throw new GpuError(
        `Cannot ${entry} "${storage.label}": ${storage.bytes} bytes against ${y.storage.bytes}`,
      );
    }
  }
  kernel(source, entry).launch({ ...buffers, y }, { count, bits }, fold(Math.ceil(count / WORDS_PER_GROUP)));
}

/** y = value, in every f32 element. */
export function fill(y: Bindable, value: number): void {
  run("fill", {}, y, new Uint32Array(new Float32Array([value]).buffer)[0]);
}

/** y = x. When x is an intermediate of the same program, the plan makes it live in y and drops the copy. */
export function copy(x: Bindable, y: Bindable): void {
  run("copy", { x }, y);
}

/** y = x + z. */
export function add(x: Bindable, z: Bindable, y: Bindable): void {
  run("add", { x, z }, y);
}

/** y += x. */
export function addInPlace(x: Bindable, y: Bindable): void {
  run("add_in_place", { x }, y);
}

/** The kernel whose launches the plan may drop. */
export const COPY = (): unknown => kernel(source, "copy");
