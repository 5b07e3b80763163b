// Ops that move elements: reshape, permute, slice, split, concat, pad, flip and broadcastTo, their gradients and errors.

import { assertThrows } from "@std/assert";
import { ShapeError } from "../../src/errors.ts";
import { capture } from "../../src/gpu/program.ts";
import { broadcastTo, concat, flip, pad, permute, reshape, slice, split } from "../../src/ops/layout.ts";
import { input, type Tensor } from "../../src/tensor/tensor.ts";
import { checkOp, type OpCheck, testDevice } from "../helpers/check.ts";
import { at, build, type Nd } from "../helpers/reference.ts";

/** x at a multi-index, zero outside. */
const inside = (x: Nd, ...index: number[]) =>
  index.every((i, a) => i >= 0 && i < (x.shape[a] as number)) ? at(x, ...index) : 0;

/** Elements from..to-1 of an axis. */
const range = (x: Nd, axis: number, from: number, to: number) =>
  build(
    x.shape.map((n, a) => a === axis ? to - from : n),
    (...index) => at(x, ...index.map((i, a) => a === axis ? i + from : i)),
  );

const joined = (axis: number) => (...xs: Nd[]): Nd => {
  const shape = (xs[0] as Nd).shape.map((n, a) =>
    a === axis ? xs.reduce((s, x) => s + (x.shape[a] as number), 0) : n
  );
  return build(shape, (...index) => {
    let i = index[axis] as number, k = 0;
    while (i >= ((xs[k] as Nd).shape[axis] as number)) i -= (xs[k++] as Nd).shape[axis] as number;
    return at(xs[k] as Nd, ...index.map((j, a) => a === axis ? i : j));
  });
};

/** Nothing is computed, so results are exact. */
const exact = { tolerance: 0 };
const check = (c: OpCheck) => checkOp({ ...exact, gradientTolerance: 1e-6, ...c });

Deno.test("reshape() keeps the elements in order, and infers one size", async () => {
  const cases: [number[], number[], number[]][] = [
    [[2, 3, 4], [4, 6], [4, 6]],
    [[2, 3, 4], [3, -1], [3, 8]],
    [[7], [1, 7, 1], [1, 7, 1]],
    [[1], [], []],
  ];
  for (const [from, to, shape] of cases) {
    await check({ op: (x) => reshape(x, to), reference: (x) => ({ shape, data: x.data }), shapes: [[from]] });
  }
});

Deno.test("permute() moves axis axes[a] of x to a, for two to five axes", async () => {
  const cases: [number[], number[]][] = [
    [[3, 5], [1, 0]],
    [[33, 68], [1, 0]],
    [[2, 3, 4], [2, 0, 1]],
    [[2, 3, 4], [0, 2, 1]],
    [[5, 4, 8], [1, 0, 2]],
    [[2, 3, 5, 4], [0, 2, 3, 1]],
    [[2, 8, 3, 4], [0, 3, 1, 2]],
    [[2, 1, 3, 4], [1, 0, 3, 2]],
    [[2, 3, 1, 2, 4], [4, 2, 0, 3, 1]],
    [[6, 1, 4], [0, 2, 1]], // an axis of one element moves nothing
  ];
  for (const [shape, axes] of cases) {
    await check({
      op: (x) => permute(x, axes),
      reference: (x) =>
        build(axes.map((a) => x.shape[a] as number), (...index) => {
          const own: number[] = [];
          axes.forEach((a, i) => own[a] = index[i] as number);
          return at(x, ...own);
        }),
      shapes: [[shape]],
    });
  }
});

Deno.test("slice() selects a range of an axis, and its gradient is zero outside of it", async () => {
  const cases: [number[], number, number, number][] = [
    [[7], 0, 2, 5],
    [[4, 6], 0, 3, 4],
    [[4, 6], 1, 0, 5],
    [[3, 5, 8], 1, 1, 5],
    [[3, 5, 8], -1, 4, 8],
    [[2, 3, 4, 12], 3, 5, 6],
    [[2, 3], 1, 0, 3],
  ];
  for (const [shape, axis, from, to] of cases) {
    await check({
      op: (x) => slice(x, axis, from, to),
      reference: (x) => range(x, axis < 0 ? axis + shape.length : axis, from, to),
      shapes: [[shape]],
    });
  }
});

