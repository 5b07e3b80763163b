// Long sums: 100 million elements, gradients over a million pixels. Some drivers end a thread's loops after 65,535
// iterations without an error, and sequential f32 sums lose digits; these tests show both. Operands larger than one binding
// (128 MiB on some adapters) are broadcast from small inputs and never stored.

import { assert, assertEquals } from "@std/assert";
import { grad } from "../../src/tensor/autograd.ts";
import { fill } from "../../src/gpu/memory.ts";
import { capture } from "../../src/gpu/program.ts";
import { Storage } from "../../src/gpu/storage.ts";
import { adamw, hyperVariable, packHyper, progressVariable, squaredNorm } from "../../src/ops/adamw.ts";
import { conv2d } from "../../src/ops/conv.ts";
import { add, square } from "../../src/ops/math.ts";
import { linear } from "../../src/ops/matmul.ts";
import { batchNorm, groupNorm, layerNorm } from "../../src/ops/norm.ts";
import { mean, sum, sumOfSquares } from "../../src/ops/reduce.ts";
import { broadcastTo } from "../../src/ops/layout.ts";
import { crossEntropy, softmax } from "../../src/ops/softmax.ts";
import { constant, readTensor, type Tensor, variable } from "../../src/tensor/tensor.ts";
import { evaluate, PROFILES, randomArray, relativeError, testDevice } from "../helpers/check.ts";

const sumOf = (x: ArrayLike<number>) =>
  Array.prototype.reduce.call(x, (s, v) => (s as number) + (v as number), 0) as number;

/** Largest difference of `got` from what `expected` gives, relative to the root of its mean square. */
function errorOf(got: ArrayLike<number>, expected: ArrayLike<number>): number {
  const scale = Math.sqrt(sumOf(Array.from(expected, (v) => v * v)) / expected.length);
  return relativeError(Array.from(got, (v) => v / scale), Array.from(expected, (v) => v / scale));
}

const named = (tensors: Record<string, [readonly number[], Float32Array]>) =>
  Object.fromEntries(Object.entries(tensors).map(([k, [shape, data]]) => [k, { shape, data }]));

Deno.test("sums, means and squares of 100 million elements are right to 2e-6, and so is the gradient of a bias", async () => {
  const R = 100_000, C = 1000;
  const a = randomArray(R, 1).map((v) => v + 1), b = randomArray(C, 2).map((v) => v + 1);
  const sums = [sumOf(a), sumOf(b)] as const,
    squares = [sumOf(a.map((v) => v * v)), sumOf(b.map((v) => v * v))] as const;
  const all = C * sums[0] + R * sums[1];
  const columns = Float64Array.from(b, (v) => sums[0] + R * v);
  for (const profile of PROFILES) {
    await testDevice(profile);
    const got = await evaluate(named({ a: [[R, 1], a], b: [[C], b] }), ({ a, b }) => {
      const x = () => add(a as Tensor, b as Tensor);
      (b as Tensor).requiresGrad = true;
      return {
        sum: sum(x()),
        mean: mean(x()),
        square: sumOfSquares(x()),
        columns: sum(x(), [0]),
        bias: grad(sum(square(x())), [b as Tensor])[0] as Tensor,
      };
    });
    for (
      const [name, expected] of Object.entries({
        sum: [all],
        mean: [all / R / C],
        square: [C * squares[0] + R * squares[1] + 2 * sums[0] * sums[1]],
        columns,
        bias: columns.map((v) => 2 * v),
      })
    ) {
      const error = errorOf(got[name as keyof typeof got], expected);
      assert(error < 2e-6, `${name} in profile ${profile}: ${error}`);
    }
  }
});

Deno.test("sums of 100 million equal elements, whose rounding errors have one sign, are right to 2e-6", async () => {
  for (const profile of PROFILES) {
    await testDevice(profile);
    for (const value of [1 / 3, Math.PI]) {
      const one = constant(new Float32Array([value]), [1, 1]);
      const got = await evaluate({}, () => {
        const x = () => broadcastTo(one, [100_000, 1000]);
        return { sum: sum(x()), columns: sum(x(), [0]) };
      });
      const exact = Math.fround(value);
      assert(errorOf(got.sum, [1e8 * exact]) < 2e-6, `sum of ${value} in profile ${profile}`);
      assert(errorOf(got.columns, new Float64Array(1000).fill(1e5 * exact)) < 2e-6, `columns, ${profile}`);
    }
  }
});

