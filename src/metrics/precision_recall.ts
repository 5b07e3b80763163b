// Precision and recall of generated images (Kynkaanniemi et al. 2019): the share of generated images inside the manifold of the
// real ones, and the reverse; density and coverage (Naeem et al. 2020), which one outlier changes little. A manifold is the union
// of balls around its images with the distance to the third (density, coverage: fifth) nearest neighbour as radius; Euclidean
// distances of pooled features, as in ADM's evaluator (there in half precision, here in f32).

import { UsageError } from "../errors.ts";
import type { Features } from "./moments.ts";
import { type Measured, PairDistances } from "./gram.ts";

/** Neighbour whose distance is the radius of a ball; a set needs one image more. */
export const NEIGHBOURS = 3;

/**
 * Precision and recall of `fake` against `real`.
 * @param onBlock called with the number of finished pairs
 * @throws UsageError if a set has too few images
 */
export async function precisionRecall(
  real: Features,
  fake: Features,
  onBlock: (done: number, total: number) => void = () => {},
): Promise<{ precision: number; recall: number }> {
  for (const { rows } of [real, fake]) {
    if (rows <= NEIGHBOURS) {
      throw new UsageError(
        `Cannot compute precision and recall: ${rows} images are too few; use more than ${NEIGHBOURS}`,
      );
    }
  }
  const total = real.rows ** 2 + fake.rows ** 2 + real.rows * fake.rows;
  const pairs = await PairDistances.open(real, fake, (done) => onBlock(done, total)), { a, b } = pairs;
  try {
    const realRadii = await radii(pairs, a, NEIGHBOURS), fakeRadii = await radii(pairs, b, NEIGHBOURS);
    const inReal = new Uint8Array(fake.rows), inFake = new Uint8Array(real.rows);
    await pairs.each(a, b, (i, j, d2) => {
      if (d2 <= (realRadii[i] as number)) inReal[j] = 1;
      if (d2 <= (fakeRadii[j] as number)) inFake[i] = 1;
    });
    return { precision: share(inReal), recall: share(inFake) };
  } finally {
    pairs.destroy();
  }
}

/** Neighbour whose distance is the radius of a ball of density and coverage. */
export const DENSITY_NEIGHBOURS = 5;

/**
 * Density and coverage of `fake` against `real` (Naeem et al. 2020): the mean number of balls around real images that hold a
 * generated image, divided by k = 5, and the share of those balls that hold a generated image. As in the authors' code, a
 * ball does not include its surface.
 * @param onBlock called with the number of finished pairs
 * @throws UsageError if the real set has too few images
 */
export async function densityCoverage(
  real: Features,
  fake: Features,
  onBlock: (done: number, total: number) => void = () => {},
): Promise<{ density: number; coverage: number }> {
  if (real.rows <= DENSITY_NEIGHBOURS) {
    throw new UsageError(
      `Cannot compute density and coverage: ${real.rows} real images are too few; use more than ${DENSITY_NEIGHBOURS}`,
    );
  }
  const total = real.rows ** 2 + real.rows * fake.rows;
  const pairs = await PairDistances.open(real, fake, (done) => onBlock(done, total)), { a, b } = pairs;
  try {
    const balls = await radii(pairs, a, DENSITY_NEIGHBOURS), hit = new Uint8Array(real.rows);
    let inside = 0;
    await pairs.each(a, b, (i, _, d2) => {
      if (!(d2 < (balls[i] as number))) return;
      inside++;
      hit[i] = 1;
    });
    return { density: inside / DENSITY_NEIGHBOURS / fake.rows, coverage: share(hit) };
  } finally {
    pairs.destroy();
  }
}

const share = (hits: Uint8Array) => hits.reduce((n, hit) => n + hit, 0) / hits.length;

/** Squared distance of each image to its k-th nearest other image. */
async function radii(pairs: PairDistances, x: Measured, k: number): Promise<Float64Array> {
  const nearest = new Nearest(x.rows, k + 1); // each image is its own nearest neighbour
  await pairs.each(x, x, (i, j, d2) => nearest.offer(i, i === j ? 0 : d2));
  return nearest.furthest();
}

/** For each row the smallest offered values, sorted. */
class Nearest {
  readonly #values: Float64Array;

  constructor(rows: number, private readonly kept: number) {
    this.#values = new Float64Array(rows * kept).fill(Infinity);
  }

  offer(row: number, value: number): void {
    const at = row * this.kept;
    let k = this.kept - 1;
    if (!(value < (this.#values[at + k] as number))) return;
    for (; k > 0 && value < (this.#values[at + k - 1] as number); k--) {
      this.#values[at + k] = this.#values[at + k - 1] as number;
    }
    this.#values[at + k] = value;
  }

  furthest(): Float64Array {
    const { kept } = this;
    return Float64Array.from(
      { length: this.#values.length / kept },
      (_, r) => this.#values[r * kept + kept - 1] as number,
    );
  }
}
