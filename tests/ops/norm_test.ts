// Layer, RMS, group and batch norm against two-pass loops.

import { assert, assertEquals, assertThrows } from "@std/assert";
import { grad } from "../../src/tensor/autograd.ts";
import { ShapeError } from "../../src/errors.ts";
import { capture } from "../../src/gpu/program.ts";
import { batchNorm, groupNorm, layerNorm, rmsNorm } from "../../src/ops/norm.ts";
import { sum } from "../../src/ops/reduce.ts";
import { input, readTensor, type Tensor, variable } from "../../src/tensor/tensor.ts";
import { checkOp, evaluate, PROFILES, randomArray, relativeError, testDevice } from "../helpers/check.ts";
import { at, build, type Nd } from "../helpers/reference.ts";

const rows = (x: Nd) => x.data.length / (x.shape.at(-1) as number);

function rowReference(rms: boolean, eps: number) {
  return (x: Nd, w?: Nd, b?: Nd): Nd => {
    const C = x.shape.at(-1) as number;
    const y = new Float64Array(x.data.length);
    for (let r = 0; r < rows(x); r++) {
      const row = x.data.subarray(r * C, (r + 1) * C);
      const mean = rms ? 0 : row.reduce((s, v) => s + v, 0) / C;
      const variance = row.reduce((s, v) => s + (v - mean) ** 2, 0) / C;
      row.forEach((v, c) =>
        y[r * C + c] = (v - mean) / Math.sqrt(variance + eps) * (w ? at(w, c) : 1) + (b ? at(b, c) : 0)
      );
    }
    return { shape: x.shape, data: y };
  };
}

const SHAPES = [[3, 5], [2, 7, 96], [40, 3], [301, 64], [9, 768], [1100, 8]];

Deno.test("layerNorm() and its gradients match the reference", async () => {
  await checkOp({
    op: (x, w, b) => layerNorm(x, w, b, 1e-5),
    reference: rowReference(false, 1e-5),
    shapes: SHAPES.map((s) => [s, [s.at(-1) as number], [s.at(-1) as number]]),
    wrong: [[[2, 4], [3], [4]], [[2, 4], [4], [3]], [[2, 4], [2, 2], [4]]],
  });
});

Deno.test("layerNorm() of single elements is the bias, and its gradient is within rounding of zero", async () => {
  await checkOp({
    op: (x, w, b) => layerNorm(x, w, b, 1e-5),
    reference: rowReference(false, 1e-5),
    shapes: [[[4, 1], [1], [1]]],
    // dx is r (g - g) with r = 316 and g up to 2.3: half an ulp of g, where an adapter merges a product with a difference,
    // is 4e-5, of the 1e-2 that a gradient of zero is held against.
    gradientTolerance: 1e-2,
  });
});

Deno.test("rmsNorm() and its gradients match the reference", async () => {
  await checkOp({
    op: (x, w) => rmsNorm(x, w, 1e-6),
    reference: rowReference(true, 1e-6),
    shapes: SHAPES.map((s) => [s, [s.at(-1) as number]]),
    wrong: [[[2, 4], [3]]],
  });
});

Deno.test("gradients of norms of one or two elements, which cancel, are within rounding of zero", async () => {
  const tolerances = { gradientTolerance: 1e-4 };
  const layer = rowReference(false, 1e-5), rms = rowReference(true, 1e-6);
  await checkOp({
    op: (x, w, b) => layerNorm(x, w, b, 1e-5),
    reference: layer,
    shapes: [[[1, 2], [2], [2]]],
    ...tolerances,
  });
  const shapes = [[[1, 2], [2]], [[4, 1], [1]]];
  await checkOp({ op: (x, w) => rmsNorm(x, w, 1e-6), reference: rms, shapes, ...tolerances });
});

Deno.test("layerNorm() and rmsNorm() need no weight, layerNorm() no bias", async () => {
  const shapes = [[3, 5], [70, 96]];
  const alone = shapes.map((s) => [s]), weighted = shapes.map((s) => [s, [s[1] as number]]);
  const layer = rowReference(false, 1e-6);
  await checkOp({ op: (x) => layerNorm(x), reference: (x) => layer(x), shapes: alone });
  await checkOp({ op: (x, w) => layerNorm(x, w), reference: layer, shapes: weighted });
  const rms = rowReference(true, 1e-6);
  await checkOp({ op: (x) => rmsNorm(x), reference: (x) => rms(x), shapes: alone });
  assertThrows(
    () => capture("t", {}, () => ({ y: layerNorm(input([2, 4]), undefined, input([4])) })),
    ShapeError,
    "a bias needs a weight",
  );
});

