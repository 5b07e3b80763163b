// Frechet distance of two sets of features as Gaussians: |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2). Dowson and Landau
// (1982); Heusel et al. (2017). The last trace is the sum of the square roots of the eigenvalues of U S2 U^T with S1 = U^T U:
// no matrix square root, and singular covariances (fewer images than features) are valid. All in f64.

import { NotFiniteError, UsageError } from "../errors.ts";
import { addDotProducts, breather, choleskyFactor, padded, symmetricEigenvalues } from "./linalg.ts";

/** Features of many images, one row each. */
export interface Features {
  data: Float32Array;
  rows: number;
  columns: number;
}

export interface Gaussian {
  mean: Float64Array;
  /** Unbiased covariance [n, n]. */
  covariance: Float64Array;
}

/** Rows per accumulation of their outer products. */
const CHUNK = 256;

/** Accumulates mean and covariance of rows; no row is kept. */
export class Moments {
  rows = 0;
  readonly #n: number;
  /** The first row, which is subtracted from all rows to avoid cancellation. */
  #origin: Float32Array | undefined;
  readonly #sum: Float64Array;
  /** Lower triangle of the sum of outer products [N, N]. */
  readonly #outer: Float64Array;
  /** Pending rows, as columns [N, CHUNK]. */
  readonly #waiting: Float64Array;

