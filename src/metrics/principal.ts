// The first three principal components of feature maps as colors: what a representation tells parts of an image apart by.
// Components are found by orthogonal iteration, X^T (X V) with modified Gram-Schmidt, in f64.

import { normal } from "../philox.ts";
import type { Features } from "./moments.ts";

const COMPONENTS = 3;
/** Maximum number of iterations, and the change of a direction at which they stop. */
const ITERATIONS = 100, TOLERANCE = 1e-9;
/** Shares of the values of a component that become black and full color. */
const LOW = 0.02, HIGH = 0.98;

/**
 * Projections of centred rows [rows, n] on their first principal components [rows, 3]. The entry of largest magnitude of a
 * direction is positive; components beyond the rank are 0.
 */
export function principalComponents({ data, rows, columns }: Features): Float64Array {
  const x = Float64Array.from(data), mean = new Float64Array(columns);
  for (let i = 0; i < x.length; i++) {
    mean[i % columns] = (mean[i % columns] as number) + (x[i] as number) / rows;
  }
  for (let i = 0; i < x.length; i++) x[i] = (x[i] as number) - (mean[i % columns] as number);
  const size = Math.sqrt(x.reduce((sum, v) => sum + v * v, 0));
  let basis: Float64Array[] = Array.from(
    { length: COMPONENTS },
    (_, k) => Float64Array.from(normal(0, 0x9ca, columns, k)),
  );
  orthogonalise(basis, 0);
  for (let step = 0; step < ITERATIONS; step++) {
    const next = basis.map((v) => backProjected(x, columns, projected(x, columns, v)));
    orthogonalise(next, 1e-12 * size * size);
    const change = Math.max(...next.map((v, k) => 1 - Math.abs(dot(v, basis[k] as Float64Array))));
    basis = next;
    if (change < TOLERANCE) break;
  }
  const found = new Float64Array(rows * COMPONENTS);
  basis.forEach((v, k) => {
    const largest = v.reduce((best, value) => Math.abs(value) > Math.abs(best) ? value : best, 0);
    projected(x, columns, v).forEach((value, r) => found[r * COMPONENTS + k] = largest < 0 ? -value : value);
  });
  return found;
}

const dot = (a: Float64Array, b: Float64Array) => a.reduce((sum, v, i) => sum + v * (b[i] as number), 0);

function projected(x: Float64Array, columns: number, v: Float64Array): Float64Array {
  const y = new Float64Array(x.length / columns);
  for (let r = 0, i = 0; r < y.length; r++) {
    let sum = 0;
    for (let c = 0; c < columns; c++, i++) sum += (x[i] as number) * (v[c] as number);
    y[r] = sum;
  }
  return y;
}

function backProjected(x: Float64Array, columns: number, y: Float64Array): Float64Array {
  const v = new Float64Array(columns);
  for (let r = 0, i = 0; r < y.length; r++) {
    const weight = y[r] as number;
    for (let c = 0; c < columns; c++, i++) v[c] = (v[c] as number) + weight * (x[i] as number);
  }
  return v;
}

/** Makes vectors orthonormal in place; those that are no longer than `least` without the ones before them become 0. */
function orthogonalise(vectors: readonly Float64Array[], least: number): void {
  vectors.forEach((v, k) => {
    for (const other of vectors.slice(0, k)) {
      const along = dot(v, other);
      for (let i = 0; i < v.length; i++) v[i] = (v[i] as number) - along * (other[i] as number);
    }
    const length = Math.sqrt(dot(v, v));
    for (let i = 0; i < v.length; i++) v[i] = length > least ? (v[i] as number) / length : 0;
  });
}

/**
 * Components as RGB bytes [rows, 3]: each component from its 2 % to its 98 % quantile; one that is constant is gray.
 * @param like components of the same rows: those of other direction are inverted, so that equal parts have similar colors
 */
export function componentColors(components: Float64Array, like?: Float64Array): Uint8Array<ArrayBuffer> {
  const rows = components.length / COMPONENTS, colors = new Uint8Array(components.length).fill(128);
  for (let k = 0; k < COMPONENTS; k++) {
    const values = Float64Array.from({ length: rows }, (_, r) => components[r * COMPONENTS + k] as number);
    const other = like && values.map((_, r) => like[r * COMPONENTS + k] as number);
    const sign = other && dot(values, other) < 0 ? -1 : 1;
    const sorted = values.map((v) => sign * v).sort();
    const low = sorted[Math.floor(LOW * (rows - 1))] as number,
      high = sorted[Math.ceil(HIGH * (rows - 1))] as number;
    if (!(high - low > 0)) continue;
    values.forEach((v, r) => {
      colors[r * COMPONENTS + k] = Math.max(
        0,
        Math.min(255, Math.round(255 * (sign * v - low) / (high - low))),
      );
    });
  }
  return colors;
}
