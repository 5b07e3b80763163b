// Atomic file writes: bytes go to a temporary file next to the target, fsync, rename, fsync of the folder. A crash at any point
// leaves the old file or the new one, and at worst a temporary file, which the next command in that folder recognises by its
// name and removes. File system errors become one line that says what to do.

import type { z } from "zod";
import { statfsSync } from "node:fs";
import process from "node:process";
import { dirname, join } from "@std/path";
import { UsageError } from "../errors.ts";
import { checkConditions } from "../interruption.ts";
import { foreign } from "./foreign.ts";
import { parseJson } from "./json.ts";

/** Name of a temporary file: the target's name, tok's mark, the process id and a counter. */
const temporary = (path: string) => `${path}.tok-${Deno.pid}-${made++}.tmp`;
const TEMPORARY = /^(.+)\.tok-(\d+)-\d+\.tmp$/;
/** A temporary file last written this many milliseconds ago is stale, even if its process id is in use. */
const STALE = 3600_000;
/** Temporary files of this process. */
const live = new Set<string>();

/** Fault injection for tests: called with a name at each point where a crash matters. */
export const faults: { at: (point: FaultPoint) => void } = { at: () => {} };
export type FaultPoint = "open" | "write" | "written" | "sync" | "rename" | "renamed" | "done";

const BLOCK = 1 << 24;
let made = 0;

/** An atomic write: `write` any number of times, then `commit`, or `abort` to leave the target as it was. */
export class AtomicFile {
  readonly #temporary: string;
  readonly #file: Deno.FsFile;
  #position = 0;

  /**
   * Creates missing folders and opens the temporary file.
   * @param size bytes that will be written, if known: checked against the free space first
   * @throws UsageError for file system errors
   */
  constructor(readonly path: string, size = 0) {
    checkConditions(); // before a deleted folder would be created again
    this.#temporary = temporary(path);
    makeFolder(dirname(path));
    checkFreeSpace(dirname(path), size);
    try {
      faults.at("open");
      this.#file = Deno.openSync(this.#temporary, { write: true, create: true, truncate: true });
      live.add(this.#temporary);
    } catch (error) {
      throw explained(error, "write", path);
    }
  }

  /** Bytes written so far. */
  get position(): number {
    return this.#position;
  }

  write(bytes: Uint8Array): void {
    this.#guard(() => {
      // In blocks, so that tests can crash in the middle; a call may write fewer bytes than it was given.
      for (let at = 0; at < bytes.length;) {
        faults.at("write");
        at += this.#file.writeSync(bytes.subarray(at, at + BLOCK));
        faults.at("written");
      }
      this.#position += bytes.length;
    });
  }

  /** Writes at `offset` and keeps the position, for headers that are known last and parts in another order. */
  patch(offset: number, bytes: Uint8Array): void {
    const end = this.#position;
    this.#guard(() => this.#file.seekSync(offset, Deno.SeekMode.Start));
    this.write(bytes);
    this.#guard(() => this.#file.seekSync(this.#position = end, Deno.SeekMode.Start));
  }

  /** Flushes to disk and renames the file to its target. */
  commit(): void {
    this.#guard(() => {
      faults.at("sync");
      this.#file.syncSync();
      this.#file.close();
      faults.at("rename");
      Deno.renameSync(this.#temporary, this.path);
      live.delete(this.#temporary);
      faults.at("renamed");
      syncFolder(dirname(this.path));
      faults.at("done");
    });
  }

  /** Discards the temporary file. May be called after a failure. */
  abort(): void {
    try {
      this.#file.close();
    } catch {
      // Already closed by commit().
    }
    try {
      Deno.removeSync(this.#temporary);
    } catch {
      // Already renamed or removed.
    }
    live.delete(this.#temporary);
  }

  #guard(action: () => void): void {
    try {
      action();
    } catch (error) {
      this.abort();
      checkConditions();
      throw explained(error, "write", this.path);
    }
  }
}

/**
 * Writes a file atomically, replacing an older one.
 * @throws UsageError for file system errors, such as a full disk
 */
export function writeAtomic(path: string, content: string | Uint8Array): void {
  const file = new AtomicFile(path);
  file.write(typeof content === "string" ? new TextEncoder().encode(content) : content);
  file.commit();
}

