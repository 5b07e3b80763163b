// Layer, RMS, group and batch norm against two-pass loops.

import { assert } from "@std/assert";
import { batchNorm, groupNorm, layerNorm, rmsNorm } from "../src/ops/norm.ts";
import type { Tensor } from "../src/tensor.ts";
import { checkOp, evaluate, PROFILES, randomArray, relativeError, testDevice } from "./check.ts";
import { at, build, type Nd } from "./reference.ts";

const rows = (x: Nd) => x.data.length / (x.shape.at(-1) as number);

function rowReference(rms: boolean, eps: number) {
  return (x: Nd, w: Nd, b?: Nd): Nd => {
    const C = x.shape.at(-1) as number;
    const y = new Float64Array(x.data.length);
    for (let r = 0; r < rows(x); r++) {
      const row = x.data.subarray(r * C, (r + 1) * C);
      const mean = rms ? 0 : row.reduce((s, v) => s + v, 0) / C;
      const variance = row.reduce((s, v) => s + (v - mean) ** 2, 0) / C;
      row.forEach((v, c) =>
        y[r * C + c] = (v - mean) / Math.sqrt(variance + eps) * at(w, c) + (b ? at(b, c) : 0)
      );
    }
    return { shape: x.shape, data: y };
  };
}

const SHAPES = [[3, 5], [2, 7, 96], [1, 2], [40, 3], [300, 64], [9, 768]];

Deno.test("layerNorm() and its gradients match the reference", async () => {
  await checkOp({
    op: (x, w, b) => layerNorm(x, w, b, 1e-5),
    reference: rowReference(false, 1e-5),
    shapes: SHAPES.map((s) => [s, [s.at(-1) as number], [s.at(-1) as number]]),
    wrong: [[[2, 4], [3], [4]], [[2, 4], [4], [3]]],
    tolerance: 5e-6,
    gradientTolerance: 1e-4, // rows of one or two elements cancel almost entirely
  });
});

Deno.test("rmsNorm() and its gradients match the reference", async () => {
  await checkOp({
    op: (x, w) => rmsNorm(x, w, 1e-6),
    reference: rowReference(true, 1e-6),
    shapes: [...SHAPES, [4, 1]].map((s) => [s, [s.at(-1) as number]]),
    wrong: [[[2, 4], [3]]],
    tolerance: 5e-6,
    gradientTolerance: 1e-4, // rows of one or two elements cancel almost entirely
  });
});

function groupReference(groups: number, silu: boolean, eps: number) {
  return (x: Nd, w: Nd, b: Nd): Nd => {
    const B = x.shape[0] as number,
      C = x.shape.at(-1) as number,
      P = x.data.length / B / C,
      width = C / groups;
    const y = new Float64Array(x.data.length);
    for (let n = 0; n < B; n++) {
      for (let g = 0; g < groups; g++) {
        const indices: number[] = [];
        for (let p = 0; p < P; p++) {
          for (let c = 0; c < width; c++) indices.push((n * P + p) * C + g * width + c);
        }
        const mean = indices.reduce((s, i) => s + (x.data[i] as number), 0) / indices.length;
        const variance = indices.reduce((s, i) => s + ((x.data[i] as number) - mean) ** 2, 0) /
          indices.length;
        for (const i of indices) {
          const z = ((x.data[i] as number) - mean) / Math.sqrt(variance + eps) * at(w, i % C) + at(b, i % C);
          y[i] = silu ? z / (1 + Math.exp(-z)) : z;
        }
      }
    }
    return { shape: x.shape, data: y };
  };
}

for (const silu of [false, true]) {
  Deno.test(`groupNorm() ${silu ? "with SiLU " : ""}and its gradients match the reference`, async () => {
    for (
      const [shape, groups] of [[[2, 3, 4, 8], 2], [[1, 2, 2, 6], 3], [[2, 9, 9, 16], 4], [
        [3, 5, 1, 4],
        4,
      ]] as const
    ) {
      const C = shape[3];
      await checkOp({
        op: (x, w, b) => groupNorm(x, groups, w, b, 1e-6, { silu }),
        reference: groupReference(groups, silu, 1e-6),
        shapes: [[shape, [C], [C]]],
        wrong: [[[2, 3, 3, 5], [5], [5]], [shape, [C + 1], [C]]],
        tolerance: 1e-5,
        gradientTolerance: 5e-5,
      });
    }
  });
}

