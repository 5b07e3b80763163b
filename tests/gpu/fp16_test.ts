// Half precision: rounding, and every op in fp16 against the same op on the same numbers in f32. Training in fp16 is in
// train/fp16_training_test.ts.

import { assert, assertEquals } from "@std/assert";
import { grad } from "../../src/tensor/autograd.ts";
import { within } from "../../src/gpu/scope.ts";
import { device } from "../../src/gpu/device.ts";
import { add as sumInto, copy } from "../../src/gpu/memory.ts";
import { capture } from "../../src/gpu/program.ts";
import { attention } from "../../src/ops/attention.ts";
import { conv2d } from "../../src/ops/conv.ts";
import { add, gelu, mul, relu, silu } from "../../src/ops/math.ts";
import { linear, matmul } from "../../src/ops/matmul.ts";
import { modulate, swiglu } from "../../src/ops/modulate.ts";
import { batchNorm, groupNorm, layerNorm, rmsNorm } from "../../src/ops/norm.ts";
import { averagePool, maxPool, upsampleNearest2x } from "../../src/ops/pool.ts";
import { mean } from "../../src/ops/reduce.ts";
import { rotary, rotaryTables2d } from "../../src/ops/rotary.ts";
import { concat, flip, pad, permute, slice, split } from "../../src/ops/layout.ts";
import { softmax } from "../../src/ops/softmax.ts";
import { constant, empty, input, type Precision, type Shape, type Tensor } from "../../src/tensor/tensor.ts";
import { fp16Profiles, randomArray, relativeError, testDevice } from "../helpers/check.ts";

const bits = (values: Float16Array) => new Uint16Array(values.buffer);

Deno.test("packing rounds to the nearest fp16 number, ties to even, and overflows to infinity", async () => {
  const bytes = new DataView(new ArrayBuffer(4));
  const float = (word: number) => (bytes.setUint32(0, word), bytes.getFloat32(0));
  const special = [0, -0, 1, 65504, 65519, 65520, 1e9, -65520, Infinity, -Infinity, 2 ** -14, 6.2e-5];
  const halfway = [1 + 2 ** -11, 1 + 3 * 2 ** -11, -(1 + 2 ** -11), 1 + 2 ** -11 + 2 ** -23];
  // Any bits whose exponent a normal half can have.
  const any = Array.from(
    { length: 4080 },
    (_, i) => float(0x38800000 + (i * 2654435761 % 0x0f000000)) * (i % 2 ? 1 : -1),
  );
  const values = Float32Array.from([...special, ...halfway, ...any]);
  await testDevice();
  const n = values.length;
  const program = await capture("pack", { x: input([n]) }, ({ x }) => {
    const y = empty([n], "f16");
    copy(x, y);
    return { y };
  }).prepare();
  program.run({ x: values });
  const got = bits(new Float16Array(await program.readBytes(program.outputs.y)));
  const expected = bits(new Float16Array(values));
  for (let i = 0; i < n; i++) {
    assertEquals((got[i] as number).toString(16), (expected[i] as number).toString(16), `${values[i]}`);
  }
  program.destroy();
});

Deno.test("subnormal fp16 numbers keep their sign and are near zero", async () => {
  await testDevice();
  const values = Float32Array.from({ length: 64 }, (_, i) => (i % 2 ? 1 : -1) * 2 ** (-14 - i / 4));
  const program = await capture("small", { x: input([64]) }, ({ x }) => {
    const y = empty([64], "f16");
    copy(x, y);
    return { y };
  }).prepare();
  program.run({ x: values });
  (await program.read(program.outputs.y)).forEach((v, i) =>
    assert(Math.abs(v - (values[i] as number)) <= 2 ** -24, `${values[i]} became ${v}`)
  );
  program.destroy();
});

interface Case {
  name: string;
  op: (...x: Tensor[]) => Tensor;
  shapes: readonly Shape[];
  /** Inputs that stay f32: weights. */
  weights?: readonly number[];
  /** The result is f32 by design. */
  single?: boolean;
}

const { cos, sin } = rotaryTables2d(3, 3, 8);
const tables = () => [constant(cos, [9, 8]), constant(sin, [9, 8])] as const;

