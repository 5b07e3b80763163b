// Two sets of images as pairs: those of the same name, whatever the format, and of the same size.

import type { InputSource } from "../data/network_input.ts";
import { ahead, depthOf } from "../data/prefetch.ts";
import { UsageError } from "../errors.ts";
import { toBytes } from "../image/image.ts";
import { throwIfStopped } from "../interruption.ts";
import type { Log } from "../run/log.ts";
import type { SetOptions } from "./evaluation_options.ts";
import { cautionOfFew } from "./cautions.ts";
import { ImageScores } from "./image_scores.ts";
import type { ImageSet } from "./image_set.ts";
import { OpenScores, type PairBatch, scorePairs } from "./pairs.ts";
import type { Results, Selection } from "./selection.ts";

/** A name without the extension of an image. */
const stem = (name: string) => name.replace(/\.(png|jpe?g|webp|gif|bmp|tiff?)$/i, "");

interface NamedSet {
  name: string;
  images: Pick<InputSource, "length" | "name">;
}

interface PairSet extends NamedSet {
  images: InputSource;
}

/**
 * For each image of `real` the number of that of `fake` with its name. Extensions may differ, and "a.jpg.png" is also a
 * reconstruction of "a.jpg".
 * @throws UsageError unless each image of either set has exactly one counterpart
 */
export function pairsByName(real: NamedSet, fake: NamedSet): Uint32Array {
  const refuse = (why: string) =>
    new UsageError(
      `Cannot pair "${real.name}" with "${fake.name}": ${why}; give two sets with the same names`,
    );
  const { images: a } = real, { images: b } = fake;
  const exact = new Map<string, number>(), stems = new Map<string, number | "several">();
  for (let i = 0; i < b.length; i++) {
    const name = b.name(i), key = stem(name);
    exact.set(name, i);
    stems.set(key, stems.has(key) ? "several" : i);
  }
  const partners = new Uint32Array(a.length), usedBy = new Map<number, string>();
  for (let i = 0; i < a.length; i++) {
    const name = a.name(i), found = exact.get(name) ?? stems.get(name) ?? stems.get(stem(name));
    if (found === undefined) throw refuse(`"${fake.name}" has no "${name}"`);
    if (found === "several") throw refuse(`several images of "${fake.name}" are called "${stem(name)}"`);
    const other = usedBy.get(found);
    if (other !== undefined) throw refuse(`"${other}" and "${name}" both pair with "${b.name(found)}"`);
    usedBy.set(found, name);
    partners[i] = found;
  }
  if (a.length < b.length) {
    const left = Array.from({ length: b.length }, (_, i) => i).find((i) => !usedBy.has(i)) as number;
    throw refuse(`"${real.name}" has no "${b.name(left)}" (${a.length} images against ${b.length})`);
  }
  return partners;
}

/** The pairs of two sets, opened for the metrics that need them. */
export class PairedSets {
  private constructor(
    private readonly real: PairSet,
    private readonly fake: PairSet,
    private readonly partners: Uint32Array,
    private readonly size: { width: number; height: number },
    private readonly options: SetOptions,
    private readonly selection: Selection,
    private readonly log: Log,
  ) {}

  /**
   * Leaves out the metrics that images of this size do not allow.
   * @returns undefined if no selected metric is of pairs
   * @throws UsageError if names or sizes differ
   */
  static async open(
    selection: Selection,
    options: SetOptions,
    real: ImageSet,
    fake: ImageSet,
    log: Log,
  ): Promise<PairedSets | undefined> {
    if (selection.from("reconstructions").length === 0) return undefined;
    const [a, b] = [real, fake].map(({ name, images }) => {
      if (images) return { name, images };
      throw new UsageError(`Cannot pair "${real.name}" with "${fake.name}": "${name}" holds no images`);
    }) as [PairSet, PairSet];
    const partners = pairsByName(a, b), { imageSize } = options;
    const { width, height } = imageSize === undefined
      ? await a.images.input(0, {})
      : { width: imageSize, height: imageSize };
    selection.exclude((m) =>
      m.from === "reconstructions" && m.minSide !== undefined && Math.min(width, height) < m.minSide &&
      `images of ${width} x ${height} are too small, it takes ${m.minSide} x ${m.minSide}`
    );
    selection.exclude((m) =>
      m.from === "reconstructions" && m.square && width !== height &&
      `images of ${width} x ${height} are no squares; --image-size N resizes and crops all to squares first`
    );
    selection.exclude(({ minImages = 1 }) =>
      partners.length < minImages && `it takes ${minImages} images or more`
    );
    const pairs = new PairedSets(a, b, partners, { width, height }, options, selection, log);
    await pairs.#load(0, 1);
    return pairs;
  }

