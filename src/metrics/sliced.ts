// Monge Inception distance (Berthet et al. 2026, arXiv 2605.06797): the sliced squared 2-Wasserstein distance of two sets of
// features, 3 d times the mean over random unit directions of the mean squared difference of sorted projections. It has no
// bias from a covariance: 5,000 images rank models as Frechet distances of 50,000 do.

import { UsageError } from "../errors.ts";
import { normal } from "../philox.ts";
import type { Features } from "./moments.ts";
import { GramBlocks, meanOf, randomOrder, rowsOf } from "./gram.ts";

/** Number of directions. */
const DIRECTIONS = 1000;
/** Directions whose projections are in memory at a time. */
const CHUNK = 250;

export interface MindOptions {
  /** Of the directions, and of the rows of the larger set. */
  seed?: number;
  /** Rows instead of random unit directions. */
  directions?: Features;
  onProgress?(share: number): void;
}

/**
 * The Monge Inception distance; zero if the sets are equal. Of the larger set as many random rows as the other has are used.
 * @throws UsageError for different numbers of features
 */
export async function mind(a: Features, b: Features, options: MindOptions = {}): Promise<number> {
  const { seed = 0, onProgress } = options, d = a.columns, rows = Math.min(a.rows, b.rows);
  if (b.columns !== d) throw new UsageError(`Cannot compare features: ${d} against ${b.columns} of them`);
  const { data, rows: M } = options.directions ?? unitVectors(DIRECTIONS, d, seed);
  const [x, y] = [a, b].map((set, s) =>
    set.rows === rows ? set : rowsOf(set, comparedRows(set, rows, seed, s))
  );
  const centre = meanOf(a); // cancels, but improves rounding
  const program = await GramBlocks.open(Math.max(rows, Math.min(CHUNK, M)), d), origin = new Float32Array(d);
  try {
    let sum = 0;
    for (let from = 0; from < M; from += CHUNK) {
      const part = data.subarray(from * d, (from + CHUNK) * d), count = part.length / d;
      const directions = { data: part, rows: count, columns: d };
      const sorted = async (set: Features) => {
        const projections = Array.from({ length: count }, () => new Float32Array(rows));
        const blocks = program.of(set, directions, centre, origin);
        for await (const { first: [i0, j0], count: [n, m], dots, stride } of blocks) {
          for (let j = 0; j < m; j++) {
            const projection = projections[j0 + j] as Float32Array;
            for (let i = 0; i < n; i++) projection[i0 + i] = dots[i * stride + j] as number;
          }
        }
        return projections.map((projection) => projection.sort());
      };
      const p = await sorted(x as Features), q = await sorted(y as Features);
      for (let j = 0; j < count; j++) sum += squaredDifference(p[j] as Float32Array, q[j] as Float32Array);
      onProgress?.(Math.min(1, (from + CHUNK) / M));
    }
    return 3 * d * sum / M / rows;
  } finally {
    program.destroy();
  }
}

/** The indices of the rows of the larger set that are compared. @param set 0 for the first set, 1 for the second */
export const comparedRows = (x: Features, rows: number, seed: number, set: number): Uint32Array =>
  randomOrder(x, seed, set).subarray(0, rows);

function squaredDifference(a: Float32Array, b: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += ((a[i] as number) - (b[i] as number)) ** 2;
  return sum;
}

/** Uniform on the sphere. */
function unitVectors(rows: number, columns: number, seed: number): Features {
  const data = normal(seed, 1, rows * columns);
  for (let at = 0; at < data.length; at += columns) {
    const row = data.subarray(at, at + columns);
    const length = Math.sqrt(row.reduce((sum, v) => sum + v * v, 0));
    for (let c = 0; c < columns; c++) row[c] = (row[c] as number) / length;
  }
  return { data, rows, columns };
}
