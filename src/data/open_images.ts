// Opens what --data and its like name: a folder of images or one image, a list of paths, WebDataset shards, Parquet files.

import { basename, dirname, join, relative } from "@std/path";
import { UsageError } from "../errors.ts";
import { exists, explained, openRegular } from "../formats/files.ts";
import { fingerprintOf } from "../formats/provenance.ts";
import type { ParquetColumns } from "../formats/parquet.ts";
import type { ImageSet } from "./entries.ts";
import { folderSet, search } from "./image_folder.ts";
import { listSet } from "./image_list.ts";
import { Images, type ImagesOptions } from "./images.ts";
import { LeftOut } from "./left_out.ts";
import { parquetSet } from "./parquet_images.ts";
import { tarSet } from "./tar_images.ts";

export interface OpenOptions extends ImagesOptions {
  /** Columns of Parquet files. */
  columns?: ParquetColumns | undefined;
  /** Folder for indexes of shards and large folders [the user's cache]. */
  cache?: string | undefined;
}

/** Maximum number of files that a pattern stands for. */
const MAX_SHARDS = 1_000_000;

/**
 * Opens images: a folder, which may hold shards instead; an image; a list (.txt, .lst); shards (.tar, .parquet), also many by
 * a pattern such as train-{0000..0099}.tar.
 * @throws UsageError if there are none, or for a damaged list or shard
 */
export async function openImages(path: string, options: OpenOptions = {}): Promise<Images> {
  const { columns = {}, cache } = options;
  const { set, isParquet } = await setOf(path, columns, cache);
  const [column] = Object.entries(columns).flatMap(([name, value]) => value === undefined ? [] : [name]);
  if (column !== undefined && !isParquet) {
    throw new UsageError(
      `Cannot use --${column}-column with "${path}": only Parquet files have columns; remove it`,
    );
  }
  if (set.entries.length === 0) {
    throw new UsageError(`Cannot use "${path}": there is no image in it; choose another file`);
  }
  return new Images(path, set, options);
}

async function setOf(
  path: string,
  columns: ParquetColumns,
  cache: string | undefined,
): Promise<{ set: ImageSet; isParquet?: boolean }> {
  const shards = async (paths: readonly string[]) => {
    const names = shardNames(paths),
      kind = kindOf(paths[0] as string),
      other = paths.find((p) => kindOf(p) !== kind);
    if (other !== undefined) {
      throw new UsageError(
        `Cannot use "${path}": it has both .tar and .parquet files; name those of one kind`,
      );
    }
    checkSplits(path, names);
    return kind === ".tar"
      ? { set: await tarSet(path, paths, names, cache) }
      : { set: await parquetSet(path, paths, names, columns, cache), isParquet: true };
  };
  const range = exists(path) ? undefined : expanded(path);
  if (range) {
    const wrong = range.find((p) => !kindOf(p));
    if (wrong === undefined) return await shards(range);
    throw new UsageError(`Cannot use "${path}": a pattern stands for .tar or .parquet files`);
  }
  let info: Deno.FileInfo;
  try {
    info = Deno.statSync(path);
  } catch (error) {
    throw explained(error, "use", path);
  }
  if (info.isDirectory) {
    const found = await search(path, cache), { leftOut } = found;
    if (found.names.length === 0) {
      const paths = [...leftOut.namesOf(".tar"), ...leftOut.namesOf(".parquet")].sort();
      if (paths.length > 0) return await shards(paths.map((name) => join(path, name)));
    }
    return { set: folderSet(path, found) };
  }
  openRegular(path).file.close(); // reports what it is instead
  if (/\.(txt|lst)$/i.test(path)) return { set: await listSet(path, cache) };
  if (kindOf(path)) return await shards([path]);
  const entries = { length: 1, name: () => basename(path), file: () => path, label: () => 0 };
  const fingerprint = () => fingerprintOf(`${basename(path)}\0${info.size}`);
  return { set: { entries, classes: [], leftOut: new LeftOut(), fingerprint } };
}

/** The kind of shards that a path names; undefined: none. */
function kindOf(path: string): string | undefined {
  return /\.(tar|parquet)$/i.exec(path)?.[0].toLowerCase();
}

/** The paths that a pattern with {a..b} or {a,b} stands for; undefined without one. */
export function expanded(pattern: string): string[] | undefined {
  const brace = BRACE.exec(pattern);
  if (!brace) return undefined;
  const [whole, before = "", inside = ""] = brace,
    [, first, last = ""] = /^(\d+)\.\.(\d+)$/.exec(inside) ?? [];
  let parts = inside.split(",");
  if (first !== undefined) {
    const count = Number(last) - Number(first) + 1, width = first.startsWith("0") ? first.length : 0;
    if (count < 1 || count > MAX_SHARDS) {
      const reason = count < 1
        ? "counts downwards; write it upwards"
        : "stands for too many files; name a folder";
      throw new UsageError(`Cannot use "${pattern}": "{${inside}}" ${reason}`);
    }
    parts = Array.from({ length: count }, (_, i) => `${Number(first) + i}`.padStart(width, "0"));
  }
  const after = pattern.slice(whole.length);
  return parts.flatMap((part) => expanded(before + part + after) ?? [before + part + after]);
}

/** Text before and inside the first braces that hold a range or a list. */
const BRACE = /^(.*?)\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}/s;

/** Names of shards without their extension, relative to the folder that all of them are in. */
function shardNames(paths: readonly string[]): string[] {
  let root = dirname(paths[0] as string);
  while (paths.some((path) => relative(root, path).startsWith(".."))) root = dirname(root);
  return paths.map((path) => relative(root, path).replaceAll("\\", "/").replace(/\.\w+$/, ""));
}

/** @throws UsageError for parts of several splits: who trains on a folder of all would train on its test images */
function checkSplits(path: string, names: readonly string[]): void {
  const splitOf = (name: string) =>
    /(?:^|\/)(train|test|valid|validation|val)(?=[-_./]|\d|$)/i.exec(name)?.[1]?.toLowerCase();
  const splits = [...new Set(names.map(splitOf))];
  if (splits.length < 2) return;
  const shown = splits.map((split) => split ? `"${split}"` : "others").join(", ");
  throw new UsageError(
    `Cannot use "${path}": its files are of several splits (${shown}); name those of one, as in ` +
      `"${join(path, "train-{0000..0099}.tar")}"`,
  );
}
