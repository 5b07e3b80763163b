// A folder of images: searched recursively, in name order; the first level of sub-folders are the classes. Hidden files are
// skipped, and so is "grid.png" next to other images, tok's own overview. Images next to class folders make a class "." of
// their own rather than taking a wrong label, and a class without images is an error.

import { join, resolve } from "@std/path";
import { UsageError } from "../errors.ts";
import { readIndex, writeIndex } from "../formats/cache.ts";
import { openRegular } from "../formats/files.ts";
import { type Foreign, foreign } from "../formats/foreign.ts";
import { FORMATS } from "../image/header.ts";
import { haveSizes, type ImageSet, LabelList, MIN_TO_REMEMBER, Texts } from "./entries.ts";
import { type Search, searchImages } from "./find_images.ts";
import { LeftOut, type LeftOutJson } from "./left_out.ts";

/** Name of the overview that tok writes into a folder of images. */
const OVERVIEW = "grid.png";

/** The images that a search found. @throws UsageError if there are none, or none of a class */
export function folderSet(root: string, search: Search): ImageSet {
  const { names, sizes, folders, leftOut } = search;
  if (names.length === 0) {
    throw new UsageError(
      `Cannot use "${root}": there is no image (${FORMATS}) in it or below it${insteadOf(root, leftOut)}`,
    );
  }
  const all = names.sorted();
  const overview = all.findIndex((i) => names.size(i) === OVERVIEW.length && names.at(i) === OVERVIEW);
  const order = overview >= 0 && all.length > 1 ? all.filter((_, k) => k !== overview) : all;
  if (order.length < all.length) leftOut.add("overview", OVERVIEW);
  const list = new LabelList();
  let latest = { i: 0, name: "", size: 0 }; // names of a class lie together: most need no decoding
  for (const i of order) {
    if (!latest.size || !names.alike(i, latest.i, latest.size)) {
      const name = classOf(names.at(i));
      latest = { i, name, size: name === "." ? 0 : new TextEncoder().encode(`${name}/`).length };
    }
    list.push(latest.name);
  }
  const { values, names: classes } = list.named();
  checkClasses(root, folders.filter((name) => !classes.includes(name)).sort(), leftOut);
  return {
    entries: {
      length: order.length,
      name: (i) => names.at(order[i] as number),
      file: (i) => join(root, names.at(order[i] as number)),
      label: (i) => values[i] as number,
    },
    classes: classes.length === 1 && classes[0] === "." ? [] : classes,
    leftOut,
    fingerprint: () => names.fingerprint(order, (i) => `${sizes[i]}\n`),
  };
}

/** The folder of the first level that an image is in; ".": none. */
export function classOf(name: string): string {
  const end = name.indexOf("/");
  return end < 0 ? "." : name.slice(0, end);
}

/** Milliseconds in which a folder may change twice under the same time. */
const TICK = 2000;

/** A search as it is remembered. */
interface Facts {
  folders: string[];
  leftOut: LeftOutJson;
}
interface Arrays {
  names: Uint8Array;
  ends: Float64Array;
  sizes: Float64Array<ArrayBuffer>;
  read: Uint8Array;
  readEnds: Float64Array;
  times: Float64Array<ArrayBuffer>;
}

/** searchImages(), from the index of an earlier search if no folder has changed since. */
export async function search(root: string, cache?: string, least = MIN_TO_REMEMBER.folder): Promise<Search> {
  const source = resolve(root),
    stamp = "folder",
    index = await readIndex<Facts, Arrays>(source, stamp, cache);
  if (index) {
    const { facts: { folders, leftOut }, arrays: { names, ends, sizes, read, readEnds, times } } = index;
    const remembered: Search = {
      names: new Texts(names, ends),
      sizes,
      read: { names: new Texts(read, readEnds), times },
      folders,
      leftOut: LeftOut.of(leftOut),
    };
    if (isCurrent(source, remembered)) return remembered;
  }
  const found = searchImages(root), { read, folders, leftOut } = found;
  if (found.names.length >= least && read.times.every((time) => time < Date.now() - TICK)) {
    const order = found.names.sorted(), names = found.names.reordered(order);
    const arrays = {
      names: names.bytes,
      ends: names.ends,
      sizes: Float64Array.from(order, (i) => found.sizes[i] as number),
      read: read.names.bytes,
      readEnds: read.names.ends,
      times: read.times,
    };
    await writeIndex(source, stamp, { facts: { folders, leftOut }, arrays }, cache);
  }
  return found;
}

function isCurrent(root: string, { names, sizes, read }: Search): boolean {
  for (const [i, time] of read.times.entries()) {
    try {
      if (Deno.statSync(join(root, read.names.at(i))).mtime?.getTime() !== time) return false;
    } catch {
      return false;
    }
  }
  return haveSizes(names, sizes, (name) => join(root, name));
}

/** A class without images would shift the labels of those after it. */
function checkClasses(root: string, empty: readonly string[], leftOut: LeftOut): void {
  const [first] = empty;
  if (first === undefined) return;
  const others = empty.length > 1 ? `, and ${empty.length - 1} more (${empty.slice(1, 4).join(", ")})` : "";
  throw new UsageError(
    `Cannot use "${root}": the class folder "${first}" has no image (${FORMATS})${others}` +
      insteadOf(root, leftOut.within(first), "remove the folder, or put its images there"),
  );
}

/** Describes what the folder holds instead of images, and what to do. */
function insteadOf(root: string, leftOut: LeftOut, remedy = "choose another folder"): string {
  const [name] = leftOut.names.sort();
  if (name === undefined) return `; ${remedy}`;
  const other = foreignFile(join(root, name));
  const what = other ? `; "${name}" is ${other.what}: ${other.remedy}, or ${remedy}` : `; ${remedy}`;
  return `, but ${leftOut}${what}`;
}

/** The kind of a file, if it is recognised. */
function foreignFile(path: string): Foreign | undefined {
  try {
    const { file } = openRegular(path);
    try {
      const start = new Uint8Array(1024);
      return foreign(start.subarray(0, file.readSync(start) ?? 0));
    } finally {
      file.close();
    }
  } catch {
    return undefined; // left out for another reason
  }
}