function syncFolder(folder: string): void {
  if (Deno.build.os === "windows") return; // which cannot open folders
  const handle = Deno.openSync(folder);
  try {
    handle.syncSync();
  } finally {
    handle.close();
  }
}

function checkFreeSpace(folder: string, size: number): void {
  if (size < 1 << 20) return;
  const { bavail, bsize } = statfsSync(folder);
  const free = bavail * bsize;
  if (size <= free) return;
  throw new UsageError(
    `Cannot write to "${folder}": ${formatBytes(size)} are needed and ${formatBytes(free)} are free; ` +
      `free some space or choose another folder`,
  );
}

/** Creates a folder and its parents. @throws UsageError if a file is in the way or the place is not writable */
export function makeFolder(folder: string): void {
  try {
    Deno.mkdirSync(folder, { recursive: true });
  } catch (error) {
    throw explained(error, "make the folder", folder);
  }
}

/**
 * Removes stale temporary files in a folder: files with tok's temporary names whose processes have ended.
 * @param target only those of this file
 */
export function removeLeftovers(folder: string, target?: string): void {
  if (!exists(folder)) return;
  for (const { name, isFile } of Deno.readDirSync(folder)) {
    const [, of, pid] = TEMPORARY.exec(name) ?? [];
    if (!isFile || of === undefined || (target !== undefined && of !== target)) continue;
    const path = join(folder, name);
    if (live.has(path)) continue;
    try {
      const age = Date.now() - (Deno.lstatSync(path).mtime?.getTime() ?? 0);
      if (Number(pid) === Deno.pid || age > STALE || !isRunning(Number(pid))) Deno.removeSync(path);
    } catch {
      // Removed by another process, or not permitted: harmless.
    }
  }
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0); // signal 0 only checks that the process exists
    return true;
  } catch (error) {
    return (error as { code?: string }).code === "EPERM";
  }
}

/** Whether `path` exists. @throws UsageError if that cannot be determined */
export function exists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) return false;
    throw explained(error, "look at", path);
  }
}

/** Maximum size of files that are read at once, bytes, by kind. Weights and arrays are read in parts, without limit. */
export const MAX_BYTES = { json: 1 << 24, text: 1 << 20, image: 1 << 30 } as const;

/** What a path may be instead of a regular file. */
const KINDS = [
  ["isDirectory", "a folder and not a file"],
  ["isFifo", "a named pipe (FIFO) and not a regular file"],
  ["isSocket", "a socket and not a regular file"],
  ["isCharDevice", "a device and not a regular file"],
  ["isBlockDevice", "a device and not a regular file"],
] as const;

/**
 * Opens a regular file for reading, and its size at opening. Opening a FIFO would block until somebody writes, so the path is checked first; the
 * open handle is checked again, because a link may change in between.
 * @param maxBytes maximum size
 * @throws UsageError for folders, FIFOs, sockets, devices, and files that are too large, missing or unreadable
 */
export function openRegular(path: string, maxBytes = Infinity): { file: Deno.FsFile; size: number } {
  let file: Deno.FsFile | undefined;
  try {
    checkRegular(Deno.statSync(path), path, maxBytes);
    file = Deno.openSync(path);
    return { file, size: checkRegular(file.statSync(), path, maxBytes) };
  } catch (error) {
    file?.close();
    throw explained(error, "read", path);
  }
}

function checkRegular(info: Deno.FileInfo, path: string, maxBytes: number): number {
  const kind = info.isFile ? undefined : KINDS.find(([is]) => info[is])?.[1] ?? "not a regular file";
  if (kind) throw new UsageError(`Cannot read "${path}": it is ${kind}; check the path`);
  if (info.size <= maxBytes) return info.size;
  throw new UsageError(
    `Cannot read "${path}": it has ${formatBytes(info.size)}, at most ${formatBytes(maxBytes)} are read of ` +
      `such a file; check the path`,
  );
}

/** The contents of a regular file, of its size at opening. @throws UsageError as openRegular() */
export function readRegular(path: string, maxBytes: number): Uint8Array<ArrayBuffer> {
  const { file, size } = openRegular(path, maxBytes);
  try {
    const bytes = new Uint8Array(size);
    let at = 0;
    for (let n: number | null = 1; n && at < size; at += n ?? 0) n = file.readSync(bytes.subarray(at));
    return bytes.subarray(0, at);
  } catch (error) {
    throw explained(error, "read", path);
  } finally {
    file.close();
  }
}

