// Precision and recall of generated images (Kynkaanniemi et al. 2019): the share of generated images inside the manifold of the
// real ones, and the reverse. A manifold is the union of balls around its images with the distance to the third nearest
// neighbour as radius; Euclidean distances of pooled features, as in ADM's evaluator (there in half precision, here in f32).

import { UsageError } from "../errors.ts";
import type { Features } from "./frechet.ts";
import { GramBlocks, squaredLengths } from "./gram.ts";

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
  const centre = new Float64Array(real.columns); // Cancels in distances, but improves rounding.
  for (let i = 0; i < real.data.length; i++) {
    const c = i % real.columns;
    centre[c] = (centre[c] as number) + (real.data[i] as number) / real.rows;
  }
  const a = { ...real, lengths: squaredLengths(real, centre) };
  const b = { ...fake, lengths: squaredLengths(fake, centre) };
  const program = await GramBlocks.open(Math.max(a.rows, b.rows), a.columns);
  try {
    const total = real.rows ** 2 + fake.rows ** 2 + real.rows * fake.rows;
    let done = 0;
    const view = async (x: Measured, y: Measured, visit: (i: number, j: number, d2: number) => void) => {
      for await (
        const { first: [i0, j0], count: [rows, columns], dots, stride } of program.of(x, y, centre)
      ) {
        for (let i = 0; i < rows; i++) {
          const length = x.lengths[i0 + i] as number;
          for (let j = 0; j < columns; j++) {
            const d2 = length + (y.lengths[j0 + j] as number) - 2 * (dots[i * stride + j] as number);
            visit(i0 + i, j0 + j, Math.max(0, d2));
          }
        }
        onBlock(done += rows * columns, total);
      }
    };
    const radii = async (x: Measured) => {
      const nearest = new Nearest(x.rows);
      await view(x, x, (i, _, d2) => nearest.offer(i, d2)); // each image is its own nearest neighbour
      return nearest.furthest();
    };
    const [realRadii, fakeRadii] = [await radii(a), await radii(b)];
    const inReal = new Uint8Array(fake.rows), inFake = new Uint8Array(real.rows);
    await view(a, b, (i, j, d2) => {
      if (d2 <= (realRadii[i] as number)) inReal[j] = 1;
      if (d2 <= (fakeRadii[j] as number)) inFake[i] = 1;
    });
    const share = (hits: Uint8Array) => hits.reduce((n, hit) => n + hit, 0) / hits.length;
    return { precision: share(inReal), recall: share(inFake) };
  } finally {
    program.destroy();
  }
}

interface Measured extends Features {
  lengths: Float64Array;
}

/** For each row the smallest offered values, sorted. */
class Nearest {
  static readonly #kept = NEIGHBOURS + 1;
  readonly #values: Float64Array;

  constructor(rows: number) {
    this.#values = new Float64Array(rows * Nearest.#kept).fill(Infinity);
  }

  offer(row: number, value: number): void {
    const at = row * Nearest.#kept;
    let k = Nearest.#kept - 1;
    if (!(value < (this.#values[at + k] as number))) return;
    for (; k > 0 && value < (this.#values[at + k - 1] as number); k--) {
      this.#values[at + k] = this.#values[at + k - 1] as number;
    }
    this.#values[at + k] = value;
  }

  furthest(): Float64Array {
    const kept = Nearest.#kept;
    return Float64Array.from(
      { length: this.#values.length / kept },
      (_, r) => this.#values[r * kept + kept - 1] as number,
    );
  }
}
