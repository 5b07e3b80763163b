// Zip archives for .npz and torch files. Written uncompressed, always as ZIP64 and without times: equal members give equal bytes.
// Reading checks every offset against the file and every CRC against the data. Hand-written, because of the libraries one
// returns nothing above 4 GB, and one ends the process on damaged files.
// PKWARE, .ZIP File Format Specification (APPNOTE) 6.3, sections 4.3 and 4.5.3.

import { crc32 } from "node:zlib";
import { BOUNDS } from "../bounds.ts";
import { UsageError } from "../errors.ts";
import { bytesAt, type ByteSource, damaged } from "./bytes.ts";
import { AtomicFile } from "./files.ts";

/** A member of an archive. */
export interface Member {
  readonly name: string;
  readonly size: number;
  readonly compressed: number;
  readonly crc: number;
  /** Offset of the local header. */
  readonly offset: number;
  readonly method: number;
}

const VERSION = 45, JANUARY_1980 = 0x21, STORED = 0, DEFLATED = 8;
/** One member per tensor, and a few more. */
const MAX_MEMBERS = BOUNDS.tensors + 100;
const MAX_DIRECTORY = 1 << 26; // half a million members
/** Maximum compression ratio of deflate. */
const MAX_INFLATION = 1032;
const FULL = 0xffffffff; // "see the ZIP64 record"
const LOCAL = 0x04034b50, CENTRAL = 0x02014b50, END = 0x06054b50, END64 = 0x06064b50, LOCATOR = 0x07064b50;

/** Writes an archive member by member, atomically: it exists after close(). */
export class ZipWriter {
  readonly #file: AtomicFile;
  readonly #members: Member[] = [];

  constructor(path: string) {
    this.#file = new AtomicFile(path);
  }

  /** Adds a member of any length. @returns its size */
  async add(name: string, parts: AsyncIterable<Uint8Array> | Iterable<Uint8Array>): Promise<number> {
    const offset = this.#file.position;
    let size = 0, crc = 0;
    const member = () => ({ name, size, compressed: size, crc, offset, method: STORED });
    this.#file.write(localHeader(member()));
    for await (const part of parts) {
      this.#file.write(part);
      crc = crc32(part, crc);
      size += part.length;
    }
    this.#file.patch(offset, localHeader(member()));
    this.#members.push(member());
    return size;
  }

  close(): void {
    const start = this.#file.position;
    for (const member of this.#members) this.#file.write(centralHeader(member));
    this.#file.write(endRecords(this.#members.length, start, this.#file.position - start));
    this.#file.commit();
  }

  abort(): void {
    this.#file.abort();
  }
}

/** Little-endian fields, each [bytes, value], or raw bytes. */
function pack(...list: readonly (readonly [2 | 4 | 8, number] | Uint8Array)[]): Uint8Array {
  const out = new Uint8Array(
    list.reduce((n, item) => n + (item instanceof Uint8Array ? item.length : item[0]), 0),
  );
  const view = new DataView(out.buffer);
  let at = 0;
  for (const item of list) {
    if (item instanceof Uint8Array) {
      out.set(item, at);
      at += item.length;
      continue;
    }
    const [bytes, value] = item;
    if (bytes === 8) view.setBigUint64(at, BigInt(value), true);
    else if (bytes === 4) view.setUint32(at, value, true);
    else view.setUint16(at, value, true);
    at += bytes;
  }
  return out;
}

const utf8 = (name: string) => new TextEncoder().encode(name);

function localHeader({ name, size, crc }: Member): Uint8Array {
  const text = utf8(name);
  return pack(
    ...[[4, LOCAL], [2, VERSION], [2, 0], [2, STORED], [2, 0], [2, JANUARY_1980], [4, crc]] as const,
    ...[[4, FULL], [4, FULL], [2, text.length], [2, 20]] as const,
    text,
    ...[[2, 1], [2, 16], [8, size], [8, size]] as const,
  );
}

function centralHeader({ name, size, crc, offset }: Member): Uint8Array {
  const text = utf8(name);
  return pack(
    ...[[4, CENTRAL], [2, VERSION], [2, VERSION], [2, 0], [2, STORED], [2, 0], [2, JANUARY_1980]] as const,
    ...[[4, crc], [4, FULL], [4, FULL], [2, text.length], [2, 28]] as const,
    ...[[2, 0], [2, 0], [2, 0], [4, 0], [4, FULL]] as const,
    text,
    ...[[2, 1], [2, 24], [8, size], [8, size], [8, offset]] as const,
  );
}

function endRecords(count: number, start: number, size: number): Uint8Array {
  return pack(
    ...[[4, END64], [8, 44], [2, VERSION], [2, VERSION], [4, 0], [4, 0]] as const,
    ...[[8, count], [8, count], [8, size], [8, start]] as const,
    ...[[4, LOCATOR], [4, 0], [8, start + size], [4, 1]] as const,
    ...[[4, END], [2, 0], [2, 0], [2, 0xffff], [2, 0xffff], [4, FULL], [4, FULL], [2, 0]] as const,
  );
}

/** An open archive. */
export class ZipReader {
  readonly members: ReadonlyMap<string, Member>;

