// Parquet files of images, as Hugging Face's datasets writes them: a set of one file or several, whose rows are the images.

import { basename, resolve } from "@std/path";
import { readIndex, stampOf, writeIndex } from "../formats/cache.ts";
import { formatBytes } from "../formats/files.ts";
import { fingerprintOf } from "../formats/provenance.ts";
import {
  openParquet,
  pageAt,
  type ParquetColumns,
  type ParquetImages,
  type ParquetPages,
} from "../formats/parquet.ts";
import { type Entries, type ImageSet, joined, lastAtMost, MIN_TO_REMEMBER, united } from "./entries.ts";
import { LeftOut } from "./left_out.ts";

/** Digits of a row in an image's name. */
const DIGITS = 6;

/**
 * @param paths files, in order
 * @param names of the files, below which their images are called by their row
 * @throws UsageError for a file without images, or with a null image
 */
export async function parquetSet(
  root: string,
  paths: readonly string[],
  names: readonly string[],
  columns: ParquetColumns,
  cache?: string,
): Promise<ImageSet> {
  const files: ParquetImages[] = [];
  for (const path of paths) files.push(await openFile(path, columns, cache));
  const parts = files.map(({ labels, classes }, k) => ({
    name: paths[k] as string,
    labels: labels && { values: labels, names: classes },
  }));
  const { classes, values } = united(root, parts);
  const entries = files.map(({ rows, layout, pages }, k): Entries => {
    const path = paths[k] as string, below = paths.length > 1 ? `${names[k]}/` : "", labels = values[k];
    return {
      length: rows,
      name: (i) => below + `${i}`.padStart(DIGITS, "0"),
      file(i) {
        const p = lastAtMost(pages.row, i), index = i - (pages.row[p] as number);
        return { path, name: `${basename(path)}, row ${i}`, layout, page: pageAt(pages, p), index };
      },
      label: (i) => labels?.[i] ?? 0,
    };
  });
  return {
    entries: joined(entries),
    classes,
    leftOut: new LeftOut(),
    note: slowness(paths, files),
    fingerprint: () =>
      fingerprintOf(
        ...files.map(({ fingerprint }, k) => `${names[k]} ${fingerprint}`),
        ...Object.values(columns),
      ),
  };
}

/** Bytes of a page from which reading at random is slow. */
const LARGE_PAGE = 1 << 24;

/** A warning about pages of many images, which pyarrow writes by default. */
function slowness(paths: readonly string[], files: readonly ParquetImages[]): string | undefined {
  for (const [k, { pages: { size, dictionarySize } }] of files.entries()) {
    const bytes = size.reduce((most, n, i) => Math.max(most, n + (dictionarySize[i] as number)), 0);
    if (bytes < LARGE_PAGE) continue;
    return `"${paths[k]}" has pages of ${
      formatBytes(bytes)
    }, which are read again for each image in random ` +
      `order; write it with pyarrow's use_dictionary=False and write_batch_size=8, or as tar shards`;
  }
  return undefined;
}

async function openFile(
  path: string,
  columns: ParquetColumns,
  cache: string | undefined,
): Promise<ParquetImages> {
  let stamp: string;
  try {
    stamp = `${stampOf(path)} ${JSON.stringify([columns.image, columns.label])}`;
  } catch {
    return await openParquet(path, columns); // which says what is wrong
  }
  type Facts = Omit<ParquetImages, "labels" | "pages">;
  type Arrays = ParquetPages & { labels?: Uint32Array<ArrayBuffer> };
  const source = resolve(path), index = await readIndex<Facts, Arrays>(source, stamp, cache);
  if (index) {
    const { facts, arrays: { labels, ...pages } } = index;
    return { ...facts, classes: facts.classes ?? undefined, labels, pages };
  }
  const { labels, pages, ...facts } = await openParquet(path, columns);
  if (facts.rows >= MIN_TO_REMEMBER.shard || cache !== undefined) {
    await writeIndex(source, stamp, { facts, arrays: { ...pages, ...labels ? { labels } : {} } }, cache);
  }
  return { ...facts, labels, pages };
}