const N = 25_000_000;

Deno.test("the squared norm of 100 million gradients is right to 2e-6", async () => {
  for (const profile of PROFILES) {
    await testDevice(profile);
    const flat = variable([N]);
    const program = await capture("norm", {}, () => {
      fill(flat, 0.1);
      return { norm2: squaredNorm([flat, flat, flat, flat]) };
    }).prepare();
    program.run();
    const [norm2 = 0] = await program.read(program.outputs.norm2);
    assert(errorOf([norm2], [4 * N * Math.fround(0.1) ** 2]) < 2e-6, `${profile}: ${norm2}`);
    program.destroy();
    flat.storage.destroy();
  }
});

Deno.test("one NaN among 25 million gradients stops the step, wherever it is", async () => {
  for (const profile of PROFILES) {
    await testDevice(profile);
    const few = (value: number) => {
      const flat = variable([1000]);
      flat.storage.write(new Float32Array(1000).fill(value));
      return flat;
    };
    const set = { parameters: few(0), gradients: few(1), m: few(0), v: few(0), lrFactor: 1 };
    const many = variable([N]); // gradients of other parameters
    const places = [N - 1, 0, 9_999_999, 17_171_717];
    const surroundings = places.map((at) => {
      const around = new Storage(256, { persistent: true, label: "around the NaN" });
      around.place(many.storage, Math.floor(4 * at / 256) * 256);
      return around;
    });
    const hyper = hyperVariable(), progress = progressVariable(false);
    hyper.storage.write(
      packHyper({ lr: 0.1, beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0, clip: 0, emaDecay: 0 }),
    );
    const program = await capture("adamw", {}, () => {
      adamw([set], hyper, squaredNorm([set.gradients, many]), progress);
      return { progress };
    }).prepare();
    for (const [i, at] of places.entries()) {
      const around = surroundings[i] as Storage, values = new Float32Array(64);
      values[at % 64] = NaN;
      around.write(values);
      program.run();
      assertEquals([...(await readTensor(progress)).subarray(0, 2)], [0, i + 1], `NaN at ${at}, ${profile}`);
      around.write(new Float32Array(64));
    }
    assert((await readTensor(set.parameters)).every((v) => v === 0), "no parameter changed");
    program.run();
    assertEquals((await readTensor(progress))[0], 1, "without a NaN the step is applied");
    assert((await readTensor(set.parameters)).every((v) => v < 0), "all parameters changed");
    program.destroy();
    for (const t of [set.parameters, set.gradients, set.m, set.v, many, hyper, progress]) t.storage.destroy();
  }
});

Deno.test("gradients of a group norm's weight and bias over a map of 512x512 are right to 2e-6", async () => {
  const P = 512 * 512, C = 8, groups = 2, size = C / groups;
  const x = randomArray(P * C, 5), dy = randomArray(P * C, 6).map((v) => v + 0.2);
  const expected = { dw: new Float64Array(C), db: new Float64Array(C) };
  for (let g = 0; g < groups; g++) {
    let mean = 0, variance = 0;
    for (let p = 0; p < P; p++) {
      for (let c = g * size; c < (g + 1) * size; c++) mean += x[p * C + c] as number;
    }
    mean /= P * size;
    for (let p = 0; p < P; p++) {
      for (let c = g * size; c < (g + 1) * size; c++) variance += ((x[p * C + c] as number) - mean) ** 2;
    }
    const r = 1 / Math.sqrt(variance / (P * size) + 1e-6);
    for (let p = 0; p < P; p++) {
      for (let c = g * size; c < (g + 1) * size; c++) {
        const i = p * C + c;
        expected.dw[c] = (expected.dw[c] as number) + (dy[i] as number) * ((x[i] as number) - mean) * r;
        expected.db[c] = (expected.db[c] as number) + (dy[i] as number);
      }
    }
  }
  for (const profile of PROFILES) {
    await testDevice(profile);
    const inputs = named({
      x: [[1, 512, 512, C], x],
      w: [[C], new Float32Array(C).fill(1)],
      b: [[C], new Float32Array(C)],
      dy: [[1, 512, 512, C], dy],
    });
    const got = await evaluate(inputs, ({ x, w, b, dy }) => {
      const affine = [w, b] as Tensor[];
      for (const t of affine) t.requiresGrad = true;
      const [dw, db] = grad(
        groupNorm(x as Tensor, groups, w as Tensor, b as Tensor),
        affine,
        dy as Tensor,
      ) as [Tensor, Tensor];
      return { dw, db };
    });
    for (const name of ["dw", "db"] as const) {
      const error = errorOf(got[name], expected[name]);
      assert(error < 2e-6, `${name} in profile ${profile}: ${error}`);
    }
  }
});

