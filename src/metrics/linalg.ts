// Linear algebra of symmetric f64 matrices for covariances of thousands of features: Cholesky factors of possibly singular
// matrices, eigenvalues. Sides are zero-padded to multiples of four. Blocks of columns are applied to the remaining matrix by
// one product, as LAPACK's dpstrf and dsytrd do: 2048 columns take seconds. Long computations yield to the event loop.

import { DotProducts, padded } from "./dot_products.ts";

/** Yields to the event loop at most every 100 ms, for output and signals. */
export type Breather = () => Promise<void> | undefined;

export function breather(): Breather {
  let last = performance.now();
  return () => {
    if (performance.now() - last < 100) return undefined;
    return new Promise((resolve) =>
      setTimeout(() => {
        last = performance.now();
        resolve();
      })
    );
  };
}

/**
 * Adds the dot products of four rows of `a` and four of `b` to a square of `c`: c[i + p][j + q] += a[i + p] . b[j + q].
 * @param length of the rows of a and b
 * @param from first column that counts
 * @param ldc length of the rows of c
 */
export function addDotProducts(
  c: Float64Array,
  ldc: number,
  a: Float64Array,
  i: number,
  b: Float64Array,
  j: number,
  length: number,
  from = 0,
): void {
  const a0 = i * length, a1 = a0 + length, a2 = a1 + length, a3 = a2 + length;
  const b0 = j * length, b1 = b0 + length, b2 = b1 + length, b3 = b2 + length;
  let c00 = 0, c01 = 0, c02 = 0, c03 = 0, c10 = 0, c11 = 0, c12 = 0, c13 = 0;
  let c20 = 0, c21 = 0, c22 = 0, c23 = 0, c30 = 0, c31 = 0, c32 = 0, c33 = 0;
  for (let k = from; k < length; k++) {
    const x0 = a[a0 + k] as number, x1 = a[a1 + k] as number;
    const x2 = a[a2 + k] as number, x3 = a[a3 + k] as number;
    const y0 = b[b0 + k] as number, y1 = b[b1 + k] as number;
    const y2 = b[b2 + k] as number, y3 = b[b3 + k] as number;
    c00 += x0 * y0;
    c01 += x0 * y1;
    c02 += x0 * y2;
    c03 += x0 * y3;
    c10 += x1 * y0;
    c11 += x1 * y1;
    c12 += x1 * y2;
    c13 += x1 * y3;
    c20 += x2 * y0;
    c21 += x2 * y1;
    c22 += x2 * y2;
    c23 += x2 * y3;
    c30 += x3 * y0;
    c31 += x3 * y1;
    c32 += x3 * y2;
    c33 += x3 * y3;
  }
  const sums = [c00, c01, c02, c03, c10, c11, c12, c13, c20, c21, c22, c23, c30, c31, c32, c33];
  for (let p = 0; p < 4; p++) {
    const at = (i + p) * ldc + j;
    for (let q = 0; q < 4; q++) c[at + q] = (c[at + q] as number) + (sums[4 * p + q] as number);
  }
}

/** P A P^T = U^T U up to rounding, with the rows and columns of A in the order of P. */
export interface Factor {
  rank: number;
  /** Row of A at each position. */
  order: Int32Array;
  /** [padded rank, padded n]; row k starts with k zeros. */
  upper: Float64Array;
}

/** Columns that are applied to the remaining matrix at once, by the factorisation and by the tridiagonalisation. */
const FACTOR_BLOCK = 64, REFLECTIONS = 32;

/**
 * Pivoted Cholesky factor of a positive semi-definite A [n, n]; stops when the remainder is rounding error (Higham 2002,
 * section 10.3).
 */
