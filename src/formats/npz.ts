// NumPy's .npz format: a zip archive of .npy files. Reading and writing stream, so that 50,000 images of 256 x 256 (9.8 GB in
// one array) need little memory.

import { BOUNDS } from "../bounds.ts";
import { ShapeError, UsageError } from "../errors.ts";
import { type ByteSource, openKnown } from "./bytes.ts";
import {
  encodeNpyHeader,
  type NpyArray,
  npyDataBytes,
  type NpyHeader,
  npyHeaderLength,
  npyNumbers,
  parseNpyHeader,
} from "./npy.ts";
import { fingerprintOf } from "./provenance.ts";
import { type Member, ZipReader, ZipWriter } from "./zip.ts";

/** An array to write: complete, or uint8 in consecutive parts. */
export interface NpzArray {
  name: string;
  shape: readonly number[];
  data: NpyArray | AsyncIterable<Uint8Array>;
}

/**
 * Writes arrays to an .npz file, atomically; equal arrays give equal bytes.
 * @throws ShapeError if the data does not fill the shape
 * @throws UsageError for file system errors
 */
export async function writeNpz(path: string, arrays: Iterable<NpzArray>): Promise<void> {
  const zip = new ZipWriter(path);
  try {
    for (const { name, shape, data } of arrays) {
      const isArray = ArrayBuffer.isView(data);
      const header = encodeNpyHeader(isArray ? data : new Uint8Array(), shape);
      const size = await zip.add(`${name}.npy`, parts(header, data)) - header.length;
      const expected = shape.reduce((n, d) => n * d, isArray ? data.BYTES_PER_ELEMENT : 1);
      if (size !== expected) {
        throw new ShapeError(
          `Cannot write "${path}": "${name}" has ${size} bytes, its shape (${shape}) needs ${expected}`,
        );
      }
    }
    zip.close();
  } catch (error) {
    zip.abort();
    throw error;
  }
}

async function* parts(header: Uint8Array, data: NpzArray["data"]): AsyncGenerator<Uint8Array> {
  yield header;
  if (ArrayBuffer.isView(data)) yield new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  else yield* data;
}

/** Maximum size of an item along the first axis, bytes: an image of 16,384 x 16,384. A few are in memory at a time. */
const MAX_ROW = 3 * BOUNDS.pixels ** 2;

/** An open .npz file. */
export class NpzFile {
  constructor(
    readonly name: string,
    /** The arrays by name, without ".npy". */
    readonly arrays: ReadonlyMap<string, NpyHeader>,
    private readonly zip: ZipReader,
    private readonly source: ByteSource,
  ) {}

