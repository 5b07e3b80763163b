// Inception score (Salimans et al. 2016): exp of the mean KL divergence of an image's class distribution from that of its split
// of 5000 images, as in ADM's evaluator. Kernel Inception distance (Binkowski et al. 2018): unbiased MMD^2 with the kernel
// (x . y / n + 1)^3, over subsets. CMMD (Jayasumana et al. 2024): biased MMD^2 with a Gaussian kernel.

import { UsageError } from "../errors.ts";
import type { Features } from "./moments.ts";
import {
  GramBlocks,
  type Measured,
  orderByContent,
  PairDistances,
  randomOrder,
  randomRows,
  rowsOf,
} from "./gram.ts";

/** Images per split. */
const SPLIT = 5000;

/** Sums over images of a split. */
class SplitSums {
  readonly mean: Float64Array;
  negativeEntropy = 0;
  rows = 0;

  constructor(classes: number) {
    this.mean = new Float64Array(classes);
  }

  /** The score of the images, without those of a group if it is given. */
  score(group?: SplitSums): number {
    const rows = this.rows - (group?.rows ?? 0);
    let divergence = (this.negativeEntropy - (group?.negativeEntropy ?? 0)) / rows;
    for (const [c, all] of this.mean.entries()) {
      const sum = all - (group?.mean[c] ?? 0);
      if (sum > 0) divergence -= sum / rows * Math.log(sum / rows);
    }
    return Math.exp(divergence);
  }

  clear(): void {
    this.mean.fill(0);
    this.negativeEntropy = this.rows = 0;
  }
}

/** Accumulates the Inception score of logits; no row is kept. */
export class InceptionScore {
  readonly #scores: number[] = [];
  readonly #sums: SplitSums;
  /** For each group its sums, and the score of each split without it. */
  readonly #groups: { sums: SplitSums; scores: number[] }[];
  #row = 0;

  /** @param groups the group of each image, for {@link without} [none] */
  constructor(readonly classes: number, readonly split = SPLIT, private readonly groups?: Uint8Array) {
    this.#sums = new SplitSums(classes);
    const count = groups ? groups.reduce((a, b) => Math.max(a, b), 0) + 1 : 0;
    this.#groups = Array.from({ length: count }, () => ({ sums: new SplitSums(classes), scores: [] }));
  }

  /** Adds complete rows of logits. */
  add(logits: Float32Array): void {
    const n = this.classes, p = new Float64Array(n), all = this.#sums;
    for (let from = 0; from < logits.length; from += n) {
      const row = logits.subarray(from, from + n);
      const most = row.reduce((a, b) => Math.max(a, b), -Infinity);
      let sum = 0;
      for (let c = 0; c < n; c++) sum += p[c] = Math.exp((row[c] as number) - most);
      const logSum = Math.log(sum), own = this.#groups[this.groups?.[this.#row++] as number]?.sums;
      for (let c = 0; c < n; c++) {
        const share = (p[c] as number) / sum, entropy = share * ((row[c] as number) - most - logSum);
        all.negativeEntropy += entropy;
        all.mean[c] = (all.mean[c] as number) + share;
        if (!own) continue;
        own.negativeEntropy += entropy;
        own.mean[c] = (own.mean[c] as number) + share;
      }
      if (own) own.rows++;
      if (++all.rows === this.split) this.#endSplit();
    }
  }