export async function choleskyFactor(A: Float64Array, n: number, breathe: Breather): Promise<Factor> {
  const N = padded(n), upper = new Float64Array(N * N);
  // The lower triangle of U^T U - P A P^T, for the rows of U of all blocks before.
  const work = new DotProducts(N, FACTOR_BLOCK, N, N), rest = work.sums;
  for (let i = 0; i < n; i++) for (let j = 0; j <= i; j++) rest[i * N + j] = -(A[i * n + j] as number);
  const order = Int32Array.from({ length: n }, (_, i) => i);
  const left = Float64Array.from({ length: n }, (_, i) => A[i * n + i] as number); // diagonal of the remainder
  const enough = left.reduce((a, b) => Math.max(a, b), 0) * n * Number.EPSILON;
  let rank = 0, block = 0; // first row of U of the block
  for (; rank < n; rank++) {
    let best = rank;
    for (let i = rank + 1; i < n; i++) if ((left[i] as number) > (left[best] as number)) best = i;
    if (!((left[best] as number) > enough)) break;
    if (best > rank) {
      swap(order, rank, best);
      swap(left, rank, best);
      for (let k = 0; k < rank; k++) swap(upper, k * N + rank, k * N + best);
      swapSymmetric(rest, n, N, rank, best);
    }
    if (rank === block + FACTOR_BLOCK) {
      for (let k = block; k < rank; k++) {
        for (let i = rank; i < n; i++) work.panels[work.at(i) + 4 * (k - block)] = upper[k * N + i] as number;
      }
      work.add([rank, N], [rank, N], { sumTop: 0, sumLeft: 0, lower: 0 });
      block = rank;
    }
    const row = upper.subarray(rank * N, rank * N + n), root = Math.sqrt(left[rank] as number);
    for (let i = rank + 1; i < n; i++) row[i] = rest[i * N + rank] as number;
    for (let k = block; k < rank; k++) {
      const other = upper.subarray(k * N, k * N + n), factor = other[rank] as number;
      for (let i = rank + 1; i < n; i++) row[i] = (row[i] as number) + factor * (other[i] as number);
    }
    row[rank] = root;
    for (let i = rank + 1; i < n; i++) {
      const v = -(row[i] as number) / root;
      row[i] = v;
      left[i] = (left[i] as number) - v * v;
    }
    await breathe();
  }
  return { rank, order, upper: upper.subarray(0, padded(rank) * N) };
}

function swap(values: Float64Array | Int32Array, i: number, j: number): void {
  [values[i], values[j]] = [values[j] as number, values[i] as number];
}

/** Exchanges rows and columns i < j of a symmetric matrix given by its lower triangle; those before i are not needed. */
function swapSymmetric(A: Float64Array, n: number, ld: number, i: number, j: number): void {
  swap(A, i * ld + i, j * ld + j);
  for (let k = i + 1; k < j; k++) swap(A, k * ld + i, j * ld + k);
  for (let k = j + 1; k < n; k++) swap(A, k * ld + i, k * ld + j);
}

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
  // Each reflection changes A by - u q^T - q u^T, up to which row `end` they are not yet in the sums.
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
      subtract(v, i + 1, u, q[i] as number, q, u[i] as number);
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
      subtract(p, i, u, dot(q, v, i), q, dot(u, v, i));
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

/** x -= a s + b t in the first n elements. */
function subtract(x: Float64Array, n: number, a: Float64Array, s: number, b: Float64Array, t: number): void {
  for (let k = 0; k < n; k++) x[k] = (x[k] as number) - s * (a[k] as number) - t * (b[k] as number);
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
  const n = d.length, squares = e.map((v) => v * v);
  let low = Infinity, high = -Infinity; // Gershgorin's bounds
  for (let i = 0; i < n; i++) {
    const around = Math.abs(e[i] as number) + Math.abs(e[i + 1] ?? 0);
    low = Math.min(low, (d[i] as number) - around);
    high = Math.max(high, (d[i] as number) + around);
  }
  const most = Math.max(Math.abs(low), Math.abs(high)), edge = 2 * Number.EPSILON * most;
  const tiny = Number.EPSILON ** 2 * most + Number.MIN_VALUE; // replaces a zero pivot
  const below = (x: number) => {
    let count = 0, pivot = 1;
    for (let i = 0; i < n; i++) {
      pivot = (d[i] as number) - x - (squares[i] as number) / pivot;
      if (pivot < 0) count++;
      else if (pivot < tiny) pivot = tiny;
    }
    return count;
  };
  const values = new Float64Array(n);
  const open = [{ low: low - edge, high: high + edge, first: 0, end: n }]; // numbers of the eigenvalues inside
  for (let part = open.pop(); part; part = open.pop()) {
    const { low, high, first, end } = part, middle = (low + high) / 2;
    if (!(high - low > Math.max(tiny, 2 * Number.EPSILON * Math.max(Math.abs(low), Math.abs(high))))) {
      values.fill(middle, first, end);
      continue;
    }
    const split = Math.min(end, Math.max(first, below(middle)));
    if (split > first) open.push({ low, high: middle, first, end: split });
    if (split < end) open.push({ low: middle, high, first: split, end });
    await breathe();
  }
  return values;
}