const CASES: readonly Case[] = [
  { name: "matmul NN", op: (a, b) => matmul(a, b), shapes: [[2, 20, 36], [2, 36, 12]] },
  {
    name: "matmul NT",
    op: (a, b) => matmul(a, b, { transposeB: true, alpha: 0.5 }),
    shapes: [[36, 40], [24, 40]],
  },
  { name: "matmul TN", op: (a, b) => matmul(a, b, { transposeA: true }), shapes: [[48, 20], [48, 24]] },
  { name: "linear", op: (x, w, b) => linear(x, w, b), shapes: [[3, 7, 24], [16, 24], [16]], weights: [1, 2] },
  {
    name: "linear of odd width",
    op: (x, w) => linear(x, w),
    shapes: [[9, 24], [7, 24]],
    weights: [1],
    single: true,
  },
  {
    name: "split product",
    op: (x, w) => linear(x, w),
    shapes: [[4, 2048], [8, 2048]],
    weights: [1],
    single: true,
  },
  {
    name: "conv2d",
    op: (x, w, b) => conv2d(x, w, b, { padding: 1 }),
    shapes: [[2, 6, 5, 8], [12, 3, 3, 8], [12]],
    weights: [1, 2],
  },
  {
    name: "conv2d from three channels, stride 2",
    op: (x, w) => conv2d(x, w, undefined, { stride: 2, padding: 1 }),
    shapes: [[1, 7, 7, 3], [8, 3, 3, 3]],
    weights: [0, 1],
  },
  { name: "attention", op: attention, shapes: [[2, 9, 2, 8], [2, 9, 2, 8], [2, 9, 2, 8]] },
  { name: "rotary", op: (x) => rotary(x, ...tables()), shapes: [[2, 9, 2, 8]] },
  { name: "rotary half", op: (x) => rotary(x, ...tables(), "half"), shapes: [[2, 9, 2, 8]] },
  { name: "layerNorm", op: (x, w, b) => layerNorm(x, w, b), shapes: [[11, 20], [20], [20]], weights: [1, 2] },
  { name: "rmsNorm", op: (x, w) => rmsNorm(x, w), shapes: [[11, 128], [128]], weights: [1] },
  {
    name: "groupNorm",
    op: (x, w, b) => groupNorm(x, 2, w, b, 1e-6, { silu: true }),
    shapes: [[2, 3, 5, 8], [8], [8]],
    weights: [1, 2],
  },
  {
    name: "groupNorm of many small groups",
    op: (x, w, b) => groupNorm(x, 4, w, b, 1e-6, { silu: true }),
    shapes: [[8, 2, 3, 16], [16], [16]],
    weights: [1, 2],
  },
  { name: "swiglu", op: swiglu, shapes: [[5, 24]] },
  { name: "swiglu of odd width", op: swiglu, shapes: [[8, 12]], single: true }, // DiT-L has 2730
  { name: "modulate", op: modulate, shapes: [[2, 5, 12], [2, 1, 24]] },
  { name: "broadcast column", op: (a, b) => mul(a, b), shapes: [[6, 8], [6, 1]] },
  { name: "chain", op: (a, b) => gelu(add(silu(a), b)), shapes: [[4, 8], [8]] },
  { name: "softmax", op: softmax, shapes: [[6, 20]] },
  { name: "mean", op: (x) => mean(x, [0]), shapes: [[6, 20]] },
  { name: "upsample", op: upsampleNearest2x, shapes: [[2, 3, 4, 8]] },
  {
    name: "conv2d to three channels",
    op: (x, w) => conv2d(x, w),
    shapes: [[1, 4, 4, 8], [3, 1, 1, 8]],
    weights: [1],
    single: true,
  },
  {
    name: "batchNorm",
    op: (x, w, b) => batchNorm(x, w, b, { training: true }),
    shapes: [[2, 3, 3, 8], [8], [8]],
    weights: [1, 2],
  },
  { name: "relu", op: relu, shapes: [[5, 8]] },
  { name: "max pool", op: (x) => maxPool(x, { kernel: 2, stride: 2 }), shapes: [[1, 4, 4, 8]] },
  { name: "average pool", op: (x) => averagePool(x, { kernel: 2 }), shapes: [[2, 4, 4, 8]] },
  { name: "permute", op: (x) => permute(x, [1, 0, 2]), shapes: [[3, 5, 8]] },
  { name: "transpose", op: (x) => permute(x, [1, 0]), shapes: [[8, 12]], single: true },
  { name: "concat", op: (a, b) => concat([a, b], 1), shapes: [[3, 8], [3, 4]] },
  {
    name: "concat of odd parts",
    op: (a, b) => concat([a, b], 1),
    shapes: [[3, 5], [3, 3]],
    weights: [0, 1],
    single: true,
  },
  { name: "split", op: (x) => split(x, [4, 8], 1)[1] as Tensor, shapes: [[3, 12]] },
  { name: "slice of odd width", op: (x) => slice(x, 1, 2, 5), shapes: [[4, 8]], single: true },
  { name: "pad", op: (x) => pad(x, [[1, 0], [4, 0]]), shapes: [[3, 8]] },
  { name: "flip", op: (x) => flip(x, 0), shapes: [[3, 8]] },
];

