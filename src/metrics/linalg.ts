// Cholesky factors of possibly singular f64 covariances of thousands of features. Sides are zero-padded to multiples of four.
// Blocks of columns are applied to the remaining matrix by one product, as LAPACK's dpstrf does. Long computations yield to the
// event loop.

import { throwIfStopped } from "../interruption.ts";
import { DotProducts, padded } from "./dot_products.ts";

/** Yields to the event loop at most every 100 ms, for output and signals. Its promise rejects with Interrupted after a signal. */
export type Breather = () => Promise<void> | undefined;

export function breather(): Breather {
  let last = performance.now();
  return () => {
    if (performance.now() - last < 100) return undefined;
    return new Promise<void>((resolve) =>
      setTimeout(() => {
        last = performance.now();
        resolve();
      })
    ).then(throwIfStopped);
  };
}

/** P A P^T = U^T U up to rounding, with the rows and columns of A in the order of P. */
export interface Factor {
  rank: number;
  /** Row of A at each position. */
  order: Int32Array;
  /** [padded rank, padded n]; row k starts with k zeros. */
  upper: Float64Array;
}

/** Columns that are applied to the remaining matrix at once. */
const BLOCK = 64;

/**
 * Pivoted Cholesky factor of a positive semi-definite A [n, n]; stops when the remainder is rounding error (Higham 2002,
 * section 10.3).
 */
export async function choleskyFactor(A: Float64Array, n: number, breathe: Breather): Promise<Factor> {
  const N = padded(n), upper = new Float64Array(N * N);
  // The lower triangle of U^T U - P A P^T, for the rows of U of all blocks before.
  const work = new DotProducts(N, BLOCK, N, N), rest = work.sums;
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
    if (rank === block + BLOCK) {
      for (let k = block; k < rank; k++) {
        for (let i = rank; i < n; i++) work.panels[work.at(i) + 4 * (k - block)] = upper[k * N + i] as number;
      }
      work.add([rank, N], [rank, N], { sumTop: 0, sumLeft: 0, lower: 0 });
      block = rank;
    }
    const row = upper.subarray(rank * N, rank * N + n), root = Math.sqrt(left[rank] as number);
    for (let i = rank + 1; i < n; i++) row[i] = -(rest[i * N + rank] as number);
    for (let k = block; k < rank; k += 2) {
      const at = k * N,
        next = Math.min(k + 1, rank - 1) * N,
        second = k + 1 < rank ? upper[next + rank] as number : 0;
      subtractBoth(
        row,
        rank + 1,
        n,
        upper.subarray(at),
        upper[at + rank] as number,
        upper.subarray(next),
        second,
      );
    }
    row[rank] = root;
    for (let i = rank + 1; i < n; i++) {
      const v = (row[i] as number) / root;
      row[i] = v;
      left[i] = (left[i] as number) - v * v;
    }
    await breathe();
  }
  return { rank, order, upper: upper.subarray(0, padded(rank) * N) };
}

function swap(values: Float64Array | Int32Array, i: number, j: number): void {
  const value = values[i] as number;
  values[i] = values[j] as number;
  values[j] = value;
}

/** Exchanges rows and columns i < j of a symmetric matrix given by its lower triangle; those before i are not needed. */
function swapSymmetric(A: Float64Array, n: number, ld: number, i: number, j: number): void {
  swap(A, i * ld + i, j * ld + j);
  for (let k = i + 1; k < j; k++) swap(A, k * ld + i, j * ld + k);
  for (let k = j + 1; k < n; k++) swap(A, k * ld + i, k * ld + j);
}

/** x -= a s + b t in the elements from `first` to before `end`. */
export function subtractBoth(
  x: Float64Array,
  first: number,
  end: number,
  a: Float64Array,
  s: number,
  b: Float64Array,
  t: number,
): void {
  for (let k = first; k < end; k++) x[k] = (x[k] as number) - s * (a[k] as number) - t * (b[k] as number);
}
