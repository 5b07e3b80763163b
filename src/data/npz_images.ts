// Images in an .npz file as evaluation suites exchange them: `arr_0` uint8 [N,H,W,3], `arr_1` labels [N]; and what the file
// holds of their features (npz_features.ts). 50,000 images of 256 x 256 are 9.8 GB, so only the latest images are kept:
// reading in order is one pass, and an uncompressed file (np.savez) is read from any image on.

import { UsageError } from "../errors.ts";
import { digestOf } from "./digest.ts";
import type { Crop } from "./crops.ts";
import type { InputSource, View } from "./network_input.ts";
import type { Image } from "../image/rows.ts";
import type { NpyHeader } from "../formats/npy.ts";
import { type NpzFile, openNpz } from "../formats/npz.ts";
import { describedArray, readFeatures, refusal, type StoredFeatures } from "./npz_features.ts";
import type { Identity } from "../formats/provenance.ts";
import type { Pixels } from "./preprocess.ts";
import { Workers } from "./decode_pool.ts";

/** Number of images kept before the latest one: not fewer than are looked up in a cache of features at a time. */
const KEPT = 256;

export class NpzImages implements InputSource {
  #rows: AsyncGenerator<Uint8Array<ArrayBuffer>> | undefined;
  #next = 0;
  readonly #latest = new Map<number, Uint8Array<ArrayBuffer>>();
  #turn: Promise<unknown> = Promise.resolve();

  constructor(
    private readonly npz: NpzFile,
    readonly length: number,
    readonly width: number,
    readonly height: number,
    readonly classes: readonly string[],
    private readonly labels: ArrayLike<number>,
    private readonly workers: Workers,
  ) {}

  get parallel(): number {
    return this.workers.count;
  }

  label(i: number): number {
    return this.labels[i] ?? 0;
  }

  name(i: number): string {
    return String(i);
  }

  async bytes(i: number, size: number, crop?: Crop): Promise<Uint8Array> {
    return (await this.workers.run({ kind: "square", image: await this.#image(i), size, crop })).data;
  }

  async input(i: number, view: View): Promise<Pixels> {
    return await this.workers.run({ kind: "input", image: await this.#image(i), view });
  }

  async digest(i: number): Promise<string> {
    return digestOf(await this.#image(i));
  }

  async #image(i: number): Promise<Image> {
    const row = this.#turn.then(() => this.#row(i)); // one after another, in the order of the calls
    this.#turn = row.catch(() => {});
    return { width: this.width, height: this.height, data: await row };
  }

  async #row(i: number): Promise<Uint8Array<ArrayBuffer>> {
    const seekable = this.npz.isSeekable("arr_0"), before = i < this.#next && !this.#latest.has(i);
    if (before || seekable && i > this.#next + KEPT) {
      await this.#rows?.return(undefined);
      this.#rows = undefined;
      this.#latest.clear();
      this.#next = seekable ? i : 0;
    }
    this.#rows ??= this.npz.rows("arr_0", this.#next);
    while (this.#next <= i) {
      const { value, done } = await this.#rows.next();
      if (done) throw new UsageError(`Cannot read image ${i} of "${this.npz.name}": it ends before`);
      this.#latest.set(this.#next, value);
      this.#latest.delete(this.#next++ - KEPT);
    }
    return this.#latest.get(i) as Uint8Array<ArrayBuffer>;
  }
}

/** Contents of an .npz file: images, labels, statistics, features. */
export interface NpzSet extends StoredFeatures {
  identity: Identity;
  images?: NpzImages;
}

/**
 * Opens a set.
 * @param workers threads that prepare images for networks [the calling thread]
 * @throws UsageError without images and statistics, or for arrays of another form
 */
export async function openNpzSet(path: string, workers = new Workers(0)): Promise<NpzSet> {
  if (/\.npy$/i.test(path)) {
    throw new UsageError(
      `Cannot score "${path}": it is a single NumPy array; store it as .npz: np.savez("set.npz", np.load(path))`,
    );
  }
  const npz = await openNpz(path);
  const set: NpzSet = { identity: { name: path, fingerprint: npz.fingerprint() } };
  try {
    if (npz.arrays.has("arr_0")) set.images = await imagesOf(npz, workers);
    Object.assign(set, await readFeatures(npz));
    if (!set.images && !set.pooled && !set.features && !set.spaces) {
      throw refusal(
        npz,
        `it has neither images ("arr_0") nor statistics ("mu", "sigma"), but ${
          [...npz.arrays].map(([name, header]) => `"${name}" ${describedArray(header)}`).join(", ") ||
          "nothing"
        }; save images as np.savez(path, images), uint8 [N, H, W, 3]`,
      );
    }
    return set;
  } catch (error) {
    delete set.images;
    throw error;
  } finally {
    if (!set.images) npz.close();
  }
}

async function imagesOf(npz: NpzFile, workers: Workers): Promise<NpzImages> {
  const header = npz.arrays.get("arr_0") as NpyHeader, { shape, kind, fortran } = header;
  const [count = 0, height = 0, width = 0, channels] = shape;
  if (shape.length !== 4 || channels !== 3 || kind !== "u1" || fortran || count * height * width === 0) {
    const remedy = count === 0
      ? "there is no image in it"
      : shape.length === 4 && shape[1] === 3 && channels !== 3
      ? "move the channels to the end: images.transpose(0, 2, 3, 1)"
      : shape.length !== 4 || channels !== 3
      ? "store RGB images as the rows of such an array"
      : fortran
      ? "store it in row-major order: np.ascontiguousarray(images)"
      : "store the pixels as bytes, 0 to 255: images.astype(np.uint8)";
    throw refusal(npz, `"arr_0" is ${describedArray(header)}, not uint8 [N, H, W, 3]; ${remedy}`);
  }
  npz.verify("arr_0");
  const { classes, labels } = npz.arrays.has("arr_1")
    ? await labelsOf(npz, "arr_1", count)
    : { classes: ["0"], labels: [] };
  return new NpzImages(npz, count, width, height, classes, labels, workers);
}

/** Maps labels to indices into the sorted list of distinct labels. */
async function labelsOf(npz: NpzFile, key: string, count: number) {
  const header = npz.arrays.get(key) as NpyHeader;
  if (header.shape.length !== 1 || header.shape[0] !== count) {
    throw refusal(
      npz,
      `"${key}" is ${describedArray(header)}, not one label for each of the ${count} images of "arr_0"; ` +
        `store whole numbers [${count}]`,
    );
  }
  const given = await npz.read(key);
  const wrong = given.findIndex((label) => !Number.isSafeInteger(label) || label < 0);
  if (wrong >= 0) {
    throw refusal(
      npz,
      `"${key}" gives image ${wrong} the label ${given[wrong]}; labels are whole numbers from 0 on`,
    );
  }
  const values = [...new Set(given)].sort((a, b) => a - b);
  const index = new Map(values.map((value, i) => [value, i]));
  return { classes: values.map(String), labels: given.map((label) => index.get(label) as number) };
}