  /** Computes the selected metrics of pairs; writes those of each image into the folder of the options. @returns these */
  async score(results: Results): Promise<ImageScores> {
    const { size: { width, height }, partners, log } = this, n = partners.length;
    const batchSize = Math.min(this.options.batchSize, n),
      table = new ImageScores(width, height);
    const context = { ...this.options, n, size: width, height, batchSize };
    const few = this.selection.from("reconstructions").some(({ name }) => name === "rfid") && cautionOfFew(n);
    if (few) log.warn(few);
    const metrics = this.selection.from("reconstructions"), { intervals } = this.options;
    const groups = (intervals?.repeated(metrics, n).size ?? 0) > 0;
    using scores = await OpenScores.open(metrics, { ...context, groups });
    const guarded = scores.first.map((score) => results.guarded(score));
    const progress = log.progress("pairs", n, "images");
    await results.add(async () => {
      const all = await scorePairs(this.#batches(batchSize), guarded, (batch, values) => {
        table.add(batch, values, (i) => this.real.images.name(i));
        progress.update(batch.first + batch.count);
      });
      await table.write(this.options.out, log);
      return { ...all, n };
    }).finally(() => progress.end());
    await intervals?.repeatPairs(guarded, n);
    return table;
  }

  async *#batches(batchSize: number): AsyncGenerator<PairBatch> {
    const n = this.partners.length, { parallel = 0 } = this.real.images;
    const depth = depthOf({ parallel }, 6 * batchSize * this.size.width * this.size.height);
    const load = (k: number) => this.#load(k * batchSize, Math.min(batchSize, n - k * batchSize));
    for await (const batch of ahead(load, { to: Math.ceil(n / batchSize), depth })) {
      throwIfStopped();
      yield batch;
    }
  }

  async #load(first: number, count: number): Promise<PairBatch> {
    const each = 3 * this.size.width * this.size.height;
    const load = async (set: PairSet, at: (i: number) => number) => {
      const all = new Uint8Array(count * each);
      const loading = Array.from({ length: count }, (_, i) => this.#bytes(set, at(first + i)));
      loading.forEach((image) => image.catch(() => {})); // the first failure in order is the one that is thrown
      for (const [i, image] of loading.entries()) all.set(await image, i * each);
      return all;
    };
    const [originals, reconstructions] = await Promise.all([
      load(this.real, (i) => i),
      load(this.fake, (i) => this.partners[i] as number),
    ]);
    return { first, count, originals, reconstructions };
  }

  /** Image `i` as --image-size says, else as it is. @throws UsageError if it is of another size than the first */
  async #bytes({ name, images }: PairSet, i: number): Promise<Uint8Array> {
    const { imageSize } = this.options, { size } = this;
    if (imageSize !== undefined) return await images.bytes(i, imageSize);
    const { width, height, data } = await images.input(i, {});
    if (width === size.width && height === size.height) return toBytes(data);
    throw new UsageError(
      `Cannot compare "${this.real.name}" with "${this.fake.name}": "${images.name(i)}" of "${name}" is ` +
        `${width} x ${height}, not ${size.width} x ${size.height}; --image-size N resizes and crops all to squares first`,
    );
  }
}
