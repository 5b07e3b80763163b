// Copies of training images among generated ones: a generated image is one if it is closer to its nearest training image than
// that image is to its own nearest neighbour; 1 - the authenticity of Alaa et al. (2022, arXiv 2102.08921). Euclidean distances.

import { UsageError } from "../errors.ts";
import type { Features } from "./moments.ts";
import { GramBlocks, rowsOf, squaredLengths } from "./gram.ts";

/** For each generated image its nearest training image. */
export interface Nearest {
  /** Number of the training image. */
  index: Uint32Array;
  /** Distance to it over the distance of that one to its nearest other training image; below 1: a copy. */
  ratio: Float64Array;
}

/** @throws UsageError for fewer than two training images */
export async function nearestTraining(training: Features, generated: Features): Promise<Nearest> {
  if (training.rows < 2) {
    throw new UsageError(
      `Cannot look for copies: ${training.rows} training image is too few; use two or more`,
    );
  }
  const program = await GramBlocks.open(Math.max(training.rows, generated.rows), training.columns);
  try {
    const found = await nearestRows(program, generated, training);
    const hit = [...new Set(found.index)], of = new Map(hit.map((row, k) => [row, k]));
    const own = await nearestRows(program, rowsOf(training, hit), training, hit);
    const ratio = found.distance.map((d, i) => {
      const between = own.distance[of.get(found.index[i] as number) as number] as number;
      return d === 0 ? 0 : d / between;
    });
    return { index: found.index, ratio };
  } finally {
    program.destroy();
  }
}

/** Share of generated images that are copies. */
export const shareOfCopies = ({ ratio }: Nearest): number =>
  ratio.reduce((sum, r) => sum + (r < 1 ? 1 : 0), 0) / ratio.length;

/** The `count` generated images of the smallest ratio, each with its nearest training image. */
export const closest = ({ index, ratio }: Nearest, count: number): [generated: number, training: number][] =>
  [...index.keys()].sort((i, j) => (ratio[i] as number) - (ratio[j] as number)).slice(0, count)
    .map((i) => [i, index[i] as number]);

/** The nearest row of `b` for each of `a`, found in f32, and its distance in f64. @param not for each row of a the row of b that does not count */
async function nearestRows(program: GramBlocks, a: Features, b: Features, not?: readonly number[]) {
  const centre = new Float64Array(b.columns); // cancels in distances, but improves rounding
  b.data.forEach((v, i) => centre[i % b.columns] = (centre[i % b.columns] as number) + v / b.rows);
  const lengths = squaredLengths(b, centre), index = new Uint32Array(a.rows);
  const least = new Float64Array(a.rows).fill(Infinity); // squared distances without the length of the row of a
  for await (const { first: [i0, j0], count, dots, stride } of program.of(a, b, centre)) {
    for (let i = 0; i < count[0]; i++) {
      for (let j = 0; j < count[1]; j++) {
        const d2 = (lengths[j0 + j] as number) - 2 * (dots[i * stride + j] as number);
        if (!(d2 < (least[i0 + i] as number)) || not?.[i0 + i] === j0 + j) continue;
        least[i0 + i] = d2;
        index[i0 + i] = j0 + j;
      }
    }
  }
  const distance = Float64Array.from(index, (j, i) => {
    let sum = 0;
    for (let c = 0; c < a.columns; c++) {
      sum += ((a.data[i * a.columns + c] as number) - (b.data[j * a.columns + c] as number)) ** 2;
    }
    return Math.sqrt(sum);
  });
  return { index, distance };
}
