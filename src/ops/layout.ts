// Changing shapes and moving elements: reshape, permute, slice, split, concat, pad, flip, broadcastTo, with gradients.
// All but reshape copy between strided views, and so do their gradients.

import { launchExpression, vectorizable } from "../gpu/elementwise.ts";
import { fill } from "../gpu/memory.ts";
import { broadcast, contiguous, countOf, stridesOf, type View, view } from "../gpu/strides.ts";
import { differentiable, differentiableMany } from "../tensor/autograd.ts";
import { axisOf, check, empty, type Shape, sizeOf, type Tensor, viewAs } from "../tensor/tensor.ts";
import { sumTo } from "./reduce.ts";

/** A copy of elements of x into elements of the result, over one index space. */
interface Move {
  x: Tensor;
  from: View;
  to: View;
}

/** A new tensor of `shape` that the moves fill between them; fp16 where all of them are and move aligned vectors of 4. */
function moved(shape: Shape, moves: readonly Move[]): Tensor {
  const dtypes = new Set(moves.map(({ x }) => x.dtype)), [first = "f32"] = dtypes;
  const aligned = (shape.at(-1) ?? 1) % 4 === 0 &&
    moves.every(({ from, to }) => vectorizable([from, to], countOf(to)));
  const y = empty(shape, dtypes.has("f16") && !(dtypes.size === 1 && aligned) ? "f32" : first);
  for (const { x, from, to } of moves) {
    launchExpression({
      count: countOf(to),
      inputs: [{ storage: x.storage, view: from }],
      scalars: [],
      body: [],
      outputs: [{ value: "x0", storage: y.storage, view: to }],
      element: y.dtype === "u32" || y.dtype === "i32" ? "u32" : "f32",
    });
  }
  return y;
}

/** The part of shape `part` that begins at index `from` of an axis, in a contiguous array of `shape`. */
function partOf(shape: Shape, part: Shape, axis: number, from: number): View {
  const strides = stridesOf(shape);
  return view(part.map((n, a) => [n, strides[a] as number]), from * (strides[axis] as number));
}

/** The same elements under another shape; one size may be -1. No copy. */
export function reshape(x: Tensor, shape: Shape): Tensor {
  const known = shape.filter((n) => n !== -1).reduce((a, b) => a * b, 1);
  const full = shape.map((n) => n === -1 ? x.size / known : n);
  check(
    shape.filter((n) => n === -1).length <= 1 && full.every(Number.isInteger) && sizeOf(full) === x.size,
    "reshape",
    `[${shape}] does not hold ${x.size} elements`,
    x,
  );
  return differentiable(viewAs(x, full), [x], (dy) => [viewAs(dy, x.shape)]);
}

/** Axis a of the result is axis axes[a] of x. No copy where only axes of size one change places. */
export function permute(x: Tensor, axes: readonly number[]): Tensor {
  check(
    [...axes].sort((a, b) => a - b).every((a, i) => a === i) && axes.length === x.rank,
    "permute",
    `[${axes}] is not a permutation of its axes`,
    x,
  );
  const shape = axes.map((a) => x.dim(a)), strides = stridesOf(x.shape);
  const long = axes.filter((a) => x.dim(a) > 1);
  if (long.every((a, i) => i === 0 || (long[i - 1] as number) < a)) return reshape(x, shape);
  const from = view(axes.map((a) => [x.dim(a), strides[a] as number]));
  const y = moved(shape, [{ x, from, to: contiguous(x.size) }]);
  return differentiable(y, [x], (dy) => [permute(dy, axes.map((_, a) => axes.indexOf(a)))]);
}

/** Elements from..to-1 along an axis. */
export function slice(x: Tensor, axis: number, from: number, to: number): Tensor {
  const a = axisOf(x, axis, "slice");
  check(0 <= from && from < to && to <= x.dim(a), "slice", `${from}..${to} is outside axis ${axis}`, x);
  if (from === 0 && to === x.dim(a)) return x;
  const shape = x.shape.map((n, i) => i === a ? to - from : n);
  const y = moved(shape, [{ x, from: partOf(x.shape, shape, a, from), to: contiguous(sizeOf(shape)) }]);
  const around = x.shape.map((n, i): [number, number] => i === a ? [from, n - to] : [0, 0]);
  return differentiable(y, [x], (dy) => [pad(dy, around)]);
}

