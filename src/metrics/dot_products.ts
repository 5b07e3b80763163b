// Sums of dot products of f64 rows with 128-bit SIMD and fused multiply-add: a WebAssembly function of 4 x 4 rows. It is
// assembled here because no maintained BLAS for JavaScript has SIMD. Additions have a fixed order; processors without fused
// multiply-add round each product, too, so that results differ by roundings there.

import { padded } from "./linalg.ts";

/** Columns per accumulation, and rows whose columns stay in the second-level cache meanwhile. */
const COLUMNS = 256, ROWS = 64;
const BYTES = Float64Array.BYTES_PER_ELEMENT, PAGE = 1 << 16;

/** The function that assemble() describes. */
type Add = (a: number, b: number, sums: number, stride: number, length: number) => void;

/** A set of f64 rows in panels of four, [rows / 4, length, 4], and sums of their dot products, [sumRows, sumColumns]. */
export class DotProducts {
  readonly panels: Float64Array<ArrayBuffer>;
  readonly sums: Float64Array<ArrayBuffer>;
  readonly #add: Add;

  /**
   * All sizes are multiples of four.
   * @param sumRows, sumColumns size of the sums
   */
  constructor(rows: number, readonly length: number, readonly sumRows: number, readonly sumColumns: number) {
    const counts = [rows * length, sumRows * sumColumns] as const;
    const memory = new WebAssembly.Memory({ initial: Math.ceil((counts[0] + counts[1]) * BYTES / PAGE) + 1 });
    this.panels = new Float64Array(memory.buffer, 0, counts[0]);
    this.sums = new Float64Array(memory.buffer, counts[0] * BYTES, counts[1]);
    this.#add = new WebAssembly.Instance(kernel(), { host: { memory } }).exports.add as Add;
  }

  /** Offset in `panels` of the first element of a row; the next elements follow at distances of four. */
  at(row: number): number {
    return (row & ~3) * this.length + (row & 3);
  }

  /**
   * sums[i - top][j - left] += row i . row j for the pairs of rows in two ranges of multiples of four.
   * @param options.sumTop first row of the sums [top]
   * @param options.lower only pairs with j <= i - lower, by squares of 4 x 4
   * @param options.zeros number of columns at the start that are known to be zero in one of the four rows from i or from j on
   */
  add(
    [top, bottom]: readonly [number, number],
    [left, right]: readonly [number, number],
    options: { sumTop?: number; lower?: number; zeros?: (i: number, j: number) => number } = {},
  ): void {
    const { sumTop = top, lower = -Infinity, zeros } = options;
    const { length, sumColumns } = this, start = this.panels.length;
    for (let k0 = 0; k0 < length; k0 += COLUMNS) {
      const end = Math.min(length, k0 + COLUMNS);
      for (let j0 = left; j0 < right; j0 += ROWS) {
        for (let i = Math.max(top, j0 + lower); i < bottom; i += 4) {
          const last = Math.min(right, j0 + ROWS, i - lower + 4);
          for (let j = j0; j < last; j += 4) {
            const k = zeros ? Math.max(k0, zeros(i, j) & -UNROLLED) : k0;
            if (k >= end) continue;
            const sum = start + (i - sumTop) * sumColumns + j - left;
            this.#add(
              BYTES * (i * length + 4 * k),
              BYTES * (j * length + 4 * k),
              BYTES * sum,
              BYTES * sumColumns,
              end - k,
            );
          }
        }
      }
    }
  }
}

/** Sets a row of panels to `values`, and to zero behind them. */
export function setRow(into: DotProducts, row: number, values: ArrayLike<number>): void {
  const { panels, length } = into, at = into.at(row);
  for (let k = 0; k < length; k++) panels[at + 4 * k] = values[k] ?? 0;
}

let compiled: WebAssembly.Module | undefined;
const kernel = () => {
  const fused = assemble(true);
  return compiled ??= new WebAssembly.Module(WebAssembly.validate(fused) ? fused : assemble(false));
};

/** Columns per iteration of the loop. */
const UNROLLED = 4;

/**
 * add(a, b, sums, stride, length): for 4 x 4 pairs, sums[p * stride + q] += sum over k of a[k][p] b[k][q]. Addresses and the
 * stride are in bytes, the length is a multiple of {@link UNROLLED}. The encoding is that of the WebAssembly specification 3.0,
 * chapter 5.
 * @param fused whether a product is added without being rounded before, where the processor can (f64x2.relaxed_madd)
 */
