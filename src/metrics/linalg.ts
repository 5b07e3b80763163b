// Linear algebra of symmetric f64 matrices for covariances of thousands of features: Cholesky factors of possibly singular
// matrices, eigenvalues. Sides are zero-padded to multiples of four and memory is read along rows: 2048 columns take seconds.
// Long computations yield to the event loop.

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

/** The next multiple of four. */
export const padded = (n: number): number => (n + 3) & ~3;

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

/**
 * Pivoted Cholesky factor of a positive semi-definite A [n, n]; stops when the remainder is rounding error (Higham 2002,
 * section 10.3).
 */
export async function choleskyFactor(A: Float64Array, n: number, breathe: Breather): Promise<Factor> {
  const N = padded(n), lower = new Float64Array(n * N); // row i of A's factor, so that all sums run along rows
  const order = Int32Array.from({ length: n }, (_, i) => i);
  const left = Float64Array.from({ length: n }, (_, i) => A[i * n + i] as number); // diagonal of the remainder
  const enough = left.reduce((a, b) => Math.max(a, b), 0) * n * Number.EPSILON;
  let rank = 0;
  for (; rank < n; rank++) {
    let best = rank;
    for (let place = rank + 1; place < n; place++) {
      if ((left[order[place] as number] as number) > (left[order[best] as number] as number)) best = place;
    }
    const p = order[best] as number;
    if (!((left[p] as number) > enough)) break;
    order[best] = order[rank] as number;
    order[rank] = p;
    const root = Math.sqrt(left[p] as number), atP = p * N;
    lower[atP + rank] = root;
    for (let place = rank + 1; place < n; place++) {
      const i = order[place] as number, atI = i * N;
      let s0 = 0, s1 = 0, s2 = 0, s3 = 0;
      for (let k = 0; k < rank; k += 4) { // beyond `rank` there are zeros in row i
        s0 += (lower[atI + k] as number) * (lower[atP + k] as number);
        s1 += (lower[atI + k + 1] as number) * (lower[atP + k + 1] as number);
        s2 += (lower[atI + k + 2] as number) * (lower[atP + k + 2] as number);
        s3 += (lower[atI + k + 3] as number) * (lower[atP + k + 3] as number);
      }
      const v = ((A[p * n + i] as number) - (s0 + s1 + s2 + s3)) / root;
      lower[atI + rank] = v;
      left[i] = (left[i] as number) - v * v;
    }
    await breathe();
  }
  const upper = new Float64Array(padded(rank) * N);
  for (let place = 0; place < n; place++) {
    const at = (order[place] as number) * N;
    for (let k = 0; k < Math.min(rank, place + 1); k++) upper[k * N + place] = lower[at + k] as number;
  }
  return { rank, order, upper };
}

/**
 * Eigenvalues of a symmetric matrix by Householder tridiagonalisation (Wilkinson and Reinsch, 1971) and bisection. The lower
 * triangle is read and overwritten.
 * @param ld length of a row
 */
export async function symmetricEigenvalues(
  A: Float64Array,
  n: number,
  ld: number,
  breathe: Breather,
): Promise<Float64Array> {
  const d = new Float64Array(n), e = new Float64Array(n); // the diagonal and, from 1 on, the one below
  // Each reflection changes A by u q^T + q u^T, which is subtracted when the rows are read for the next one.
  let u = new Float64Array(n), q = new Float64Array(n), v = new Float64Array(n), p = new Float64Array(n);
  for (let i = n - 1; i >= 0; i--) {
    const row = i * ld, ui = u[i] as number, qi = q[i] as number;
    let scale = 0, h = 0;
    for (let k = 0; k <= i; k++) {
      const x = (A[row + k] as number) - ui * (q[k] as number) - qi * (u[k] as number);
      v[k] = x;
      if (k < i) scale += Math.abs(x);
    }
    d[i] = v[i] as number;
    if (i === 0) break;
    e[i] = v[i - 1] as number;
    v[i] = 0;
    if (i > 1 && scale > 0) {
      for (let k = 0; k < i; k++) {
        v[k] = (v[k] as number) / scale;
        h += (v[k] as number) ** 2;
      }
      const f = v[i - 1] as number, g = f >= 0 ? -Math.sqrt(h) : Math.sqrt(h);
      e[i] = scale * g;
      h -= f * g;
      v[i - 1] = f - g;
    } else v.fill(0);
    p.fill(0);
    for (let j = 0; j < i; j++) {
      const at = j * ld, uj = u[j] as number, qj = q[j] as number, vj = v[j] as number;
      let sum = 0;
      for (let k = 0; k < j; k++) {
        const x = (A[at + k] as number) - uj * (q[k] as number) - qj * (u[k] as number);
        A[at + k] = x;
        sum += x * (v[k] as number);
        p[k] = (p[k] as number) + x * vj;
      }
      const x = (A[at + j] as number) - 2 * uj * qj;
      A[at + j] = x;
      p[j] = (p[j] as number) + sum + x * vj;
    }
    let along = 0;
    if (h > 0) {
      for (let k = 0; k < i; k++) along += (p[k] as number) * (v[k] as number);
      along /= 2 * h * h;
      for (let k = 0; k < i; k++) p[k] = (p[k] as number) / h - along * (v[k] as number);
    }
    [u, v, q, p] = [v, u, p, q];
    await breathe();
  }
  return await tridiagonalEigenvalues(d, e, breathe);
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
