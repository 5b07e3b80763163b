// What a tokenizer's latents are like as a representation: statistics of their channels, effective rank, and CKNNA with the
// encoder that the tokenizer was made from (Huh et al. 2024, arXiv 2405.07987, appendix A; used for latents by REPA).

import { UsageError } from "../errors.ts";
import { ChannelStatistics } from "../formats/channel_statistics.ts";
import { Rows } from "./batched.ts";
import { GROUPS, groupsOf } from "./bootstrap.ts";
import { rowsWithout, without } from "./jackknife.ts";
import { type Features, Moments } from "./moments.ts";
import { GramBlocks } from "./gram.ts";
import { symmetricEigenvalues } from "./eigenvalues.ts";
import { breather } from "./linalg.ts";

/** Maximum number of latent cells whose covariance is computed, of all images together. */
const MAX_CELLS = 65_536;

/** What metrics of latents are computed from. */
export interface LatentView {
  channels: ChannelStatistics;
  /** The mean latent of each image. */
  means(): Features;
  /** {@link effectiveRank} of the cells. */
  effectiveRank(): Promise<number>;
}

/** Accumulates latents [n, cells, channels]; of each image only the mean over its cells is kept. */
export class LatentSummary implements LatentView {
  readonly channels: ChannelStatistics;
  readonly #moments: Moments;
  readonly #means = new Rows();
  readonly #cells: number;
  /** The group of each image, and the moments of the cells of each group. */
  readonly #groups: Uint8Array;
  readonly #parts: Moments[];
  /** Number of images so far. */
  images = 0;
  #features: Features | undefined;

  /**
   * @param images number of images that will be added; evenly spaced cells of each enter the covariance
   * @param groups whether it keeps what {@link without} needs (false)
   */
  constructor(
    private readonly shape: { cells: number; channels: number },
    images: number,
    groups = false,
  ) {
    this.#groups = groups ? groupsOf(images) : new Uint8Array();
    this.#parts = Array.from({ length: groups ? GROUPS : 0 }, () => new Moments(shape.channels, 0));
    this.channels = new ChannelStatistics(shape.channels);
    this.#moments = new Moments(shape.channels, 0);
    this.#cells = Math.min(shape.cells, Math.max(1, Math.floor(MAX_CELLS / images)));
  }

