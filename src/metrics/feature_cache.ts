// A folder that keeps features of images by a hash of their bytes. A space of it, one folder, holds what one network makes of one form
// of input on one adapter: shards of rows with the hash of the image, its size and a checksum. A shard is written once, atomically,
// under a name of its own, so any number of processes may share the folder. A damaged row is computed again. When the folder
// exceeds its size, the shards that were used least recently are removed.

import { createHash } from "node:crypto";
import { join } from "@std/path";
import { UsageError } from "../errors.ts";
import { makeFolder, removeLeftovers } from "../formats/files.ts";
import { fingerprintOf } from "../formats/provenance.ts";
import { openSafetensors, type SafetensorsFile, writeSafetensors } from "../formats/safetensors.ts";
import { device } from "../gpu/device.ts";
import type { Size } from "../image/resize.ts";
import metadata from "../../deno.json" with { type: "json" };

/** Bytes of all shards of a folder. */
export const MAX_CACHE_BYTES = 20e9;
/** Rows of a shard; the last one of an evaluation has fewer. */
const SHARD_ROWS = 4096;
/** Shards that are open at a time. */
const MAX_OPEN = 64;
/** Changes with the meaning of what is stored. */
const VERSION = 1;
const KEY_BYTES = 16, SUM_BYTES = 8;

/** Features of an image by the names of a network's outputs, and its size in the file. */
export interface CachedRow<K extends string> {
  outputs: Record<K, Float32Array>;
  size: Size;
}

export class FeatureCache {
  /** Images that were found, and all that were looked for. */
  found = 0;
  asked = 0;

  /** @throws UsageError if the folder cannot be made */
  constructor(readonly folder: string, private readonly limit = MAX_CACHE_BYTES) {
    makeFolder(folder);
  }

  /**
   * The space of a network and a form of its input on the open device.
   * @param key all that decides about the features but the image, the device and tok's version
   * @param columns length of each output
   */
  async space<K extends string>(
    key: readonly string[],
    columns: Readonly<Record<K, number>>,
  ): Promise<CacheSpace<K>> {
    const { facts: { description }, profile } = device();
    const all = [`${VERSION}`, metadata.version, description, profile, ...key, JSON.stringify(columns)],
      name = fingerprintOf(...all);
    const space = new CacheSpace(this, join(this.folder, name), JSON.stringify(all), columns);
    await space.load();
    return space;
  }

  /** How many images were found, for people. */
  toString(): string {
    return `feature cache "${this.folder}": ${this.found} of ${this.asked} lookups found`;
  }

  /** Removes the shards that were used least recently, until the others fit. */
  trim(): void {
    const shards: { path: string; size: number; used: number }[] = [];
    for (const space of entries(this.folder)) {
      for (const name of entries(join(this.folder, space))) {
        if (!name.endsWith(SHARD)) continue;
        const path = join(this.folder, space, name);
        try {
          const { size, mtime } = Deno.statSync(path);
          shards.push({ path, size, used: mtime?.getTime() ?? 0 });
        } catch {
          // Another process removed it.
        }
      }
    }
    shards.sort((a, b) => b.used - a.used || (a.path < b.path ? -1 : 1));
    let total = 0;
    for (const { path, size } of shards) if ((total += size) > this.limit) remove(path);
  }
}

const SHARD = ".safetensors";

/** Names in a folder; none if it cannot be read. */
function entries(folder: string): string[] {
  try {
    return [...Deno.readDirSync(folder)].map(({ name }) => name).sort();
  } catch {
    return [];
  }
}

function remove(path: string): void {
  try {
    Deno.removeSync(path);
  } catch {
    // Another process did.
  }
}

const sumOf = (key: string, row: Float32Array) =>
  createHash("blake2b512").update(key).update(new Uint8Array(row.buffer, row.byteOffset, row.byteLength))
    .digest().subarray(0, SUM_BYTES);

/** Rows of one network and one form of input. */
export class CacheSpace<K extends string> {
  readonly #names: K[];
  readonly #columns: number;
  /** Where the row of an image is. */
  readonly #index = new Map<string, { shard: string; row: number }>();
  /** Open shards, least recently used first. */
  readonly #open = new Map<string, { file: SafetensorsFile; sums: Uint8Array; sizes: Uint32Array }>();
  readonly #new = new Map<string, { row: Float32Array; size: Size }>();

  constructor(
    private readonly cache: FeatureCache,
    private readonly folder: string,
    private readonly about: string,
    private readonly columns: Readonly<Record<K, number>>,
  ) {
    this.#names = (Object.keys(columns) as K[]).sort();
    this.#columns = this.#names.reduce((sum, name) => sum + columns[name], 0);
  }

  /** Bytes of an image's features. */
  get rowBytes(): number {
    return 4 * this.#columns;
  }

