// A folder of latents in the layout of LightningDiT's tools: shards with `latents` and `latents_flip` (of the mirrored image)
// [N,C,H,W] and `labels` [N], and `latents_stats.safetensors` with `mean` and `std` [1,C,1,1] over all `latents`.
// The statistics are written last: a folder without them is incomplete and refused. The metadata of tok's files holds the
// provenance and the class names, and each shard the running sums of the statistics, so that an interrupted encoding resumes
// after its last shard and writes the same bytes as an uninterrupted one.

import { basename, join } from "@std/path";
import { z } from "zod";
import { ShapeError, UsageError } from "../errors.ts";
import { ChannelStatistics } from "./channel_statistics.ts";
import { exists, makeFolder, removeLeftovers } from "./files.ts";
import { checkStatistics, notFinite } from "./finite.ts";
import { differences, provenanceSchema } from "./provenance.ts";
import { openSafetensors, type SafetensorsFile, writeSafetensors } from "./safetensors.ts";
import { openModel } from "./shards.ts";

const STATS = "latents_stats.safetensors";
const SHARD = /^latents_\d+\.safetensors$/;
const shardName = (n: number) => `latents_${String(n).padStart(5, "0")}.safetensors`;

const recordSchema = z.object({
  made_from: provenanceSchema,
  /** Class names; empty if the images have no classes. */
  classes: z.array(z.string()),
});
/** Provenance of a folder of latents. */
export type LatentsRecord = z.infer<typeof recordSchema>;

/** Metadata key of the record; absent in files of LightningDiT's tools and of tok 0.2.0. */
const RECORD = "tok_latents", SUMS = "tok_running_sums", COUNT = "tok_count";

/** The provenance in the metadata of a file, if it has one. @throws UsageError for an invalid record */
export function recordIn(
  store: { name: string; metadata: ReadonlyMap<string, string> },
): LatentsRecord | undefined {
  const text = store.metadata.get(RECORD);
  if (text === undefined) return undefined;
  try {
    const record = recordSchema.parse(JSON.parse(text));
    // Latents of tok 0.3.0 and before do not say their crop.
    return "image size" in record.made_from
      ? { ...record, made_from: { crop: "center", ...record.made_from } }
      : record;
  } catch {
    throw new UsageError(`Cannot use "${store.name}": its metadata "${RECORD}" is damaged; encode again`);
  }
}

/** Writes latents shard by shard; at most one shard is in memory. */
export class LatentsWriter {
  #latents: Float32Array[] = [];
  #flipped: Float32Array[] = [];
  #labels: number[] = [];
  #shards = 0;
  readonly #statistics: ChannelStatistics;

  /**
   * Starts a new folder; open() also continues an incomplete one.
   * @param shape [C,H,W] of one latent
   * @param perShard latents per file (2048)
   * @param record provenance, written to every file
   * @throws UsageError if the folder already holds latents
   */
  constructor(
    readonly folder: string,
    readonly shape: readonly [number, number, number],
    private readonly perShard = 2048,
    private readonly record?: LatentsRecord,
    { keep = false }: { keep?: boolean } = {},
  ) {
    makeFolder(folder);
    if (exists(join(folder, STATS))) {
      throw new UsageError(
        `Cannot write latents to "${folder}": it holds latents already; choose another --out`,
      );
    }
    removeLeftovers(folder);
    if (!keep) this.#removeShards(0); // of an interrupted run
    this.#statistics = new ChannelStatistics(shape[0]);
  }

  /**
   * Starts a folder, or continues after the last shard of an interrupted run. Shards without provenance (tok 0.2.0) are
   * replaced.
   * @throws UsageError if the folder holds complete latents, or incomplete ones with another tokenizer, images or settings
   */
  static async open(
    folder: string,
    shape: readonly [number, number, number],
    record: LatentsRecord,
    perShard?: number,
  ): Promise<LatentsWriter> {
    if (exists(join(folder, STATS))) refuseOtherLatents(folder, await storedStatistics(folder), record);
    const writer = new LatentsWriter(folder, shape, perShard, record, { keep: true });
    await writer.#resume(record);
    return writer;
  }

