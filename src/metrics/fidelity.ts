// Inception score (Salimans et al. 2016): exp of the mean KL divergence of an image's class distribution from that of its split
// of 5000 images, as in ADM's evaluator. Kernel Inception distance (Binkowski et al. 2018): unbiased MMD^2 with the kernel
// (x . y / n + 1)^3, over subsets.

import { UsageError } from "../errors.ts";
import { permutation } from "../philox.ts";
import type { Features } from "./frechet.ts";
import { GramBlocks, rowsOf } from "./gram.ts";

/** Images per split. */
const SPLIT = 5000;

/** Accumulates the Inception score of logits; no row is kept. */
export class InceptionScore {
  readonly #scores: number[] = [];
  readonly #mean: Float64Array;
  #negativeEntropy = 0;
  #rows = 0;

  constructor(readonly classes: number, readonly split = SPLIT) {
    this.#mean = new Float64Array(classes);
  }

  /** Adds complete rows of logits. */
  add(logits: Float32Array): void {
    const n = this.classes, p = new Float64Array(n);
    for (let from = 0; from < logits.length; from += n) {
      const row = logits.subarray(from, from + n);
      const most = row.reduce((a, b) => Math.max(a, b), -Infinity);
      let sum = 0;
      for (let c = 0; c < n; c++) sum += p[c] = Math.exp((row[c] as number) - most);
      const logSum = Math.log(sum);
      for (let c = 0; c < n; c++) {
        const share = (p[c] as number) / sum;
        this.#negativeEntropy += share * ((row[c] as number) - most - logSum);
        this.#mean[c] = (this.#mean[c] as number) + share;
      }
      if (++this.#rows === this.split) this.#endSplit();
    }
  }

  /** Mean over the splits; the last one counts like the others, as in ADM's evaluator. */
  score(): number {
    if (this.#rows > 0) this.#endSplit();
    return this.#scores.reduce((a, b) => a + b, 0) / this.#scores.length;
  }

  #endSplit(): void {
    let divergence = this.#negativeEntropy / this.#rows;
    for (const sum of this.#mean) if (sum > 0) divergence -= sum / this.#rows * Math.log(sum / this.#rows);
    this.#scores.push(Math.exp(divergence));
    this.#mean.fill(0);
    this.#negativeEntropy = this.#rows = 0;
  }
}

export interface KidOptions {
  /** Number of subsets (100); 1 if a subset is the complete set. */
  subsets?: number;
  /** Images per subset (1000), at most those of the smaller set. */
  size?: number;
  seed?: number;
}

/**
 * The kernel Inception distance of two sets of features.
 * @throws UsageError for fewer than two images
 */
export async function kernelDistance(a: Features, b: Features, options: KidOptions = {}): Promise<number> {
  const size = Math.min(options.size ?? 1000, a.rows, b.rows);
  if (size < 2) throw new UsageError(`Cannot compute the kernel distance: ${size} images are too few`);
  const subsets = size === a.rows && size === b.rows ? 1 : options.subsets ?? 100;
  const program = await GramBlocks.open(size, a.columns), within = size * (size - 1);
  try {
    let sum = 0;
    for (let s = 0; s < subsets; s++) {
      const pick = (x: Features, stream: number) =>
        rowsOf(x, permutation(options.seed ?? 0, 2 * s + stream, x.rows).subarray(0, size));
      const x = pick(a, 0), y = pick(b, 1);
      sum += await kernels(program, x, x, true) / within + await kernels(program, y, y, true) / within -
        2 * await kernels(program, x, y, false) / size ** 2;
    }
    return sum / subsets;
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