Deno.test("batchNorm() with batch statistics and its gradients match the reference", async () => {
  await checkOp({
    op: (x, w, b) => batchNorm(x, w, b, { eps: 1e-5, training: true }),
    reference: (x, w, b) => {
      const flat = {
        shape: [1, x.data.length / (x.shape.at(-1) as number), x.shape.at(-1) as number],
        data: x.data,
      };
      return { shape: x.shape, data: groupReference(x.shape.at(-1) as number, false, 1e-5)(flat, w, b).data };
    },
    shapes: [[[2, 3, 4, 8], [8], [8]], [[4, 5, 5, 3], [3], [3]]],
    tolerance: 1e-5,
    gradientTolerance: 5e-5,
  });
});

Deno.test("batchNorm() updates its running statistics as PyTorch does and uses them when told", async () => {
  for (const profile of PROFILES) {
    await testDevice(profile);
    const shape = [2, 3, 3, 4],
      data = randomArray(72, 1),
      ones = new Float32Array(4).fill(1),
      zeros = new Float32Array(4);
    const results = await evaluate(
      {
        x: { shape, data },
        w: { shape: [4], data: ones },
        b: { shape: [4], data: zeros },
        m: { shape: [4], data: zeros },
        v: { shape: [4], data: ones },
      },
      (t) => {
        const { x, w, b, m, v } = t as Record<"x" | "w" | "b" | "m" | "v", Tensor>;
        batchNorm(x, w, b, { training: true, running: { mean: m, variance: v, momentum: 0.1 } });
        const y = batchNorm(x, w, b, { training: { mean: m, variance: v } });
        return { m, v, y };
      },
    );
    const expected = [0, 1, 2, 3].map((c) => {
      const column = Array.from({ length: 18 }, (_, i) => data[i * 4 + c] as number);
      const mean = column.reduce((s, x) => s + x, 0) / 18;
      const unbiased = column.reduce((s, x) => s + (x - mean) ** 2, 0) / 17;
      return [0.1 * mean, 0.9 + 0.1 * unbiased] as const;
    });
    assert(relativeError(results.m, expected.map(([m]) => m)) < 1e-5);
    assert(relativeError(results.v, expected.map(([, v]) => v)) < 1e-5);
    const y = build(shape, (...[n, i, j, c]) => {
      const [m, v] = expected[c as number] as [number, number];
      return ((data[
        (((n as number) * 3 + (i as number)) * 3 + (j as number)) * 4 + (c as number)
      ] as number) - m) / Math.sqrt(v + 1e-5);
    });
    assert(relativeError(results.y, y.data) < 1e-5);
  }
});

Deno.test("norms stay accurate when the mean is a thousand times the spread", async () => {
  for (const profile of PROFILES) {
    await testDevice(profile);
    const data = randomArray(2 * 8 * 8 * 8, 5).map((v) => v + 1000);
    const one = { shape: [8], data: new Float32Array(8).fill(1) },
      zero = { shape: [8], data: new Float32Array(8) };
    const { layer, group } = await evaluate({ x: { shape: [2, 8, 8, 8], data }, one, zero }, (t) => {
      const { x, one, zero } = t as Record<"x" | "one" | "zero", Tensor>;
      return { layer: layerNorm(x, one, zero), group: groupNorm(x, 2, one, zero) };
    });
    const x: Nd = { shape: [2, 8, 8, 8], data: Float64Array.from(data) };
    const w: Nd = { shape: [8], data: new Float64Array(8).fill(1) },
      b: Nd = { shape: [8], data: new Float64Array(8) };
    assert(relativeError(layer, rowReference(false, 1e-6)(x, w, b).data) < 1e-3);
    assert(relativeError(group, groupReference(2, false, 1e-6)(x, w, b).data) < 1e-3);
  }
});
