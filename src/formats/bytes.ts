// Random access to bytes: a file, a part of one, or memory. All format readers use this interface, so that none of them loads
// a complete file, and tests can pass bytes directly.

import { UsageError } from "../errors.ts";
import { openRegular } from "./files.ts";
import { foreign } from "./foreign.ts";

/** Maximum length of a reason in a message: names in files may have millions of characters. */
const MAX_REASON = 1000;

export interface ByteSource {
  /** The path, for messages. */
  readonly name: string;
  readonly size: number;
  /** Fills `target` with the bytes from `offset` on. @throws UsageError if the source is shorter */
  readInto(offset: number, target: Uint8Array): void;
  close(): void;
}

/** An open file. Reads are synchronous, so that concurrent readers cannot change each other's position. */
class FileBytes implements ByteSource {
  constructor(readonly name: string, readonly size: number, private readonly file: Deno.FsFile) {}

  readInto(offset: number, target: Uint8Array): void {
    if (!target.length) return;
    this.file.seekSync(offset, Deno.SeekMode.Start);
    for (let at = 0; at < target.length;) {
      const n = this.file.readSync(target.subarray(at));
      if (!n) throw damaged(this.name, `it ends after ${this.file.statSync().size} bytes`);
      at += n;
    }
  }

  close(): void {
    this.file.close();
  }
}

/** Opens a regular file. @throws UsageError if it is missing, not a regular file, or not readable */
export function openBytes(path: string): ByteSource {
  const { file, size } = openRegular(path);
  return new FileBytes(path, size, file);
}

/**
 * Opens a file of weights or arrays.
 * @throws UsageError as openBytes(), and for files of another known kind: a Git LFS pointer, a web page
 */
export function openKnown(path: string, purpose: "weights" | "arrays"): ByteSource {
  const source = openBytes(path);
  try {
    const start = bytesAt(source, 0, Math.min(1024, source.size));
    // A safetensors header is shorter than 2^32 bytes and starts with a brace.
    const isSafetensors = purpose === "weights" && start[8] === 0x7b && !start.subarray(4, 8).some(Boolean);
    const other = isSafetensors ? undefined : foreign(start, purpose);
    if (other) throw new UsageError(`Cannot read "${path}": it is ${other.what}; ${other.remedy}`);
    return source;
  } catch (error) {
    source.close();
    throw error;
  }
}

/** Bytes in memory. @param name where they come from, for messages */
export function memoryBytes(name: string, bytes: Uint8Array): ByteSource {
  return {
    name,
    size: bytes.length,
    readInto(offset, target) {
      if (offset + target.length > bytes.length) throw damaged(name, `it ends after ${bytes.length} bytes`);
      target.set(bytes.subarray(offset, offset + target.length));
    },
    close() {},
  };
}

/** The `size` bytes of a source from `begin` on. Closing it does not close the source. */
export function partOf(source: ByteSource, begin: number, size: number): ByteSource {
  return {
    name: source.name,
    size,
    readInto: (offset, target) => source.readInto(begin + offset, target),
    close() {},
  };
}

/** A copy of the `length` bytes from `offset` on. */
export function bytesAt(source: ByteSource, offset: number, length: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length);
  source.readInto(offset, bytes);
  return bytes;
}

/** The error for a file with wrong contents. */
export function damaged(path: string, reason: string): UsageError {
  const shown = reason.length > MAX_REASON ? `${reason.slice(0, MAX_REASON)}...` : reason;
  return new UsageError(`Cannot read "${path}": ${shown}; fetch or make it again`);
}
