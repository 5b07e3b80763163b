// Scores of pairs: images against their reconstructions, or two sets with the same names, batch by batch.

import type { OwnIngredients } from "./ingredients.ts";
import { mse, psnr, ssim, SSIM_SIDE } from "./psnr_ssim.ts";

/** Scores of the images of a batch. */
export type ImageValues = ArrayLike<number> | void;

/** A score of images against their reconstructions, accumulated over batches. */
export interface PairScore {
  /** Key of the scores of each image; absent: it has none. */
  readonly name?: string;
  /** What its figures are computed with. */
  readonly ingredients?: Omit<OwnIngredients, "from">;
  /** Adds a batch: RGB bytes [n,S,S,3] of both. @returns the score of each image, if it has a name */
  add(originals: Uint8Array, reconstructions: Uint8Array): Promise<ImageValues> | ImageValues;
  scores(): Promise<Record<string, number>> | Record<string, number>;
  /**
   * After scores(), by their key: the scores without each group of images; absent or empty: none are kept.
   * @param onGroup called only where they are computed, first with 0
   */
  withoutGroups?(onGroup: (done: number) => void): Promise<Record<string, number[]>>;
  /** The same score of other reconstructions of the same originals, which shares what is computed of these; this one is first. */
  again?(): PairScore;
  destroy?(): void;
}

/** Scores that are open together; disposal destroys all of them, the last one first. */
export class OpenScores implements Disposable {
  readonly first: PairScore[] = [];
  readonly #open = new DisposableStack();

  /** Opens the scores of metrics. If one cannot be opened, those before it are destroyed. */
  static async open<C>(
    metrics: readonly { open(context: C): PairScore | Promise<PairScore> }[],
    context: C,
  ): Promise<OpenScores> {
    const scores = new OpenScores();
    try {
      for (const metric of metrics) scores.first.push(scores.#kept(await metric.open(context)));
      return scores;
    } catch (error) {
      scores[Symbol.dispose]();
      throw error;
    }
  }

  /** The same scores of other reconstructions, see {@link PairScore.again}. */
  again(): PairScore[] {
    return this.first.map((score) => score.again ? this.#kept(score.again()) : score);
  }

  [Symbol.dispose](): void {
    this.#open.dispose();
  }

  #kept(score: PairScore): PairScore {
    this.#open.defer(() => score.destroy?.());
    return score;
  }
}

/** Which pixels are compared, as an ingredient. */
export const bytesOf = (width: number, height = width) => `RGB bytes of ${width} x ${height}`;

/** The mean over `n` images of a number computed from the bytes of both, [height,side,3]. */
export class ImageMean implements PairScore {
  readonly ingredients: { input: string };
  #sum = 0;

  constructor(
    readonly name: string,
    readonly n: number,
    readonly side: number,
    readonly compare: (a: Uint8Array, b: Uint8Array, width: number, height: number) => number,
    readonly height = side,
  ) {
    this.ingredients = { input: bytesOf(side, height) };
  }

  add(a: Uint8Array, b: Uint8Array): number[] {
    const each = 3 * this.side * this.height, values: number[] = [];
    for (let at = 0; at < a.length; at += each) {
      values.push(this.compare(a.subarray(at, at + each), b.subarray(at, at + each), this.side, this.height));
    }
    for (const value of values) this.#sum += value / this.n;
    return values;
  }

  scores(): Record<string, number> {
    return { [this.name]: this.#sum };
  }

  again(): ImageMean {
    return new ImageMean(this.name, this.n, this.side, this.compare, this.height);
  }
}

/** PSNR, SSIM (if the images are large enough) and MSE. */
export function imageMeans(n: number, side: number): PairScore[] {
  const means = [new ImageMean("psnr", n, side, psnr)];
  if (side >= SSIM_SIDE) means.push(new ImageMean("ssim", n, side, (a, b) => ssim(a, b, side, side)));
  return [...means, new ImageMean("mse", n, side, mse)];
}

/** A batch of pairs, RGB bytes [count,H,W,3], from pair `first` on. */
export interface PairBatch {
  first: number;
  count: number;
  originals: Uint8Array<ArrayBuffer>;
  reconstructions: Uint8Array<ArrayBuffer>;
}

/** Adds a batch to all scores. @returns the scores of each image by their key */
export async function addPairs(
  { originals, reconstructions }: Pick<PairBatch, "originals" | "reconstructions">,
  scores: readonly PairScore[],
): Promise<Record<string, ArrayLike<number>>> {
  const values: Record<string, ArrayLike<number>> = {};
  for (const score of scores) {
    const added = await score.add(originals, reconstructions);
    if (added && score.name !== undefined) values[score.name] = added;
  }
  return values;
}

/**
 * Adds all batches to all scores.
 * @param visit called with each batch and its scores of each image
 */
export async function scorePairs(
  batches: AsyncIterable<PairBatch>,
  scores: readonly PairScore[],
  visit: (
    batch: PairBatch,
    values: Readonly<Record<string, ArrayLike<number>>>,
  ) => void | Promise<void> = () => {},
): Promise<Record<string, number>> {
  for await (const batch of batches) await visit(batch, await addPairs(batch, scores));
  return await allScores(scores);
}

/** All scores by their key. */
export async function allScores(scores: readonly PairScore[]): Promise<Record<string, number>> {
  const all: Record<string, number> = {};
  for (const score of scores) Object.assign(all, await score.scores());
  return all;
}