Deno.test("a constant row or group becomes its bias exactly, and its gradient is finite", async () => {
  for (const profile of PROFILES) {
    await testDevice(profile);
    for (const C of [3, 96]) {
      const shape = [1, 3, 3, C], size = 9 * C;
      const { y, z, dy, dz } = await evaluate({
        x: { shape, data: new Float32Array(size).fill(1000.1) },
        w: { shape: [C], data: randomArray(C, 1) },
        b: { shape: [C], data: randomArray(C, 2) },
        up: { shape, data: randomArray(size, 3) },
      }, (t) => {
        const { x, w, b, up } = t as Record<"x" | "w" | "b" | "up", Tensor>;
        x.requiresGrad = true;
        const y = layerNorm(x, w, b), z = groupNorm(x, C / 3, w, b);
        return { y, z, dy: grad(y, [x], up)[0] as Tensor, dz: grad(z, [x], up)[0] as Tensor };
      });
      const bias = randomArray(C, 2);
      assertEquals(y, y.map((_, i) => bias[i % C] as number));
      assertEquals(z, z.map((_, i) => bias[i % C] as number));
      assert([...dy, ...dz].every(Number.isFinite));
    }
  }
});

Deno.test("an outlier at the start of a row does not spoil its variance", async () => {
  for (const profile of PROFILES) {
    await testDevice(profile);
    const shape = [9, 768], data = randomArray(9 * 768, 4);
    for (let r = 0; r < 9; r++) data[r * 768] = 10 ** r;
    const { y } = await evaluate({ x: { shape, data } }, ({ x }) => ({ y: layerNorm(x as Tensor) }));
    const expected = rowReference(false, 1e-6)({ shape, data: Float64Array.from(data) }).data;
    for (let r = 0; r < 9; r++) {
      const row = [r * 768, (r + 1) * 768] as const;
      assert(relativeError(y.subarray(...row), expected.subarray(...row)) < 1e-5, `row ${r}`);
    }
  }
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
      const [shape, groups] of [
        [[2, 3, 4, 8], 2],
        [[1, 2, 2, 6], 3],
        [[2, 9, 9, 16], 4],
        [
          [3, 5, 1, 4],
          4,
        ],
        [[2, 32, 32, 16], 8],
        [[3, 4, 4, 96], 16],
        [[2, 1, 1, 6], 2],
        [[1, 67, 1, 3], 3],
        [[8, 5, 5, 16], 4], // many small groups: of one vector, of two, of three elements
        [[5, 3, 3, 64], 8],
        [[11, 3, 3, 9], 3],
      ] as const
    ) {
      const C = shape[3];
      await checkOp({
        op: (x, w, b) => groupNorm(x, groups, w, b, 1e-6, { silu }),
        reference: groupReference(groups, silu, 1e-6),
        shapes: [[shape, [C], [C]]],
        wrong: [[[2, 3, 3, 5], [5], [5]], [shape, [C + 1], [C]]],
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
  });
});

Deno.test("groupNorm() with SiLU stays finite far from zero", async () => {
  for (const profile of PROFILES) {
    await testDevice(profile);
    const shape = [1, 4, 4, 8], data = randomArray(128, 1);
    const { y, dx } = await evaluate({
      x: { shape, data },
      w: { shape: [8], data: new Float32Array(8).fill(1e4) },
      b: { shape: [8], data: new Float32Array(8) },
    }, (t) => {
      const { x, w, b } = t as Record<"x" | "w" | "b", Tensor>;
      x.requiresGrad = true;
      const y = groupNorm(x, 2, w, b, 1e-6, { silu: true });
      return { y, dx: grad(sum(y), [x])[0] as Tensor };
    });
    const ones = { shape: [8], data: new Float64Array(8).fill(1e4) };
    const zeros = { shape: [8], data: new Float64Array(8) };
    const x = { shape, data: Float64Array.from(data) };
    assert(relativeError(y, groupReference(2, true, 1e-6)(x, ones, zeros).data) < 1e-5);
    assert(dx.every(Number.isFinite));
  }
});

