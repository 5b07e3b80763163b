// Changing shapes and moving elements: reshape, permute, slice, split, concat, pad, flip, broadcastTo, with gradients.
// All but reshape are strided moves through one kernel; every gradient is another one.

import source from "../../kernels/layout.wgsl" with { type: "text" };
import { differentiable, differentiableMany } from "../tensor/autograd.ts";
import { type Axis as WalkAxis, view } from "../gpu/strides.ts";
import { launchExpression } from "../gpu/elementwise.ts";
import { fill } from "../gpu/memory.ts";
import { launch } from "../gpu/bind.ts";
import { fold, kernel } from "../gpu/kernel.ts";
import { axisOf, check, empty, type Shape, sizeOf, type Tensor, viewAs } from "../tensor/tensor.ts";
import { sumTo } from "./reduce.ts";

const MAX_AXES = 6;
const PER_GROUP = 256;

/** One axis of a move: size, stride in x and in y (elements), and the part where x has data. */
interface Axis {
  n: number;
  x: number;
  y: number;
  lo: number;
  hi: number;
}

/** y[yFrom + sum i ys] = x[xFrom + sum i xs], zero outside lo..hi of an axis. */
interface Move {
  x: Tensor;
  axes: readonly Axis[];
  xFrom?: number;
  yFrom?: number;
}

/** A new tensor of `shape` that the moves fill between them. Halves stay halves where all vectors of four stay whole. */
function moved(shape: Shape, moves: readonly Move[]): Tensor {
  const size = sizeOf(shape);
  const all = moves.map((m) => {
    const { x, xFrom = 0, yFrom = 0 } = m, axes = coalesce(m.axes), last = axes.at(-1) as Axis;
    check(axes.length <= MAX_AXES, "move elements", `more than ${MAX_AXES} axes remain`, x);
    const wide = last.x === 1 && last.y === 1 && xFrom % 4 === 0 && yFrom % 4 === 0 && x.size % 4 === 0 &&
      size % 4 === 0 && [last.n, last.lo, last.hi].every((v) => v % 4 === 0) &&
      axes.slice(0, -1).every((a) => a.x % 4 === 0 && a.y % 4 === 0);
    return { x, xFrom, yFrom, axes, wide };
  });
  const dtypes = new Set(moves.map(({ x }) => x.dtype));
  const halves = dtypes.has("f16");
  const whole = (shape.at(-1) ?? 1) % 4 === 0 && all.every(({ wide }) => wide);
  const y = empty(shape, halves ? dtypes.size === 1 && whole ? "f16" : "f32" : [...dtypes][0]);
  for (const { x, xFrom, yFrom, axes, wide } of all) {
    // Numbers that only change their places are elementwise work, which may be merged with its neighbours.
    if (y.dtype !== "u32" && y.dtype !== "i32" && axes.every((a) => a.x >= 0 && a.lo === 0 && a.hi === a.n)) {
      const along = (key: "x" | "y") => axes.map((a): WalkAxis => [a.n, a[key]]);
      launchExpression({
        count: axes.reduce((n, a) => n * a.n, 1),
        inputs: [{ storage: x.storage, view: view(along("x"), xFrom) }],
        scalars: [],
        body: [],
        outputs: [{ value: "x0", storage: y.storage, view: view(along("y"), yFrom) }],
      });
      continue;
    }
    const unit = wide ? 4 : 1;
    const units = axes.map((a, i) =>
      i === axes.length - 1
        ? { n: a.n / unit, x: a.x, y: a.y, lo: a.lo / unit, hi: a.hi / unit }
        : { ...a, x: a.x / unit, y: a.y / unit }
    );
    const count = units.reduce((n, a) => n * a.n, 1);
    const params: Record<string, number> = { count, x_from: xFrom / unit, y_from: yFrom / unit };
    for (let d = 0; d < MAX_AXES; d++) {
      const a = units[d - MAX_AXES + units.length] ?? { n: 1, x: 0, y: 0, lo: 0, hi: 1 };
      Object.assign(params, {
        [`n${d}`]: a.n,
        [`x${d}`]: a.x,
        [`y${d}`]: a.y,
        [`lo${d}`]: a.lo,
        [`hi${d}`]: a.hi,
      });
    }
    const PAD = units.some((a) => a.lo > 0 || a.hi < a.n) ? 1 : 0;
    const text = `alias E = ${halves ? "f32" : "u32"};\n${source}`;
    launch(
      kernel(text, wide ? "move4" : "move1", { RANK: units.length, PAD }),
      wide ? { x_wide: x, y_wide: y } : { x, y },
      params,
      fold(Math.ceil(count / PER_GROUP)),
    );
  }
  return y;
}

/** Merges neighbouring axes that are one axis in both memories; drops axes of size one. */
function coalesce(axes: readonly Axis[]): Axis[] {
  const merged: Axis[] = [];
  for (const a of axes) {
    if (a.n === 1 && a.lo === 0 && a.hi === 1) continue;
    const before = merged.at(-1);
    const whole = (b: Axis) => b.lo === 0 && b.hi === b.n;
    if (before && whole(before) && whole(a) && before.x === a.n * a.x && before.y === a.n * a.y) {
      merged[merged.length - 1] = { n: before.n * a.n, x: a.x, y: a.y, lo: 0, hi: before.n * a.n };
    } else merged.push({ ...a });
  }
  return merged.length ? merged : [{ n: 1, x: 1, y: 1, lo: 0, hi: 1 }];
}

