// Matmuls and convolutions of fp16 numbers by subgroup matrices against loops in f64, within the rounding of their sums.

import { assert, assertEquals } from "@std/assert";
import { capture } from "../../src/gpu/program.ts";
import { within } from "../../src/gpu/scope.ts";
import { ParameterSet } from "../../src/nn/parameter_set.ts";
import { conv2d } from "../../src/ops/conv.ts";
import { scale } from "../../src/ops/math.ts";
import { matmul } from "../../src/ops/matmul.ts";
import { grad } from "../../src/tensor/autograd.ts";
import { constant, input, type Precision, type Shape, type Tensor } from "../../src/tensor/tensor.ts";
import { refreshWorkingCopies } from "../../src/train/optimizer.ts";
import { randomArray, testDevice } from "./check.ts";
import { size } from "./reference.ts";

/** Rounding of an fp16 number; of one addition in fp32, by a GPU that truncates. */
const U16 = 2 ** -11, U32 = 2 ** -23;

/** y and the gradients of its inputs, for the output gradient dy, by loops in f64. */
export type Reference = (x: Float64Array[], dy: Float64Array) => Float64Array[];

export interface GemmCheck {
  fn: (...x: Tensor[]) => Tensor;
  shapes: readonly Shape[];
  reference: Reference;
  /** Terms of the longest sum, the addition of a bias included. */
  terms: number;
}

/**
 * GemmCheck of fp16 numbers are exact in fp32, so that each sum has only the rounding of its additions, at most
 * terms U32 sum |a b|, and that of what is stored in fp16, U16 |y| and half the smallest subnormal.
 */
export async function checkGemms(
  { fn, shapes, reference, terms }: GemmCheck,
  { gradients = true, launches }: { gradients?: boolean; launches?: number } = {},
): Promise<void> {
  await testDevice("matrix");
  const x = shapes.map((shape, i) => new Float16Array(randomArray(size(shape), i + 1)));
  let dyShape: Shape = [];
  const inputs = Object.fromEntries(shapes.map((shape, i) => [`x${i}`, input(shape, "f16")]));
  const body = (tensors: Record<string, Tensor>, dy?: Tensor) => {
    const xs = shapes.map((_, i) => Object.assign(tensors[`x${i}`] as Tensor, { requiresGrad: true }));
    const y = fn(...xs);
    dyShape = y.shape;
    const dxs = dy && gradients ? grad(y, xs, dy) : [];
    return { y, ...Object.fromEntries(dxs.map((dx, i) => [`d${i}`, dx])) } as Record<string, Tensor>;
  };
  within({ precision: "f16" }, () => capture("shape", inputs, (t) => body(t)));
  const dy = new Float16Array(randomArray(size(dyShape), 99));
  const program = await within(
    { precision: "f16" },
    () => capture("gemms", { ...inputs, dy: input(dyShape, "f16") }, (t) => body(t, t.dy)),
  ).prepare();
  try {
    const used = program.plan.launches.filter((l) => l.kernel.entry === "gemm");
    assert(used.every((l) => l.kernel.wgsl.includes("subgroupMatrix")), "every GEMM uses matrices");
    if (launches !== undefined) assertEquals(program.plan.launches.length, launches);
    const bits = (values: Float16Array) => new Uint16Array(values.buffer);
    const data = { ...Object.fromEntries(x.map((v, i) => [`x${i}`, bits(v)])), dy: bits(dy) };
    const run = async () => {
      program.run(data);
      const all: Float32Array[] = [];
      for (const output of Object.values(program.outputs)) all.push(await program.read(output));
      return all;
    };
    const got = await run();
    // Not by assertEquals, which compares texts of unequal arrays for minutes.
    (await run()).forEach((again, i) =>
      again.forEach((v, j) =>
        assert(Object.is(v, got[i]?.[j]), `output ${i}, element ${j} is ${v} in a second run`)
      )
    );
    const wide = x.map((v) => Float64Array.from(v)), absolute = wide.map((v) => v.map(Math.abs));
    const expected = reference(wide, Float64Array.from(dy));
    const sums = reference(absolute, Float64Array.from(dy).map(Math.abs));
    const types = Object.values(program.outputs).map(({ dtype }) => dtype);
    got.forEach((values, i) => {
      const of = expected[i] as Float64Array, most = sums[i] as Float64Array;
      assertEquals(values.length, of.length);
      values.forEach((v, j) => {
        const e = of[j] as number, stored = types[i] === "f16" ? U16 * Math.abs(e) + 2 ** -25 : 0;
        const bound = terms * U32 * (most[j] as number) * (1 + U16) + stored * (1 + U16);
        assert(Math.abs(v - e) <= bound, `output ${i}, element ${j}: ${v} instead of ${e}, bound ${bound}`);
      });
    });
  } finally {
    program.destroy();
  }
}

