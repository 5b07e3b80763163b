// A text file of image paths: one a line, relative to the file's folder, then optionally a tab and the image's class, a number
// or a name. Blank lines and those that begin with "#" are skipped.

import { dirname, isAbsolute, join, resolve } from "@std/path";
import { UsageError } from "../errors.ts";
import { readIndex, stampOf, writeIndex } from "../formats/cache.ts";
import { readRegular, reasonOf } from "../formats/files.ts";
import {
  below,
  Growing,
  haveSizes,
  type ImageSet,
  isLabel,
  LabelList,
  MIN_TO_REMEMBER,
  TextList,
  Texts,
  united,
} from "./entries.ts";
import { LeftOut } from "./left_out.ts";

const MAX_BYTES = 2 ** 32;

/** Packed contents of a list. */
interface List {
  paths: Texts;
  sizes: Float64Array<ArrayBuffer>;
  /** Class numbers or names; undefined: no line has one. */
  values: Uint32Array<ArrayBuffer> | undefined;
  names: readonly string[] | undefined;
}

/** A list as it is remembered. */
interface Facts {
  names: readonly string[] | null;
}
interface Arrays {
  bytes: Uint8Array;
  ends: Float64Array;
  sizes: Float64Array<ArrayBuffer>;
  values?: Uint32Array<ArrayBuffer>;
}

/** @throws UsageError for a line whose file is missing, and if only some lines have a class */
export async function listSet(path: string, cache?: string, least = MIN_TO_REMEMBER.list): Promise<ImageSet> {
  const folder = dirname(path), { paths, sizes, values, names } = await openList(path, cache, least);
  const { classes } = united(path, [{ name: path, labels: values && { values, names } }]);
  const label = (i: number) => values?.[i] ?? 0;
  return {
    entries: {
      length: paths.length,
      name: (i) => below(paths.at(i)),
      file: (i) => placed(folder, paths.at(i)),
      label,
    },
    classes,
    leftOut: new LeftOut(),
    fingerprint: () =>
      paths.fingerprint(sizes.keys(), (i) => `${sizes[i]}\0${values ? classes[label(i)] : ""}\n`),
  };
}

const placed = (folder: string, path: string) => isAbsolute(path) ? path : join(folder, path);

async function openList(path: string, cache: string | undefined, least: number): Promise<List> {
  const source = resolve(path),
    stamp = stampOf(path),
    index = await readIndex<Facts, Arrays>(source, stamp, cache);
  if (index) {
    const { facts: { names }, arrays: { bytes, ends, sizes, values } } = index;
    const list: List = { paths: new Texts(bytes, ends), sizes, values, names: names ?? undefined };
    if (haveSizes(list.paths, sizes, (name) => placed(dirname(path), name))) return list;
  }
  const list = readList(path), { paths, sizes, values, names } = list;
  if (paths.length >= least) {
    const arrays = { bytes: paths.bytes, ends: paths.ends, sizes, ...values ? { values } : {} };
    await writeIndex(source, stamp, { facts: { names: names ?? null }, arrays }, cache);
  }
  return list;
}

function readList(path: string): List {
  const bytes = readRegular(path, MAX_BYTES), decoder = new TextDecoder(), folder = dirname(path);
  const paths = new TextList(), sizes = new Growing((n) => new Float64Array(n)), labels = new LabelList();
  const refusal = (line: number, reason: string) =>
    new UsageError(`Cannot use "${path}": line ${line} ${reason}`);
  let labelled = 0;
  for (let at = 0, line = 1; at < bytes.length; line++) {
    const found = bytes.indexOf(10, at), end = found < 0 ? bytes.length : found;
    const [file = "", label, more] = decoder.decode(bytes.subarray(at, end)).replace(/\r$/, "").split("\t");
    at = end + 1;
    if (file.trim() === "" && label === undefined || file.startsWith("#")) continue;
    if (more !== undefined) throw refusal(line, "has two tabs; write PATH, or PATH, a tab and CLASS");
    if (label !== undefined && !isLabel(label.trim())) {
      throw refusal(line, `has the class "${label}"; use a name, or a number from 0 to 999999`);
    }
    if ((label !== undefined) !== (labelled > 0) && paths.length > 0) {
      const [with_, without] = label === undefined ? [labelled, line] : [line, line - 1];
      throw refusal(without, `has no class, and line ${with_} has one; give every line a class, or none`);
    }
    let info: Deno.FileInfo;
    try {
      info = Deno.statSync(placed(folder, file));
    } catch (error) {
      const { message } = error as Error, missing = error instanceof Deno.errors.NotFound;
      throw refusal(
        line,
        missing
          ? `names "${file}", which does not exist; correct the path`
          : `names "${file}": ${reasonOf(error) ?? message}`,
      );
    }
    if (!info.isFile) {
      throw refusal(
        line,
        `names "${file}", which is ${info.isDirectory ? "a folder" : "no regular file"}; name an image`,
      );
    }
    if (label !== undefined) {
      labels.push(label.trim());
      labelled ||= line;
    }
    paths.add(file);
    sizes.push(info.size);
  }
  if (paths.length === 0) {
    throw new UsageError(`Cannot use "${path}": it lists no image; write one path a line`);
  }
  const { values, names } = labelled ? labels.labels() : { values: undefined, names: undefined };
  return { paths: paths.texts(), sizes: sizes.array(), values, names };
}
