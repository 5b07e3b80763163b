// Sets of arrays in NumPy's .npz format: a zip of .npy files. Written without compression and always as ZIP64, member by
// member, so that 50,000 samples of 256 x 256 (9.8 GB in one array) need no memory. Read with every CRC checked: images
// row by row, statistics at once.
// PKWARE, .ZIP File Format Specification (APPNOTE) 6.3, sections 4.3 and 4.5.3.

import { crc32 } from "node:zlib";
import { type Entry, openPromise, type ZipFile } from "yauzl";
import { ShapeError, UsageError } from "../errors.ts";
import { AtomicFile, explained } from "./files.ts";
import {
  encodeNpyHeader,
  type NpyArray,
  npyDataBytes,
  type NpyHeader,
  npyHeaderLength,
  npyNumbers,
  parseNpyHeader,
} from "./npy.ts";

/** An array to be written, whole or in parts that follow each other. */
export interface NpzArray {
  name: string;
  shape: readonly number[];
  data: NpyArray | AsyncIterable<Uint8Array>;
}

interface Member {
  name: Uint8Array;
  offset: number;
  size: number;
  crc: number;
}

/**
 * Writes arrays to an .npz file, whole or not at all. Parts of an array are bytes of uint8.
 * @throws ShapeError when the data does not fill the shape
 * @throws UsageError when the file system refuses
 */
