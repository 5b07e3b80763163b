// Sum and mean over any axes, and their gradients. Adjacent axes are reduced together, as [R, K] rows
// or [O, K, I] columns; long ones in two launches, so that few outputs still fill the machine.

import source from "../../kernels/reduce.wgsl" with { type: "text" };
import pairSource from "../../kernels/sum_and_dot.wgsl" with { type: "text" };
import { differentiable } from "../tensor/autograd.ts";
import { launch } from "../gpu/bind.ts";
import { device } from "../gpu/device.ts";
import { iterationsOfSum, partsOf } from "../gpu/iterations.ts";
import { fold, kernel } from "../gpu/kernel.ts";
import { nominalImages } from "../gpu/scope.ts";
import { axisOf, check, empty, type Shape, sizeOf, type Tensor, viewAs } from "../tensor/tensor.ts";
import { pointwise } from "./pointwise.ts";
import { byWidth, groupSize, rowsPrelude, rowThreads } from "./row_kernel.ts";

export interface ReduceOptions {
  /** Keep the reduced axes with size 1. */
  keepDims?: boolean;
}

/** Sum over `axes` (all when absent). */
export function sum(x: Tensor, axes?: readonly number[], options: ReduceOptions = {}): Tensor {
  return reduced(x, axes, options, 1);
}

/** Mean over `axes` (all when absent). */
export function mean(x: Tensor, axes?: readonly number[], options: ReduceOptions = {}): Tensor {
  const all = axesOf(x, axes, "take a mean");
  return reduced(x, axes, options, 1 / all.reduce((n, a) => n * x.dim(a), 1));
}

/** Sum of squares over everything, as a scalar; not differentiable. */
export function sumOfSquares(x: Tensor): Tensor {
  return viewAs(reduceGroup(x, 1, x.size, 1, 1, 1, true), []);
}

/** Sums `x` over the axes along which `shape` was broadcast to x's shape. Not differentiable: used by gradients. */
export function sumTo(x: Tensor, shape: Shape): Tensor {
  if (shape.join() === x.shape.join()) return x;
  const extra = x.rank - shape.length;
  const axes = x.shape.map((_, a) => a).filter((a) =>
    a < extra || (shape[a - extra] === 1 && x.shape[a] !== 1)
  );
  return viewAs(reduceAxes(x, axes, 1), shape);
}

/** scale * sum over the first axis of [S, N], as [N]: the second launch of a split-K GEMM or a chunked sum. Not differentiable. */
export function sumChunks(x: Tensor, scale: number): Tensor {
  const [S, N] = x.shape as [number, number];
  if (S === 1 && scale === 1) return viewAs(x, [N]);
  return viewAs(reduceGroup(x, 1, S, N, scale), [N]);
}

/** Sums of `a` and of `a b` over the middle axis of [O, K, I] -> [O, 2, I], reading `a` once. Not differentiable. */
export function sumAndDot(a: Tensor, b: Tensor): Tensor {
  const [outer, size, I] = a.shape as [number, number, number];
  check(a.rank === 3 && b.shape.join() === a.shape.join(), "sum", "both must be [O, K, I]", a, b);
  const { source: text, width } = byWidth(pairSource, I);
  const inner = I / width, chunks = chunksOf("pairs", outer * inner, size), chunk = Math.ceil(size / chunks);
  const y = empty([outer, chunks, 2 * I], "f32", "reduction");
  const WG = groupSize();
  launch(
    kernel(text, "sum_and_dot", { WG }),
    { a, b, y },
    { outer, size, inner, chunks, chunk },
    fold(Math.ceil(outer * inner * chunks / WG)),
    { flops: 3 * a.size, iterations: iterationsOfSum(chunk), fusion: { loads: ["a", "b"], stores: ["y"] } },
  );
  const sums = chunks === 1 ? y : reduceGroup(y, outer, chunks, 2 * I, 1);
  return viewAs(sums, [outer, 2, I]);
}

function reduced(
  x: Tensor,
  axes: readonly number[] | undefined,
  options: ReduceOptions,
  scale: number,
): Tensor {
  const over = axesOf(x, axes, "reduce by sum");
  const kept = x.shape.map((n, a) => over.includes(a) ? 1 : n);
  const y = viewAs(
    reduceAxes(x, over, scale),
    options.keepDims ? kept : x.shape.filter((_, a) => !over.includes(a)),
  );
  return differentiable(y, [x], (dy) => {
    const dyKept = viewAs(dy, kept);
    const scaled = scale === 1 ? dyKept : pointwise(["x0 * s0"], [dyKept], [scale]);
    return [dyKept.size === x.size ? scaled : pointwise(["x0"], [scaled], [], x.shape)];
  });
}

