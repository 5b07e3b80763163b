// The safetensors format. Reading is strict: header up to 100 MB, no duplicate keys, no holes, no overlaps, no trailing bytes.
// Tensors are read on demand and copied, since data is aligned to 8 bytes at best. JSON.parse silently keeps the last of two
// equal keys, so that two readers could see different files. Writing equals the reference byte for byte: sorted by dtype
// alignment (largest first), then by name; data at a multiple of 8.
// https://github.com/huggingface/safetensors

import { BOUNDS } from "../bounds.ts";
import { ShapeError, UsageError } from "../errors.ts";
import { bytesAt, type ByteSource, damaged, openKnown } from "./bytes.ts";
import { AtomicFile } from "./files.ts";
import { duplicateKey, parseJson } from "./json.ts";
import { DTYPE_BITS, type TensorEntry, TensorFile, type TensorStore } from "./tensors.ts";

export type { TensorEntry, TensorStore } from "./tensors.ts";

const MAX_HEADER = 100_000_000;

/** Position of a tensor in a file. */
export interface SafetensorsEntry extends TensorEntry {
  /** Offset from the start of the file, bytes. */
  readonly begin: number;
  readonly end: number;
}

/** An open file: the header is in memory, tensors are read on demand. */
export class SafetensorsFile extends TensorFile<SafetensorsEntry> {
  constructor(
    private readonly source: ByteSource,
    tensors: ReadonlyMap<string, SafetensorsEntry>,
    metadata: ReadonlyMap<string, string>,
  ) {
    super(source.name, tensors, metadata);
  }

  protected fill({ begin }: SafetensorsEntry, offset: number, target: Uint8Array<ArrayBuffer>): void {
    this.source.readInto(begin + offset, target);
  }

  protected sequential(): boolean {
    return true;
  }

  close(): void {
    this.source.close();
  }
}

/** Opens a file and checks its header. @throws UsageError for an invalid file */
export async function openSafetensors(path: string): Promise<SafetensorsFile> {
  return readSafetensors(openKnown(path, "weights"));
}

/** The same for any bytes; they are closed with the store, or at once if they are invalid. */
export function readSafetensors(source: ByteSource): SafetensorsFile {
  const { name, size } = source;
  try {
    if (size < 8) throw damaged(name, `${size} bytes are no safetensors file`);
    const length = new DataView(bytesAt(source, 0, 8).buffer).getBigUint64(0, true);
    if (length > MAX_HEADER) {
      throw damaged(name, `its header claims ${length} bytes, at most ${MAX_HEADER} are allowed`);
    }
    const start = 8 + Number(length);
    if (start > size) throw damaged(name, `its header claims ${length} bytes, the file has ${size}`);
    const { tensors, metadata } = parseHeader(bytesAt(source, 8, Number(length)), start, size, name);
    return new SafetensorsFile(source, tensors, metadata);
  } catch (error) {
    source.close();
    throw error;
  }
}

/** Checks a header against the file's `size`; `start` is the offset of the data. */
function parseHeader(bytes: Uint8Array, start: number, size: number, path: string) {
  let json: unknown;
  try {
    if (bytes[0] !== 0x7b) throw new Error("it does not begin with {");
    json = parseJson(bytes);
  } catch (error) {
    throw damaged(path, `its header is not JSON (${(error as Error).message.replace(/\s+/g, " ")})`);
  }
  const entries = Object.entries(json as object);
  if (entries.length > BOUNDS.tensors) {
    throw damaged(path, `it has ${entries.length} tensors, at most ${BOUNDS.tensors} are supported`);
  }
  const repeated = duplicateKey(bytes);
  if (repeated !== undefined) throw damaged(path, `the key "${repeated}" is twice in its header`);
  const metadata = new Map<string, string>();
  const tensors = new Map<string, SafetensorsEntry>();
  for (const [key, value] of entries) {
    if (key !== "__metadata__") {
      tensors.set(key, parseEntry(key, value, start, path));
      continue;
    }
    if (typeof value !== "object" || value === null || Array.isArray(value)) {
      throw damaged(path, "its metadata is not an object");
    }
    for (const [k, v] of Object.entries(value)) {
      if (typeof v !== "string") throw damaged(path, `its metadata "${k}" is not a string`);
      metadata.set(k, v);
    }
  }
  let at = start;
  const inOrder = [...tensors].sort(([, a], [, b]) => a.begin - b.begin || a.end - b.end);
  for (const [key, { begin, end }] of inOrder) {
    if (begin !== at) throw damaged(path, `there is ${begin > at ? "a hole" : "an overlap"} before "${key}"`);
    at = end;
  }
  if (at !== size) throw damaged(path, `its tensors end at byte ${at}, the file at byte ${size}`);
  return { tensors, metadata };
}

