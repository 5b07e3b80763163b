// Upsampling, pooling and resizing against f64 loops.

import { assert } from "@std/assert";
import { averagePool, maxPool, upsampleNearest2x } from "../../src/ops/pool.ts";
import { resize, resizeTable } from "../../src/ops/resize.ts";
import { checkOp, relativeError } from "../helpers/check.ts";
import { at, build, type Nd } from "../helpers/reference.ts";

Deno.test("upsampleNearest2x() and its gradient match the reference", async () => {
  await checkOp({
    op: upsampleNearest2x,
    reference: (x) => {
      const [B, H, W, C] = x.shape as [number, number, number, number];
      return build(
        [B, 2 * H, 2 * W, C],
        (...[b, i, j, c]) => at(x, b as number, (i as number) >> 1, (j as number) >> 1, c as number),
      );
    },
    shapes: [[[1, 1, 1, 1]], [[2, 3, 5, 8]], [[1, 4, 3, 3]]],
    wrong: [[[2, 3, 4]]],
  });
});

const window =
  (K: number, stride: number, padding: number, f: (values: number[]) => number) => (x: Nd): Nd => {
    const [B, H, W, C] = x.shape as [number, number, number, number];
    const side = (n: number) => Math.floor((n + 2 * padding - K) / stride) + 1;
    return build([B, side(H), side(W), C], (...[b, i, j, c]) => {
      const values: number[] = [];
      for (let ky = 0; ky < K; ky++) {
        for (let kx = 0; kx < K; kx++) {
          const iy = (i as number) * stride + ky - padding, ix = (j as number) * stride + kx - padding;
          if (iy >= 0 && ix >= 0 && iy < H && ix < W) values.push(at(x, b as number, iy, ix, c as number));
        }
      }
      return f(values);
    });
  };

for (const [K, stride, padding] of [[2, 2, 0], [3, 2, 1], [3, 1, 1]] as const) {
  Deno.test(`averagePool() and maxPool() of ${K}x${K}, stride ${stride}, padding ${padding} match the reference`, async () => {
    const shapes = [[[2, 6, 5, 4]], [[1, 3, 3, 3]]];
    const options = { kernel: K, stride, padding };
    await checkOp({
      op: (x) => averagePool(x, options),
      reference: window(K, stride, padding, (v) => v.reduce((s, a) => s + a, 0) / K / K),
      shapes,
      wrong: [[[1, 1, 2]]],
    });
    await checkOp({
      op: (x) => averagePool(x, { ...options, countPadding: false }),
      reference: window(K, stride, padding, (v) => v.reduce((s, a) => s + a, 0) / v.length),
      shapes,
    });
    await checkOp({
      op: (x) => maxPool(x, options),
      reference: window(K, stride, padding, (v) => Math.max(...v)),
      shapes,
    });
  });
}

for (const filter of ["bilinear", "bicubic"] as const) {
  for (const antialias of [false, true]) {
    Deno.test(`resize() ${filter}${antialias ? " with antialias" : ""} and its gradient are matmuls with its tables`, async () => {
      for (const [from, to] of [[[4, 5], [8, 3]], [[7, 7], [5, 16]], [[1, 2], [3, 2]]] as const) {
        const options = { filter, antialias };
        const rows = resizeTable(from[0], to[0], options), columns = resizeTable(from[1], to[1], options);
        await checkOp({
          op: (x) => resize(x, to[0], to[1], options),
          reference: (x) =>
            build([x.shape[0] as number, to[0], to[1], x.shape[3] as number], (...[b, i, j, c]) => {
              let sum = 0;
              for (let y = 0; y < from[0]; y++) {
                for (let z = 0; z < from[1]; z++) {
                  sum += (rows[(i as number) * from[0] + y] as number) *
                    (columns[(j as number) * from[1] + z] as number) *
                    at(x, b as number, y, z, c as number);
                }
              }
              return sum;
            }),
          shapes: [[[2, ...from, 3]], [[1, ...from, 8]]],
          wrong: [[[2, 3]]],
        });
      }
    });
  }
}

// PyTorch 2.13: F.interpolate(torch.arange(5.)[None, None]**2, size, mode=..., antialias=...) along one axis.
const TORCH: {
  cases: [number, "bilinear" | "bicubic", boolean, number[]][];
  scaled: [number, boolean, number[]][];
} = JSON.parse(Deno.readTextFileSync(new URL("../fixtures/resize_torch.json", import.meta.url)));

/** The table applied to squares. */
const squaresOf = (table: Float32Array, size: number) =>
  Array.from(
    { length: size },
    (_, i) => [0, 1, 2, 3, 4].reduce((s, j) => s + (table[i * 5 + j] as number) * j * j, 0),
  );
for (const [size, filter, antialias, expected] of TORCH.cases) {
  Deno.test(`resizeTable() from 5 to ${size}, ${filter}, antialias ${antialias}, gives PyTorch's values`, () => {
    const got = squaresOf(resizeTable(5, size, { filter, antialias }), size);
    assert(relativeError(got, expected) < 2e-6, `${got} against ${expected}`);
  });
}

Deno.test("resizeTable() with an explicit step gives PyTorch's values for a scale_factor", () => {
  for (const [size, antialias, expected] of TORCH.scaled) {
    const got = squaresOf(resizeTable(5, size, { filter: "bicubic", antialias }, 5 / (size + 0.1)), size);
    assert(relativeError(got, expected) < 2e-6, `${size}, ${antialias}: ${got} against ${expected}`);
  }
});