export async function writeNpz(path: string, arrays: Iterable<NpzArray>): Promise<void> {
  const file = new AtomicFile(path);
  try {
    const members: Member[] = [];
    for (const { name, shape, data } of arrays) {
      const member = {
        name: new TextEncoder().encode(`${name}.npy`),
        offset: file.position,
        size: 0,
        crc: 0,
      };
      const put = (bytes: Uint8Array) => {
        file.write(bytes);
        member.crc = crc32(bytes, member.crc);
        member.size += bytes.length;
      };
      file.write(localHeader(member));
      const isArray = ArrayBuffer.isView(data);
      const header = encodeNpyHeader(isArray ? data : new Uint8Array(), shape);
      put(header);
      if (isArray) put(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
      else for await (const part of data) put(part);
      const expected = shape.reduce((n, d) => n * d, isArray ? data.BYTES_PER_ELEMENT : 1);
      if (member.size - header.length !== expected) {
        throw new ShapeError(
          `Cannot write "${path}": "${name}" has ${member.size - header.length} bytes, ` +
            `its shape (${shape}) needs ${expected}`,
        );
      }
      file.patch(member.offset, localHeader(member)); // size and checksum are known now
      members.push(member);
    }
    const start = file.position;
    for (const member of members) file.write(centralHeader(member));
    file.write(endRecords(members.length, start, file.position - start));
    file.commit();
  } catch (error) {
    file.abort();
    throw error;
  }
}

const VERSION_ZIP64 = 45, JANUARY_1980 = 0x21; // no clock: the same arrays give the same bytes

/** Little-endian fields, each [bytes, value]. */
function fields(...list: (readonly [1 | 2 | 4 | 8, number])[]): Uint8Array {
  const out = new Uint8Array(list.reduce((n, [bytes]) => n + bytes, 0));
  const view = new DataView(out.buffer);
  let at = 0;
  for (const [bytes, value] of list) {
    if (bytes === 8) view.setBigUint64(at, BigInt(value), true);
    else if (bytes === 4) view.setUint32(at, value, true);
    else if (bytes === 2) view.setUint16(at, value, true);
    else view.setUint8(at, value);
    at += bytes;
  }
  return out;
}

function concat(...parts: readonly Uint8Array[]): Uint8Array {
  const out = new Uint8Array(parts.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

const FULL = 0xffffffff; // "see the ZIP64 extra field"

function localHeader({ name, size, crc }: Member): Uint8Array {
  return concat(
    fields([4, 0x04034b50], [2, VERSION_ZIP64], [2, 0], [2, 0], [2, 0], [2, JANUARY_1980], [4, crc]),
    fields([4, FULL], [4, FULL], [2, name.length], [2, 20]),
    name,
    fields([2, 1], [2, 16], [8, size], [8, size]),
  );
}

function centralHeader({ name, offset, size, crc }: Member): Uint8Array {
  return concat(
    fields([4, 0x02014b50], [2, VERSION_ZIP64], [2, VERSION_ZIP64], [2, 0], [2, 0], [2, 0], [
      2,
      JANUARY_1980,
    ]),
    fields([4, crc], [4, FULL], [4, FULL], [2, name.length], [2, 28], [2, 0], [2, 0], [2, 0], [4, 0], [
      4,
      FULL,
    ]),
    name,
    fields([2, 1], [2, 24], [8, size], [8, size], [8, offset]),
  );
}

function endRecords(count: number, start: number, size: number): Uint8Array {
  return concat(
    fields([4, 0x06064b50], [8, 44], [2, VERSION_ZIP64], [2, VERSION_ZIP64], [4, 0], [4, 0]),
    fields([8, count], [8, count], [8, size], [8, start]),
    fields([4, 0x07064b50], [4, 0], [8, start + size], [4, 1]),
    fields([4, 0x06054b50], [2, 0], [2, 0], [2, 0xffff], [2, 0xffff], [4, FULL], [4, FULL], [2, 0]),
  );
}

/** An open .npz file. */
export class NpzFile {
  constructor(
    readonly name: string,
    /** The arrays by name, without ".npy". */
    readonly arrays: ReadonlyMap<string, NpyHeader>,
    private readonly entries: ReadonlyMap<string, Entry>,
    private readonly zip: ZipFile,
  ) {}

  /** All the elements of an array as numbers, row-major. @throws UsageError when it is missing or damaged */
  async read(key: string): Promise<Float64Array> {
    const header = this.#header(key);
    const all = new Uint8Array(npyDataBytes(header));
    let at = 0;
    for await (const part of this.#data(key, header)) {
      all.set(part, at);
      at += part.length;
    }
    return npyNumbers(header, all);
  }

  /** The items along the first axis of a uint8 array, for example images [H,W,3], one after another. */
  async *rows(key: string): AsyncGenerator<Uint8Array<ArrayBuffer>> {
    const header = this.#header(key);
    const [count = 1] = header.shape, size = npyDataBytes(header) / count;
    if (header.kind !== "u1" || header.fortran) {
      throw damaged(this.name, `"${key}" is not a uint8 array in row-major order`);
    }
    let row = new Uint8Array(size), filled = 0;
    for await (const part of this.#data(key, header)) {
      for (let at = 0; at < part.length;) {
        const n = Math.min(size - filled, part.length - at);
        row.set(part.subarray(at, at + n), filled);
        at += n;
        filled += n;
        if (filled < size) continue;
        yield row;
        row = new Uint8Array(size);
        filled = 0;
      }
    }
  }

  close(): void {
    this.zip.close();
  }

  #header(key: string): NpyHeader {
    const header = this.arrays.get(key);
    if (!header) throw new UsageError(`Cannot read "${key}": "${this.name}" has no such array`);
    return header;
  }

  /** The bytes after the header; fewer or more than the shape says, or another checksum, is an error. */
  async *#data(key: string, header: NpyHeader): AsyncGenerator<Uint8Array> {
    const entry = this.entries.get(key);
    const expected = npyDataBytes(header);
    if (!entry || entry.uncompressedSize !== header.start + expected) {
      throw damaged(this.name, `"${key}" has not as many bytes as its shape (${header.shape}) needs`);
    }
    let position = 0, crc = 0;
    try {
      for await (const chunk of await this.zip.openReadStreamPromise(entry)) {
        const part = chunk as Uint8Array;
        crc = crc32(part, crc);
        const skip = Math.min(part.length, Math.max(0, header.start - position));
        position += part.length;
        if (skip < part.length) yield part.subarray(skip);
      }
    } catch (error) {
      throw damaged(this.name, `"${key}": ${(error as Error).message}`);
    }
    if (crc !== (entry as Entry & { crc32: number }).crc32) {
      throw damaged(this.name, `the checksum of "${key}" is wrong`);
    }
  }
}

/** Opens an .npz file and reads the headers of its arrays. @throws UsageError when it is missing or damaged */
export async function openNpz(path: string): Promise<NpzFile> {
  let zip: ZipFile | undefined;
  try {
    zip = await openPromise(path, { lazyEntries: true, autoClose: false });
    const entries = new Map<string, Entry>();
    for await (const entry of zip.eachEntry()) {
      if (!entry.fileName.endsWith(".npy")) continue;
      const key = entry.fileName.slice(0, -4);
      if (entries.has(key)) throw new Error(`it has "${key}" twice`);
      entries.set(key, entry);
    }
    const arrays = new Map<string, NpyHeader>();
    for (const [key, entry] of entries) arrays.set(key, parseNpyHeader(await headOf(zip, entry)));
    return new NpzFile(path, arrays, entries, zip);
  } catch (error) {
    zip?.close();
    const known = explained(error, "read", path);
    throw known instanceof UsageError ? known : damaged(path, (error as Error).message);
  }
}

/** The first bytes of a member: all of its .npy header. */
async function headOf(zip: ZipFile, entry: Entry): Promise<Uint8Array> {
  let head: Uint8Array = new Uint8Array();
  for await (const chunk of await zip.openReadStreamPromise(entry)) {
    head = concat(head, chunk as Uint8Array);
    if (head.length >= 12 && head.length >= npyHeaderLength(head)) return head;
  }
  throw new Error(`"${entry.fileName}" is cut off`);
}

function damaged(path: string, reason: string): UsageError {
  return new UsageError(`Cannot read "${path}" as .npz: ${reason}; make it again`);
}
