// Eigenvalues of symmetric f64 matrices of thousands of columns: tridiagonalisation, whose reflections are applied to the
// remaining matrix by one product, as LAPACK's dsytrd does, and bisection in SIMD: 2048 columns take seconds.

import { DotProducts, padded } from "./dot_products.ts";
import { type Breather, subtractBoth } from "./linalg.ts";
import {
  advance,
  compile,
  constant,
  divide,
  get,
  larger,
  less,
  load,
  loadTwice,
  repeatWhileLess,
  select,
  set,
  store,
  subtract,
  subtractIntegers,
  type WasmFunction,
} from "./wasm.ts";

/** Reflections that are applied to the remaining matrix at once. */
const REFLECTIONS = 32;
/** Numbers of eigenvalues below a shift that are counted at once, in pairs. */
const SHIFTS = 8;

/**
 * Eigenvalues of a symmetric matrix by Householder tridiagonalisation (Wilkinson and Reinsch, 1971) and bisection. The lower
 * triangle is read.
 * @param ld length of a row
 */
export async function symmetricEigenvalues(
  A: Float64Array,
  n: number,
  ld: number,
  breathe: Breather,
): Promise<Float64Array> {
  const N = padded(n), work = new DotProducts(2 * N, 2 * REFLECTIONS, N, N);
  for (let i = 0; i < n; i++) work.sums.set(A.subarray(i * ld, i * ld + i + 1), i * N);
  const d = new Float64Array(n), e = new Float64Array(n); // the diagonal and, from 1 on, the one below
  // Each reflection changes A by -u q^T - q u^T. Those of a block change the sums at its end, and until then what is read of them.
  const vectors = () => Array.from({ length: REFLECTIONS }, () => new Float64Array(N));
  const us = vectors(), qs = vectors();
  let pending = 0;
  for (let i = n - 1; i >= 0; i--) {
    if (pending === REFLECTIONS) {
      applyReflections(work, us, qs, padded(i + 1));
      pending = 0;
    }
    const v = us[pending] as Float64Array, p = qs[pending] as Float64Array;
    v.fill(0).set(work.sums.subarray(i * N, i * N + i + 1));
    for (let m = 0; m < pending; m++) {
      const u = us[m] as Float64Array, q = qs[m] as Float64Array;
      subtractBoth(v, 0, i + 1, u, q[i] as number, q, u[i] as number);
    }
    d[i] = v[i] as number;
    if (i === 0) break;
    e[i] = v[i - 1] as number;
    v[i] = 0;
    const scale = v.reduce((sum, x) => sum + Math.abs(x), 0);
    if (i === 1 || scale === 0) continue;
    let h = 0;
    for (let k = 0; k < i; k++) {
      v[k] = (v[k] as number) / scale;
      h += (v[k] as number) ** 2;
    }
    const f = v[i - 1] as number, g = f >= 0 ? -Math.sqrt(h) : Math.sqrt(h);
    e[i] = scale * g;
    h -= f * g;
    v[i - 1] = f - g;
    p.fill(0);
    work.multiplySymmetric(v, i, p);
    for (let m = 0; m < pending; m++) {
      const u = us[m] as Float64Array, q = qs[m] as Float64Array;
      subtractBoth(p, 0, i, u, dot(q, v, i), q, dot(u, v, i));
    }
    const along = dot(p, v, i) / (2 * h * h);
    for (let k = 0; k < i; k++) p[k] = (p[k] as number) / h - along * (v[k] as number);
    pending++;
    await breathe();
  }
  return await tridiagonalEigenvalues(d, e, breathe);
}

/** sums -= u q^T + q u^T for all u and q, in the lower triangle of the first `size` rows. */
function applyReflections(
  work: DotProducts,
  us: readonly Float64Array[],
  qs: readonly Float64Array[],
  size: number,
): void {
  const { panels } = work, half = us.length, N = work.sumRows;
  for (let m = 0; m < half; m++) {
    const u = us[m] as Float64Array, q = qs[m] as Float64Array;
    for (let i = 0; i < size; i++) {
      const [at, other] = [work.at(i) + 4 * m, work.at(N + i) + 4 * m];
      panels[at] = u[i] as number;
      panels[at + 4 * half] = q[i] as number;
      panels[other] = -(q[i] as number);
      panels[other + 4 * half] = -(u[i] as number);
    }
  }
  work.add([0, size], [N, N + size], { lower: -N });
}

/** The dot product of the first n elements. */
function dot(a: Float64Array, b: Float64Array, n: number): number {
  let even = 0, odd = 0;
  for (let k = 0; k + 1 < n; k += 2) {
    even += (a[k] as number) * (b[k] as number);
    odd += (a[k + 1] as number) * (b[k + 1] as number);
  }
  return even + odd + (n % 2 === 1 ? (a[n - 1] as number) * (b[n - 1] as number) : 0);
}

/**
 * Eigenvalues in ascending order of the tridiagonal matrix with diagonal d and off-diagonal e[1..], by bisection with Sturm
 * sequences: slower than QL, but it converges for strongly graded matrices.
 */
