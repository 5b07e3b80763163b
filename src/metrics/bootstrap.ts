// 95 % intervals of scores, and of differences between runs. A mean over images: percentile bootstrap over images (Efron 1979).
// A distance between sets: delete-a-group jackknife (Shao and Wu 1989; Kott 2001), of groups of unequal sizes that of Busing et al.
// (1999). A bootstrap would resample images twice and raise a Frechet distance by its bias again, and needs a thousand distances
// of 2,048 features; the jackknife needs ten.

import { permutation, philox } from "../philox.ts";

export interface Interval {
  low: number;
  high: number;
}

/** Resamples of a bootstrap. */
export const RESAMPLES = 1000;
/** Groups of a jackknife. */
export const GROUPS = 10;
/** 97.5 % quantile of Student's t with GROUPS - 1 degrees of freedom. */
const T = 2.262157;
/** Stream of the groups, for the generator of random numbers. */
const STREAM = 0x6a61;

/** A score computed again from other images: from resamples of them, or without each group of them. */
export interface Replicates {
  of: "resamples" | "groups";
  values: ArrayLike<number>;
  /** Number of the images that the groups are of [a multiple of GROUPS]. */
  images?: number | undefined;
}

/**
 * Means of each column over resamples of its rows, which are images. All columns have the same images in a resample, so that
 * the differences of two columns are those of paired images.
 * @param options.stream of random numbers: other ones for columns of other images
 */
export function resampledMeans(
  columns: readonly ArrayLike<number>[],
  options: { stream: number; seed?: number; resamples?: number },
): Replicates[] {
  const { stream, seed = 0, resamples = RESAMPLES } = options, n = columns[0]?.length ?? 0;
  const all = columns.map(() => new Float64Array(resamples)), sums = new Float64Array(columns.length);
  for (let b = 0; b < resamples; b++) {
    sums.fill(0);
    for (let i = 0; i < n; i += 4) {
      const bits = philox([i / 4, stream, b, 0], [seed, 0]);
      for (let j = 0; j < Math.min(4, n - i); j++) {
        const row = Math.floor((bits[j] as number) / 2 ** 32 * n);
        for (const [k, column] of columns.entries()) {
          sums[k] = (sums[k] as number) + (column[row] as number);
        }
      }
    }
    for (const [k, means] of all.entries()) means[b] = (sums[k] as number) / n;
  }
  return all.map((values) => ({ of: "resamples", values }));
}

/** The number of the group of each of `n` images: random, and the same for all runs of `n` images, whose groups so pair. */
export function groupsOf(n: number): Uint8Array {
  const groups = new Uint8Array(n);
  for (const [place, image] of permutation(0, STREAM, n).entries()) groups[image] = place % GROUPS;
  return groups;
}

/** The number of images of each of these groups. */
export const groupSizes = (n: number): number[] =>
  Array.from({ length: GROUPS }, (_, g) => Math.floor((n - g + GROUPS - 1) / GROUPS));

/**
 * Standard error of a score by the jackknife (Busing et al. 1999, delete-m_j): groups of n / h_j images give the pseudo-values
 * h_j score - (h_j - 1) replicate, free of a bias in 1 / n. Without it the larger groups would differ by the bias of fewer images.
 */
function jackknifeError(score: number, { values, images = GROUPS }: Replicates): number {
  const h = groupSizes(images).map((size) => images / size);
  const pseudo = h.map((h, g) => h * score - (h - 1) * (values[g] as number));
  const mean = pseudo.reduce((sum, v, g) => sum + v / (h[g] as number), 0);
  return Math.sqrt(pseudo.reduce((sum, v, g) => sum + (v - mean) ** 2 / ((h[g] as number) - 1), 0) / GROUPS);
}

/** The 95 % interval of a score; undefined where a replicate is not finite. */
export function intervalOf(value: number, replicates: Replicates): Interval | undefined {
  const { of, values } = replicates;
  const sorted = Float64Array.from(values).sort(), n = sorted.length;
  if (![value, ...sorted].every(Number.isFinite)) return undefined;
  if (of === "groups") {
    const half = T * jackknifeError(value, replicates);
    if (!Number.isFinite(half)) return undefined; // a group without an image
    return { low: value - half, high: value + half };
  }
  const quantile = (q: number) => {
    const at = q * (n - 1), below = Math.floor(at), v = sorted[below] as number;
    return v + (at - below) * ((sorted[below + 1] ?? v) - v);
  };
  return { low: quantile(0.025), high: quantile(0.975) };
}

/** The replicates of a difference of two scores; undefined where they are of different kinds or of other groups. */
export function difference(a: Replicates, b: Replicates): Replicates | undefined {
  const { of, images } = a;
  if (of !== b.of || images !== b.images || a.values.length !== b.values.length) return undefined;
  return { of, images, values: Float64Array.from(a.values, (v, i) => v - (b.values[i] as number)) };
}