  /** The caller closes `source`. @throws UsageError if it is no complete archive */
  constructor(private readonly source: ByteSource) {
    this.members = this.#directory();
  }

  /** The contents of a member, inflated. @throws UsageError if they are damaged, at the latest at the end */
  async *stream(member: Member): AsyncGenerator<Uint8Array> {
    const { name, method, size, compressed, crc } = member, start = this.#start(member);
    if (method !== STORED && method !== DEFLATED) {
      throw this.#damaged(`"${name}" is compressed by method ${method}`);
    }
    const raw = this.#chunks(start, compressed);
    let seen = 0, sum = 0;
    try {
      for await (const chunk of method === STORED ? raw : inflate(raw)) {
        seen += chunk.length;
        sum = crc32(chunk, sum);
        if (seen > size) break; // more than declared: perhaps a zip bomb
        yield chunk;
      }
    } catch (error) {
      throw error instanceof UsageError ? error : this.#damaged(`"${name}": ${(error as Error).message}`);
    }
    if (seen !== size || sum !== crc) throw this.#damaged(`the size or the checksum of "${name}" is wrong`);
  }

  /** Whether a member is uncompressed. */
  isStored({ method }: Member): boolean {
    return method === STORED;
  }

  /**
   * Random access to an uncompressed member. If it is read sequentially from start to end, the last read fails if the checksum
   * is wrong.
   * @throws UsageError if it is compressed or truncated
   */
  stored(member: Member): ByteSource {
    const { name, method, size, compressed, crc } = member;
    if (method !== STORED) throw this.#damaged(`"${name}" is compressed, and must not be`);
    if (size !== compressed) throw this.#damaged(`"${name}" has two sizes, ${compressed} and ${size}`);
    const start = this.#start(member);
    let next = 0, sum = 0;
    return {
      name: this.source.name,
      size,
      readInto: (offset, target) => {
        if (offset + target.length > size) throw this.#damaged(`"${name}" ends after ${size} bytes`);
        this.source.readInto(start + offset, target);
        if (offset === 0) next = sum = 0;
        if (offset !== next) return;
        sum = crc32(target, sum);
        next += target.length;
        if (next === size && sum !== crc) throw this.#damaged(`the checksum of "${name}" is wrong`);
      },
      close() {},
    };
  }

  /** Offset of a member's data. */
  #start({ name, compressed, offset }: Member): number {
    const local = this.#view(offset, 30);
    if (local.getUint32(0, true) !== LOCAL) throw this.#damaged(`"${name}" has no header`);
    if (local.getUint16(6, true) & 1) throw this.#damaged(`"${name}" is encrypted`);
    const start = offset + 30 + local.getUint16(26, true) + local.getUint16(28, true);
    if (start + compressed > this.source.size) throw this.#damaged(`"${name}" is cut off`);
    return start;
  }

