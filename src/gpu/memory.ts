// Fill, copy, exchange and sum of whole storages: what the engine and autograd need before any op exists. Bits are moved as u32; fp16 is
// converted in vec4s.

import { launch } from "./bind.ts";
import source from "../../kernels/memory.wgsl" with { type: "text" };
import { GpuError } from "../errors.ts";
import { contiguous } from "./strides.ts";
import { launchExpression } from "./elementwise.ts";
import { fold, kernel } from "./kernel.ts";
import type { Bindable } from "./storage.ts";

const PER_GROUP = 1024;

type Element = "u32" | "f32" | "vec4<f32>";

/** The kernel `entry` for elements of a type. */
const memoryKernel = (entry: string, element: Element) => kernel(`alias E = ${element};\n${source}`, entry);

function run(
  entry: string,
  buffers: Record<string, Bindable>,
  y: Bindable,
  element: Element,
  bits = 0,
): void {
  const { elements, bytes } = y.storage;
  for (const { storage: s } of Object.values(buffers)) {
    if (s.elements !== elements) {
      throw new GpuError(`Cannot ${entry} "${s.label}": ${s.elements} elements against ${elements}`);
    }
  }
  const count = element === "vec4<f32>" ? elements / 4 : bytes / 4;
  launch(
    memoryKernel(entry, element),
    { ...buffers, y },
    { count, bits },
    fold(Math.ceil(count / PER_GROUP)),
  );
}

/** y = value, in every f32 element. */
export function fill(y: Bindable, value: number): void {
  run("fill", {}, y, "u32", new Uint32Array(new Float32Array([value]).buffer)[0]);
}

/** y = x. If x is an intermediate of the same program and format, the plan writes it to y directly and removes the copy. */
export function copy(x: Bindable, y: Bindable): void {
  run("copy", { x }, y, x.storage.half === y.storage.half ? "u32" : "vec4<f32>");
}

/** Exchanges the bits of x and y, of one format, without memory of its own. */
export function swap(x: Bindable, y: Bindable): void {
  run("swap", { x }, y, "u32");
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
  run("add_in_place", { x }, y, x.storage.half || y.storage.half ? "vec4<f32>" : "f32");
}

/** The kernel whose launches the plan may remove. */
export const COPY = (): unknown => memoryKernel("copy", "u32");