Deno.test("a batch norm of a million pixels normalises by the mean and variance of all", async () => {
  const P = 1 << 20, C = 4;
  const x = randomArray(P * C, 7).map((v, i) => v + i % C);
  const means = new Float64Array(C), variances = new Float64Array(C);
  for (let i = 0; i < x.length; i++) means[i % C] = (means[i % C] as number) + (x[i] as number) / P;
  for (let i = 0; i < x.length; i++) {
    variances[i % C] = (variances[i % C] as number) + ((x[i] as number) - (means[i % C] as number)) ** 2 / P;
  }
  for (const profile of PROFILES) {
    await testDevice(profile);
    const mean = variable([C]), variance = variable([C]);
    const ones = constant(new Float32Array(C).fill(1), [C]), zeros = constant(new Float32Array(C), [C]);
    await evaluate(named({ x: [[P, C], x] }), ({ x }) => ({
      y: batchNorm(x as Tensor, ones, zeros, { training: true, running: { mean, variance, momentum: 1 } }),
    }));
    assert(errorOf(await readTensor(mean), means) < 2e-6, `the mean in profile ${profile}`);
    assert(
      errorOf(await readTensor(variance), variances.map((v) => v * P / (P - 1))) < 4e-6,
      `the variance in profile ${profile}`,
    );
  }
});

Deno.test("norm, softmax and cross entropy of rows of a million elements match the reference", async () => {
  const C = 1 << 20, x = randomArray(C, 8);
  const mean = sumOf(x) / C, variance = sumOf(x.map((v) => (v - mean) ** 2)) / C;
  const exponents = Float64Array.from(x, Math.exp), all = sumOf(exponents);
  for (const profile of PROFILES) {
    await testDevice(profile);
    const got = await evaluate(named({ x: [[1, C], x] }), ({ x }) => ({
      norm: layerNorm(x as Tensor),
      softmax: softmax(x as Tensor),
      loss: crossEntropy(x as Tensor, constant(new Uint32Array([C - 1]), [1])),
    }));
    assert(
      errorOf(got.norm, x.map((v) => (v - mean) / Math.sqrt(variance + 1e-6))) < 1e-5,
      `norm in profile ${profile}`,
    );
    assert(errorOf(got.softmax, exponents.map((v) => v / all)) < 1e-5, `softmax in profile ${profile}`);
    assert(errorOf(got.loss, [Math.log(all) - (x[C - 1] as number)]) < 2e-6, `loss in profile ${profile}`);
  }
});