  /** Mean over the splits; the last one counts like the others, as in ADM's evaluator. */
  score(): number {
    if (this.#sums.rows > 0) this.#endSplit();
    return meanOfSplits(this.#scores);
  }

  /** The score without each group: the mean over the same splits, each without the images of the group. */
  without(): number[] {
    if (this.#sums.rows > 0) this.#endSplit();
    return this.#groups.map(({ scores }) => meanOfSplits(scores));
  }

  #endSplit(): void {
    const all = this.#sums;
    this.#scores.push(all.score());
    for (const { sums, scores } of this.#groups) {
      if (sums.rows < all.rows) scores.push(all.score(sums));
      sums.clear();
    }
    all.clear();
  }
}

const meanOfSplits = (scores: readonly number[]) => scores.reduce((a, b) => a + b, 0) / scores.length;

export interface KidOptions {
  /** Number of subsets (100); 1 if a subset is the complete set. */
  subsets?: number;
  /** Images per subset (1000), at most those of the smaller set. */
  size?: number;
  seed?: number;
  /** Which rows of the second set remain in its subsets, without a change of these otherwise [all]. */
  keeps?: (row: number) => boolean;
}

/**
 * The kernel Inception distance of two sets of features.
 * @throws UsageError for fewer than two images
 */
export async function kernelDistance(a: Features, b: Features, options: KidOptions = {}): Promise<number> {
  const size = Math.min(options.size ?? 1000, a.rows, b.rows);
  if (size < 2) throw new UsageError(`Cannot compute the kernel distance: ${size} images are too few`);
  const subsets = size === a.rows && size === b.rows ? 1 : options.subsets ?? 100;
  const program = await GramBlocks.open(size, a.columns);
  const orderA = orderByContent(a), orderB = orderByContent(b), { seed = 0, keeps = () => true } = options;
  try {
    let sum = 0, count = 0;
    for (let s = 0; s < subsets; s++) {
      const x = randomRows(a, size, seed, 2 * s, orderA);
      const y = rowsOf(b, randomOrder(b, seed, 2 * s + 1, orderB).subarray(0, size).filter(keeps));
      if (y.rows < 2) continue;
      const [n, m] = [x.rows, y.rows];
      sum += await kernels(program, x, x, true) / (n * (n - 1)) +
        await kernels(program, y, y, true) / (m * (m - 1)) -
        2 * await kernels(program, x, y, false) / (n * m);
      count++;
    }
    return sum / count;
  } finally {
    program.destroy();
  }
}

/** Sum of the kernel over all pairs of rows, or over pairs with different indices. */
async function kernels(program: GramBlocks, a: Features, b: Features, different: boolean): Promise<number> {
  let sum = 0;
  for await (const { first: [i0, j0], count: [rows, columns], dots, stride } of program.of(a, b)) {
    for (let i = 0; i < rows; i++) {
      for (let j = 0; j < columns; j++) {
        if (different && i0 + i === j0 + j) continue;
        sum += ((dots[i * stride + j] as number) / a.columns + 1) ** 3;
      }
    }
  }
  return sum;
}

/** Bandwidth of CMMD's kernel exp(-|x - y|^2 / (2 sigma^2)), and its factor. */
const SIGMA = 10, SCALE = 1000;

/**
 * CMMD of two sets of image embeddings: 1000 times the biased MMD^2 with a Gaussian kernel of sigma = 10; zero if they are
 * equal. The published figures are of unit vectors: CLIP's projected embeddings.
 * @param onPairs called with the share of pairs that is finished
 */
export async function cmmd(
  a: Features,
  b: Features,
  onPairs: (share: number) => void = () => {},
): Promise<number> {
  const total = a.rows ** 2 + b.rows ** 2 + a.rows * b.rows;
  const pairs = await PairDistances.open(a, b, (done) => onPairs(done / total));
  try {
    const meanKernel = async (x: Measured, y: Measured) => { // minus 1, which cancels
      let sum = 0;
      await pairs.each(x, y, (_i, _j, d2) => sum += Math.expm1(-d2 / (2 * SIGMA ** 2)));
      return sum / x.rows / y.rows;
    };
    const within = await meanKernel(pairs.a, pairs.a) + await meanKernel(pairs.b, pairs.b);
    return Math.max(0, SCALE * (within - 2 * await meanKernel(pairs.a, pairs.b)));
  } finally {
    pairs.destroy();
  }
}
