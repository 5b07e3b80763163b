// The Frechet distance of two sets of features taken as Gaussians: |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2).
// Dowson and Landau (1982); Heusel et al. (2017). The last trace is the sum of the square roots of the eigenvalues of
// F^T S2 F with S1 = F F^T, so no matrix square root is taken; F comes from S1's eigenvectors, which also serves
// singular covariances (fewer images than features). All in f64.

import { UsageError } from "../errors.ts";

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

/** Mean and covariance. @throws UsageError for fewer than two rows or features that are not finite */
export function gaussian({ data, rows, columns: n }: Features): Gaussian {
  if (rows < 2) throw new UsageError(`Cannot take a covariance: ${rows} images are too few`);
  if (!data.every(Number.isFinite)) throw new UsageError("Cannot take a covariance: a feature is not finite");
  const mean = new Float64Array(n), covariance = new Float64Array(n * n), centred = new Float64Array(n);
  for (let r = 0; r < rows; r++) {
    for (let i = 0; i < n; i++) mean[i] = (mean[i] as number) + (data[r * n + i] as number) / rows;
  }
  for (let r = 0; r < rows; r++) {
    for (let i = 0; i < n; i++) centred[i] = (data[r * n + i] as number) - (mean[i] as number);
    for (let i = 0; i < n; i++) {
      const c = centred[i] as number;
      for (let j = 0; j <= i; j++) {
        covariance[i * n + j] = (covariance[i * n + j] as number) + c * (centred[j] as number);
      }
    }
  }
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) {
      const v = (covariance[i * n + j] as number) / (rows - 1);
      covariance[i * n + j] = v;
      covariance[j * n + i] = v;
    }
  }
  return { mean, covariance };
}

/** The distance of two Gaussians over the same features; zero for equal ones. */
export function frechet(a: Gaussian, b: Gaussian): number {
  const n = a.mean.length;
  if (b.mean.length !== n) {
    throw new UsageError(`Cannot compare features: ${n} against ${b.mean.length} of them`);
  }
  let distance = 0;
  for (let i = 0; i < n; i++) {
    distance += ((a.mean[i] as number) - (b.mean[i] as number)) ** 2;
    distance += (a.covariance[i * n + i] as number) + (b.covariance[i * n + i] as number);
  }
  const { values, vectors } = symmetricEigen(a.covariance, n, true);
  // F = V sqrt(values), columns scaled.
  const F = vectors.map((v, k) => v * Math.sqrt(Math.max(0, values[k % n] as number)));
  const product = multiply(transpose(F, n), multiply(b.covariance, F, n), n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < i; j++) {
      const mean = ((product[i * n + j] as number) + (product[j * n + i] as number)) / 2;
      product[i * n + j] = mean;
      product[j * n + i] = mean;
    }
  }
  const roots = symmetricEigen(product, n, false).values.reduce((s, v) => s + Math.sqrt(Math.max(0, v)), 0);
  return Math.max(0, distance - 2 * roots);
}

function transpose(a: Float64Array, n: number): Float64Array {
  return a.map((_, k) => a[(k % n) * n + Math.floor(k / n)] as number);
}

function multiply(a: Float64Array, b: Float64Array, n: number): Float64Array {
  const c = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    for (let k = 0; k < n; k++) {
      const v = a[i * n + k] as number;
      if (v === 0) continue;
      for (let j = 0; j < n; j++) c[i * n + j] = (c[i * n + j] as number) + v * (b[k * n + j] as number);
    }
  }
  return c;
}

/**
 * Eigenvalues of a symmetric matrix and, where asked for, eigenvectors as columns: Householder tridiagonalisation and
 * implicit QL with shifts (Wilkinson and Reinsch, 1971).
 */
