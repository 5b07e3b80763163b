// Named tensors in files of any format, and conversion of their elements to numbers. A format only locates the elements. They are
// converted in blocks, so that reading a tensor takes little more memory than the result; F32 is read directly into it.

import { UsageError } from "../errors.ts";
import { formatBytes } from "./files.ts";

/** Bits per element, in safetensors' order of alignment, which the writer sorts by. */
export const DTYPE_BITS: Readonly<Record<string, number>> = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
};

/** A tensor before it is read. */
export interface TensorEntry {
  /** safetensors' name. */
  readonly dtype: string;
  readonly shape: readonly number[];
}

/** An object next to the tensors, known by its class name only: it is neither read nor run. */
export interface UnreadObject {
  /** Its Python class. */
  readonly type: string;
  /** Whether it contains tensors, which cannot be read. */
  readonly holdsTensors: boolean;
}

/** Named tensors: one file, or a sharded model. */
export interface TensorStore {
  /** The path, for messages. */
  readonly name: string;
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  readonly shapes: ReadonlyMap<string, readonly number[]>;
  readonly metadata: ReadonlyMap<string, string>;
  /** Objects that a pickle holds next to the tensors; the metadata has them too, by their class names. */
  readonly unread?: ReadonlyMap<string, UnreadObject>;
  /**
   * A tensor's elements as f32.
   * @param into start of a buffer to fill and return, for readers of many tensors
   * @throws UsageError for dtypes other than F16, BF16, F32 and F64
   */
  read(key: string, into?: Float32Array<ArrayBuffer>): Promise<Float32Array<ArrayBuffer>>;
  /** Rows `from` to `to` - 1 along the first axis as f32; the others are not read. */
  readRows(
    key: string,
    from: number,
    to: number,
    into?: Float32Array<ArrayBuffer>,
  ): Promise<Float32Array<ArrayBuffer>>;
  /** The elements of an integer tensor. @throws UsageError for other dtypes, and for values beyond 32 bits */
  readIntegers(key: string): Promise<Int32Array<ArrayBuffer>>;
  /** A tensor's raw elements, row-major and little-endian, in parts; each is valid until the next one is requested. */
  parts(key: string): Iterable<Uint8Array<ArrayBuffer>>;
  close(): void;
}

/** Elements converted at a time. */
const BLOCK = 1 << 18;

/** A store in one file; subclasses locate the elements. */
export abstract class TensorFile<Entry extends TensorEntry> implements TensorStore {
  readonly shapes: ReadonlyMap<string, readonly number[]>;
  readonly unread: ReadonlyMap<string, UnreadObject> = new Map();

  constructor(
    readonly name: string,
    readonly tensors: ReadonlyMap<string, Entry>,
    readonly metadata: ReadonlyMap<string, string>,
  ) {
    this.shapes = new Map([...tensors].map(([key, { shape }]) => [key, shape]));
  }

  /** Fills `target`, the start of a buffer, with bytes of the row-major tensor from `offset` on. */
  protected abstract fill(entry: Entry, offset: number, target: Uint8Array<ArrayBuffer>): void;

  /** Whether the cost of reading a part is proportional to its length; otherwise complete rows are read at once. */
  protected abstract sequential(entry: Entry): boolean;

  abstract close(): void;

  async read(key: string, into?: Float32Array<ArrayBuffer>): Promise<Float32Array<ArrayBuffer>> {
    return this.readRows(key, 0, Infinity, into);
  }