for (const profile of await fp16Profiles()) {
  Deno.test(`results and gradients of every op in fp16 are those of f32, rounded: profile ${profile}`, async () => {
    for (const { name, op, shapes, weights = [], single = false } of CASES) {
      const fp16 = shapes.map((shape, i) =>
        new Float16Array(randomArray(shape.reduce((a, b) => a * b), i + 1))
      );
      await testDevice(profile);
      const run = async (precision: Precision) => {
        const stored = (i: number) => precision === "f16" && !weights.includes(i);
        const x = Object.fromEntries(shapes.map((s, i) => [`x${i}`, input(s, stored(i) ? "f16" : "f32")]));
        let dtype = "";
        const program = await within({ precision }, () =>
          capture(name, x, (x) => {
            const xs = shapes.map((_, i) => Object.assign(x[`x${i}`] as Tensor, { requiresGrad: true }));
            const y = op(...xs);
            dtype = y.dtype;
            const dy = empty(y.shape, y.dtype === "f16" ? "f16" : "f32"); // gradients are fp16, too
            copy(constant(Float32Array.from(new Float16Array(randomArray(y.size, 77))), y.shape), dy);
            const dxs = grad(y, xs, dy);
            return { y, ...Object.fromEntries(dxs.map((dx, i) => [`d${i}`, dx])) } as Record<string, Tensor>;
          })).prepare();
        program.run(
          Object.fromEntries(fp16.map((h, i) => [`x${i}`, stored(i) ? bits(h) : Float32Array.from(h)])),
        );
        const results: Record<string, Float32Array> = {};
        for (const [key, t] of Object.entries(program.outputs)) results[key] = await program.read(t);
        program.destroy();
        if (precision === "f16" && !["softmax", "mean"].includes(name)) {
          assertEquals(dtype, single ? "f32" : "f16", name);
        }
        return results;
      };
      const expected = await run("f32"), got = await run("f16");
      for (const key of Object.keys(expected)) {
        const error = relativeError(got[key] as Float32Array, expected[key] as Float32Array);
        assert(error < 1.5e-3, `${name}, ${key}, profile ${profile}: relative error ${error}`);
      }
    }
  });
}

Deno.test("sums of fp16 gradients are rounded sums", async () => {
  await testDevice();
  const a = new Float16Array(randomArray(24, 1)), b = new Float16Array(randomArray(24, 2));
  const inputs = { a: input([2, 12], "f16"), b: input([2, 12], "f16") };
  const program = await capture("sum", inputs, ({ a, b }) => {
    const y = empty([2, 12], "f16");
    sumInto(a, b, y);
    return { y };
  }).prepare();
  program.run({ a: bits(a), b: bits(b) });
  const got = await program.read(program.outputs.y);
  assertEquals([...got], [...Float16Array.from(a, (x, i) => x + (b[i] as number))]);
  program.destroy();
});

Deno.test("fp16 GEMMs have the same bits from textures and from buffers, down to the smallest fp16 numbers", async () => {
  await testDevice("cpu");
  const a = bits(
    new Float16Array(Float32Array.from({ length: 40 * 24 }, (_, i) => Math.sin(i) * 2 ** -(i % 28))),
  );
  const b = bits(
    new Float16Array(Float32Array.from({ length: 20 * 24 }, (_, i) => Math.cos(i) * 2 ** (i % 12))),
  );
  const both: Float32Array[] = [];
  for (const staging of [true, false]) {
    device().staging = staging;
    try {
      const program = await capture(
        "fp16",
        { a: input([40, 24], "f16"), b: input([20, 24], "f16") },
        ({ a, b }) => {
          return { y: matmul(a, b, { transposeB: true }) };
        },
      ).prepare();
      const textures = program.plan.launches.some(({ kernel }) =>
        /texture_storage_2d<rg32uint/.test(kernel.wgsl)
      );
      assertEquals(textures, staging);
      program.run({ a, b });
      both.push(await program.read(program.outputs.y));
      program.destroy();
    } finally {
      device().staging = true;
    }
  }
  assertEquals(both[0], both[1]);
});
