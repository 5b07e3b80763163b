// Sums of dot products of f64 rows, and products of symmetric matrices with vectors, with 128-bit SIMD and fused multiply-add in
// WebAssembly. Additions have a fixed order; processors without fused multiply-add round each product, too, so that results
// differ by roundings there.

import {
  add,
  advance,
  compile,
  constant,
  get,
  ifLess,
  load,
  loadTwice,
  multiplyAdd,
  pick,
  plus,
  repeatWhileLess,
  set,
  store,
  type WasmFunction,
} from "./wasm.ts";

/** Columns per accumulation, and rows whose columns stay in the second-level cache meanwhile. */
const COLUMNS = 256, ROWS = 64;
/** Columns per iteration of the inner loop: 4 would cost a fifteenth more. */
const UNROLLED = 16;
const BYTES = Float64Array.BYTES_PER_ELEMENT, PAGE = 1 << 16;

/** The next multiple of four. */
export const padded = (n: number): number => (n + 3) & ~3;

/** What {@link addSquare} and {@link multiplyRows} describe. */
interface Functions {
  addSquare(a: number, b: number, sums: number, stride: number, end: number): void;
  multiplyRows(a: number, stride: number, x: number, y: number, end: number): void;
}

/**
 * A set of f64 rows in panels of four, [rows / 4, length and up to 12 zeros, 4], and sums of their dot products, [sumRows,
 * sumColumns].
 */
export class DotProducts {
  readonly panels: Float64Array<ArrayBuffer>;
  readonly sums: Float64Array<ArrayBuffer>;
  /** Two vectors of {@link multiplySymmetric}. */
  readonly #vectors: Float64Array<ArrayBuffer>;
  readonly #functions: Functions;
  /** Columns of a panel, a multiple of {@link UNROLLED}. */
  readonly #columns: number;

  /**
   * All sizes are multiples of four.
   * @param sumRows, sumColumns size of the sums
   */
  constructor(rows: number, readonly length: number, readonly sumRows: number, readonly sumColumns: number) {
    this.#columns = Math.ceil(length / UNROLLED) * UNROLLED;
    const sizes = [rows * this.#columns, sumRows * sumColumns, 2 * sumColumns] as const;
    const bytes = sizes.reduce((a, b) => a + b) * BYTES;
    const memory = new WebAssembly.Memory({ initial: Math.max(1, Math.ceil(bytes / PAGE)) });
    this.panels = new Float64Array(memory.buffer, 0, sizes[0]);
    this.sums = new Float64Array(memory.buffer, sizes[0] * BYTES, sizes[1]);
    this.#vectors = new Float64Array(memory.buffer, (sizes[0] + sizes[1]) * BYTES, sizes[2]);
    const { exports } = new WebAssembly.Instance(kernels(), { host: { memory } });
    this.#functions = exports as unknown as Functions;
  }

  /** Offset in `panels` of the first element of a row; the next elements follow at distances of four. */
  at(row: number): number {
    return (row & ~3) * this.#columns + (row & 3);
  }

  /**
   * sums[i - sumTop][j - sumLeft] += row i . row j for the pairs of rows in two ranges of multiples of four.
   * @param options.sumTop, sumLeft rows of the first row and column of the sums [top, left]
   * @param options.lower only pairs with j <= i - lower, by squares of 4 x 4
   * @param options.zeros number of columns at the start that are known to be zero in one of the four rows from i or from j on
   */
  add(
    [top, bottom]: readonly [number, number],
    [left, right]: readonly [number, number],
    options: {
      sumTop?: number;
      sumLeft?: number;
      lower?: number;
      zeros?: (i: number, j: number) => number;
    } = {},
  ): void {
    const { sumTop = top, sumLeft = left, lower = -Infinity, zeros } = options;
    const { sumColumns } = this, length = this.#columns, start = this.panels.length;
    for (let k0 = 0; k0 < length; k0 += COLUMNS) {
      const end = Math.min(length, k0 + COLUMNS);
      for (let j0 = left; j0 < right; j0 += ROWS) {
        for (let i = Math.max(top, j0 + lower); i < bottom; i += 4) {
          const last = Math.min(right, j0 + ROWS, i - lower + 4);
          for (let j = j0; j < last; j += 4) {
            const k = zeros ? Math.max(k0, zeros(i, j) & -UNROLLED) : k0;
            if (k >= end) continue;
            const sum = start + (i - sumTop) * sumColumns + j - sumLeft;
            this.#functions.addSquare(
              BYTES * (i * length + 4 * k),
              BYTES * (j * length + 4 * k),
              BYTES * sum,
              BYTES * sumColumns,
              BYTES * (i * length + 4 * end),
            );
          }
        }
      }
    }
  }

