// tok's files in the user's cache folder: results that are slow to find and can be found again, so a lost or damaged one
// costs time only. An index holds typed arrays and facts about a file or folder, and counts while the stamp is the same.

import { createHash } from "node:crypto";
import { join } from "@std/path";
import { openSafetensors, type TensorArray, writeSafetensors } from "./safetensors.ts";

/** tok's folder in $XDG_CACHE_HOME, %LOCALAPPDATA%, ~/Library/Caches or ~/.cache, as the system has it. */
export function cacheFolder(
  environment: Readonly<Record<string, string | undefined>> = Deno.env.toObject(),
  os: string = Deno.build.os,
): string {
  const home = environment.HOME || environment.USERPROFILE || ".";
  const own = os === "windows"
    ? environment.LOCALAPPDATA
    : os === "darwin"
    ? join(home, "Library", "Caches")
    : "";
  return join(environment.XDG_CACHE_HOME || own || join(home, ".cache"), "tok");
}

/** What is remembered of a file or folder. */
export interface Index<Facts = unknown, Arrays = Readonly<Record<string, TensorArray>>> {
  /** A JSON value. */
  facts: Facts;
  /** Flat arrays by name. */
  arrays: Arrays;
}

/** Kinds of arrays that an index holds. */
const ARRAYS: Readonly<Record<string, (buffer: ArrayBuffer) => TensorArray>> = {
  U8: (buffer) => new Uint8Array(buffer),
  I32: (buffer) => new Int32Array(buffer),
  U32: (buffer) => new Uint32Array(buffer),
  F64: (buffer) => new Float64Array(buffer),
};

/** Changes with the meaning of what is stored. */
const VERSION = 1;

/** One file for each source, named by the hash of its path. */
const fileOf = (source: string, folder: string) =>
  join(folder, "index", `${createHash("sha256").update(source).digest("hex").slice(0, 32)}.safetensors`);

/**
 * The index of `source` (an absolute path) if it was stored under the same stamp, and undefined otherwise.
 * @param stamp of the source now: its size and times
 */
export async function readIndex<Facts, Arrays>(
  source: string,
  stamp: string,
  folder = cacheFolder(),
): Promise<Index<Facts, Arrays> | undefined> {
  try {
    const file = await openSafetensors(fileOf(source, folder)), { metadata } = file;
    try {
      if (metadata.get("source") !== source || metadata.get("stamp") !== `${VERSION} ${stamp}`) {
        return undefined;
      }
      const arrays: Record<string, TensorArray> = {};
      for (const [name, { dtype }] of file.tensors) {
        arrays[name] = (ARRAYS[dtype] as typeof ARRAYS[string])((await file.readBytes(name)).buffer);
      }
      return { facts: JSON.parse(metadata.get("facts") as string), arrays: arrays as Arrays };
    } finally {
      file.close();
    }
  } catch {
    return undefined; // there is none, or it is damaged
  }
}

/** Stores an index, replacing an older one. A cache folder that cannot be written is passed over. */
export async function writeIndex(
  source: string,
  stamp: string,
  index: Index,
  folder = cacheFolder(),
): Promise<void> {
  const tensors = Object.entries(index.arrays).map(([name, data]) => ({ name, shape: [data.length], data }));
  const metadata = { source, stamp: `${VERSION} ${stamp}`, facts: JSON.stringify(index.facts) };
  try {
    await writeSafetensors(fileOf(source, folder), tensors, metadata);
  } catch {
    // Read-only or full: the index is made again the next time.
  }
}

/** Size and time of last change of a file. @throws as Deno.statSync() */
export function stampOf(path: string): string {
  const { size, mtime } = Deno.statSync(path);
  return `${size} ${mtime?.getTime() ?? 0}`;
}