  constructor(columns: number) {
    const N = padded(this.#n = columns);
    this.#sum = new Float64Array(N);
    this.#outer = new Float64Array(N * N);
    this.#waiting = new Float64Array(N * CHUNK);
  }

  /** Adds complete rows. @throws UsageError for features that are not finite */
  add(data: Float32Array): void {
    const n = this.#n;
    for (let from = 0; from < data.length; from += n) {
      const row = data.subarray(from, from + n);
      if (!row.every(Number.isFinite)) {
        throw new NotFiniteError("Cannot compute the covariance: a feature is not finite");
      }
      const origin = this.#origin ??= row.slice();
      const place = this.rows++ % CHUNK;
      for (let i = 0; i < n; i++) {
        const v = (row[i] as number) - (origin[i] as number);
        this.#waiting[i * CHUNK + place] = v;
        this.#sum[i] = (this.#sum[i] as number) + v;
      }
      if (place === CHUNK - 1) this.#addWaiting();
    }
  }

  /** @throws UsageError for fewer than two rows */
  gaussian(): Gaussian {
    const { rows } = this, n = this.#n, N = padded(n), S = this.#outer, sum = this.#sum;
    if (rows < 2) throw new UsageError(`Cannot compute the covariance: ${rows} images are too few`);
    this.#addWaiting();
    const covariance = new Float64Array(n * n);
    for (let i = 0; i < n; i++) {
      for (let j = 0; j <= i; j++) {
        const centred = (S[i * N + j] as number) - (sum[i] as number) * (sum[j] as number) / rows;
        covariance[i * n + j] = covariance[j * n + i] = centred / (rows - 1);
      }
    }
    const mean = Float64Array.from(
      { length: n },
      (_, i) => (this.#origin?.[i] ?? 0) + (sum[i] as number) / rows,
    );
    return { mean, covariance };
  }

  #addWaiting(): void {
    const N = padded(this.#n);
    for (let i = 0; i < N; i += 4) {
      for (let j = 0; j <= i; j += 4) {
        addDotProducts(this.#outer, N, this.#waiting, i, this.#waiting, j, CHUNK);
      }
    }
    this.#waiting.fill(0);
  }
}

/** Mean and covariance of features. @throws UsageError for fewer than two rows or features that are not finite */
export function gaussian({ data, columns }: Features): Gaussian {
  const moments = new Moments(columns);
  moments.add(data);
  return moments.gaussian();
}

/** The Frechet distance of two Gaussians; zero if they are equal. */
export async function frechet(a: Gaussian, b: Gaussian): Promise<number> {
  const n = a.mean.length, N = padded(n), breathe = breather();
  if (b.mean.length !== n) {
    throw new UsageError(`Cannot compare features: ${n} against ${b.mean.length} of them`);
  }
  if (
    ![a, b].every(({ mean, covariance }) => mean.every(Number.isFinite) && covariance.every(Number.isFinite))
  ) {
    throw new NotFiniteError(
      "Cannot compare features: a mean or covariance is not finite; compute the statistics again",
    );
  }
  let distance = 0;
  for (let i = 0; i < n; i++) {
    distance += ((a.mean[i] as number) - (b.mean[i] as number)) ** 2;
    distance += (a.covariance[i * n + i] as number) + (b.covariance[i * n + i] as number);
  }
  // With the factor of lower rank, no zero eigenvalue is left whose rounding error the square root would enlarge.
  const factors = [
    await choleskyFactor(a.covariance, n, breathe),
    await choleskyFactor(b.covariance, n, breathe),
  ] as const;
  const second = factors[1].rank < factors[0].rank, { covariance } = second ? a : b;
  const { rank, order, upper } = factors[second ? 1 : 0];
  const other = new Float64Array(N * N); // the other covariance, in the order of the factor
  for (let i = 0; i < n; i++) {
    const from = (order[i] as number) * n;
    for (let j = 0; j < n; j++) other[i * N + j] = covariance[from + (order[j] as number)] as number;
  }
  const R = padded(rank), us = new Float64Array(R * N), usu = new Float64Array(R * R);
  for (let k = 0; k < R; k += 4) { // U S2, whose row k begins at column k of U
    for (let j = 0; j < N; j += 4) addDotProducts(us, N, upper, k, other, j, N, k);
    await breathe();
  }
  for (let k = 0; k < R; k += 4) {
    for (let j = 0; j <= k; j += 4) addDotProducts(usu, R, us, k, upper, j, N, j);
    await breathe();
  }
  const values = await symmetricEigenvalues(usu, rank, R, breathe);
  return Math.max(0, distance - 2 * values.reduce((sum, v) => sum + Math.sqrt(Math.max(0, v)), 0));
}

/** Number of distances to which a line is fitted. */
export const INFINITY_POINTS = 15;

/**
 * FD-infinity (Chong and Forsyth 2020): the Frechet distance extrapolated to infinitely many generated images, the intercept of
 * the least-squares line through the distances at 15 numbers of images N as a function of 1 / N. The numbers are those of
 * dgm-eval, equally spaced from min(5000, max(rows / 10, 2)) to all rows; each subset contains the smaller ones.
 * @param options.order of the rows of `fake`: the subsets are its beginnings
 * @throws UsageError for fewer than 16 rows
 */
export async function frechetAtInfinity(
  real: Gaussian,
  fake: Features,
  options: { order: ArrayLike<number>; onPoint?: (done: number) => void },
): Promise<number> {
  const { rows, columns } = fake;
  if (rows <= INFINITY_POINTS) {
    throw new UsageError(
      `Cannot extrapolate the Frechet distance: ${rows} images are too few; use more than ${INFINITY_POINTS}`,
    );
  }
  const least = Math.min(5000, Math.max(Math.floor(rows / 10), 2)), moments = new Moments(columns);
  const inverses: number[] = [], distances: number[] = [];
  for (let point = 0; point < INFINITY_POINTS; point++) {
    const count = Math.floor(least + (rows - least) * point / (INFINITY_POINTS - 1));
    while (moments.rows < count) {
      const at = (options.order[moments.rows] as number) * columns;
      moments.add(fake.data.subarray(at, at + columns));
    }
    inverses.push(1 / count);
    distances.push(await frechet(real, moments.gaussian()));
    options.onPoint?.(point + 1);
  }
  return intercept(inverses, distances);
}

/** Value at x = 0 of the least-squares line through points. */
function intercept(x: readonly number[], y: readonly number[]): number {
  const mean = (values: readonly number[]) => values.reduce((sum, v) => sum + v, 0) / values.length;
  const mx = mean(x), my = mean(y);
  let xy = 0, xx = 0;
  for (const [i, v] of x.entries()) {
    xy += (v - mx) * ((y[i] as number) - my);
    xx += (v - mx) ** 2;
  }
  return my - xy / xx * mx;
}