  /**
   * `into` = A x for A of which the first n rows and columns of the sums are the lower triangle.
   * @param x zero from n to the next multiple of four
   */
  multiplySymmetric(x: Float64Array, n: number, into: Float64Array): void {
    const { sums, sumColumns } = this, N = padded(n), start = sums.byteOffset;
    const [xs, ys] = [this.#vectors.subarray(0, N), this.#vectors.subarray(sumColumns, sumColumns + N)];
    xs.set(x.subarray(0, N));
    ys.fill(0);
    for (let j = 0; j < N; j += 4) {
      const a = start + BYTES * j * sumColumns, end = xs.byteOffset + BYTES * j;
      this.#functions.multiplyRows(a, BYTES * sumColumns, xs.byteOffset, ys.byteOffset, end);
      for (let r = j; r < j + 4; r++) { // the diagonal square
        for (let c = j; c <= r; c++) {
          const value = sums[r * sumColumns + c] as number;
          ys[r] = (ys[r] as number) + value * (xs[c] as number);
          if (c < r) ys[c] = (ys[c] as number) + value * (xs[r] as number);
        }
      }
    }
    into.set(ys.subarray(0, n));
  }
}

/** Sets a row of panels to `values`, and to zero behind them. */
export function setRow(into: DotProducts, row: number, values: ArrayLike<number>): void {
  const { panels, length } = into, at = into.at(row);
  for (let k = 0; k < length; k++) panels[at + 4 * k] = values[k] ?? 0;
}

let compiled: WebAssembly.Module | undefined;
const kernels = () =>
  compiled ??= compile((fused) => ({ addSquare: addSquare(fused), multiplyRows: multiplyRows(fused) }));

/**
 * addSquare(a, b, sums, stride, end): for 4 x 4 pairs, sums[p * stride + q] += sum over k of a[k][p] b[k][q]. Addresses, the
 * stride and the end of a are in bytes, the number of columns is a multiple of {@link UNROLLED}. Each value is loaded once: the
 * pairs of b are exchanged in a register for what is off the diagonals of 2 x 2.
 */
function addSquare(fused: boolean): WasmFunction {
  const [a, b, sums, stride, end, a01, a23, y] = [0, 1, 2, 3, 4, 5, 6, 7] as const;
  // Of rows 2 p, 2 p + 1 of a and 2 q, 2 q + 1 of b: the sums on the diagonal, or with `off` those of (0, 1) and (1, 0).
  const sum = (p: number, q: number, off: number) => 8 + 4 * p + 2 * q + off;
  const accumulate = (q: number, off: number) =>
    [a01, a23].flatMap((x, p) =>
      set(sum(p, q, off), multiplyAdd(get(x), get(y), get(sum(p, q, off)), fused))
    );
  const column = [
    ...[...set(a01, load(get(a))), ...set(a23, load(get(a), 16))],
    ...[0, 1].flatMap((q) => [
      ...[...set(y, load(get(b), 16 * q)), ...accumulate(q, 0)],
      ...[...set(y, pick(get(y), get(y), 1, 0)), ...accumulate(q, 1)],
    ]),
    ...[a, b].flatMap((pointer) => advance(pointer, constant(4 * BYTES))),
  ];
  const code = [
    ...repeatWhileLess(get(a), get(end), Array<typeof column>(UNROLLED).fill(column).flat()),
    ...[0, 1, 2, 3].flatMap((row) => [
      ...[0, 1].flatMap((q) => {
        const diagonal = get(sum(row >> 1, q, 0)), off = get(sum(row >> 1, q, 1));
        const pair = row % 2 === 0 ? pick(diagonal, off, 0, 2) : pick(off, diagonal, 1, 3);
        return store(get(sums), add(load(get(sums), 16 * q), pair), 16 * q);
      }),
      ...advance(sums, get(stride)),
    ]),
  ];
  return { parameters: 5, i32: 0, v128: 3 + 8, code };
}

/**
 * multiplyRows(a, stride, x, y, end): y += A x for four rows of a symmetric matrix and their columns before the diagonal square,
 * which are also columns and their rows: y[k] += sum over r of a[r][k] x[j + r], y[j + r] += sum over k of a[r][k] x[k], where
 * k runs from 0 to j. Addresses are in bytes, `end` is that of x[j].
 */
function multiplyRows(fused: boolean): WasmFunction {
  const [a, stride, x, y, end, at, x2, y2, a2] = [0, 1, 2, 3, 4, 5, 8, 9, 10] as const, fours = [0, 1, 2, 3];
  const row = (r: number) => r === 0 ? a : at + r - 1,
    factor = (r: number) => 11 + r,
    sum = (r: number) => 15 + r;
  const pair = [
    ...[...set(x2, load(get(x))), ...set(y2, load(get(y)))],
    ...fours.flatMap((r) => [
      ...set(a2, load(get(row(r)))),
      ...set(sum(r), multiplyAdd(get(a2), get(x2), get(sum(r)), fused)),
      ...set(y2, multiplyAdd(get(a2), get(factor(r)), get(y2), fused)),
    ]),
    ...store(get(y), get(y2)),
    ...[...fours.map(row), x, y].flatMap((pointer) => advance(pointer, constant(2 * BYTES))),
  ];
  const both = (r: number) => {
    const sums = add(pick(get(sum(r)), get(sum(r + 1)), 0, 2), pick(get(sum(r)), get(sum(r + 1)), 1, 3));
    return store(get(y), add(load(get(y), r * BYTES), sums), r * BYTES);
  };
  const code = [
    ...[1, 2, 3].flatMap((r) => set(row(r), plus(get(row(r - 1)), get(stride)))),
    ...fours.flatMap((r) => set(factor(r), loadTwice(get(end), r * BYTES))),
    ...ifLess(get(x), get(end), repeatWhileLess(get(x), get(end), pair)),
    ...[...both(0), ...both(2)],
  ];
  return { parameters: 5, i32: 3, v128: 3 + 8, code };
}

/** Rows of the lower triangle of an n x n matrix in `parts` ranges of equal area and multiples of four. */
export function bandsOf(n: number, parts: number): [number, number][] {
  const edges = Array.from({ length: parts + 1 }, (_, k) => padded(Math.round(n * Math.sqrt(k / parts)) - 3));
  edges[parts] = padded(n);
  return edges.slice(1).map((to, k): [number, number] => [edges[k] as number, to]).filter(([from, to]) =>
    to > from
  );
}
