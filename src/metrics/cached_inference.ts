// Batched inference with a cache of features: images whose features are known are not even decoded. Missing images accumulate
// over lookups until they fill a batch, and lookups go on while the network runs. Features leave in the order of the images; so
// that those which wait for a missing one take bounded memory, it then runs in a batch that is not full.

import { ahead, depthOf } from "../data/prefetch.ts";
import { gatherFloats } from "../data/image_source.ts";
import type { IdentifiedInputs } from "../data/network_input.ts";
import type { Size } from "../image/resize.ts";
import { type Extracted, type ImageProgram, infer, type Loaded, runBatches } from "./batched.ts";
import type { CacheSpace } from "./feature_cache.ts";

/** Bytes of features that wait for a missing image, with those that its batch will have and those behind it. */
const MAX_WAITING_BYTES = 128 * 1024 * 1024;
/** Lookups for a batch, in batches, after which the images that are complete are yielded; and their least number. */
const LOOKUP_BATCHES = 16, MIN_LOOKUPS = 256;
/** Lookups between two yields to the event loop: reading files and the cache is synchronous. */
const LOOKUPS_PER_YIELD = 32;
/** Images that are yielded at a time. */
const MAX_YIELDED = 256;

/**
 * Runs a program on a network's inputs, those in the cache excepted. The same bits as without it: the outputs of an image do
 * not depend on its batch.
 */
export async function* inferCached<K extends string>(
  program: ImageProgram<K>,
  source: IdentifiedInputs,
  cache: CacheSpace<K> | undefined,
  maxWaitingBytes = MAX_WAITING_BYTES,
): AsyncGenerator<Extracted<K>> {
  if (!cache) return yield* infer(program, source);
  const [B, S] = program.inputs.x.shape as [number, number];
  const maxWaiting = Math.max(B, Math.floor(maxWaitingBytes / cache.rowBytes));
  const images = new CachedImages(source, cache, { batchSize: B, size: S, maxWaiting });
  const batches = ahead(() => images.load(), { depth: depthOf(source, 4 * program.inputs.x.size) });
  const nameOf = ({ missing }: MissingBatch, b: number) => {
    const { i } = missing[b] as Missing;
    return `image ${i} ("${source.name(i)}")`;
  };
  try {
    for await (const { batch, outputs } of runBatches(program, batches, nameOf)) {
      await images.add(batch, outputs);
      yield* images.complete();
    }
    yield* images.complete();
  } finally {
    await images.end();
    await cache.close();
  }
}

/** An image that is not in the cache. */
interface Missing {
  i: number;
  digest: string | undefined;
}

interface MissingBatch extends Loaded {
  missing: Missing[];
  /** Of images that were not decoded at reduced size. */
  sizes: Map<number, Size>;
}

/** The images of a source: which are looked up, which are missing, and features that wait for those of earlier images. */
class CachedImages<K extends string> {
  /** The first images that are not looked up, and not yielded. */
  #next = 0;
  #first = 0;
  #missing: Missing[] = [];
  readonly #rows = new Map<number, Record<K, Float32Array>>();
  #latest: Promise<unknown> = Promise.resolve();
  #ended = false;

  constructor(
    private readonly source: IdentifiedInputs,
    private readonly cache: CacheSpace<K>,
    private readonly options: { batchSize: number; size: number; maxWaiting: number },
  ) {}

  /**
   * The next missing images, none if enough were looked up without filling a batch or no more features may wait; undefined after the
   * last image.
   */
  async load(): Promise<MissingBatch | undefined> {
    const lookup = this.#latest.then(() => this.#lookUp());
    this.#latest = lookup.catch(() => {});
    const missing = await lookup;
    return missing && await this.#loaded(missing);
  }

