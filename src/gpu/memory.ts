// Fill, copy and sum of whole storages: what the engine and autograd need before any op exists. Words are moved as they are;
// where halves take part, vectors of four are converted.

import { launch } from "./bind.ts";
import source from "../../kernels/memory.wgsl" with { type: "text" };
import { GpuError } from "../errors.ts";
import { contiguous } from "./strides.ts";
import { launchExpression } from "./elementwise.ts";
import { fold, kernel } from "./kernel.ts";
import type { Bindable, Storage } from "./storage.ts";

const PER_GROUP = 1024;

function run(entry: string, buffers: Record<string, Bindable>, y: Bindable, bits = 0): void {
  const storages = [y, ...Object.values(buffers)].map(({ storage }) => storage);
  const [{ elements }] = storages as [Storage];
  for (const s of storages) {
    if (s.elements !== elements) {
      throw new GpuError(`Cannot ${entry} "${s.label}": ${s.elements} elements against ${elements}`);
    }
  }
  const converted = entry === "copy"
    ? storages.some((s) => s.half !== y.storage.half)
    : storages.some((s) => s.half);
  const count = converted ? elements / 4 : y.storage.bytes / 4;
  const named = Object.entries({ ...buffers, y }).map(([name, b]) => [converted ? `${name}4` : name, b]);
  launch(
    kernel(source, converted ? `${entry}4` : entry),
    Object.fromEntries(named),
    { count, bits },
    fold(Math.ceil(count / PER_GROUP)),
  );
}

/** y = value, in every f32 element. */
export function fill(y: Bindable, value: number): void {
  run("fill", {}, y, new Uint32Array(new Float32Array([value]).buffer)[0]);
}

/**
 * y = x. When x is an intermediate of the same program and format, the plan makes it live in y and drops the copy.
 */
export function copy(x: Bindable, y: Bindable): void {
  run("copy", { x }, y);
}

/** y = x + z. */
export function add(x: Bindable, z: Bindable, y: Bindable): void {
  const { elements: count } = y.storage;
  for (const { storage: s } of [x, z]) {
    if (s.elements !== count) {
      throw new GpuError(`Cannot add "${s.label}": ${s.elements} elements against ${count}`);
    }
  }
  const view = contiguous(count);
  launchExpression({
    count,
    inputs: [x, z].map(({ storage }) => ({ storage, view })),
    scalars: [],
    body: ["x0 + x1"],
    outputs: [{ value: "t0", storage: y.storage, view }],
  });
}

/** y += x. */
export function addInPlace(x: Bindable, y: Bindable): void {
  run("add_in_place", { x }, y);
}

/** The kernel whose launches the plan may drop. */
export const COPY = (): unknown => kernel(source, "copy");
