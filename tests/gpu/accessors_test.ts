// Generated accessors of kernel arrays, for every form of operand.

import { assertEquals, assertThrows } from "@std/assert";
import { GpuError } from "../../src/errors.ts";
import { launch } from "../../src/gpu/bind.ts";
import { kernel } from "../../src/gpu/kernel.ts";
import { capture } from "../../src/gpu/program.ts";
import { type DType, empty, input, type Tensor } from "../../src/tensor/tensor.ts";
import { testDevice } from "../helpers/check.ts";

/** Runs a kernel on x = 0, 1, ... in each precision of x and y; y must have the same numbers in all. */
async function run(source: string, operands: (x: Tensor, y: Tensor) => Record<string, Tensor | number>) {
  await testDevice();
  const x = new Float32Array(8).map((_, i) => i);
  const results: number[][] = [];
  for (
    const [dx, dy] of [["f32", "f32"], ["f16", "f32"], ["f32", "f16"], ["f16", "f16"]] satisfies DType[][]
  ) {
    const program = await capture("accessors", { x: input([8], dx) }, ({ x }) => {
      const y = empty([8], dy);
      launch(kernel(source, "main"), operands(x, y), {}, [1]);
      return { y };
    }).prepare();
    program.run({ x: dx === "f16" ? new Uint16Array(new Float16Array(x).buffer) : x });
    results.push([...await program.read(program.outputs.y)]);
    program.destroy();
  }
  for (const result of results) assertEquals(result, results[0]);
  return results[0];
}

Deno.test("arrays are read and written element by element, nested and through functions", async () => {
  const source = `alias W = vec4<f32>;
var<storage> x: array<W>;
var<storage> y: array<W>;
fn at(i: u32) -> vec4<f32> { return x(i) * x(1u - i).wzyx; }
fn unused() { store_x(0, missing); }
@compute @workgroup_size(1) fn main() {
  store_y(0, at(u32(x(0)[0])));
  store_y(1, x(0));
  store_y(1, y(1) + x(u32(x(0).x + 1.0) - 1u));
}`;
  assertEquals(await run(source, (x, y) => ({ x, y })), [0, 6, 10, 12, 0, 2, 4, 6]);
});

Deno.test("the scalar view of an array of vectors has its components", async () => {
  const source = `var<storage> x: array<vec4<f32>>;
var<storage> y: array<vec2<f32>>;
@compute @workgroup_size(1) fn main() {
  for (var i = 0u; i < 4u; i++) { store_y(i, vec2(x_scalar(2u * i + 1u), x_scalar(7u - 2u * i))); }
}`;
  assertEquals(await run(source, (x, y) => ({ x, y })), [1, 7, 3, 5, 5, 3, 7, 1]);
});

Deno.test("an absent operand reads as a constant and ignores stores", async () => {
  const source = `var<storage> x: array<vec4<f32>>;
var<storage> w: array<vec4<f32>>;
var<storage> copy: array<vec4<f32>>;
var<storage> y: array<vec4<f32>>;
@compute @workgroup_size(1) fn main() {
  for (var i = 0u; i < 2u; i++) { store_copy(i, x(i)); store_y(i, x(i) * w(i) + copy(i) * w_scalar(i) * 2.0); }
}`;
  assertEquals(await run(source, (x, y) => ({ x, w: 0.5, copy: 1, y })), [1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5]);
});

Deno.test("fp16 arrays of elements that cannot be packed alone are refused", async () => {
  await testDevice();
  const store = (element: string, value: string) =>
    capture("t", {}, () => {
      const source = `var<storage> y: array<${element}>;
@compute @workgroup_size(1) fn main() { store_y(0, ${value}); }`;
      launch(kernel(source, "main"), { y: empty([16], "f16") }, {}, [1]);
      return {};
    });
  assertThrows(() => store("f32", "1.0"), GpuError, 'single fp16 elements to "y"');
  assertThrows(() => store("mat2x2<f32>", "mat2x2<f32>()"), GpuError, '"y"');
});