/** Batched A B^T and the like, and gradients. */
export function matmuls(
  count: number,
  [M, N, K]: readonly [number, number, number],
  { transposeA = false, transposeB = false, alpha = 1 },
): GemmCheck {
  return {
    fn: (a, b) => matmul(a, b, { transposeA, transposeB, alpha }),
    shapes: [[count, ...(transposeA ? [K, M] : [M, K])], [count, ...(transposeB ? [N, K] : [K, N])]],
    terms: Math.max(M, N, K) + 1,
    reference: ([a, b], dy) => {
      const [y, da, db] = [dy, a, b].map((v) => new Float64Array((v as Float64Array).length)) as [
        Float64Array,
        Float64Array,
        Float64Array,
      ];
      for (let z = 0; z < count; z++) {
        for (let m = 0; m < M; m++) {
          for (let n = 0; n < N; n++) {
            for (let k = 0; k < K; k++) {
              const i = z * M * K + (transposeA ? k * M + m : m * K + k);
              const j = z * K * N + (transposeB ? n * K + k : k * N + n);
              const o = (z * M + m) * N + n;
              y[o]! += alpha * a![i]! * b![j]!;
              da[i]! += alpha * dy[o]! * b![j]!;
              db[j]! += alpha * dy[o]! * a![i]!;
            }
          }
        }
      }
      return [y, da, db];
    },
  };
}

/** x [B, H, W, C] and w [Co, k, k, C] with padding 1. */
export function convolutions(
  [B, H, W, C]: readonly [number, number, number, number],
  Co: number,
  k: number,
  stride: number,
) {
  const Ho = Math.floor((H + 2 - k) / stride) + 1, Wo = Math.floor((W + 2 - k) / stride) + 1;
  return {
    fn: (x, w) => conv2d(x, w, undefined, { padding: 1, stride }),
    shapes: [[B, H, W, C], [Co, k, k, C]],
    terms: Math.max(k * k * C, k * k * Co, B * Ho * Wo) + 1,
    reference: ([x, w], dy) => {
      const [y, dx, dw] = [dy, x, w].map((v) => new Float64Array((v as Float64Array).length)) as [
        Float64Array,
        Float64Array,
        Float64Array,
      ];
      for (let pixel = 0; pixel < B * Ho * Wo; pixel++) {
        const [b, oy, ox] = [Math.floor(pixel / (Ho * Wo)), Math.floor(pixel / Wo) % Ho, pixel % Wo];
        for (let tap = 0; tap < k * k; tap++) {
          const iy = oy * stride + Math.floor(tap / k) - 1, ix = ox * stride + tap % k - 1;
          if (iy < 0 || ix < 0 || iy >= H || ix >= W) continue;
          for (let co = 0; co < Co; co++) {
            for (let c = 0; c < C; c++) {
              const i = ((b * H + iy) * W + ix) * C + c, j = (co * k * k + tap) * C + c, o = pixel * Co + co;
              y[o]! += x![i]! * w![j]!;
              dx[i]! += dy[o]! * w![j]!;
              dw[j]! += dy[o]! * x![i]!;
            }
          }
        }
      }
      return [y, dx, dw];
    },
  } satisfies GemmCheck;
}

/** A model, and what of it is differentiated. */
export interface Model {
  model: object;
  forward: (...x: Tensor[]) => Tensor;
}

/** y and the gradients of inputs and parameters, which are random; GEMMs of fp16 run by matrices. */
export async function blockGradients(make: () => Model, shapes: readonly Shape[], precision: Precision) {
  await testDevice("matrix");
  const { model, forward } = make(), set = new ParameterSet("block", model, precision);
  [...set.tensors].forEach(([name, { storage, size }], i) =>
    storage.write(randomArray(size, 50 + i).map((v) => /norm\d?\.weight/.test(name) ? 1 + 0.1 * v : 0.2 * v))
  );
  await refreshWorkingCopies([set]);
  const inputs = Object.fromEntries(shapes.map((shape, i) => [`x${i}`, input(shape)]));
  const program = await within({ precision }, () =>
    capture("block", inputs, (t) => {
      const xs = shapes.map((_, i) => Object.assign(t[`x${i}`] as Tensor, { requiresGrad: true }));
      const y = forward(...xs.map((x) => scale(x, 1))), leaves = [...xs, ...set.list]; // scaled, they are activations
      const dy = scale(constant(randomArray(y.size, 99), y.shape), 1);
      const names = [...xs.map((_, i) => `dx${i}`), ...set.tensors.keys()];
      return {
        y,
        ...Object.fromEntries(grad(y, leaves, dy).map((d, i) => [names[i] as string, d])),
      } as Record<
        string,
        Tensor
      >;
    })).prepare();
  const gemms = program.plan.launches.filter(({ kernel }) => kernel.entry === "gemm");
  assertEquals(
    gemms.filter(({ kernel }) => kernel.wgsl.includes("subgroupMatrix")).length > gemms.length / 2,
    precision === "f16",
  );
  program.run(Object.fromEntries(shapes.map((shape, i) => [`x${i}`, randomArray(size(shape), i + 1)])));
  const results = new Map<string, Float32Array>();
  for (const [key, output] of Object.entries(program.outputs)) results.set(key, await program.read(output));
  program.destroy();
  set.destroy();
  return results;
}