  /** Number of latents, those of an interrupted run included. */
  get length(): number {
    return (this.#statistics.count[0] as number) / (this.shape[1] * this.shape[2]);
  }

  async #resume(record: LatentsRecord): Promise<void> {
    for (let n = 0; exists(join(this.folder, shardName(n))); n++) {
      const path = join(this.folder, shardName(n));
      let file: SafetensorsFile;
      try {
        file = await openSafetensors(path);
      } catch (error) {
        if (!(error instanceof UsageError)) throw error;
        break; // damaged: encode again from here
      }
      try {
        const before = recordIn(file), sums = file.metadata.get(SUMS);
        if (!before || sums === undefined) break;
        const [difference] = differences(before.made_from, record.made_from);
        if (difference !== undefined) {
          throw new UsageError(
            `Cannot go on with the unfinished latents in "${this.folder}": ${difference}; ` +
              `give what they were begun with, remove the folder, or choose another --out`,
          );
        }
        const [N = 0, ...rest] = file.shapes.get("latents") ?? [];
        if (rest.join() !== this.shape.join() || N > this.perShard) break;
        const read = JSON.parse(sums) as string[][];
        this.#sums().forEach((sum, k) => sum.set(read[k]?.map(Number) ?? []));
        if (N === this.perShard) {
          this.#shards = n + 1;
          continue;
        }
        // Written when the run was stopped: continue to fill it.
        this.#labels = [...await file.readIntegers("labels")];
        for (let i = 0; i < N; i++) {
          this.#latents.push(await file.readRows("latents", i, i + 1));
          this.#flipped.push(await file.readRows("latents_flip", i, i + 1));
        }
        break;
      } finally {
        file.close();
      }
    }
    this.#removeShards(this.#shards + (this.#labels.length ? 1 : 0));
  }