  #directory(): Map<string, Member> {
    const length = this.source.size, tail = Math.min(length, 65_557);
    const base = length - tail, view = this.#view(base, tail);
    let at = tail - 22;
    while (
      at >= 0 && !(view.getUint32(at, true) === END && at + 22 + view.getUint16(at + 20, true) === tail)
    ) at--;
    if (at < 0) throw this.#damaged("it is not a complete zip archive");
    let count = view.getUint16(at + 10, true), size = view.getUint32(at + 12, true);
    let start = view.getUint32(at + 16, true);
    if (at >= 20 && view.getUint32(at - 20, true) === LOCATOR) {
      const end = this.#view(this.#number(view, at - 12), 56);
      if (end.getUint32(0, true) !== END64) throw this.#damaged("its ZIP64 record is missing");
      [count, size, start] = [this.#number(end, 32), this.#number(end, 40), this.#number(end, 48)];
    }
    if (size > MAX_DIRECTORY) throw this.#damaged(`its directory claims ${size} bytes`);
    if (count > MAX_MEMBERS) {
      throw this.#damaged(`it has ${count} files, at most ${MAX_MEMBERS} are supported`);
    }
    const directory = this.#view(start, size), members = new Map<string, Member>();
    for (let p = 0, n = 0; n < count; n++) {
      if (p + 46 > size || directory.getUint32(p, true) !== CENTRAL) {
        throw this.#damaged("its directory is damaged");
      }
      const member = this.#member(directory, p);
      if (members.has(member.name)) throw this.#damaged(`"${member.name}" is in it twice`);
      members.set(member.name, member);
      p += 46 + directory.getUint16(p + 28, true) + directory.getUint16(p + 30, true) +
        directory.getUint16(p + 32, true);
    }
    return members;
  }

  #member(view: DataView, p: number): Member {
    const nameLength = view.getUint16(p + 28, true), extra = p + 46 + nameLength;
    const extraEnd = extra + view.getUint16(p + 30, true);
    if (extraEnd > view.byteLength) throw this.#damaged("its directory is damaged");
    const name = new TextDecoder().decode(new Uint8Array(view.buffer, view.byteOffset + p + 46, nameLength));
    const values = [view.getUint32(p + 24, true), view.getUint32(p + 20, true), view.getUint32(p + 42, true)];
    for (let e = extra; e + 4 <= extraEnd; e += 4 + view.getUint16(e + 2, true)) {
      if (view.getUint16(e, true) !== 1) continue;
      let q = e + 4; // ZIP64 values in this order, each present only if the 32-bit field is 0xffffffff
      for (let i = 0; i < 3; i++) {
        if (values[i] !== FULL || q + 8 > extraEnd) continue;
        values[i] = this.#number(view, q);
        q += 8;
      }
    }
    const [size = 0, compressed = 0, offset = 0] = values;
    const method = view.getUint16(p + 10, true);
    if (method === DEFLATED && size > MAX_INFLATION * (compressed + 1)) {
      throw this.#damaged(`"${name}" claims ${size} bytes out of ${compressed}, which deflate cannot do`);
    }
    return { name, size, compressed, offset, crc: view.getUint32(p + 16, true), method };
  }

  #number(view: DataView, at: number): number {
    const value = Number(view.getBigUint64(at, true));
    if (!Number.isSafeInteger(value)) throw this.#damaged("its directory is damaged");
    return value;
  }

  #view(offset: number, length: number): DataView {
    return new DataView(this.#read(offset, length).buffer);
  }

  *#chunks(start: number, length: number): Generator<Uint8Array<ArrayBuffer>> {
    const block = 1 << 20;
    for (let at = 0; at < length; at += block) yield this.#read(start + at, Math.min(block, length - at));
  }

  #read(offset: number, length: number): Uint8Array<ArrayBuffer> {
    if (offset + length > this.source.size) throw this.#damaged("it is cut off, or its directory is damaged");
    return bytesAt(this.source, offset, length);
  }

  #damaged(reason: string): UsageError {
    return damaged(this.source.name, reason);
  }
}

function inflate(chunks: Iterable<Uint8Array<ArrayBuffer>>): AsyncIterable<Uint8Array> {
  return ReadableStream.from(chunks).pipeThrough(new DecompressionStream("deflate-raw"));
}