async function tridiagonalEigenvalues(
  d: Float64Array,
  e: Float64Array,
  breathe: Breather,
): Promise<Float64Array> {
  const n = d.length;
  let low = Infinity, high = -Infinity; // Gershgorin's bounds
  for (let i = 0; i < n; i++) {
    const around = Math.abs(e[i] as number) + Math.abs(e[i + 1] ?? 0);
    low = Math.min(low, (d[i] as number) - around);
    high = Math.max(high, (d[i] as number) + around);
  }
  const most = Math.max(Math.abs(low), Math.abs(high)), edge = 2 * Number.EPSILON * most;
  const tiny = Number.EPSILON ** 2 * most + Number.MIN_VALUE; // replaces a zero pivot
  const matrix = new SturmCounts(d, e, tiny), values = new Float64Array(n);
  const open = [{ low: low - edge, high: high + edge, first: 0, end: n }]; // numbers of the eigenvalues inside
  while (open.length > 0) {
    const parts: typeof open = [];
    for (let part; parts.length < SHIFTS && (part = open.pop());) {
      const { low, high, first, end } = part,
        width = 2 * Number.EPSILON * Math.max(Math.abs(low), Math.abs(high));
      if (high - low > Math.max(tiny, width)) parts.push(part);
      else values.fill((low + high) / 2, first, end);
    }
    const counts = matrix.below(parts.map(({ low, high }) => (low + high) / 2));
    for (const [k, { low, high, first, end }] of parts.entries()) {
      const middle = (low + high) / 2, split = Math.min(end, Math.max(first, counts[k] as number));
      if (split > first) open.push({ low, high: middle, first, end: split });
      if (split < end) open.push({ low: middle, high, first: split, end });
    }
    await breathe();
  }
  return values;
}

/** Offsets in the memory of {@link SturmCounts}: of shifts, later counts; the smallest pivot; the elements of the matrix. */
const TINY = SHIFTS, ELEMENTS = TINY + 2, BYTES = Float64Array.BYTES_PER_ELEMENT;

/** Counts the eigenvalues of a tridiagonal matrix below shifts: the negative pivots of its factorisation. */
class SturmCounts {
  readonly #shifts: Float64Array;
  readonly #counts: BigInt64Array;
  readonly #run: () => void;

  /** @param tiny replaces smaller pivots that are not negative */
  constructor(d: Float64Array, e: Float64Array, tiny: number) {
    const length = ELEMENTS + 2 * d.length;
    const memory = new WebAssembly.Memory({ initial: Math.ceil(length * BYTES / (1 << 16)) });
    const all = new Float64Array(memory.buffer);
    all[TINY] = tiny;
    for (const [i, value] of d.entries()) {
      all.set([value, i === 0 ? 0 : (e[i] as number) ** 2], ELEMENTS + 2 * i);
    }
    this.#shifts = all.subarray(0, SHIFTS);
    this.#counts = new BigInt64Array(memory.buffer, 0, SHIFTS);
    const { exports } = new WebAssembly.Instance(compiled ??= compile(() => ({ sturm })), {
      host: { memory },
    });
    const count = exports.sturm as (element: number, end: number, shifts: number) => void;
    this.#run = () => count(ELEMENTS * BYTES, length * BYTES, 0);
  }

  /** Numbers of eigenvalues below each of at most {@link SHIFTS} shifts. */
  below(shifts: readonly number[]): number[] {
    this.#shifts.set(shifts);
    this.#run();
    return shifts.map((_, k) => Number(this.#counts[k]));
  }
}

let compiled: WebAssembly.Module | undefined;

/** sturm(element, end, shifts): replaces the shifts by the numbers of negative pivots d - shift - e^2 / previous pivot. */
const sturm: WasmFunction = (() => {
  const [element, end, shifts, zero, tiny, d, square, negative] = [0, 1, 2, 3, 4, 5, 6, 7] as const;
  const pairs = Array.from(
    { length: SHIFTS / 2 },
    (_, k) => ({ at: 2 * BYTES * k, pivot: 8 + 2 * k, count: 9 + 2 * k }),
  );
  const step = [
    ...[...set(d, loadTwice(get(element))), ...set(square, loadTwice(get(element), BYTES))],
    ...pairs.flatMap(({ at, pivot, count }) => [
      ...set(pivot, subtract(subtract(get(d), load(get(shifts), at)), divide(get(square), get(pivot)))),
      ...set(negative, less(get(pivot), get(zero))),
      ...set(count, subtractIntegers(get(count), get(negative))),
      ...set(pivot, select(get(negative), get(pivot), larger(get(pivot), get(tiny)))),
    ]),
    ...advance(element, constant(2 * BYTES)),
  ];
  const code = [
    ...set(tiny, loadTwice(get(shifts), TINY * BYTES)),
    ...pairs.flatMap(({ pivot }) => set(pivot, get(tiny))), // any number: the first square is zero
    ...repeatWhileLess(get(element), get(end), step),
    ...pairs.flatMap(({ at, count }) => store(get(shifts), get(count), at)),
  ];
  return { parameters: 3, i32: 0, v128: 5 + SHIFTS, code };
})();
