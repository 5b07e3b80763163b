// Writes safetensors files as the reference does, byte for byte: tensors by dtype alignment, largest first, then by name;
// the header padded with spaces so that the data begins at a multiple of 8. Tensors may be given as functions, so that a
// checkpoint larger than the memory can be written.

import { ShapeError } from "../errors.ts";
import { writeAtomic } from "./files.ts";
import { DTYPE_BITS } from "./safetensors.ts";

/** Elements of a tensor. A Uint16Array holds the bits of BF16 where `dtype` says so. */
export type TensorArray =
  | Float32Array
  | Float64Array
  | Float16Array
  | Int32Array
  | Uint32Array
  | Uint16Array
  | BigInt64Array
  | Uint8Array;

/** A tensor to be written. */
export interface TensorData {
  name: string;
  shape: readonly number[];
  /** The elements, or a function that gets them when their turn has come; that one needs `dtype`. */
  data: TensorArray | (() => TensorArray | Promise<TensorArray>);
  /** As the format spells it; follows from `data` when absent. */
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
 * Writes `tensors` to `path`, whole or not at all; metadata keys are sorted, so equal input gives equal bytes.
 * @throws ShapeError when a tensor's data does not fill its shape, or a name comes twice
 * @throws UsageError when the file system refuses
 */
export async function writeSafetensors(
  path: string,
  tensors: Iterable<TensorData>,
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
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
  await writeAtomic(path, async (sink) => {
    await sink.write(header);
    for (const { name, data, bytes } of rows) {
      const array = typeof data === "function" ? await data() : data;
      if (array.byteLength !== bytes) throw misfit(path, name, array.byteLength, bytes);
      await sink.write(new Uint8Array(array.buffer, array.byteOffset, array.byteLength));
    }
  }, { size: header.length + end });
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