  /** Keeps the outputs of a batch, in the cache too. */
  async add({ missing, sizes }: MissingBatch, outputs: Record<K, Float32Array>): Promise<void> {
    for (const [b, { i, digest }] of missing.entries()) {
      const row = {} as Record<K, Float32Array>;
      for (const [name, all] of Object.entries(outputs) as [K, Float32Array][]) {
        const each = all.length / missing.length;
        row[name] = all.slice(b * each, (b + 1) * each);
      }
      this.#rows.set(i, row);
      // A damaged file, in whose place another image was read, has no digest now; one decoded at reduced size has no size.
      const size = sizes.get(i);
      if (digest === undefined || !size || await this.source.digest(i) !== digest) continue;
      await this.cache.add(digest, { outputs: row, size });
    }
  }

  /** The next images as far as they are known, once. */
  *complete(): Generator<Extracted<K>> {
    for (;;) {
      const first = this.#first, rows: Record<K, Float32Array>[] = [];
      for (
        let row = this.#rows.get(first);
        row && rows.length < MAX_YIELDED;
        row = this.#rows.get(first + rows.length)
      ) {
        this.#rows.delete(first + rows.length);
        rows.push(row);
      }
      if (rows.length === 0) return;
      const labels = Uint32Array.from(rows, (_, k) => this.source.label(first + k));
      yield { first, count: rows.length, labels, outputs: stacked(rows) };
      this.#first += rows.length; // the caller is done with them
    }
  }

  /** Ends lookups. */
  async end(): Promise<void> {
    this.#ended = true;
    await this.#latest;
  }

  async #lookUp(): Promise<Missing[] | undefined> {
    const { source, options: { batchSize } } = this;
    const to = Math.min(source.length, this.#next + Math.max(MIN_LOOKUPS, LOOKUP_BATCHES * batchSize));
    while (this.#next < to && !this.#full() && !this.#due() && !this.#ended) {
      const i = this.#next, digest = await source.digest(i);
      const row = digest === undefined ? undefined : await this.cache.read(digest);
      if (row) {
        this.#rows.set(i, row.outputs);
        source.count(i, row.size);
      } else this.#missing.push({ i, digest });
      if (++this.#next % LOOKUPS_PER_YIELD === 0) await new Promise((resolve) => setTimeout(resolve));
    }
    if (this.#due()) return this.#missing.splice(0, batchSize);
    return this.#next < source.length ? [] : undefined;
  }

  /** Whether images that are looked up and not yielded have all features that may wait, batches under way included. */
  #full(): boolean {
    return this.#next - this.#first >= this.options.maxWaiting;
  }

  /** Whether the missing images run now. */
  #due(): boolean {
    const { source, options: { batchSize } } = this, { length } = this.#missing;
    return length > 0 && (length >= batchSize || this.#full() || this.#next === source.length);
  }

  async #loaded(missing: Missing[]): Promise<MissingBatch> {
    const { source, options: { batchSize, size } } = this, count = missing.length;
    const sizes = new Map<number, Size>();
    if (count === 0) return { count, missing, sizes, images: new Float32Array(), labels: new Uint32Array() };
    const floats = async (i: number, side: number) => {
      const data = await source.floats(i, side), size = source.sizeOf(i);
      if (size) sizes.set(i, size);
      return data;
    };
    const padded = Array.from({ length: batchSize }, (_, k) => missing[Math.min(k, count - 1)]?.i as number);
    return { count, missing, sizes, ...await gatherFloats({ ...source, floats }, padded, size) };
  }
}

/** Outputs of images as those of a batch. */
function stacked<K extends string>(rows: readonly Record<K, Float32Array>[]): Record<K, Float32Array> {
  const outputs = {} as Record<K, Float32Array>;
  for (const name of Object.keys(rows[0] ?? {}) as K[]) {
    const each = (rows[0] as Record<K, Float32Array>)[name].length,
      all = new Float32Array(rows.length * each);
    for (const [k, row] of rows.entries()) all.set(row[name], k * each);
    outputs[name] = all;
  }
  return outputs;
}