  /** Reads which images there are; the latest row of an image counts. Damaged shards are removed. */
  async load(): Promise<void> {
    removeLeftovers(this.folder);
    for (const name of entries(this.folder)) {
      if (!name.endsWith(SHARD)) continue;
      const path = join(this.folder, name);
      try {
        const file = await openSafetensors(path);
        try {
          const [rows = 0, columns] = file.shapes.get("rows") ?? [], keys = await file.readBytes("keys");
          if (columns !== this.#columns || keys.length !== rows * KEY_BYTES) {
            throw new UsageError(`Cannot use "${path}": it is no shard of this space`);
          }
          for (let row = 0; row < rows; row++) {
            this.#index.set(textOf(keys.subarray(row * KEY_BYTES, (row + 1) * KEY_BYTES)), {
              shard: path,
              row,
            });
          }
        } finally {
          file.close();
        }
      } catch (error) {
        // An error of the file system, such as too many open files, is its cause where it has one: the shard may be fine.
        if (error instanceof UsageError && error.cause === undefined) remove(path);
      }
    }
  }

  /** What is known of an image; undefined if nothing is, or it is damaged. @param digest of its bytes */
  async read(digest: string): Promise<CachedRow<K> | undefined> {
    this.cache.asked++;
    const place = this.#index.get(digest);
    if (!place) return undefined;
    try {
      const { file, sums, sizes } = await this.#shard(place.shard), { row } = place;
      const data = await file.readRows("rows", row, row + 1);
      const sum = sums.subarray(row * SUM_BYTES, (row + 1) * SUM_BYTES);
      if (!sumOf(digest, data).equals(sum)) return undefined;
      this.cache.found++;
      const size = { width: sizes[2 * row] as number, height: sizes[2 * row + 1] as number };
      return { outputs: this.#parts(data), size };
    } catch { // cut short, or removed by another process
      this.#close(place.shard);
      return undefined;
    }
  }

  /** Keeps the features of an image. */
  async add(digest: string, { outputs, size }: CachedRow<K>): Promise<void> {
    const row = new Float32Array(this.#columns);
    let at = 0;
    for (const name of this.#names) {
      row.set(outputs[name], at);
      at += this.columns[name];
    }
    this.#new.set(digest, { row, size });
    if (this.#new.size >= SHARD_ROWS) await this.flush();
  }

  /** Writes what was added. A folder that cannot be written costs the next evaluation its time only. */
  async flush(): Promise<void> {
    const added = [...this.#new], n = added.length;
    this.#new.clear();
    if (n === 0) return;
    const rows = new Float32Array(n * this.#columns), sizes = new Uint32Array(2 * n);
    const keys = new Uint8Array(n * KEY_BYTES), sums = new Uint8Array(n * SUM_BYTES);
    for (const [i, [digest, { row, size }]] of added.entries()) {
      rows.set(row, i * this.#columns);
      sizes.set([size.width, size.height], 2 * i);
      keys.set(Uint8Array.from(digest, (c) => c.charCodeAt(0)), i * KEY_BYTES);
      sums.set(sumOf(digest, row), i * SUM_BYTES);
    }
    const shard = join(this.folder, `${Date.now()}-${crypto.randomUUID()}${SHARD}`);
    try {
      await writeSafetensors(shard, [
        { name: "rows", shape: [n, this.#columns], data: rows },
        { name: "sizes", shape: [n, 2], data: sizes },
        { name: "keys", shape: [n, KEY_BYTES], data: keys },
        { name: "sums", shape: [n, SUM_BYTES], data: sums },
      ], { about: this.about });
      for (const [row, [digest]] of added.entries()) this.#index.set(digest, { shard, row });
      this.cache.trim();
    } catch {
      // Read-only or full.
    }
  }

  /** Writes what was added and closes the files. */
  async close(): Promise<void> {
    await this.flush();
    for (const shard of [...this.#open.keys()]) this.#close(shard);
  }

  async #shard(path: string) {
    const known = this.#open.get(path);
    if (!known) {
      const file = await openSafetensors(path);
      const sums = await file.readBytes("sums"), sizes = Uint32Array.from(await file.readIntegers("sizes"));
      const [oldest] = this.#open.keys();
      if (oldest !== undefined && this.#open.size >= MAX_OPEN) this.#close(oldest);
      const opened = { file, sums, sizes }, now = new Date();
      this.#open.set(path, opened);
      await Deno.utime(path, now, now).catch(() => {}); // used now
      return opened;
    }
    this.#open.delete(path);
    this.#open.set(path, known);
    return known;
  }

  #close(path: string): void {
    this.#open.get(path)?.file.close();
    this.#open.delete(path);
  }

  #parts(data: Float32Array): Record<K, Float32Array> {
    let at = 0;
    return Object.fromEntries(
      this.#names.map((name) => [name, data.subarray(at, at += this.columns[name])]),
    ) as Record<K, Float32Array>;
  }
}

/** Bytes as a text of one character each. */
export const textOf = (bytes: Uint8Array): string => String.fromCharCode(...bytes);
