// The safetensors format, strict: header at most 100 MB, no duplicate keys, no holes, no overlaps, and the file ends where
// the last tensor does. Reads only what is asked for; writes as the reference does (sorted, data at a multiple of 8).
// https://github.com/huggingface/safetensors

import { UsageError } from "../errors.ts";
import { explained, writeAtomic } from "./files.ts";

const MOST_HEADER = 100_000_000;

const BITS: Readonly<Record<string, number>> = {
  BOOL: 8,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  I64: 64,
  U64: 64,
  F64: 64,
};

export interface TensorEntry {
  dtype: string;
  shape: readonly number[];
  /** Bytes from the beginning of the file. */
  begin: number;
  end: number;
}

/** An open file: header in memory, tensors read when asked for. */
export class SafetensorsFile {
  readonly shapes: ReadonlyMap<string, readonly number[]>;

  constructor(
    readonly name: string,
    readonly tensors: ReadonlyMap<string, TensorEntry>,
    readonly metadata: ReadonlyMap<string, string>,
    readonly file: Deno.FsFile,
  ) {
    this.shapes = new Map([...tensors].map(([key, { shape }]) => [key, shape]));
  }

  /** A tensor's elements as f32; F16, BF16 and F64 are converted. @throws UsageError for other dtypes */
  async read(key: string): Promise<Float32Array> {
    const { dtype } = this.#entry(key);
    const bytes = await this.readBytes(key);
    switch (dtype) {
      case "F32":
        return new Float32Array(bytes.buffer);
      case "F16":
        return Float32Array.from(new Float16Array(bytes.buffer));
      case "BF16":
        return new Float32Array(Uint32Array.from(new Uint16Array(bytes.buffer), (v) => v << 16).buffer);
      case "F64":
        return Float32Array.from(new Float64Array(bytes.buffer));
      default:
        throw new UsageError(`Cannot read "${key}" of "${this.name}" as numbers: its dtype is ${dtype}`);
    }
  }

  /** An integer tensor's elements. */
  async readIntegers(key: string): Promise<number[]> {
    const { dtype } = this.#entry(key);
    const { buffer } = await this.readBytes(key);
    const array =
      { I64: BigInt64Array, U64: BigUint64Array, I32: Int32Array, U32: Uint32Array, U8: Uint8Array }[dtype];
    if (!array) {
      throw new UsageError(`Cannot read "${key}" of "${this.name}" as integers: its dtype is ${dtype}`);
    }
    return Array.from(new array(buffer) as Iterable<number | bigint>, Number);
  }

  /** The bytes of a tensor, copied to the beginning of a buffer of their own. */
  async readBytes(key: string): Promise<Uint8Array<ArrayBuffer>> {
    const { begin, end } = this.#entry(key);
    return await readAt(this.file, this.name, begin, end - begin);
  }

  close(): void {
    this.file.close();
  }

  #entry(key: string): TensorEntry {
    const entry = this.tensors.get(key);
    if (!entry) throw new UsageError(`Cannot read "${key}": "${this.name}" has no such tensor`);
    return entry;
  }
}

/** Opens and checks a file. @throws UsageError in one line for anything that is wrong with it */
export async function openSafetensors(path: string): Promise<SafetensorsFile> {
  const file = await Deno.open(path).catch((error) => {
    throw explained(error, "open", path);
  });
  try {
    const { size } = await file.stat();
    const wrong = (reason: string) => new UsageError(`Cannot read "${path}": ${reason}`);
    if (size < 8) throw wrong(`${size} bytes are no safetensors file`);
    const length = new DataView((await readAt(file, path, 0, 8)).buffer).getBigUint64(0, true);
    if (length > BigInt(MOST_HEADER)) {
      throw wrong(`a header of ${length} bytes is longer than ${MOST_HEADER}`);
    }
    if (Number(length) > size - 8) throw wrong(`the header of ${length} bytes is longer than the file`);
    const header = await readAt(file, path, 8, Number(length));
    const { tensors, metadata } = parseHeader(header, 8 + Number(length), size, wrong);
    return new SafetensorsFile(path, tensors, metadata, file);
  } catch (error) {
    file.close();
    throw error;
  }
}

function parseHeader(bytes: Uint8Array, start: number, size: number, wrong: (reason: string) => UsageError) {
  let text: string;
  let json: unknown;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    if (text[0] !== "{") throw new Error("it does not begin with {");
    json = JSON.parse(text);
  } catch (error) {
    throw wrong(`the header is not JSON (${error instanceof Error ? error.message : error})`);
  }
  const repeated = duplicateKey(text);
  if (repeated !== undefined) throw wrong(`the key "${repeated}" appears twice in the header`);
  const metadata = new Map<string, string>();
  const tensors = new Map<string, TensorEntry>();
  for (const [key, value] of Object.entries(json as object)) {
    if (key === "__metadata__") {
      for (const [k, v] of Object.entries(value ?? {})) {
        if (typeof v !== "string") throw wrong(`the metadata "${k}" is no string`);
        metadata.set(k, v);
      }
    } else tensors.set(key, entryOf(key, value, start, wrong));
  }
  let at = start;
  for (
    const [key, { begin, end }] of [...tensors].sort(([, a], [, b]) => a.begin - b.begin || a.end - b.end)
  ) {
    if (begin !== at) {
      throw wrong(
        `there is ${begin > at ? "a hole" : "an overlap"} before the tensor "${key}"`,
      );
    }
    at = end;
  }
  if (at !== size) throw wrong(`its tensors end at byte ${at}, the file at byte ${size}`);
  return { tensors, metadata };
}