  /** Adds the latents of complete images. */
  async add(latents: Float32Array): Promise<void> {
    const { cells, channels } = this.shape, each = cells * channels, n = latents.length / each;
    this.channels.add(latents, 1);
    const means = new Float64Array(n * channels), chosen = new Float32Array(n * this.#cells * channels);
    for (let i = 0; i < n; i++) {
      for (let k = 0; k < each; k++) {
        const at = i * channels + k % channels;
        means[at] = (means[at] as number) + (latents[i * each + k] as number) / cells;
      }
      for (let k = 0; k < this.#cells; k++) {
        const from = i * each + Math.floor(k * cells / this.#cells) * channels;
        chosen.set(latents.subarray(from, from + channels), (i * this.#cells + k) * channels);
      }
    }
    await this.#moments.add(chosen);
    const size = this.#cells * channels;
    for (let i = 0; i < n; i++) {
      const part = this.#parts[this.#groups[this.images + i] as number];
      await part?.add(chosen.subarray(i * size, (i + 1) * size));
    }
    this.#means.add(Float32Array.from(means));
    this.images += n;
  }

  means(): Features {
    return this.#features ??= this.#means.features(this.images);
  }

  async effectiveRank(): Promise<number> {
    return await effectiveRank((await this.#moments.gaussian()).covariance, this.shape.channels);
  }

  /** The same without the images of a group, but for the statistics of the channels. */
  without(group: number): LatentView {
    const part = this.#parts[group] as Moments, all = this.#moments, { channels } = this.shape;
    return {
      channels: this.channels,
      means: () => rowsWithout(this.means(), group),
      effectiveRank: async () => {
        const left = without(
          { moments: await all.gaussian(), rows: all.rows },
          { moments: await part.gaussian(), rows: part.rows },
        );
        return await effectiveRank(left.covariance, channels);
      },
    };
  }
}

/** Smallest and largest mean and standard deviation of a channel, over all cells of all images. */
export function channelRanges(channels: ChannelStatistics): Record<string, number> {
  const mean = channels.mean, std = channels.std();
  return {
    latent_mean_min: Math.min(...mean),
    latent_mean_max: Math.max(...mean),
    latent_std_min: Math.min(...std),
    latent_std_max: Math.max(...std),
  };
}

/**
 * exp of the entropy of the singular values of centred rows, as shares of their sum (Roy and Vetterli 2007): between 1 and n.
 * @param covariance of the rows [n, n]
 */
export async function effectiveRank(covariance: Float64Array, n: number): Promise<number> {
  const values = await symmetricEigenvalues(covariance.slice(), n, n, breather());
  const singular = values.map((v) => Math.sqrt(Math.max(0, v))), sum = singular.reduce((a, b) => a + b, 0);
  if (sum === 0) return 1;
  return Math.exp(
    singular.reduce((entropy, v) => v > 0 ? entropy - v / sum * Math.log(v / sum) : entropy, 0),
  );
}

/** Neighbours of {@link cknna}. */
export const CKNNA_NEIGHBOURS = 10;

/**
 * Centred kernel nearest-neighbour alignment of two representations of the same images: unbiased HSIC of the cosine similarities
 * of mutual k nearest neighbours, normalised by that of each with itself. 1: the same neighbours.
 * @throws UsageError for `k` images or fewer
 */
export async function cknna(a: Features, b: Features, k = CKNNA_NEIGHBOURS): Promise<number> {
  const m = a.rows;
  if (m <= k || b.rows !== m) {
    throw new UsageError(`Cannot compute CKNNA: ${m} images are too few for ${k} neighbours; use more`);
  }
  const [x, y] = [await neighbourhoods(a, k), await neighbourhoods(b, k)];
  return hsic(x, y, m) / (Math.sqrt(hsic(x, x, m) * hsic(y, y, m)) + 1e-6);
}

/** For each row its nearest rows and their cosine similarity. */
type Neighbourhoods = readonly ReadonlyMap<number, number>[];

async function neighbourhoods(features: Features, k: number): Promise<Neighbourhoods> {
  const { data, rows, columns } = features, lengths = lengthsOf(features);
  const unit = { ...features, data: data.map((v, i) => v / (lengths[Math.floor(i / columns)] as number)) };
  const best = Array.from({ length: rows }, (): [dot: number, row: number][] => []);
  const program = await GramBlocks.open(rows, columns);
  try {
    for await (const { first: [i0, j0], count, dots, stride } of program.of(unit, unit)) {
      for (let i = 0; i < count[0]; i++) {
        const kept = best[i0 + i] as [number, number][];
        for (let j = 0; j < count[1]; j++) {
          const dot = dots[i * stride + j] as number;
          if (i0 + i === j0 + j || kept.length === k && !(dot > (kept.at(-1) as [number, number])[0])) {
            continue;
          }
          let at = kept.length;
          while (at > 0 && dot > (kept[at - 1] as [number, number])[0]) at--;
          kept.splice(at, 0, [dot, j0 + j]);
          if (kept.length > k) kept.pop();
        }
      }
    }
  } finally {
    program.destroy();
  }
  const exact = (i: number, j: number) => { // in f64
    let sum = 0;
    for (let c = 0; c < columns; c++) {
      sum += (data[i * columns + c] as number) * (data[j * columns + c] as number);
    }
    return sum / ((lengths[i] as number) * (lengths[j] as number));
  };
  return best.map((kept, i) => new Map(kept.map(([, j]) => [j, exact(i, j)])));
}

function lengthsOf({ data, rows, columns }: Features): Float64Array {
  return Float64Array.from({ length: rows }, (_, r) => {
    let sum = 0;
    for (let c = 0; c < columns; c++) sum += (data[r * columns + c] as number) ** 2;
    return Math.sqrt(sum) + 1e-12;
  });
}

/** Unbiased HSIC (Song et al. 2012) of two kernels of m rows that are zero except where i has j as a neighbour in both. */
function hsic(x: Neighbourhoods, y: Neighbourhoods, m: number): number {
  let trace = 0, sumX = 0, sumY = 0;
  const columnsOfX = new Float64Array(m), rowsOfY = new Float64Array(m);
  x.forEach((row, i) => {
    const other = y[i] as ReadonlyMap<number, number>;
    for (const [j, similarity] of row) {
      const inY = other.get(j);
      if (inY === undefined) continue;
      sumX += similarity;
      sumY += inY;
      columnsOfX[j] = (columnsOfX[j] as number) + similarity;
      rowsOfY[i] = (rowsOfY[i] as number) + inY;
      if (x[j]?.has(i) && y[j]?.has(i)) trace += similarity * (y[j]?.get(i) as number);
    }
  });
  const chained = columnsOfX.reduce((sum, v, i) => sum + v * (rowsOfY[i] as number), 0);
  return (trace + sumX * sumY / ((m - 1) * (m - 2)) - 2 * chained / (m - 2)) / (m * (m - 3));
}