  #removeShards(from: number): void {
    const kept = new Set(Array.from({ length: from }, (_, n) => shardName(n)));
    for (const { name } of [...Deno.readDirSync(this.folder)]) {
      if (SHARD.test(name) && !kept.has(name)) Deno.removeSync(join(this.folder, name));
    }
  }

  /**
   * Adds N latents.
   * @param latents and flipped [N,C,H,W]; flipped are the latents of the mirrored images
   * @throws ShapeError if the three differ in N
   */
  async add(latents: Float32Array, flipped: Float32Array, labels: ArrayLike<number>): Promise<void> {
    const [C, H, W] = this.shape, size = C * H * W;
    if (latents.length !== labels.length * size || flipped.length !== latents.length) {
      throw new ShapeError(
        `Cannot add latents: ${labels.length} labels, and ${latents.length} and ${flipped.length} elements of [${this.shape}]`,
      );
    }
    for (let i = 0; i < labels.length; i++) {
      const latent = latents.slice(i * size, (i + 1) * size);
      this.#statistics.add(latent, H * W);
      this.#latents.push(latent);
      this.#flipped.push(flipped.slice(i * size, (i + 1) * size));
      this.#labels.push(labels[i] as number);
      if (this.#labels.length === this.perShard) await this.#flush();
    }
  }

  /** Writes the current shard, so that stopping here loses nothing; add() and open() continue it. */
  async save(): Promise<void> {
    if (this.#labels.length) await this.#write();
  }

  /** Writes the last shard and the statistics. @throws UsageError if nothing was added */
  async close(): Promise<void> {
    if (this.#labels.length) await this.#flush();
    if (this.#shards === 0) throw new UsageError(`Cannot write latents to "${this.folder}": there are none`);
    const { mean } = this.#statistics, std = this.#statistics.std();
    await writeStatistics(this.folder, { mean, std }, this.record, this.length);
  }

  /** The running sums, in the order of their metadata. */
  #sums(): Float64Array[] {
    const { count, mean, squares } = this.#statistics;
    return [count, mean, squares];
  }

  async #flush(): Promise<void> {
    await this.#write();
    this.#shards++;
    this.#latents = [];
    this.#flipped = [];
    this.#labels = [];
  }

  async #write(): Promise<void> {
    const shape = [this.#labels.length, ...this.shape];
    await writeSafetensors(join(this.folder, shardName(this.#shards)), [
      { name: "latents", shape, data: join32(this.#latents) },
      { name: "latents_flip", shape, data: join32(this.#flipped) },
      { name: "labels", shape: [this.#labels.length], data: BigInt64Array.from(this.#labels, BigInt) },
    ], {
      ...metadataOf(this.record),
      // As texts, which are exact to the last bit.
      ...this.record ? { [SUMS]: JSON.stringify(this.#sums().map((sum) => [...sum].map(String))) } : {},
    });
  }
}

const metadataOf = (record: LatentsRecord | undefined): Record<string, string> =>
  record ? { [RECORD]: JSON.stringify({ made_from: record.made_from, classes: record.classes }) } : {};

/** Writes `latents_stats.safetensors`. @param count of the latents that were measured */
export async function writeStatistics(
  folder: string,
  { mean, std }: { mean: ArrayLike<number>; std: ArrayLike<number> },
  record: LatentsRecord | undefined,
  count: number,
): Promise<void> {
  const shape = [1, mean.length, 1, 1];
  await writeSafetensors(join(folder, STATS), [
    { name: "mean", shape, data: Float32Array.from(mean) },
    { name: "std", shape, data: Float32Array.from(std) },
  ], { ...metadataOf(record), ...record ? { [COUNT]: String(count) } : {} });
}

function join32(parts: readonly Float32Array[]): Float32Array {
  const size = parts[0]?.length ?? 0;
  const all = new Float32Array(parts.length * size);
  parts.forEach((part, i) => all.set(part, i * size));
  return all;
}

/** An open folder of latents; latents are read on demand. */
export class Latents {
  constructor(
    readonly folder: string,
    /** [C,H,W] of one latent. */
    readonly shape: readonly [number, number, number],
    readonly labels: Int32Array,
    /** Per channel, over the complete folder. */
    readonly mean: Float32Array,
    readonly std: Float32Array,
    /** Provenance, if the folder has it. */
    readonly record: LatentsRecord | undefined,
    private readonly shards: readonly { first: number; file: SafetensorsFile }[],
  ) {}

  get length(): number {
    return this.labels.length;
  }

  /**
   * Latent `i` [C,H,W] as it was encoded, or that of the mirrored image.
   * @throws UsageError if it is not finite
   */
  async latent(i: number, flipped = false): Promise<Float32Array<ArrayBuffer>> {
    const shard = this.shards.findLast(({ first }) => first <= i);
    if (!shard || !(i < this.length)) {
      throw new RangeError(`There is no latent ${i}: the folder has ${this.length}`);
    }
    const key = flipped ? "latents_flip" : "latents", row = i - shard.first;
    const latent = await shard.file.readRows(key, row, row + 1), fault = notFinite(latent);
    if (fault !== undefined) {
      throw new UsageError(
        `Cannot use the latents "${this.folder}": latent ${i} holds ${fault}, in row ${row} of "${key}" of ` +
          `"${basename(shard.file.name)}"; encode the images again`,
      );
    }
    return latent;
  }

  close(): void {
    this.shards.forEach(({ file }) => file.close());
  }
}

/** What {@link readStatistics} reads. */
export interface FolderStatistics {
  mean: Float32Array;
  std: Float32Array;
  path: string;
  /** Provenance and number of the latents, if the file has them. */
  record: LatentsRecord | undefined;
  count?: number;
}

/**
 * Mean and standard deviation of each channel of a folder of latents, as tok or LightningDiT's tools wrote them; undefined if
 * there are none.
 * @throws UsageError if the file is damaged or its numbers are no statistics
 */
export async function readStatistics(folder: string): Promise<FolderStatistics | undefined> {
  const read = await storedStatistics(folder);
  if (read) checkStatistics(`"${read.path}"`, read.mean, read.std);
  return read;
}

/**
 * Compares complete latents with those that are to be written.
 * @throws UsageError if they were made from something else
 */
export function refuseOtherLatents(
  folder: string,
  complete: { record: LatentsRecord | undefined } | undefined,
  record: LatentsRecord,
): void {
  const [difference] = differences(complete?.record?.made_from ?? {}, record.made_from);
  if (difference === undefined) return;
  throw new UsageError(
    `Cannot write latents to "${folder}": it holds latents already, and ${difference}; choose another --out, or remove ` +
      `the folder to encode again`,
  );
}

async function storedStatistics(folder: string): Promise<FolderStatistics | undefined> {
  const path = [STATS, "latents_stats.pt"].map((name) => join(folder, name)).find(exists);
  if (path === undefined) return undefined;
  const store = await openModel(path);
  try {
    const [mean, std] = [await store.read("mean"), await store.read("std")];
    if (mean.length !== std.length) {
      throw new UsageError(
        `Cannot use "${path}": it has ${mean.length} means and ${std.length} deviations; make it again`,
      );
    }
    const count = store.metadata.get(COUNT);
    return {
      mean,
      std,
      path,
      record: recordIn(store),
      ...count === undefined ? {} : { count: Number(count) },
    };
  } finally {
    store.close();
  }
}

/** Opens a folder of latents. @throws UsageError if it is incomplete, or its files do not match */
export async function openLatents(folder: string): Promise<Latents> {
  const refuse = (reason: string) =>
    new UsageError(`Cannot use the latents "${folder}": ${reason}; make them with "tok encode"`);
  const stats = await storedStatistics(folder);
  if (!stats) throw refuse(`there is no "${STATS}", nor LightningDiT's .pt, which is written last`);
  // LightningDiT's tools write latents_rank00_shard000.safetensors, and read any file with this extension.
  const names = [...Deno.readDirSync(folder)].map(({ name }) => name)
    .filter((name) => name.endsWith(".safetensors") && name !== STATS).sort();
  const shards: { first: number; file: SafetensorsFile }[] = [];
  try {
    const labels: number[] = [];
    let shape: readonly number[] | undefined;
    for (const name of names) {
      const file = await openSafetensors(join(folder, name));
      shards.push({ first: labels.length, file });
      if (!file.shapes.has("latents")) throw refuse(`"${name}" has no tensor "latents"`);
      const [difference] = differences(stats.record?.made_from ?? {}, recordIn(file)?.made_from ?? {});
      if (difference !== undefined) throw refuse(`"${name}" belongs to another folder: ${difference}`);
      const [N, ...rest] = file.shapes.get("latents") ?? [];
      const expected = [N, ...shape ?? rest].join();
      if (
        rest.length !== 3 ||
        ["latents", "latents_flip"].some((key) => file.shapes.get(key)?.join() !== expected)
      ) {
        throw refuse(`the shapes in "${name}" do not fit`);
      }
      shape = rest;
      const own = await file.readIntegers("labels");
      if (own.length !== N) throw refuse(`"${name}" has ${own.length} labels for ${N} latents`);
      for (const label of own) labels.push(label);
    }
    if (!shape || labels.length === 0) throw refuse("there is no shard, a file latents_*.safetensors, in it");
    const { mean, std, record, count = labels.length } = stats;
    if (count !== labels.length) {
      throw refuse(`its shards hold ${labels.length} latents of ${count}; fetch the others`);
    }
    const classes = record?.classes.length ? record.classes.length : Infinity;
    const odd = labels.findIndex((label) => label < 0 || label >= classes);
    if (odd >= 0) throw refuse(`latent ${odd} has the label ${labels[odd]}, which is not a class`);
    if (mean.length !== shape[0]) {
      throw refuse(`"${basename(stats.path)}" is for ${mean.length} channels, the latents have ${shape[0]}`);
    }
    checkStatistics(`"${stats.path}"`, mean, std);
    const sizes = shape as [number, number, number];
    return new Latents(folder, sizes, Int32Array.from(labels), mean, std, record, shards);
  } catch (error) {
    shards.forEach(({ file }) => file.close());
    throw error;
  }
}