export function symmetricEigen(
  matrix: Float64Array,
  n: number,
  wantVectors: boolean,
): { values: Float64Array; vectors: Float64Array } {
  const z = matrix.slice(), d = new Float64Array(n), e = new Float64Array(n);
  const at = (i: number, j: number) => z[i * n + j] as number;
  for (let i = n - 1; i > 0; i--) {
    let h = 0, scale = 0;
    for (let k = 0; k < i; k++) scale += Math.abs(at(i, k));
    if (i === 1 || scale === 0) e[i] = at(i, i - 1);
    else {
      for (let k = 0; k < i; k++) {
        z[i * n + k] = at(i, k) / scale;
        h += at(i, k) ** 2;
      }
      const f = at(i, i - 1), g = f >= 0 ? -Math.sqrt(h) : Math.sqrt(h);
      e[i] = scale * g;
      h -= f * g;
      z[i * n + i - 1] = f - g;
      let sum = 0;
      for (let j = 0; j < i; j++) {
        if (wantVectors) z[j * n + i] = at(i, j) / h;
        let s = 0;
        for (let k = 0; k <= j; k++) s += at(j, k) * at(i, k);
        for (let k = j + 1; k < i; k++) s += at(k, j) * at(i, k);
        e[j] = s / h;
        sum += (e[j] as number) * at(i, j);
      }
      const hh = sum / (h + h);
      for (let j = 0; j < i; j++) {
        const fj = at(i, j), gj = (e[j] as number) - hh * fj;
        e[j] = gj;
        for (let k = 0; k <= j; k++) z[j * n + k] = at(j, k) - (fj * (e[k] as number) + gj * at(i, k));
      }
    }
    d[i] = h;
  }
  d[0] = 0;
  e[0] = 0;
  for (let i = 0; i < n; i++) {
    if (wantVectors) {
      if (d[i] !== 0) {
        for (let j = 0; j < i; j++) {
          let s = 0;
          for (let k = 0; k < i; k++) s += at(i, k) * at(k, j);
          for (let k = 0; k < i; k++) z[k * n + j] = at(k, j) - s * at(k, i);
        }
      }
      d[i] = at(i, i);
      z[i * n + i] = 1;
      for (let j = 0; j < i; j++) z[j * n + i] = z[i * n + j] = 0;
    } else d[i] = at(i, i);
  }
  e.copyWithin(0, 1);
  e[n - 1] = 0;
  for (let l = 0; l < n; l++) {
    for (let rounds = 0;; rounds++) {
      let m = l;
      for (; m < n - 1; m++) {
        const size = Math.abs(d[m] as number) + Math.abs(d[m + 1] as number);
        if (Math.abs(e[m] as number) <= Number.EPSILON * size) break;
      }
      if (m === l) break;
      if (rounds === 60) throw new Error("Cannot find eigenvalues: no convergence in 60 rounds");
      let g = ((d[l + 1] as number) - (d[l] as number)) / (2 * (e[l] as number));
      let r = Math.hypot(g, 1);
      g = (d[m] as number) - (d[l] as number) + (e[l] as number) / (g + (g >= 0 ? r : -r));
      let s = 1, c = 1, p = 0, i = m - 1;
      for (; i >= l; i--) {
        const f = s * (e[i] as number), b = c * (e[i] as number);
        e[i + 1] = r = Math.hypot(f, g);
        if (r === 0) {
          d[i + 1] = (d[i + 1] as number) - p;
          e[m] = 0;
          break;
        }
        s = f / r;
        c = g / r;
        g = (d[i + 1] as number) - p;
        r = ((d[i] as number) - g) * s + 2 * c * b;
        d[i + 1] = g + (p = s * r);
        g = c * r - b;
        if (wantVectors) {
          for (let k = 0; k < n; k++) {
            const fk = at(k, i + 1);
            z[k * n + i + 1] = s * at(k, i) + c * fk;
            z[k * n + i] = c * at(k, i) - s * fk;
          }
        }
      }
      if (r === 0 && i >= l) continue;
      d[l] = (d[l] as number) - p;
      e[l] = g;
      e[m] = 0;
    }
  }
  return { values: d, vectors: z };
}
