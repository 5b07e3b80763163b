// Images and statistics in an .npz file as evaluation suites exchange them: `arr_0` uint8 [N,S,S,3], `arr_1` labels [N],
// and the mean and covariance of their features, `mu` and `sigma` (pytorch-fid, ADM), `mu_s` and `sigma_s` (ADM's spatial
// ones). 50,000 images of 256 x 256 are 9.8 GB: they are read in order and only the latest are kept.

import { UsageError } from "../errors.ts";
import { toFloat } from "./image.ts";
import { type NpzFile, openNpz } from "./npz.ts";
import type { ImageSource } from "./source.ts";

/** Images that are kept behind the newest one. */
const KEPT = 256;

export class NpzImages implements ImageSource {
  #rows: AsyncGenerator<Uint8Array<ArrayBuffer>> | undefined;
  #next = 0;
  readonly #latest = new Map<number, Uint8Array>();
  #turn: Promise<unknown> = Promise.resolve();

  constructor(
    private readonly npz: NpzFile,
    readonly length: number,
    /** Pixels of a side. */
    readonly side: number,
    readonly classes: readonly string[],
    private readonly labels: ArrayLike<number>,
  ) {}

  label(i: number): number {
    return this.labels[i] ?? 0;
  }

  name(i: number): string {
    return String(i);
  }

  /** @throws UsageError for another size than the file's */
  async image(i: number, size: number): Promise<Float32Array> {
    if (size !== this.side) {
      throw new UsageError(
        `Cannot score "${this.npz.name}": its images are ${this.side} x ${this.side}, ${size} x ${size} are needed`,
      );
    }
    const row = this.#turn.then(() => this.#row(i)); // one after another, in the order of asking
    this.#turn = row.catch(() => {});
    return toFloat(await row);
  }

  async #row(i: number): Promise<Uint8Array> {
    if (i < this.#next && !this.#latest.has(i)) {
      await this.#rows?.return(undefined);
      this.#rows = undefined;
    }
    if (!this.#rows) {
      this.#rows = this.npz.rows("arr_0");
      this.#latest.clear();
      this.#next = 0;
    }
    while (this.#next <= i) {
      const { value, done } = await this.#rows.next();
      if (done) throw new UsageError(`Cannot read image ${i} of "${this.npz.name}": it ends before`);
      this.#latest.set(this.#next, value);
      this.#latest.delete(this.#next++ - KEPT);
    }
    return this.#latest.get(i) as Uint8Array;
  }
}

/** Mean [n] and covariance [n, n] of features. */
export interface Statistics {
  mean: Float64Array;
  covariance: Float64Array;
}

/** What an .npz file holds of a set of images. */
export interface NpzSet {
  images?: NpzImages;
  pooled?: Statistics;
  spatial?: Statistics;
}

/** Opens a set. @throws UsageError when it has neither images nor statistics, or they have another form */
export async function openNpzSet(path: string): Promise<NpzSet> {
  const npz = await openNpz(path);
  const set: NpzSet = {};
  if (npz.arrays.has("arr_0")) set.images = await imagesOf(npz);
  if (npz.arrays.has("mu")) set.pooled = await statisticsOf(npz, "mu", "sigma");
  if (npz.arrays.has("mu_s")) set.spatial = await statisticsOf(npz, "mu_s", "sigma_s");
  if (!set.images && !set.pooled) {
    npz.close();
    throw new UsageError(
      `Cannot score "${path}": it has neither images ("arr_0") nor statistics ("mu", "sigma"), but ${
        [...npz.arrays.keys()].map((name) => `"${name}"`).join(", ")
      }`,
    );
  }
  if (!set.images) npz.close();
  return set;
}

async function imagesOf(npz: NpzFile): Promise<NpzImages> {
  const { shape = [], kind } = npz.arrays.get("arr_0") ?? {};
  const [count = 0, height = 0, width = 0, channels] = shape;
  if (shape.length !== 4 || channels !== 3 || height !== width || kind !== "u1" || count * height === 0) {
    throw new UsageError(
      `Cannot score "${npz.name}": "arr_0" is ${kind} [${shape.join(", ")}], not uint8 [N, S, S, 3]`,
    );
  }
  const given = npz.arrays.has("arr_1") ? await npz.read("arr_1") : new Float64Array(count);
  const values = [...new Set(given)].sort((a, b) => a - b);
  const labels = given.map((label) => values.indexOf(label));
  return new NpzImages(npz, count, height, values.map(String), labels);
}

async function statisticsOf(npz: NpzFile, mu: string, sigma: string): Promise<Statistics> {
  const [mean, covariance] = [await npz.read(mu), await npz.read(sigma)];
  const n = mean.length, shape = npz.arrays.get(sigma)?.shape ?? [];
  if (shape.length !== 2 || shape[0] !== n || shape[1] !== n) {
    throw new UsageError(
      `Cannot score "${npz.name}": "${sigma}" is [${shape.join(", ")}], not [${n}, ${n}] as "${mu}" asks for`,
    );
  }
  return { mean, covariance };
}