function parseEntry(key: string, value: unknown, start: number, path: string): SafetensorsEntry {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw damaged(path, `"${key}" is not described by an object`);
  }
  const { dtype, shape, data_offsets: offsets, ...others } = value as Record<string, unknown>;
  const bits = typeof dtype === "string" && Object.hasOwn(DTYPE_BITS, dtype) ? DTYPE_BITS[dtype] : undefined;
  if (bits === undefined) throw damaged(path, `the dtype ${JSON.stringify(dtype)} of "${key}" is unknown`);
  if (!isCounts(shape)) throw damaged(path, `the shape of "${key}" is ${JSON.stringify(shape)}`);
  if (!isCounts(offsets) || offsets.length !== 2) {
    throw damaged(path, `the offsets of "${key}" are ${JSON.stringify(offsets)}`);
  }
  const other = Object.keys(others)[0];
  if (other !== undefined) throw damaged(path, `"${key}" has the unknown field "${other}"`);
  const [begin = 0, end = 0] = offsets;
  let total = bits;
  for (const n of shape) {
    total *= n;
    if (!Number.isSafeInteger(total)) throw damaged(path, `the shape [${shape}] of "${key}" overflows`);
  }
  if (total !== (end - begin) * 8) {
    throw damaged(path, `"${key}", ${dtype} [${shape}], does not fill the bytes ${begin} to ${end}`);
  }
  return { dtype: dtype as string, shape, begin: start + begin, end: start + end };
}

/** Non-negative integers up to 2^53: larger JSON numbers are rounded. */
function isCounts(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((n) => Number.isSafeInteger(n) && n >= 0);
}

/** Elements of a tensor. A Uint16Array holds BF16 bits if `dtype` is BF16. */
export type TensorArray =
  | Float32Array
  | Float64Array
  | Float16Array
  | Int32Array
  | Uint32Array
  | Uint16Array
  | BigInt64Array
  | Uint8Array;

/** A tensor to write. */
export interface TensorData {
  name: string;
  shape: readonly number[];
  /** The elements, or a function that returns them on demand, complete or in parts; a function needs `dtype`. */
  data: TensorArray | (() => TensorArray | Promise<TensorArray> | Iterable<Uint8Array>);
  /** The format's name; by default that of `data`. */
  dtype?: string;
}

const NATIVE: readonly (readonly [string, (data: TensorArray) => boolean])[] = [
  ["F32", (data) => data instanceof Float32Array],
  ["F64", (data) => data instanceof Float64Array],
  ["F16", (data) => data instanceof Float16Array],
  ["I32", (data) => data instanceof Int32Array],
  ["U32", (data) => data instanceof Uint32Array],
  ["U16", (data) => data instanceof Uint16Array],
  ["I64", (data) => data instanceof BigInt64Array],
  ["U8", (data) => data instanceof Uint8Array],
];

/**
 * Writes `tensors` to `path`, atomically; metadata keys are sorted, so equal input gives equal bytes.
 * @throws ShapeError if data does not fill its shape, or for duplicate names
 * @throws UsageError for file system errors
 */
export async function writeSafetensors(
  path: string,
  tensors: Iterable<TensorData>,
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  const { rows, header, bytes: size } = arrange(path, tensors, metadata);
  const file = new AtomicFile(path, size);
  try {
    file.write(header);
    for (const { name, data, bytes } of rows) {
      const got = typeof data === "function" ? await data() : data, start = file.position;
      for (const { buffer, byteOffset, byteLength } of ArrayBuffer.isView(got) ? [got] : got) {
        file.write(new Uint8Array(buffer, byteOffset, byteLength));
      }
      if (file.position - start !== bytes) throw misfit(path, name, file.position - start, bytes);
    }
    file.commit();
  } catch (error) {
    file.abort();
    throw error;
  }
}

/** Writes F32 tensors row by row, all of them at the same time; none is kept in memory. */
export class RowsWriter {
  readonly #file: AtomicFile;
  readonly #parts = new Map<string, { at: number; end: number; begin: number }>();

  /**
   * Starts the file that writeSafetensors() would write; it exists after commit().
   * @throws ShapeError for duplicate names
   * @throws UsageError for file system errors
   */
  constructor(
    readonly path: string,
    tensors: Iterable<{ name: string; shape: readonly number[] }>,
    metadata: Readonly<Record<string, string>> = {},
  ) {
    const empty = () => new Float32Array(0);
    const all = Array.from(tensors, (tensor) => ({ ...tensor, data: empty, dtype: "F32" }));
    const { rows, header, bytes: size } = arrange(path, all, metadata);
    let at = header.length;
    for (const { name, bytes } of rows) this.#parts.set(name, { begin: at, at, end: at += bytes });
    this.#file = new AtomicFile(path, size);
    this.#file.write(header);
  }