Deno.test("split() returns consecutive parts; an unused part has a gradient of zero", async () => {
  const cases: [number[], number[], number][] = [
    [[7], [2, 5], 0],
    [[3, 12], [4, 4, 4], 1],
    [[2, 9, 4], [1, 5, 3], 1],
    [[5, 2, 3], [5], 0],
  ];
  for (const [shape, sizes, axis] of cases) {
    for (const k of sizes.keys()) {
      const from = sizes.slice(0, k).reduce((a, b) => a + b, 0);
      await check({
        op: (x) => split(x, sizes, axis)[k] as Tensor,
        reference: (x) => range(x, axis, from, from + (sizes[k] as number)),
        shapes: [[shape]],
      });
    }
  }
});

Deno.test("concat() concatenates tensors along any axis", async () => {
  const cases: [number, number[][]][] = [
    [0, [[3], [1], [4]]],
    [0, [[2, 5], [3, 5]]],
    [1, [[2, 5], [2, 1], [2, 2]]],
    [1, [[2, 3, 8], [2, 1, 8]]],
    [2, [[2, 3, 4], [2, 3, 8], [2, 3, 3]]],
    [0, [[4, 3]]],
  ];
  for (const [axis, shapes] of cases) {
    await check({ op: (...xs) => concat(xs, axis), reference: joined(axis), shapes: [shapes] });
  }
});

Deno.test("pad() adds zeros on all sides", async () => {
  const cases: [number[], [number, number][]][] = [
    [[4], [[2, 3]]],
    [[3, 5], [[0, 1], [2, 0]]],
    [[2, 3, 3, 4], [[0, 0], [1, 1], [1, 1], [0, 0]]],
    [[2, 3, 3], [[1, 0], [0, 2], [3, 1]]],
    [[2, 3], [[0, 0], [0, 0]]],
  ];
  for (const [shape, around] of cases) {
    await check({
      op: (x) => pad(x, around),
      reference: (x) =>
        build(
          x.shape.map((n, a) => n + around[a]![0] + around[a]![1]),
          (...index) => inside(x, ...index.map((i, a) => i - around[a]![0])),
        ),
      shapes: [[shape]],
    });
  }
});

Deno.test("flip() reverses one axis", async () => {
  const cases: [number[], number][] = [
    [[7], 0],
    [[3, 8], 0],
    [[3, 8], 1],
    [[2, 5, 4, 3], 2], // columns of images
    [[2, 5, 4, 3], -1],
    [[4, 1, 3], 1],
  ];
  for (const [shape, axis] of cases) {
    const a = axis < 0 ? axis + shape.length : axis, n = shape[a] as number;
    await check({
      op: (x) => flip(x, axis),
      reference: (x) => build(x.shape, (...index) => at(x, ...index.map((i, b) => b === a ? n - 1 - i : i))),
      shapes: [[shape]],
    });
  }
});

Deno.test("broadcastTo() repeats axes of one element and new leading ones; its gradient is the sum over them", async () => {
  const cases: [number[], number[]][] = [
    [[], [3, 4]],
    [[1], [5]],
    [[5], [3, 5]],
    [[3, 1], [3, 8]],
    [[2, 1, 4], [2, 3, 4]],
    [[1, 3, 1], [2, 4, 3, 5]],
    [[2, 3], [2, 3]],
  ];
  for (const [from, to] of cases) {
    await check({
      op: (x) => broadcastTo(x, to),
      reference: (x) => build(to, (...index) => at(x, ...index)),
      shapes: [[from]],
    });
  }
});

Deno.test("layout ops refuse shapes and ranges that do not fit", async () => {
  await testDevice();
  const x = () => input([2, 3, 4]);
  const refused: (() => unknown)[] = [
    () => reshape(x(), [5, 5]),
    () => reshape(x(), [-1, -1]),
    () => reshape(x(), [-1, 5]),
    () => permute(x(), [0, 1]),
    () => permute(x(), [0, 1, 1]),
    () => slice(x(), 3, 0, 1),
    () => slice(x(), 0, 1, 1),
    () => slice(x(), 1, -1, 2),
    () => slice(x(), 1, 0, 4),
    () => split(x(), [1, 1], 1),
    () => concat([], 0),
    () => concat([x(), input([2, 3])], 0),
    () => concat([x(), input([2, 4, 4])], 2),
    () => pad(x(), [[0, 0]]),
    () => pad(x(), [[0, 0], [0, 0], [-1, 0]]),
    () => flip(x(), 3),
    () => broadcastTo(x(), [3, 4]),
    () => broadcastTo(x(), [2, 6, 4]),
  ];
  for (const [i, fn] of refused.entries()) {
    const record = () => capture("t", {}, () => (fn(), {}));
    assertThrows(record, ShapeError, undefined, `case ${i}`);
  }
});
