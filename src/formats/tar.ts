// Members of a tar archive with their offsets, so that one of them is read without the others: ustar, pax and GNU long names,
// as tar, Python's tarfile and WebDataset write them. Only headers are read. A member that the file cuts off, a damaged
// header and a missing end-of-archive marker are errors, since half a shard would otherwise pass for a whole one.
// https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html

import { UsageError } from "../errors.ts";
import { explained, openRegular } from "./files.ts";
import { foreign } from "./foreign.ts";

/** A regular file in an archive. */
export interface TarMember {
  name: string;
  /** Position of its first byte in the archive. */
  offset: number;
  /** Bytes. */
  size: number;
}

const BLOCK = 512;
/** Bytes read at a time: the headers of small members lie together. */
const WINDOW = 1 << 14;
/** Maximum size of a pax header or a long name. */
const MAX_EXTENDED = 1 << 20;

export class TarFile implements Disposable {
  readonly size: number;
  readonly #file: Deno.FsFile;
  readonly #window = new Uint8Array(WINDOW);
  #begin = 0;
  #end = 0;

  /** @throws UsageError if the file cannot be read */
  constructor(readonly path: string) {
    const { file, size } = openRegular(path);
    this.#file = file;
    this.size = size;
  }

  [Symbol.dispose](): void {
    this.#file.close();
  }

  /** Bytes of the archive; valid until the next call. @throws UsageError if the archive ends before */
  read(offset: number, length: number): Uint8Array {
    if (offset < this.#begin || offset + length > this.#end) this.#fill(offset, length);
    if (offset + length > this.#end) {
      throw this.#refusal(`it ends at byte ${this.size}, in the middle of an entry; fetch it again`);
    }
    if (length > WINDOW) return this.#large;
    return this.#window.subarray(offset - this.#begin, offset - this.#begin + length);
  }

  #large = new Uint8Array();

  #fill(offset: number, length: number): void {
    const target = length > WINDOW ? this.#large = new Uint8Array(length) : this.#window;
    let filled = 0;
    try {
      this.#file.seekSync(offset, Deno.SeekMode.Start);
      for (let n: number | null = 1; n && filled < target.length; filled += n ?? 0) {
        n = this.#file.readSync(target.subarray(filled));
      }
    } catch (error) {
      throw explained(error, "read", this.path);
    }
    this.#begin = offset;
    this.#end = offset + filled;
  }

  /**
   * The regular files in the order of the archive. Folders, links and devices are passed over; names are as written, and
   * may hold "..".
   * @throws UsageError for a truncated or damaged archive, and one with sparse members
   */
  *members(): Generator<TarMember> {
    let longName: string | undefined, longSize: number | undefined;
    for (let at = 0;;) {
      if (at >= this.size) {
        const reason = at === 0
          ? "it is empty"
          : `it ends at byte ${this.size} without an end-of-archive marker`;
        throw this.#refusal(`${reason}, so it is cut off; fetch it again`);
      }
      const header = this.read(at, BLOCK);
      if (header[0] === 0 && header.every((byte) => byte === 0)) return this.#checkTail(at);
      checkHeader(header) || this.#refuseHeader(at, header);
      const type = String.fromCharCode(header[156] as number);
      const name = longName ?? nameOf(header), size = longSize ?? numberOf(header, 124, 12);
      const offset = at + BLOCK, shown = `"${name}" at byte ${at}`;
      if (!Number.isSafeInteger(size)) throw this.#refusal(`the size of ${shown} is damaged; fetch it again`);
      if (offset + size > this.size) {
        throw this.#refusal(
          `it is cut off: ${shown} has ${size} bytes and the file ends at byte ${this.size}; fetch it again`,
        );
      }
      at = offset + Math.ceil(size / BLOCK) * BLOCK;
      if ("xLKg".includes(type) && size > MAX_EXTENDED) {
        throw this.#refusal(`the header ${shown} is too large`);
      }
      if (type === "L") longName = text(this.read(offset, size));
      else if (type === "x") {
        for (const [key, value] of paxRecords(this.read(offset, size))) {
          if (key === "path") longName = value;
          if (key === "size") longSize = Number(value);
          if (key.startsWith("GNU.sparse.")) {
            throw this.#refusal(`${shown} is sparse; pack it without --sparse`);
          }
        }
      } else if (type !== "K" && type !== "g") {
        if (type === "S") throw this.#refusal(`${shown} is sparse; pack it without --sparse`);
        if ("0\x007".includes(type) && !name.endsWith("/")) yield { name, offset, size };
        longName = longSize = undefined;
      }
    }
  }

  /** Archives joined end to end hide all but the first behind its marker. */
  #checkTail(at: number): void {
    for (let begin = at; begin < this.size; begin += WINDOW) {
      const block = this.read(begin, Math.min(WINDOW, this.size - begin)),
        found = block.findIndex((b) => b !== 0);
      if (found < 0) continue;
      throw this.#refusal(
        `there is more at byte ${begin + found}, behind the end of the archive; unpack it and pack it again`,
      );
    }
  }

  #refuseHeader(at: number, header: Uint8Array): never {
    const other = at === 0 ? foreign(header) : undefined;
    throw this.#refusal(
      other && other.what !== "a tar archive"
        ? `it is ${other.what}, not a tar archive; ${other.remedy}`
        : `the header at byte ${at} is damaged; fetch it again`,
    );
  }

  #refusal(reason: string): UsageError {
    return new UsageError(`Cannot use "${this.path}": ${reason}`);
  }
}

const decoder = new TextDecoder();

const text = (bytes: Uint8Array) => {
  const end = bytes.indexOf(0);
  return decoder.decode(end < 0 ? bytes : bytes.subarray(0, end));
};

/** POSIX splits long names in two; GNU tar has other fields there. */
function nameOf(header: Uint8Array): string {
  const name = text(header.subarray(0, 100)), posix = header[262] === 0; // "ustar\0", GNU's is "ustar "
  const prefix = posix && text(header.subarray(257, 263)) === "ustar" ? text(header.subarray(345, 500)) : "";
  return prefix ? `${prefix}/${name}` : name;
}

/** An octal number, or a binary one where the first bit is set; NaN if it is neither. */
function numberOf(header: Uint8Array, at: number, length: number): number {
  const field = header.subarray(at, at + length), first = field[0] as number;
  if (first & 0x80) return field.subarray(1).reduce((n, byte) => n * 256 + byte, first & 0x7f);
  const digits = text(field).trim();
  return /^[0-7]*$/.test(digits) ? parseInt(digits || "0", 8) : NaN;
}

/** The sum of all bytes, those of the sum itself counted as spaces. */
function checkHeader(header: Uint8Array): boolean {
  let sum = 8 * 32;
  for (let i = 0; i < BLOCK; i++) if (i < 148 || i >= 156) sum += header[i] as number;
  return sum === numberOf(header, 148, 8);
}

/** Records "LENGTH KEY=VALUE\n". */
function* paxRecords(bytes: Uint8Array): Generator<[key: string, value: string]> {
  for (let at = 0; at < bytes.length;) {
    const space = bytes.indexOf(32, at), length = Number(text(bytes.subarray(at, space)));
    if (space < 0 || !(length > space - at)) return;
    const record = decoder.decode(bytes.subarray(space + 1, at + length - 1)),
      equals = record.indexOf("=");
    yield [record.slice(0, equals), record.slice(equals + 1)];
    at += length;
  }
}
