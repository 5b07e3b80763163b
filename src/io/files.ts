// Files that are whole or absent: bytes go to a temporary file beside the target, are flushed to the disk, and take the
// target's name in one rename; then the folder is flushed too. A crash at any point leaves the old file or the new one,
// and at worst a "*.tmp" that the next run removes. Errors of the file system become one line that says what to do.

import { statfs } from "node:fs/promises";
import { basename, dirname, join } from "@std/path";
import { UsageError } from "../errors.ts";

/** Where a streaming writer puts its bytes. */
export interface Sink {
  /** Bytes written so far. */
  readonly position: number;
  write(bytes: Uint8Array): Promise<void>;
  /** Overwrites bytes that were written before, for headers that are known last. */
  patch(offset: number, bytes: Uint8Array): Promise<void>;
}

export type Content = string | Uint8Array | ((sink: Sink) => Promise<void>);

export interface WriteOptions {
  /** Bytes that will be written, where known: checked against the free space first. */
  size?: number;
}

let fault: (point: string) => void = () => {};
let temporaries = 0;

/** For tests: calls `hook` with a name at each point where a crash would matter. */
export function setFaultHook(hook: (point: string) => void): void {
  fault = hook;
}

/**
 * Writes a file so that it is there whole or not at all, replacing an older one. Makes missing folders.
 * @throws UsageError when the file system refuses, for example when the disk is full.
 */
export async function writeAtomic(path: string, content: Content, options: WriteOptions = {}): Promise<void> {
  const folder = dirname(path);
  const temporary = join(folder, `${basename(path)}.${Deno.pid}-${temporaries++}.tmp`);
  await makeFolder(folder);
  try {
    if (options.size !== undefined) await checkFreeSpace(folder, options.size);
    fault("before open");
    const file = await Deno.open(temporary, { write: true, create: true, truncate: true });
    try {
      fault("opened");
      if (typeof content === "function") await content(new FileSink(file));
      else await writeFully(file, typeof content === "string" ? new TextEncoder().encode(content) : content);
      fault("before sync");
      await file.sync();
      fault("synced");
    } finally {
      file.close();
    }
    fault("before rename");
    await Deno.rename(temporary, path);
    fault("renamed");
    await syncFolder(folder);
    fault("done");
  } catch (error) {
    await Deno.remove(temporary).catch(() => {});
    throw fileError("write", path, error);
  }
}

class FileSink implements Sink {
  #position = 0;

  constructor(private readonly file: Deno.FsFile) {}

  get position(): number {
    return this.#position;
  }

  async write(bytes: Uint8Array): Promise<void> {
    await writeFully(this.file, bytes);
    this.#position += bytes.length;
  }

  async patch(offset: number, bytes: Uint8Array): Promise<void> {
    await this.file.seek(offset, Deno.SeekMode.Start);
    await writeFully(this.file, bytes);
    await this.file.seek(this.#position, Deno.SeekMode.Start);
  }
}

/** Writes all the bytes: one call to write() may take only some of them. */
export async function writeFully(file: Deno.FsFile, bytes: Uint8Array): Promise<void> {
  const block = 1 << 24; // so that a crash in a test can fall into the middle of a large array
  for (let done = 0; done < bytes.length;) {
    fault("before write");
    done += await file.write(bytes.subarray(done, done + block));
    fault("written");
  }
}

async function syncFolder(folder: string): Promise<void> {
  if (Deno.build.os === "windows") return; // folders cannot be opened there, and a rename is journaled
  const handle = await Deno.open(folder);
  try {
    await handle.sync();
  } finally {
    handle.close();
  }
}

async function checkFreeSpace(folder: string, size: number): Promise<void> {
  const { bavail, bsize } = await statfs(folder);
  if (size <= bavail * bsize) return;
  throw new UsageError(
    `Cannot write to "${folder}": ${formatBytes(size)} are needed and ${
      formatBytes(bavail * bsize)
    } are free; ` + `free some space or choose another folder`,
  );
}

/** Makes a folder and its parents. @throws UsageError when a file is in the way or the place is not writable. */
export async function makeFolder(folder: string): Promise<void> {
  try {
    await Deno.mkdir(folder, { recursive: true });
  } catch (error) {
    throw fileError("make folder", folder, error);
  }
}

/** Removes what interrupted writes left in a folder. Only for a folder that nobody else writes to. */
export async function removeTemporaries(folder: string): Promise<void> {
  if (!(await exists(folder))) return;
  for await (const entry of Deno.readDir(folder)) {
    if (entry.isFile && /\.\d+-\d+\.tmp$/.test(entry.name)) await Deno.remove(join(folder, entry.name));
  }
}

export async function exists(path: string): Promise<boolean> {
  try {
    await Deno.stat(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) return false;
    throw fileError("look at", path, error);
  }
}

/** Reads a whole file. @throws UsageError when it is not there or not readable. */
export async function readBytes(path: string): Promise<Uint8Array<ArrayBuffer>> {
  try {
    return await Deno.readFile(path);
  } catch (error) {
    throw fileError("read", path, error);
  }
}

/** Reads a JSON file. @throws UsageError when it is not there or not JSON. */
export async function readJson(path: string): Promise<unknown> {
  const text = new TextDecoder().decode(await readBytes(path));
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new UsageError(`Cannot read "${path}": it is not JSON (${(error as Error).message})`);
  }
}

/** Writes a JSON file, indented, atomically. */
export async function writeJson(path: string, value: unknown): Promise<void> {
  await writeAtomic(path, JSON.stringify(value, null, 2) + "\n");
}

const REASONS: Record<string, string> = {
  ENOSPC: "no space is left on the device; free some space or choose another folder",
  EDQUOT: "the disk quota is used up; free some space or choose another folder",
  EROFS: "the file system is read-only; choose another folder",
  EACCES: "permission is denied; check its owner and mode, or choose another place",
  EPERM: "permission is denied; check its owner and mode, or choose another place",
  ENOENT: "it does not exist; check the path",
  ENOTDIR: "a part of the path is a file and not a folder; check the path",
  EISDIR: "it is a folder and not a file; check the path",
  ELOOP: "its symbolic links lead in a circle; check the path",
  ENAMETOOLONG: "the name is too long; choose a shorter one",
  EMFILE: 'too many files are open; raise the limit with "ulimit -n 4096"',
  EIO: "the device failed to transfer data; check the disk",
};

/** Turns an error of the file system into a UsageError in one line; other errors come back as they are. */
export function fileError(action: string, path: string, error: unknown): unknown {
  if (!(error instanceof Error) || error instanceof UsageError) return error;
  const code = (error as { code?: string }).code ??
    (error instanceof Deno.errors.NotFound
      ? "ENOENT"
      : error instanceof Deno.errors.PermissionDenied
      ? "EACCES"
      : "");
  const reason = REASONS[code];
  return reason ? new UsageError(`Cannot ${action} "${path}": ${reason}`, { cause: error }) : error;
}

/** "1.5 GB" and the like. */
export function formatBytes(bytes: number): string {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  const unit = Math.min(units.length - 1, bytes < 1000 ? 0 : Math.floor(Math.log10(bytes) / 3));
  return `${unit ? (bytes / 1000 ** unit).toFixed(1) : bytes} ${units[unit]}`;
}
