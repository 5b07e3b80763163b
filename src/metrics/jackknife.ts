// Delete-a-group jackknife: what scores are computed from without each of GROUPS random groups of the images. Moments without a
// group are those of all rows less those of the group, so that one group's covariance is in memory at a time.

import { groupsOf } from "./bootstrap.ts";
import { rowsOf } from "./gram.ts";
import { type Features, type Gaussian, gaussian } from "./moments.ts";

/** The indices of the images of a group, and of all others. */
const insideOf = (groups: Uint8Array, group: number) =>
  Uint32Array.from(groups.keys().filter((row) => groups[row] === group));
const outsideOf = (groups: Uint8Array, group: number) =>
  Uint32Array.from(groups.keys().filter((row) => groups[row] !== group));

/** Features without the rows of a group. */
export const rowsWithout = (features: Features, group: number): Features =>
  rowsOf(features, outsideOf(groupsOf(features.rows), group));

/**
 * An order of rows without those of a group, as indices of the rows that are left: subsets that are its beginnings differ in
 * the group only. A new random order in its place would count as a difference, enlarged by the factor of the jackknife.
 */
export function orderWithout(order: ArrayLike<number>, group: number): Uint32Array {
  const groups = groupsOf(order.length), place = new Uint32Array(order.length);
  outsideOf(groups, group).forEach((row, i) => place[row] = i);
  return Uint32Array.from(Array.from(order).filter((row) => groups[row] !== group), (row) => place[row] ?? 0);
}

/** Orders a subset of `n` images for groups of equal sizes: most keep the group that they have among all, so that subsets pair. */
export function groupedSubset(chosen: Uint32Array, n: number): Uint32Array {
  const own = groupsOf(chosen.length), all = groupsOf(n), ordered = new Uint32Array(chosen.length);
  const by = (groups: Uint8Array) => (i: number, j: number) => (groups[i] as number) - (groups[j] as number);
  const places = Uint32Array.from(own.keys()).sort(by(own)), rows = chosen.toSorted(by(all));
  places.forEach((place, k) => ordered[place] = rows[k] as number);
  return ordered;
}

/** Whether a row of `n` is in another group. */
export function isOutside(n: number, group: number): (row: number) => boolean {
  const groups = groupsOf(n);
  return (row) => groups[row] !== group;
}

interface Part {
  moments: Gaussian;
  rows: number;
}

/** Mean and covariance of the rows of a set that are not in a part of it (Chan et al. 1979, solved for one of the two). */
export function without(all: Part, part: Part): Gaussian {
  const n = all.moments.mean.length, left = all.rows - part.rows;
  const shift = part.moments.mean.map((v, i) => v - (all.moments.mean[i] as number));
  const mean = all.moments.mean.map((v, i) => v - (shift[i] as number) * (part.rows / left));
  const covariance = new Float64Array(n * n), scale = 1 / (left - 1);
  const total = (all.rows - 1) * scale, own = (part.rows - 1) * scale;
  const between = part.rows * (all.rows / left) * scale;
  for (let i = 0; i < n; i++) {
    const factor = between * (shift[i] as number);
    for (let j = 0; j < n; j++) {
      covariance[i * n + j] = total * (all.moments.covariance[i * n + j] as number) -
        own * (part.moments.covariance[i * n + j] as number) - factor * (shift[j] as number);
    }
  }
  return { mean, covariance };
}

/** Moments of features without each group. */
export class MomentsWithout {
  private constructor(
    private readonly features: Features,
    private readonly groups: Uint8Array,
    private readonly all: Gaussian,
  ) {}

  static async open(features: Features): Promise<MomentsWithout> {
    return new MomentsWithout(features, groupsOf(features.rows), await gaussian(features));
  }

  /** Whether moments are those of the features: within 0.1 %, the ratio of covariances over N and N - 1 at N = 1,000. */
  areOf({ mean, covariance }: Gaussian): boolean {
    const { all } = this,
      largest = (values: Float64Array) => values.reduce((max, v) => Math.max(max, Math.abs(v)), 0);
    const difference = (a: Float64Array, b: Float64Array) => largest(a.map((v, i) => v - (b[i] as number)));
    const variance = largest(all.covariance);
    return mean.length === all.mean.length && difference(covariance, all.covariance) <= 1e-3 * variance &&
      difference(mean, all.mean) <= 1e-3 * Math.max(largest(all.mean), Math.sqrt(variance));
  }

  async group(group: number): Promise<Gaussian> {
    const { all, features, groups } = this;
    const part = rowsOf(features, insideOf(groups, group));
    return without({ moments: all, rows: features.rows }, { moments: await gaussian(part), rows: part.rows });
  }
}
