// Writing files so that a reader sees the old contents or the new ones, never a half: a temporary file beside the target,
// fsync, rename, fsync of the folder. Faults of the disk become one clear line.

import { dirname } from "node:path";
import { UsageError } from "../errors.ts";

/** Suffix of files that are being written; whatever still has it after a crash is rubbish. */
export const TEMPORARY = ".tmp";

export interface FileWriter {
  write(bytes: Uint8Array): void;
}

/** Test hook: called at each point where a crash could strike. */
export const faults: { at: (point: "open" | "write" | "sync" | "rename" | "renamed") => void } = {
  at: () => {},
};

/** Writes `path` atomically and durably. @throws UsageError when the disk refuses */
export function writeAtomic(path: string, content: Uint8Array | string | ((file: FileWriter) => void)): void {
  const temporary = `${path}.${Deno.pid}${TEMPORARY}`;
  try {
    faults.at("open");
    const file = Deno.openSync(temporary, { write: true, create: true, truncate: true });
    try {
      const write = (bytes: Uint8Array) => {
        faults.at("write");
        for (let at = 0; at < bytes.length;) at += file.writeSync(bytes.subarray(at));
      };
      if (typeof content === "function") content({ write });
      else write(typeof content === "string" ? new TextEncoder().encode(content) : content);
      faults.at("sync");
      file.syncSync();
    } finally {
      file.close();
    }
    faults.at("rename");
    Deno.renameSync(temporary, path);
    faults.at("renamed");
    syncFolder(dirname(path));
  } catch (error) {
    try {
      Deno.removeSync(temporary);
    } catch {
      // It was never made, or it is gone already.
    }
    throw explained(error, "write", path);
  }
}

/** Makes a folder and its parents. @throws UsageError when that is not possible */
export function makeFolder(path: string): void {
  try {
    Deno.mkdirSync(path, { recursive: true });
  } catch (error) {
    throw explained(error, "make the folder", path);
  }
}

/** Turns a fault of the file system into one clear line; other errors pass unchanged. */
export function explained(error: unknown, action: string, path: string): unknown {
  if (error instanceof UsageError || !(error instanceof Error)) return error;
  const code = (error as { code?: string }).code ?? "";
  const reason = error instanceof Deno.errors.NotFound
    ? "there is no such file or folder"
    : error instanceof Deno.errors.PermissionDenied || code === "EACCES"
    ? "permission denied"
    : error instanceof Deno.errors.NotADirectory || code === "ENOTDIR"
    ? "a part of the path is not a folder"
    : error instanceof Deno.errors.AlreadyExists
    ? "something else has that name"
    : code === "ENOSPC" || /No space left/.test(error.message)
    ? "the disk is full; free some space and run again with --resume"
    : code === "EROFS" || /[Rr]ead-only/.test(error.message)
    ? "the file system is read-only"
    : error instanceof Deno.errors.IsADirectory || code === "EISDIR"
    ? "it is a folder"
    : undefined;
  return reason ? new UsageError(`Cannot ${action} "${path}": ${reason}`) : error;
}

function syncFolder(path: string): void {
  if (Deno.build.os === "windows") return; // folders cannot be opened there
  const folder = Deno.openSync(path || ".");
  try {
    folder.syncSync();
  } finally {
    folder.close();
  }
}