function entryOf(
  key: string,
  value: unknown,
  start: number,
  wrong: (reason: string) => UsageError,
): TensorEntry {
  const { dtype, shape, data_offsets: offsets, ...rest } = (value ?? {}) as Record<string, unknown>;
  const count = (v: unknown): v is number => typeof v === "number" && Number.isSafeInteger(v) && v >= 0;
  if (typeof dtype !== "string" || !Object.hasOwn(BITS, dtype)) {
    throw wrong(`the dtype ${dtype} of "${key}" is unknown`);
  }
  if (!Array.isArray(shape) || !shape.every(count)) {
    throw wrong(`the shape of "${key}" is ${JSON.stringify(shape)}`);
  }
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(count)) {
    throw wrong(`the offsets of "${key}" are ${JSON.stringify(offsets)}`);
  }
  if (Object.keys(rest).length) throw wrong(`"${key}" has the unknown field "${Object.keys(rest)[0]}"`);
  const [begin, end] = offsets as [number, number];
  const bits = shape.reduce((n, d) => n * d, BITS[dtype] as number);
  if (!Number.isSafeInteger(bits) || bits !== (end - begin) * 8) {
    throw wrong(`"${key}" of shape [${shape}] and dtype ${dtype} does not fill its ${end - begin} bytes`);
  }
  return { dtype, shape, begin: start + begin, end: start + end };
}

/** JSON.parse keeps the last of two equal keys in silence; this finds the first repeated one on any level. */
function duplicateKey(text: string): string | undefined {
  const seen: Set<string>[] = [];
  for (const [token] of text.matchAll(/"(?:[^"\\]|\\.)*"\s*:?|[{}]/g)) {
    if (token === "{") seen.push(new Set());
    else if (token === "}") seen.pop();
    else if (token.endsWith(":")) {
      const key: string = JSON.parse(token.slice(0, -1).trimEnd());
      if (seen.at(-1)?.has(key)) return key;
      seen.at(-1)?.add(key);
    }
  }
  return undefined;
}

async function readAt(
  file: Deno.FsFile,
  path: string,
  offset: number,
  length: number,
): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = new Uint8Array(length);
  await file.seek(offset, Deno.SeekMode.Start);
  for (let at = 0; at < length;) {
    const n = await file.read(bytes.subarray(at));
    if (n === null) throw new UsageError(`Cannot read "${path}": it ends after ${offset + at} bytes`);
    at += n;
  }
  return bytes;
}

/** A tensor to be written. */
export interface TensorData {
  name: string;
  shape: readonly number[];
  data: Float32Array | Float16Array | Int32Array | Uint32Array | BigInt64Array | Uint8Array;
}

const DTYPES: readonly (readonly [string, new (n: number) => ArrayBufferView])[] = [
  ["I64", BigInt64Array],
  ["F32", Float32Array],
  ["I32", Int32Array],
  ["U32", Uint32Array],
  ["F16", Float16Array],
  ["U8", Uint8Array],
];

/** Writes tensors atomically, largest elements first, then by name. */
export function writeSafetensors(
  path: string,
  tensors: Iterable<TensorData>,
  metadata: Record<string, string> = {},
): void {
  const rows = [...tensors].map((t) => {
    const rank = DTYPES.findIndex(([, array]) => t.data instanceof array);
    return { ...t, rank, dtype: DTYPES[rank]?.[0] ?? "F32" };
  }).sort((a, b) => a.rank - b.rank || (a.name < b.name ? -1 : 1));
  const header: Record<string, unknown> = Object.keys(metadata).length ? { __metadata__: metadata } : {};
  let at = 0;
  for (const { name, dtype, shape, data } of rows) {
    header[name] = { dtype, shape, data_offsets: [at, at += data.byteLength] };
  }
  let text = new TextEncoder().encode(JSON.stringify(header));
  const padded = new Uint8Array(Math.ceil(text.length / 8) * 8).fill(0x20);
  padded.set(text);
  text = padded;
  const length = new Uint8Array(8);
  new DataView(length.buffer).setBigUint64(0, BigInt(text.length), true);
  writeAtomic(path, (file) => {
    file.write(length);
    file.write(text);
    for (const { data } of rows) file.write(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  });
}
