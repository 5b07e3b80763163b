// Frechet distance of two sets of features as Gaussians: |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2). Dowson and Landau
// (1982); Heusel et al. (2017). The last trace is the sum of the square roots of the eigenvalues of U S2 U^T with S1 = U^T U:
// no matrix square root, and singular covariances (fewer images than features) are valid. All in f64.

import { NotFiniteError, UsageError } from "../errors.ts";
import { DotProducts, padded, setRow } from "./dot_products.ts";
import { symmetricEigenvalues } from "./eigenvalues.ts";
import { breather, choleskyFactor } from "./linalg.ts";
import { allFinite, type Features, type Gaussian, Moments } from "./moments.ts";

/** Rows of a matrix between two yields to the event loop. */
const STRIP = 64;

/** The Frechet distance of two Gaussians; zero if they are equal. */
export async function frechet(a: Gaussian, b: Gaussian): Promise<number> {
  const n = a.mean.length, N = padded(n), breathe = breather();
  if (b.mean.length !== n) {
    throw new UsageError(`Cannot compare features: ${n} against ${b.mean.length} of them`);
  }
  if (
    ![a, b].every(({ mean, covariance }) => allFinite(mean) && allFinite(covariance))
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
  const R = padded(rank), us = new DotProducts(R + N, N, R, N);
  for (let k = 0; k < R; k++) setRow(us, k, upper.subarray(k * N, (k + 1) * N));
  for (let i = 0; i < n; i++) { // the other covariance S, in the order of the factor
    const from = (order[i] as number) * n, at = us.at(R + i);
    for (let j = 0; j < n; j++) us.panels[at + 4 * j] = covariance[from + (order[j] as number)] as number;
  }
  for (let k = 0; k < R; k += STRIP) { // U S, whose row k begins at column k of U
    us.add([k, Math.min(R, k + STRIP)], [R, R + N], { sumTop: 0, zeros: (i) => i });
    await breathe();
  }
  const usu = new DotProducts(2 * R, N, R, R);
  usu.panels.set(us.panels.subarray(0, us.at(R)));
  for (let k = 0; k < R; k++) setRow(usu, R + k, us.sums.subarray(k * N, (k + 1) * N));
  for (let k = R; k < 2 * R; k += STRIP) { // U S U^T
    usu.add([k, Math.min(2 * R, k + STRIP)], [0, R], { sumTop: R, lower: R, zeros: (_, j) => j });
    await breathe();
  }
  const values = await symmetricEigenvalues(usu.sums, rank, R, breathe);
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
  const least = Math.min(5000, Math.max(Math.floor(rows / 10), 2));
  using moments = new Moments(columns);
  const inverses: number[] = [], distances: number[] = [];
  for (let point = 0; point < INFINITY_POINTS; point++) {
    const count = Math.floor(least + (rows - least) * point / (INFINITY_POINTS - 1));
    while (moments.rows < count) {
      const at = (options.order[moments.rows] as number) * columns;
      await moments.add(fake.data.subarray(at, at + columns));
    }
    inverses.push(1 / count);
    distances.push(await frechet(real, await moments.gaussian()));
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