function strides(shape: Shape): number[] {
  const s: number[] = [];
  let step = 1;
  for (let a = shape.length - 1; a >= 0; a--) {
    s[a] = step;
    step *= shape[a] as number;
  }
  return s;
}

const plain = (n: number, x: number, y: number): Axis => ({ n, x, y, lo: 0, hi: n });

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

/** Axis a of the result is axis axes[a] of x. Nothing is moved where only axes of one element change their places. */
export function permute(x: Tensor, axes: readonly number[]): Tensor {
  check(
    [...axes].sort((a, b) => a - b).every((a, i) => a === i) && axes.length === x.rank,
    "permute",
    `[${axes}] is no order of its axes`,
    x,
  );
  const shape = axes.map((a) => x.dim(a)), xs = strides(x.shape), ys = strides(shape);
  const long = axes.filter((a) => x.dim(a) > 1);
  if (long.every((a, i) => i === 0 || (long[i - 1] as number) < a)) return reshape(x, shape);
  const y = moved(shape, [{
    x,
    axes: axes.map((a, i) => plain(x.dim(a), xs[a] as number, ys[i] as number)),
  }]);
  return differentiable(y, [x], (dy) => [permute(dy, axes.map((_, a) => axes.indexOf(a)))]);
}

/** Elements from..to-1 along an axis. */
export function slice(x: Tensor, axis: number, from: number, to: number): Tensor {
  const a = axisOf(x, axis, "slice");
  check(0 <= from && from < to && to <= x.dim(a), "slice", `${from}..${to} is outside axis ${axis}`, x);
  if (from === 0 && to === x.dim(a)) return x;
  const shape = x.shape.map((n, i) => i === a ? to - from : n);
  const xs = strides(x.shape), ys = strides(shape);
  const axes = shape.map((n, i) => plain(n, xs[i] as number, ys[i] as number));
  const y = moved(shape, [{ x, axes, xFrom: from * (xs[a] as number) }]);
  const around = x.shape.map((n, i): [number, number] => i === a ? [from, n - to] : [0, 0]);
  return differentiable(y, [x], (dy) => [pad(dy, around)]);
}

/** Consecutive parts along an axis; `sizes` must add up to it. */
export function split(x: Tensor, sizes: readonly number[], axis: number): Tensor[] {
  const a = axisOf(x, axis, "split");
  check(
    sizes.reduce((n, s) => n + s, 0) === x.dim(a),
    "split",
    `the parts ${sizes} do not add up to axis ${axis}`,
    x,
  );
  const xs = strides(x.shape);
  let from = 0;
  const parts = sizes.map((size) => {
    const shape = x.shape.map((n, i) => i === a ? size : n);
    const ys = strides(shape);
    const axes = shape.map((n, i) => plain(n, xs[i] as number, ys[i] as number));
    const y = moved(shape, [{ x, axes, xFrom: from * (xs[a] as number) }]);
    from += size;
    return y;
  });
  differentiableMany(parts, [x], (...dys) => [
    concat(dys.map((dy, i) => dy ?? zeros((parts[i] as Tensor).shape)), a),
  ]);
  return parts;
}

/** Tensors one after another along an axis; the other axes must be equal. */
export function concat(xs: readonly Tensor[], axis: number): Tensor {
  const [first] = xs;
  check(first !== undefined, "concatenate", "there is nothing to join");
  const a = axisOf(first, axis, "concatenate");
  check(
    xs.every((x) => x.rank === first.rank && x.shape.every((n, i) => i === a || n === first.dim(i))),
    "concatenate",
    "the other axes must be equal",
    ...xs,
  );
  const shape = first.shape.map((n, i) => i === a ? xs.reduce((sum, x) => sum + x.dim(a), 0) : n);
  const ys = strides(shape);
  let from = 0;
  const moves = xs.map((x): Move => {
    const own = strides(x.shape);
    const axes = x.shape.map((n, i) => plain(n, own[i] as number, ys[i] as number));
    const yFrom = from * (ys[a] as number);
    from += x.dim(a);
    return { x, axes, yFrom };
  });
  const y = moved(shape, moves);
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
  const xs = strides(x.shape), ys = strides(shape);
  const xFrom = -around.reduce((sum, [before], i) => sum + before * (xs[i] as number), 0);
  const axes = shape.map((n, i) => {
    const lo = around[i]?.[0] ?? 0;
    return { n, x: xs[i] as number, y: ys[i] as number, lo, hi: lo + x.dim(i) };
  });
  const y = moved(shape, [{ x, axes, xFrom }]);
  return differentiable(y, [x], (dy) => [
    x.shape.reduce((part, n, i) => slice(part, i, around[i]?.[0] ?? 0, (around[i]?.[0] ?? 0) + n), dy),
  ]);
}

/** Reverses an axis. */
export function flip(x: Tensor, axis: number): Tensor {
  const a = axisOf(x, axis, "flip");
  const s = strides(x.shape);
  const axes = x.shape.map((n, i) => plain(n, i === a ? -(s[i] as number) : s[i] as number, s[i] as number));
  const y = moved(x.shape, [{ x, axes, xFrom: (x.dim(a) - 1) * (s[a] as number) }]);
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
  const xs = strides(x.shape), ys = strides(shape);
  const axes = shape.map((n, i) => {
    const own = x.shape[i - extra] ?? 1;
    return plain(n, own === 1 ? 0 : xs[i - extra] as number, ys[i] as number);
  });
  const y = moved(shape, [{ x, axes }]);
  return differentiable(y, [x], (dy) => [sumTo(dy, x.shape)]);
}

function zeros(shape: Shape): Tensor {
  const y = empty(shape);
  fill(y, 0);
  return y;
}