/** Consecutive parts along an axis; `sizes` must sum to it. */
export function split(x: Tensor, sizes: readonly number[], axis: number): Tensor[] {
  const a = axisOf(x, axis, "split");
  check(
    sizes.reduce((n, s) => n + s, 0) === x.dim(a),
    "split",
    `the parts ${sizes} do not sum to axis ${axis}`,
    x,
  );
  let at = 0;
  const parts = sizes.map((size) => {
    const shape = x.shape.map((n, i) => i === a ? size : n), from = partOf(x.shape, shape, a, at);
    at += size;
    return moved(shape, [{ x, from, to: contiguous(sizeOf(shape)) }]);
  });
  differentiableMany(parts, [x], (...dys) => [
    concat(dys.map((dy, i) => dy ?? zeros((parts[i] as Tensor).shape)), a),
  ]);
  return parts;
}

/** Tensors one after another along an axis; the other axes must be equal. */
export function concat(xs: readonly Tensor[], axis: number): Tensor {
  const [first] = xs;
  check(first !== undefined, "concatenate", "the list is empty");
  const a = axisOf(first, axis, "concatenate");
  check(
    xs.every((x) => x.rank === first.rank && x.shape.every((n, i) => i === a || n === first.dim(i))),
    "concatenate",
    "the other axes must be equal",
    ...xs,
  );
  const shape = first.shape.map((n, i) => i === a ? xs.reduce((sum, x) => sum + x.dim(a), 0) : n);
  let at = 0;
  const y = moved(
    shape,
    xs.map((x) => {
      const to = partOf(shape, x.shape, a, at);
      at += x.dim(a);
      return { x, from: contiguous(x.size), to };
    }),
  );
  return differentiable(y, xs, (dy) => {
    let at = 0;
    return xs.map((x) => slice(dy, a, at, at += x.dim(a)));
  });
}

/** Zeros before and after each axis. */
export function pad(x: Tensor, around: readonly (readonly [number, number])[]): Tensor {
  check(
    around.length === x.rank && around.flat().every((n) => Number.isInteger(n) && n >= 0),
    "pad",
    "every axis needs two amounts of zero or more",
    x,
  );
  if (around.flat().every((n) => n === 0)) return x;
  const shape = x.shape.map((n, i) => n + (around[i]?.[0] ?? 0) + (around[i]?.[1] ?? 0));
  const strides = stridesOf(x.shape);
  const from = view(
    around.map(([before], i) => [shape[i] as number, strides[i] as number, before, before + x.dim(i)]),
    -around.reduce((sum, [before], i) => sum + before * (strides[i] as number), 0),
  );
  const y = moved(shape, [{ x, from, to: contiguous(sizeOf(shape)) }]);
  return differentiable(y, [x], (dy) => [
    x.shape.reduce((part, n, i) => slice(part, i, around[i]?.[0] ?? 0, (around[i]?.[0] ?? 0) + n), dy),
  ]);
}

/** Reverses an axis. */
export function flip(x: Tensor, axis: number): Tensor {
  const a = axisOf(x, axis, "flip");
  const strides = stridesOf(x.shape), stride = strides[a] as number;
  const from = view(
    x.shape.map((n, i) => [n, i === a ? -stride : strides[i] as number]),
    (x.dim(a) - 1) * stride,
  );
  const y = moved(x.shape, [{ x, from, to: contiguous(x.size) }]);
  return differentiable(y, [x], (dy) => [flip(dy, a)]);
}

/** `x` repeated along the axes of size one, and along new leading axes, to `shape`. */
export function broadcastTo(x: Tensor, shape: Shape): Tensor {
  if (shape.join() === x.shape.join()) return x;
  const extra = shape.length - x.rank;
  check(
    extra >= 0 && x.shape.every((n, i) => n === 1 || n === shape[i + extra]),
    "broadcast",
    `it cannot become [${shape}]`,
    x,
  );
  const y = moved(shape, [{ x, from: broadcast(x.shape, shape), to: contiguous(sizeOf(shape)) }]);
  return differentiable(y, [x], (dy) => [sumTo(dy, x.shape)]);
}

function zeros(shape: Shape): Tensor {
  const y = empty(shape);
  fill(y, 0);
  return y;
}
