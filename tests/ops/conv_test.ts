// Convolutions of every kind that tok's models use against f64 loops.

import { conv2d, type ConvOptions } from "../../src/ops/conv.ts";
import { assert } from "@std/assert";
import { grad } from "../../src/tensor/autograd.ts";
import { usesKxInner } from "../../kernels/gemm.ts";
import { checkOp, evaluate, randomArray, testDevice } from "../helpers/check.ts";
import type { Tensor } from "../../src/tensor/tensor.ts";
import { at, build, type Nd } from "../helpers/reference.ts";

function reference({ stride = 1, padding = 0 }: ConvOptions) {
  const [top, bottom, left, right] = typeof padding === "number"
    ? [padding, padding, padding, padding]
    : padding;
  return (x: Nd, w: Nd, b?: Nd): Nd => {
    const [B, H, W, C] = x.shape as [number, number, number, number];
    const [Co, KH, KW] = w.shape as [number, number, number, number];
    const Ho = Math.floor((H + top + bottom - KH) / stride) + 1,
      Wo = Math.floor((W + left + right - KW) / stride) + 1;
    return build([B, Ho, Wo, Co], (...[n, oy, ox, o]) => {
      let sum = b ? at(b, o as number) : 0;
      for (let ky = 0; ky < KH; ky++) {
        for (let kx = 0; kx < KW; kx++) {
          const iy = (oy as number) * stride + ky - top, ix = (ox as number) * stride + kx - left;
          if (iy < 0 || ix < 0 || iy >= H || ix >= W) continue;
          // By offsets, since this loop takes most of the time of these tests.
          const p = (((n as number) * H + iy) * W + ix) * C, q = (((o as number) * KH + ky) * KW + kx) * C;
          for (let c = 0; c < C; c++) sum += (x.data[p + c] as number) * (w.data[q + c] as number);
        }
      }
      return sum;
    });
  };
}

const CASES: [string, ConvOptions, number[][][]][] = [
  ["1x1", {}, [[[1, 1, 1, 1], [1, 1, 1, 1], [1]], [[2, 5, 3, 8], [12, 1, 1, 8], [12]]]],
  ["3x3 with padding 1", { padding: 1 }, [
    [[2, 7, 5, 20], [36, 3, 3, 20], [36]],
    [[1, 6, 6, 3], [8, 3, 3, 3], [8]],
    [[2, 6, 9, 16], [3, 3, 3, 16], [3]],
    [[3, 20, 20, 4], [16, 3, 3, 4], [16]],
    [[3, 5, 4, 8], [20, 3, 3, 8], [20]], // a tile of pixels spans rows of the map and images
    [[1, 3, 32, 16], [4, 3, 3, 16], [4]],
  ]],
  ["1x7 with padding at the sides", { padding: [0, 0, 3, 3] }, [[[2, 3, 8, 4], [8, 1, 7, 4], [8]]]],
  ["3x3 padded unevenly", { padding: [2, 0, 0, 3] }, [
    [[2, 4, 7, 8], [8, 3, 3, 8], [8]], // 8 columns of output, 7 of input
    [[2, 4, 8, 8], [8, 3, 3, 8], [8]], // 9 and 8
  ]],
  ["4x4 with stride 2 and padding 1", { stride: 2, padding: 1 }, [[[2, 8, 8, 3], [8, 4, 4, 3], [8]], [
    [1, 9, 7, 8],
    [20, 4, 4, 8],
    [20],
  ]]],
  ["3x3 with stride 2 and padding only below and right", { stride: 2, padding: [0, 1, 0, 1] }, [[
    [2, 6, 6, 8],
    [8, 3, 3, 8],
    [8],
  ]]],
  ["3x3 of channels that fill K-tiles, with separate taps", { padding: 1 }, [
    [[1, 6, 6, 32], [8, 3, 3, 32], [8]],
    [[1, 5, 3, 16], [32, 3, 3, 16], [32]],
  ]],
  ["3x3 with stride 2 of channels that fill K-tiles", { stride: 2, padding: 1 }, [[
    [1, 5, 6, 16],
    [32, 3, 3, 16],
    [32],
  ]]],
  ["8x8 patches", { stride: 8 }, [[[2, 16, 8, 3], [12, 8, 8, 3], [12]]]],
  ["14x14 patches", { stride: 14 }, [[[1, 14, 28, 3], [5, 14, 14, 3], [5]]]],
];
for (const [name, options, shapes] of CASES) {
  Deno.test(`conv2d() ${name} and its gradients match the reference`, async () => {
    await checkOp({
      op: (x, w, b) => conv2d(x, w, b, options),
      reference: reference(options),
      shapes,
      wrong: [[[1, 4, 4, 3], [2, 3, 3, 4], [2]], [[1, 2, 2, 3], [2, 5, 5, 3], [2]]],
      accumulates: true,
    });
  });
}

Deno.test("a convolution of many channels, with its taps as outer loops, is equal in both profiles", async () => {
  const shapes = { x: [1, 32, 32, 80], w: [64, 3, 3, 80] };
  const conv = { H: 32, W: 32, C: 80, Ho: 32, Wo: 32, Co: 64, KH: 3, KW: 3, stride: 1, top: 1, left: 1 };
  assert(!usesKxInner({ source: { kind: "conv" }, conv, K: 9 * 80 }));
  assert(!usesKxInner({ source: { kind: "conv_dx" }, conv, K: 9 * 64 }));
  const run = async (profile: "cpu" | "gpu") => {
    await testDevice(profile);
    return await evaluate(
      Object.fromEntries(
        Object.entries(shapes).map(([name, shape], i) => [
          name,
          { shape, data: randomArray(shape.reduce((a, b) => a * b, 1), i + 1) },
        ]),
      ),
      (t) => {
        const x = t.x as Tensor, w = t.w as Tensor;
        x.requiresGrad = w.requiresGrad = true;
        const y = conv2d(x, w, undefined, { padding: 1 });
        const [dx, dw] = grad(y, [x, w]) as [Tensor, Tensor];
        return { y, dx, dw };
      },
    );
  };
  const cpu = await run("cpu"), gpu = await run("gpu");
  for (const name of ["y", "dx", "dw"] as const) {
    const a = cpu[name] as Float32Array, b = gpu[name] as Float32Array;
    const scale = Math.max(...b.map(Math.abs));
    assert(scale > 1 && a.every((v, i) => Math.abs(v - (b[i] as number)) < 1e-5 * scale), name);
  }
});