  /** Appends elements to a tensor. @throws ShapeError if they exceed its shape */
  add(name: string, data: Float32Array): void {
    const part = this.#parts.get(name);
    const after = (part?.at ?? 0) + data.byteLength;
    if (!part || after > part.end) {
      this.abort();
      throw part
        ? misfit(this.path, name, after - part.begin, part.end - part.begin)
        : new ShapeError(`Cannot write "${this.path}": there is no tensor "${name}"`);
    }
    this.#file.patch(part.at, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    part.at = after;
  }

  /** Completes the file. @throws ShapeError if a tensor is not full */
  commit(): void {
    for (const [name, { begin, at, end }] of this.#parts) {
      if (at === end) continue;
      this.abort();
      throw misfit(this.path, name, at - begin, end - begin);
    }
    this.#file.commit();
  }

  /** Discards the file. */
  abort(): void {
    this.#file.abort();
  }
}

/** Tensors in file order, the header, and the size in bytes. */
function arrange<T extends TensorData>(
  path: string,
  tensors: Iterable<T>,
  metadata: Readonly<Record<string, string>>,
) {
  const order = Object.keys(DTYPE_BITS);
  const rows = Array.from(tensors, (tensor) => ({ ...tensor, ...layout(tensor, path) }));
  rows.sort((a, b) => order.indexOf(b.dtype) - order.indexOf(a.dtype) || (a.name < b.name ? -1 : 1));
  const entries: [string, unknown][] = [];
  if (Object.keys(metadata).length) {
    entries.push([
      "__metadata__",
      Object.fromEntries(Object.entries(metadata).sort(([a], [b]) => a < b ? -1 : 1)),
    ]);
  }
  let end = 0;
  const names = new Set<string>(["__metadata__"]);
  for (const { name, dtype, shape, bytes } of rows) {
    if (names.has(name)) throw new ShapeError(`Cannot write "${path}": the tensor name "${name}" is taken`);
    names.add(name);
    entries.push([name, { dtype, shape, data_offsets: [end, end += bytes] }]);
  }
  const header = encodeHeader(entries);
  return { rows, header, bytes: header.length + end };
}

function layout({ name, shape, data, dtype: given }: TensorData, path: string) {
  const dtype = given ?? (typeof data === "function" ? undefined : NATIVE.find(([, is]) => is(data))?.[0]);
  const bits = dtype === undefined ? undefined : DTYPE_BITS[dtype];
  if (dtype === undefined || bits === undefined) {
    throw new ShapeError(`Cannot write "${path}": the dtype of "${name}" is not known`);
  }
  const bytes = shape.reduce((n, d) => n * d, bits) / 8;
  if (typeof data !== "function" && data.byteLength !== bytes) {
    throw misfit(path, name, data.byteLength, bytes);
  }
  return { dtype, bytes };
}

function misfit(path: string, name: string, bytes: number, expected: number): ShapeError {
  return new ShapeError(`Cannot write "${path}": "${name}" has ${bytes} bytes, its shape needs ${expected}`);
}

/** Length and JSON, padded with spaces to a multiple of 8. Built by hand: an object would lose the name "__proto__". */
function encodeHeader(entries: readonly (readonly [string, unknown])[]): Uint8Array {
  const json = `{${
    entries.map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`).join(",")
  }}`;
  const text = new TextEncoder().encode(json);
  const length = Math.ceil(text.length / 8) * 8;
  const header = new Uint8Array(8 + length).fill(0x20);
  new DataView(header.buffer).setBigUint64(0, BigInt(length), true);
  header.set(text, 8);
  return header;
}

/** Writes the tensors of a store one at a time, without changing dtypes. @throws UsageError for a name that cannot be written */
export async function copyToSafetensors(store: TensorStore, path: string): Promise<void> {
  if (store.tensors.has("__metadata__")) {
    throw new UsageError(`Cannot convert "${store.name}": safetensors cannot hold a tensor "__metadata__"`);
  }
  const tensors = [...store.tensors].map(([name, { dtype, shape }]) => ({
    name,
    dtype,
    shape,
    data: () => store.parts(name),
  }));
  await writeSafetensors(path, tensors, { format: "pt", ...Object.fromEntries(store.metadata) });
}
