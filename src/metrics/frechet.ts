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
  const { rank, order, upper } = await choleskyFactor(a.covariance, n, breathe);
  const other = new Float64Array(N * N); // S2 in the order of the factor
  for (let i = 0; i < n; i++) {
    const from = (order[i] as number) * n;
    for (let j = 0; j < n; j++) other[i * N + j] = b.covariance[from + (order[j] as number)] as number;
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