  async readRows(
    key: string,
    from: number,
    to: number,
    into?: Float32Array<ArrayBuffer>,
  ): Promise<Float32Array<ArrayBuffer>> {
    const entry = this.#entry(key), { dtype, shape } = entry;
    const bytes = (DTYPE_BITS[dtype] ?? 0) / 8, rows = shape[0] ?? 1;
    const width = shape.slice(1).reduce((n, d) => n * d, 1);
    const first = Math.min(from, rows), count = (Math.max(first, Math.min(to, rows)) - first) * width;
    const start = first * width * bytes;
    const convert = FLOATS[dtype];
    if (!convert && dtype !== "F32") {
      throw new UsageError(`Cannot read "${key}" of "${this.name}" as numbers: its dtype is ${dtype}`);
    }
    const numbers = into?.subarray(0, count) ?? new Float32Array(this.#buffer(key, count * 4).buffer);
    if (!convert) {
      this.fill(entry, start, new Uint8Array(numbers.buffer, numbers.byteOffset, count * bytes));
      return numbers;
    }
    const block = this.#buffer(key, (this.sequential(entry) ? Math.min(BLOCK, count) : count) * bytes);
    for (let at = 0; at < count;) {
      const part = block.subarray(0, (count - at) * bytes), n = part.length / bytes;
      this.fill(entry, start + at * bytes, part);
      convert(block.buffer, numbers.subarray(at, at += n));
    }
    return numbers;
  }

  async readIntegers(key: string): Promise<Int32Array<ArrayBuffer>> {
    const { dtype } = this.#entry(key);
    const elements = INTEGERS[dtype];
    if (!elements) {
      throw new UsageError(`Cannot read "${key}" of "${this.name}" as integers: its dtype is ${dtype}`);
    }
    const values = elements((await this.readBytes(key)).buffer);
    return Int32Array.from(values, (value) => {
      const number = Number(value);
      if (number === (number | 0)) return number;
      throw new UsageError(`Cannot read "${key}" of "${this.name}": ${value} is beyond 32 bits`);
    });
  }

  /** A tensor's raw elements. */
  async readBytes(key: string): Promise<Uint8Array<ArrayBuffer>> {
    const entry = this.#entry(key), bytes = this.#buffer(key, tensorBytes(entry));
    this.fill(entry, 0, bytes);
    return bytes;
  }

  *parts(key: string): Generator<Uint8Array<ArrayBuffer>> {
    const entry = this.#entry(key), bytes = tensorBytes(entry);
    const buffer = this.#buffer(key, this.sequential(entry) ? Math.min(8 * BLOCK, bytes) : bytes);
    for (let at = 0; at < bytes; at += buffer.length) {
      const part = buffer.subarray(0, bytes - at);
      this.fill(entry, at, part);
      yield part;
    }
  }

  #buffer(key: string, bytes: number): Uint8Array<ArrayBuffer> {
    try {
      return new Uint8Array(bytes);
    } catch {
      throw new UsageError(
        `Cannot read "${key}" of "${this.name}": ${formatBytes(bytes)} are too much at once`,
      );
    }
  }

  #entry(key: string): Entry {
    const entry = this.tensors.get(key);
    if (!entry) throw new UsageError(`Cannot read "${key}": "${this.name}" has no such tensor`);
    return entry;
  }
}

/** End of a message about missing tensors: they may be inside unread objects, and what to do. */
export function unreadNote(unread: ReadonlyMap<string, UnreadObject> = new Map()): string {
  const found = [...unread].filter(([, { holdsTensors }]) => holdsTensors);
  if (!found.length) return "";
  const shown = found.slice(0, 4).map(([key, { type }]) => `"${key}" (${type})`).join(", ");
  return `; tensors inside objects are not read: ${shown}${
    found.length > 4 ? ` and ${found.length - 4} more` : ""
  }; ` +
    `load the file with PyTorch and save its plain state_dict()`;
}

/** Number of elements. */
export function tensorSize({ shape }: TensorEntry): number {
  return shape.reduce((n, d) => n * d, 1);
}

/** Size of the elements, bytes. */
export function tensorBytes(entry: TensorEntry): number {
  return tensorSize(entry) * (DTYPE_BITS[entry.dtype] ?? 0) / 8;
}

/** Converts elements at the start of a buffer to f32. */
const FLOATS: Readonly<Record<string, (from: ArrayBuffer, to: Float32Array<ArrayBuffer>) => void>> = {
  F16: (from, to) => to.set(new Float16Array(from, 0, to.length)),
  BF16: (from, to) => {
    const upper = new Uint16Array(from), bits = new Uint32Array(to.buffer, to.byteOffset, to.length);
    for (let i = 0; i < bits.length; i++) bits[i] = (upper[i] as number) << 16;
  },
  F64: (from, to) => to.set(new Float64Array(from, 0, to.length)),
};

const INTEGERS: Readonly<Record<string, (bytes: ArrayBuffer) => Iterable<number | bigint>>> = {
  BOOL: (bytes) => new Uint8Array(bytes),
  U8: (bytes) => new Uint8Array(bytes),
  I8: (bytes) => new Int8Array(bytes),
  I16: (bytes) => new Int16Array(bytes),
  U16: (bytes) => new Uint16Array(bytes),
  I32: (bytes) => new Int32Array(bytes),
  U32: (bytes) => new Uint32Array(bytes),
  I64: (bytes) => new BigInt64Array(bytes),
  U64: (bytes) => new BigUint64Array(bytes),
};