Deno.test("gradients of a linear layer over a million rows are right to 3e-6", async () => {
  const R = 1 << 20, C = 4;
  const x = randomArray(R * C, 9).map((v) => v + 0.3), dy = randomArray(R * C, 10).map((v) => v + 0.3);
  const dw = new Float64Array(C * C), db = new Float64Array(C);
  for (let r = 0; r < R; r++) {
    for (let o = 0; o < C; o++) {
      const g = dy[r * C + o] as number;
      db[o] = (db[o] as number) + g;
      for (let i = 0; i < C; i++) dw[o * C + i] = (dw[o * C + i] as number) + g * (x[r * C + i] as number);
    }
  }
  for (const profile of PROFILES) {
    await testDevice(profile);
    const inputs = named({
      x: [[R, C], x],
      w: [[C, C], randomArray(C * C, 11)],
      b: [[C], randomArray(C, 12)],
      dy: [[R, C], dy],
    });
    const got = await evaluate(inputs, ({ x, w, b, dy }) => {
      for (const t of [w, b] as Tensor[]) t.requiresGrad = true;
      const [dw, db] = grad(linear(x as Tensor, w as Tensor, b), [w, b] as Tensor[], dy as Tensor) as [
        Tensor,
        Tensor,
      ];
      return { dw, db };
    });
    const errors = { dw: errorOf(got.dw, dw), db: errorOf(got.db, db) };
    assert(errors.dw < 3e-6 && errors.db < 2e-6, `profile ${profile}: ${JSON.stringify(errors)}`);
  }
});

Deno.test("gradients of a convolution over a million pixels are right to 3e-6", async () => {
  const S = 1024, Co = 4;
  const [rows, columns, dyRows, dyColumns] = [[S, 13], [S * 32, 14], [S, 15], [S * Co, 16]].map(([n, seed]) =>
    randomArray(n as number, seed as number)
  ) as [Float32Array, Float32Array, Float32Array, Float32Array];
  const at = (a: Float32Array, b: Float32Array, y: number, xc: number) =>
    Math.fround((a[y] as number) + (b[xc] as number));
  /** dLoss/dweight[o, ky, kx, c] by f64 loops. */
  const expected = (C: number, [o, ky, kx, c]: readonly [number, number, number, number]) => {
    let sum = 0;
    for (let y = Math.max(0, 1 - ky); y < Math.min(S, S + 1 - ky); y++) {
      for (let x = Math.max(0, 1 - kx); x < Math.min(S, S + 1 - kx); x++) {
        sum += at(dyRows, dyColumns, y, x * Co + o) * at(rows, columns, y + ky - 1, (x + kx - 1) * C + c);
      }
    }
    return sum;
  };
  const bias = Array.from({ length: Co }, (_, o) => {
    let sum = 0;
    for (let y = 0; y < S; y++) for (let x = 0; x < S; x++) sum += at(dyRows, dyColumns, y, x * Co + o);
    return sum;
  });
  // The tiles of the gpu profile would make 32 channels a minute's work on a CPU.
  for (const [profile, C] of [["cpu", 32], ["gpu", 4]] as const) {
    await testDevice(profile);
    const got = await evaluate(
      named({
        rows: [[1, S, 1, 1], rows],
        columns: [[1, 1, S, C], columns.subarray(0, S * C)],
        dyRows: [[1, S, 1, 1], dyRows],
        dyColumns: [[1, 1, S, Co], dyColumns],
      }),
      ({ rows, columns, dyRows, dyColumns }) => {
        const w = constant(new Float32Array(Co * 9 * C), [Co, 3, 3, C]),
          b = constant(new Float32Array(Co), [Co]);
        for (const t of [w, b]) t.requiresGrad = true;
        const y = conv2d(add(rows as Tensor, columns as Tensor), w, b, { padding: 1 });
        const [dw, db] = grad(y, [w, b], add(dyRows as Tensor, dyColumns as Tensor)) as [Tensor, Tensor];
        return { dw, db };
      },
    );
    const scale = Math.sqrt(sumOf(got.dw.map((v) => v * v)) / got.dw.length);
    for (const place of [[0, 0, 0, 0], [3, 2, 2, C - 1], [1, 1, 1, 2], [2, 2, 0, 1]] as const) {
      const [o, ky, kx, c] = place;
      const error = Math.abs((got.dw[((o * 3 + ky) * 3 + kx) * C + c] as number) - expected(C, place)) /
        scale;
      assert(error < 3e-6, `weight ${place} in profile ${profile}: ${error}`);
    }
    const error = errorOf(got.db, bias);
    assert(error < 2e-6, `bias in profile ${profile}: ${error}`);
  }
});