function axesOf(x: Tensor, axes: readonly number[] | undefined, action: string): number[] {
  const all = axes ? axes.map((a) => axisOf(x, a, action)) : x.shape.map((_, a) => a);
  check(new Set(all).size === all.length, action, `axes [${all}] repeat`, x);
  return all.sort((a, b) => a - b);
}

/** Reduces groups of neighbouring axes, the last group first; the result keeps the order of the other axes. */
function reduceAxes(x: Tensor, axes: readonly number[], scale: number): Tensor {
  // Where the first axis stays, it is the batch.
  const images = axes.includes(0) ? 1 : x.shape[0] ?? 1;
  let y = x;
  let shape = [...x.shape];
  const rest = [...axes].filter((a) => x.shape[a] !== 1);
  while (rest.length) {
    const last = rest.pop() as number;
    let first = last;
    while (rest.length && rest.at(-1) === first - 1) first = rest.pop() as number;
    const outer = sizeOf(shape.slice(0, first));
    const size = sizeOf(shape.slice(first, last + 1));
    const inner = sizeOf(shape.slice(last + 1));
    y = reduceGroup(y, outer, size, inner, rest.length ? 1 : scale, images);
    shape = [...shape.slice(0, first), ...Array(last - first + 1).fill(1), ...shape.slice(last + 1)];
  }
  if (y === x && scale !== 1) y = pointwise(["x0 * s0"], [x], [scale]);
  return viewAs(y, shape);
}

/**
 * Rows, columns or pairs of columns are cut into chunks until `wanted` of them can be reduced at once, but with at least `least`
 * loads each, since reducing the chunks is another launch. On a software adapter that costs one thread as much as 500 loads; on
 * a GPU it costs the 64 threads of a row, or the 8 of a column, 8 and 64 loads each; a pair has one thread.
 */
const CHUNKS = {
  cpu: {
    rows: { wanted: 64, least: 64 },
    columns: { wanted: 64, least: 512 },
    pairs: { wanted: 64, least: 512 },
  },
  gpu: {
    rows: { wanted: 1024, least: 512 },
    columns: { wanted: 8192, least: 512 },
    pairs: { wanted: 65536, least: 16 },
  },
};

/** Number of chunks of each of `items` of `length` loads; a chunk stays within the iterations of a thread. */
function chunksOf(kind: "rows" | "columns" | "pairs", items: number, length: number): number {
  const { wanted, least } = CHUNKS[device().profile][kind];
  return Math.max(partsOf(length), Math.min(Math.ceil(wanted / items), Math.ceil(length / least)));
}

/** scale * sums (or sums of squares) over K of [O, K, I] -> [O, I], in one or two launches. */
function reduceGroup(
  x: Tensor,
  outer: number,
  size: number,
  inner: number,
  scale: number,
  images = 1,
  squared = false,
): Tensor {
  const cpu = device().profile === "cpu";
  const { source: text, width } = byWidth(rowsPrelude() + source, inner === 1 ? size : inner);
  const items = inner === 1 ? outer : outer * inner / width;
  const length = inner === 1 ? size / width : size;
  const counted = items / images * nominalImages(images);
  const chunks = chunksOf(inner === 1 ? "rows" : "columns", counted, length);
  const chunk = Math.ceil(length / chunks);
  const y = empty([outer, chunks, inner], "f32", "reduction");
  const common = { rows: outer, size: length, chunks, chunk, scale: chunks > 1 ? 1 : scale };
  const SQUARED = squared ? 1 : 0, array = inner === 1 ? "rows" : "columns";
  const THREADS = inner === 1
    ? cpu ? 1 : length / chunks >= 64 ? 64 : 8
    : cpu || length / chunks < 16
    ? 1
    : 8;
  const options = {
    flops: outer * size * inner,
    iterations: iterationsOfSum(Math.ceil(chunk / THREADS)),
    fusion: { loads: ["x"], stores: [array] },
  };
  if (inner === 1) {
    const ROWS = cpu ? device().simdWidth : 64 / THREADS, grid = fold(Math.ceil(outer * chunks / ROWS));
    const reduce = kernel(text, "reduce_rows", { SQUARED, ...rowThreads(THREADS, ROWS) });
    launch(reduce, { x, rows: y }, { ...common, inner: 1 }, grid, options);
  } else {
    const WG = cpu ? 16 : 32, grid = fold(Math.ceil(items * chunks / WG));
    const reduce = kernel(text, "reduce_columns", { SQUARED, WG, THREADS });
    launch(reduce, { x, columns: y }, { ...common, inner: inner / width }, grid, options);
  }
  if (chunks === 1) return viewAs(y, [outer, inner]);
  return reduceGroup(viewAs(y, [outer, chunks, inner]), outer, chunks, inner, scale, images);
}