  /** All elements of an array as numbers, row-major. @throws UsageError if it is missing or damaged */
  async read(key: string): Promise<Float64Array> {
    const header = this.#header(key);
    return npyNumbers(header, await this.#bytes(key, header));
  }

  /** The same in f32: one copy in memory of arrays that are stored so. */
  async floats(key: string): Promise<Float32Array> {
    const header = this.#header(key), { kind, bigEndian, fortran } = header;
    if (kind !== "f4" || bigEndian || fortran) return Float32Array.from(await this.read(key));
    return new Float32Array((await this.#bytes(key, header)).buffer);
  }

  async #bytes(key: string, header: NpyHeader): Promise<Uint8Array<ArrayBuffer>> {
    const all = new Uint8Array(npyDataBytes(header));
    let at = 0;
    for await (const part of this.#data(key, header)) {
      all.set(part, at);
      at += part.length;
    }
    return all;
  }

  /**
   * The items along the first axis of a uint8 array, for example images [H,W,3], in order. The checksum is verified at the end
   * if all were read.
   * @param from first item; what is before it is not read if the array is uncompressed
   * @throws UsageError if the array is missing, of another type, or damaged
   */
  async *rows(key: string, from = 0): AsyncGenerator<Uint8Array<ArrayBuffer>> {
    const header = this.#header(key);
    const [count = 1] = header.shape, size = npyDataBytes(header) / count;
    if (size > MAX_ROW) {
      throw damaged(this.name, `an item of "${key}" has ${size} bytes, at most ${MAX_ROW} are read`);
    }
    if (header.kind !== "u1" || header.fortran) {
      throw damaged(this.name, `"${key}" is not a uint8 array in row-major order`);
    }
    if (from > 0 && this.isSeekable(key)) {
      const stored = this.zip.stored(this.#member(key, header));
      for (let i = from; i < count; i++) {
        const row = new Uint8Array(size);
        stored.readInto(header.start + i * size, row);
        yield row;
      }
      return;
    }
    let row = new Uint8Array(size), filled = 0, item = 0;
    for await (const part of this.#data(key, header)) {
      for (let at = 0; at < part.length;) {
        const n = Math.min(size - filled, part.length - at);
        row.set(part.subarray(at, at + n), filled);
        at += n;
        filled += n;
        if (filled < size) continue;
        if (item++ >= from) yield row;
        row = new Uint8Array(size);
        filled = 0;
      }
    }
  }

  /** Whether an array is uncompressed, so that {@link rows} may begin anywhere. */
  isSeekable(key: string): boolean {
    return this.zip.isStored(this.#member(key, this.#header(key)));
  }

  /** @throws UsageError if the size of an array does not match its shape */
  verify(key: string): void {
    this.#member(key, this.#header(key));
  }

  /** Hash of the names, sizes and checksums of the arrays. */
  fingerprint(): string {
    const members = [...this.zip.members.values()].map(({ name, size, crc }) => `${name} ${size} ${crc}`);
    return fingerprintOf(...members.sort());
  }

  close(): void {
    this.source.close();
  }

  #header(key: string): NpyHeader {
    const header = this.arrays.get(key);
    if (!header) throw new UsageError(`Cannot read "${key}": "${this.name}" has no such array`);
    return header;
  }

  #member(key: string, header: NpyHeader): Member {
    const member = this.zip.members.get(`${key}.npy`);
    if (!member || member.size !== header.start + npyDataBytes(header)) {
      throw damaged(this.name, `"${key}" does not have as many bytes as its shape (${header.shape}) needs`);
    }
    return member;
  }

  /** The bytes after the header. */
  async *#data(key: string, header: NpyHeader): AsyncGenerator<Uint8Array> {
    const member = this.#member(key, header);
    let position = 0;
    for await (const part of this.zip.stream(member)) {
      const skip = Math.min(part.length, Math.max(0, header.start - position));
      position += part.length;
      if (skip < part.length) yield part.subarray(skip);
    }
  }
}

/** Opens an .npz file and reads the headers of its arrays. @throws UsageError if it is missing or damaged */
export async function openNpz(path: string): Promise<NpzFile> {
  const source = openKnown(path, "arrays");
  try {
    const zip = new ZipReader(source);
    const arrays = new Map<string, NpyHeader>(), { size } = zip.members;
    if (size > BOUNDS.arrays) {
      throw damaged(path, `it has ${size} files, at most ${BOUNDS.arrays} are supported`);
    }
    for (const [name, member] of zip.members) {
      if (!name.endsWith(".npy")) continue;
      const key = name.slice(0, -4), header = await headerOf(zip, member);
      if (member.size !== header.start + npyDataBytes(header)) {
        throw damaged(path, `"${key}" does not have as many bytes as its shape (${header.shape}) needs`);
      }
      arrays.set(key, header);
    }
    return new NpzFile(path, arrays, zip, source);
  } catch (error) {
    source.close();
    throw error instanceof UsageError ? error : damaged(path, (error as Error).message);
  }
}

/** Reads only the .npy header of a member. */
async function headerOf(zip: ZipReader, member: Member): Promise<NpyHeader> {
  let head = new Uint8Array();
  for await (const chunk of zip.stream(member)) {
    const longer = new Uint8Array(head.length + chunk.length);
    longer.set(head);
    longer.set(chunk, head.length);
    head = longer;
    if (head.length >= 12 && head.length >= npyHeaderLength(head)) return parseNpyHeader(head);
  }
  throw new Error(`"${member.name}" is cut off`);
}

function damaged(path: string, reason: string): UsageError {
  return new UsageError(`Cannot read "${path}" as .npz: ${reason}; make it again`);
}