Deno.test("batchNorm() with given statistics and its gradients match the reference", async () => {
  await checkOp({
    op: (x, w, b, mean, variance) => batchNorm(x, w, b, { training: { mean, variance } }),
    reference: (x, w, b, mean, variance) =>
      build(x.shape, (...index) => {
        const c = index.at(-1) as number;
        return (at(x, ...index) - at(mean, c)) / Math.sqrt(at(variance, c) + 1e-5) * at(w, c) + at(b, c);
      }),
    shapes: [[[2, 3, 4, 8], [8], [8], [8], [8]], [[4, 5, 5, 3], [3], [3], [3], [3]]],
    wrong: [[[2, 3, 4, 8], [8], [8], [1], [8]], [[2, 3, 4, 8], [8], [8], [8], [4]]],
    prepare: (arrays) => arrays[4]?.forEach((v, i, a) => a[i] = Math.abs(v) + 0.2),
    differentiable: [true, true, true, false, false],
  });
});

Deno.test("batchNorm() updates its running statistics in place at every step", async () => {
  for (const profile of PROFILES) {
    await testDevice(profile);
    const C = 3, rows = 50, mean = variable([C]), variance = variable([C]);
    const program = await capture("t", { x: input([rows, C]), w: input([C]), b: input([C]) }, (t) => {
      batchNorm(t.x, t.w, t.b, { training: true, running: { mean, variance, momentum: 0.25 } });
      return {};
    }).prepare();
    const expected = { mean: [0, 0, 0], variance: [0, 0, 0] };
    for (let step = 0; step < 3; step++) {
      const x = randomArray(rows * C, step + 1).map((v) => v + 10);
      program.run({ x });
      for (let c = 0; c < C; c++) {
        const column = Array.from({ length: rows }, (_, r) => x[r * C + c] as number);
        const m = column.reduce((s, v) => s + v, 0) / rows;
        const v = column.reduce((s, v) => s + (v - m) ** 2, 0) / (rows - 1);
        expected.mean[c] = 0.75 * (expected.mean[c] as number) + 0.25 * m;
        expected.variance[c] = 0.75 * (expected.variance[c] as number) + 0.25 * v;
      }
    }
    assert(relativeError(await readTensor(mean), expected.mean) < 1e-6);
    assert(relativeError(await readTensor(variance), expected.variance) < 1e-5);
    program.destroy();
  }
});

Deno.test("batchNorm() updates its running statistics as PyTorch does, and uses them in evaluation", async () => {
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

Deno.test("on a software adapter a small norm and all its gradients take few launches", async () => {
  await testDevice("cpu");
  const launches = (shape: number[], norm: (x: Tensor, w: Tensor, b: Tensor) => Tensor) => {
    const C = shape.at(-1) as number;
    const of = { x: input(shape), w: input([C]), b: input([C]), up: input(shape) };
    return capture("t", of, ({ x, w, b, up }) => {
      for (const t of [x, w, b]) t.requiresGrad = true;
      const y = norm(x, w, b), [dx, dw, db] = grad(y, [x, w, b], up) as [Tensor, Tensor, Tensor];
      return { y, dx, dw, db };
    }).plan.launches.map(({ kernel }) => kernel.entry);
  };
  const group = (x: Tensor, w: Tensor, b: Tensor) => groupNorm(x, 4, w, b);
  assertEquals(launches([136, 96], layerNorm), ["norm", "norm_backward_x", "norm_backward_weight"]);
  assertEquals(launches([513, 96], layerNorm).length, 5);
  assertEquals(
    launches([8, 4, 4, 64], group),
    ["group_moments", "group_apply", "group_backward_moments", "group_backward_x"],
  );
  assertEquals(launches([2, 4, 4, 64], group).length, 6);
});

Deno.test("norms stay accurate when the mean is a thousand times the deviation", async () => {
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
    assert(relativeError(layer, rowReference(false, 1e-6)(x, w, b).data) < 1e-4);
    assert(relativeError(group, groupReference(2, false, 1e-6)(x, w, b).data) < 1e-4);
  }
});