function assemble(fused: boolean): Uint8Array<ArrayBuffer> {
  const I32 = 0x7f, V128 = 0x7b, VOID = 0x40;
  const [a, b, sums, stride, length, end, b01, b23, x] = [0, 1, 2, 3, 4, 5, 6, 7, 8] as const;
  const accumulator = (p: number, half: number) => 9 + 2 * p + half;
  const get = (local: number) => [0x20, local], set = (local: number) => [0x21, local];
  const constant = (value: number) => [0x41, ...signed(value)];
  const ADD = 0x6a, SHIFT_LEFT = 0x74, LESS = 0x49, LOOP = 0x03, BRANCH_IF = 0x0d, END = 0x0b;
  const simd = (code: number) => [0xfd, ...unsigned(code)];
  const load = (offset: number) => [...simd(0), 0, offset],
    store = (offset: number) => [...simd(11), 0, offset];
  const loadSplat = (offset: number) => [...simd(10), 0, offset];
  const add = simd(0xf0), multiply = simd(0xf2), multiplyAdd = simd(0x107);
  const fours = [0, 1, 2, 3], halves = [[0, b01], [1, b23]] as const, each = 4 * BYTES; // bytes of a column of a panel
  const advance = (pointer: number) => [...get(pointer), ...constant(each * UNROLLED), ADD, ...set(pointer)];
  const accumulate = (sum: number, pair: number) =>
    fused
      ? [...get(x), ...get(pair), ...get(sum), ...multiplyAdd, ...set(sum)]
      : [...get(sum), ...get(x), ...get(pair), ...multiply, ...add, ...set(sum)];
  const column = (k: number) => [
    ...[...get(b), ...load(each * k), ...set(b01), ...get(b), ...load(each * k + 16), ...set(b23)],
    ...fours.flatMap((p) => [
      ...[...get(a), ...loadSplat(each * k + 8 * p), ...set(x)],
      ...halves.flatMap(([half, pair]) => accumulate(accumulator(p, half), pair)),
    ]),
  ];
  const code = [
    ...[2, 1, I32, 2 + 1 + 8, V128], // local variables: end; b01, b23, x, accumulators
    ...[...get(a), ...get(length), ...constant(5), SHIFT_LEFT, ADD, ...set(end)],
    ...[LOOP, VOID],
    ...Array.from({ length: UNROLLED }, (_, k) => column(k)).flat(),
    ...[...advance(b), ...advance(a), ...get(a), ...get(end), LESS, BRANCH_IF, 0, END],
    ...fours.flatMap((p) => [
      ...halves.flatMap(([half]) => {
        const sum = [...get(sums), ...load(16 * half), ...get(accumulator(p, half)), ...add];
        return [...get(sums), ...sum, ...store(16 * half)];
      }),
      ...[...get(sums), ...get(stride), ADD, ...set(sums)],
    ]),
    END,
  ];
  const name = (text: string) => [text.length, ...new TextEncoder().encode(text)];
  const section = (id: number, content: number[]) => [id, ...unsigned(content.length), ...content];
  return Uint8Array.from([
    ...[0, ...new TextEncoder().encode("asm"), 1, 0, 0, 0],
    ...section(1, [1, 0x60, 5, I32, I32, I32, I32, I32, 0]), // the type of the function
    ...section(2, [1, ...name("host"), ...name("memory"), 2, 0, 1]), // imports a memory of one page or more
    ...section(3, [1, 0]),
    ...section(7, [1, ...name("add"), 0, 0]), // exports the function
    ...section(10, [1, ...unsigned(code.length), ...code]),
  ]);
}

/** LEB128. */
function unsigned(value: number): number[] {
  return value < 128 ? [value] : [value & 127 | 128, ...unsigned(value >>> 7)];
}

/** LEB128 of a number from 0 to 8191 as a signed one. */
function signed(value: number): number[] {
  return value < 64 ? [value] : [value & 127 | 128, value >>> 7];
}

/** Rows of the lower triangle of an n x n matrix in `parts` ranges of equal area and multiples of four. */
export function bandsOf(n: number, parts: number): [number, number][] {
  const edges = Array.from({ length: parts + 1 }, (_, k) => padded(Math.round(n * Math.sqrt(k / parts)) - 3));
  edges[parts] = padded(n);
  return edges.slice(1).map((to, k): [number, number] => [edges[k] as number, to]).filter(([from, to]) =>
    to > from
  );
}