/**
 * Whether `path` exists and is not a folder. It may still be no regular file; openRegular() refuses that.
 * @throws UsageError if that cannot be determined
 */
export function isFile(path: string): boolean {
  return exists(path) && !Deno.statSync(path).isDirectory;
}

/** A small text file. @throws UsageError as openRegular() */
export function readText(path: string): string {
  return new TextDecoder().decode(readRegular(path, MAX_BYTES.text));
}

/** Reads a JSON file. @throws UsageError if it is missing or not JSON */
export function readJson(path: string): unknown {
  const bytes = readRegular(path, MAX_BYTES.json);
  try {
    return parseJson(bytes);
  } catch (error) {
    const other = foreign(bytes);
    if (other) throw new UsageError(`Cannot read "${path}": it is ${other.what}; ${other.remedy}`);
    throw new UsageError(
      `Cannot read "${path}": it is not JSON (${(error as Error).message.replace(/\s+/g, " ")})`,
    );
  }
}

/** Validates `value`, read from `path`, against `schema`. @throws UsageError that names the first wrong field */
export function validated<T>(schema: z.ZodType<T>, value: unknown, path: string): T {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const { path: at, message } = result.error.issues[0] as z.core.$ZodIssue;
  throw new UsageError(`Cannot use "${path}": ${at.join(".") || "the file"}: ${message}`);
}

/** Writes a JSON file, indented, atomically. */
export function writeJson(path: string, value: unknown): void {
  writeAtomic(path, JSON.stringify(value, null, 2) + "\n");
}

const REASONS: Record<string, string> = {
  ENOSPC: "no space is left on the device; free some space or choose another folder",
  EDQUOT: "the disk quota is used up; free some space or choose another folder",
  EROFS: "the file system is read-only; choose another folder",
  EACCES: "permission is denied; check its owner and mode, or choose another place",
  EPERM: "permission is denied; check its owner and mode, or choose another place",
  ENOENT: "it does not exist; check the path",
  ENOTDIR: "a part of the path is a file and not a folder; check the path",
  EEXIST: "something else has that name; choose another one",
  EISDIR: "it is a folder and not a file; check the path",
  ELOOP: "its symbolic links lead in a circle; check the path",
  ENAMETOOLONG: "the name is too long; choose a shorter one",
  EMFILE: 'too many files are open; raise the limit with "ulimit -n 4096"',
  EIO: "the device failed to transfer data; check the disk",
};

/** Turns a file system error into a UsageError of one line; returns other errors unchanged. */
export function explained(error: unknown, action: string, path: string): unknown {
  if (!(error instanceof Error) || error instanceof UsageError) return error;
  const reason = REASONS[codeOf(error)];
  return reason ? new UsageError(`Cannot ${action} "${path}": ${reason}`, { cause: error }) : error;
}

/** The reason of a file system error, in words. */
export function reasonOf(error: unknown): string {
  return error instanceof Error ? REASONS[codeOf(error)] ?? error.message : String(error);
}

function codeOf(error: Error): string {
  return (error as { code?: string }).code ?? CODES[error.name] ?? "";
}

/** Codes of errors that carry none. */
const CODES: Readonly<Record<string, string>> = {
  NotFound: "ENOENT",
  PermissionDenied: "EACCES",
  NotADirectory: "ENOTDIR",
  IsADirectory: "EISDIR",
  AlreadyExists: "EEXIST",
};

/** "1.5 GB" and the like. */
export function formatBytes(bytes: number): string {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  const unit = Math.min(units.length - 1, bytes < 1000 ? 0 : Math.floor(Math.log10(bytes) / 3));
  return `${unit ? (bytes / 1000 ** unit).toFixed(1) : bytes} ${units[unit]}`;
}

/** Bytes of a size such as "24GB", "24 GB" or "512MiB"; undefined if it is none. */
export function parseBytes(text: string): number | undefined {
  const [, number, prefix = "", binary] = /^(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b$/i.exec(text.trim()) ?? [];
  if (number === undefined || (binary && !prefix)) return undefined;
  const bytes = Number(number) * (binary ? 1024 : 1000) ** " kmgt".indexOf(prefix.toLowerCase() || " ");
  return bytes >= 1 ? Math.floor(bytes) : undefined;
}
