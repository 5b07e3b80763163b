// One array in NumPy's .npy format (versions 1.0 to 3.0): a header that is a Python dictionary, then the elements.
// Arrays of objects are refused: they are pickles.
// https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html

/** The header of an .npy file. */
export interface NpyHeader {
  /** NumPy's dtype without the byte order, for example "f4" or "u1". */
  kind: string;
  bigEndian: boolean;
  shape: number[];
  /** Column-major order. */
  fortran: boolean;
  /** Offset of the first element, bytes. */
  start: number;
}

/** Types of elements that can be written. */
export type NpyArray = Uint8Array | Int32Array | BigInt64Array | Float32Array | Float64Array;

const READERS: Readonly<
  Record<string, { bytes: number; at: (v: DataView, i: number, little: boolean) => number }>
> = {
  b1: { bytes: 1, at: (v, i) => v.getUint8(i) },
  u1: { bytes: 1, at: (v, i) => v.getUint8(i) },
  i1: { bytes: 1, at: (v, i) => v.getInt8(i) },
  u2: { bytes: 2, at: (v, i, little) => v.getUint16(i, little) },
  i2: { bytes: 2, at: (v, i, little) => v.getInt16(i, little) },
  u4: { bytes: 4, at: (v, i, little) => v.getUint32(i, little) },
  i4: { bytes: 4, at: (v, i, little) => v.getInt32(i, little) },
  u8: { bytes: 8, at: (v, i, little) => Number(v.getBigUint64(i, little)) },
  i8: { bytes: 8, at: (v, i, little) => Number(v.getBigInt64(i, little)) },
  f2: { bytes: 2, at: (v, i, little) => v.getFloat16(i, little) },
  f4: { bytes: 4, at: (v, i, little) => v.getFloat32(i, little) },
  f8: { bytes: 8, at: (v, i, little) => v.getFloat64(i, little) },
};

/** Length of the header at the start of `bytes` (12 or more). @throws Error if it is no .npy file */
export function npyHeaderLength(bytes: Uint8Array): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const isNpy = view.getUint32(0) === 0x934e554d && view.getUint16(4) === 0x5059; // "\x93NUMPY"
  if (!isNpy || ![1, 2, 3].includes(view.getUint8(6))) throw new Error("it is not an .npy array");
  const length = view.getUint8(6) === 1 ? 10 + view.getUint16(8, true) : 12 + view.getUint32(8, true);
  if (length > 1 << 16) throw new Error(`its header claims ${length} bytes`);
  return length;
}

/** Parses a complete header. @throws Error for anything but an array of numbers */
export function parseNpyHeader(bytes: Uint8Array): NpyHeader {
  const start = npyHeaderLength(bytes);
  const text = new TextDecoder("latin1").decode(bytes.subarray(bytes[6] === 1 ? 10 : 12, start));
  const descr = /'descr':\s*'([<>|=])([a-zA-Z])(\d+)'/.exec(text);
  const fortran = /'fortran_order':\s*(True|False)/.exec(text)?.[1];
  const shape = /'shape':\s*\(([\d\s,]*)\)/.exec(text)?.[1];
  if (/'descr':\s*'\|O/.test(text)) throw new Error("it holds Python objects, which are not read");
  const kind = descr ? `${descr[2]}${descr[3]}` : "";
  if (!READERS[kind]) throw new Error(`its dtype is not one of ${Object.keys(READERS).join(", ")}`);
  if (fortran === undefined || shape === undefined) throw new Error("its header is damaged");
  const sizes = shape.split(",").filter((n) => n.trim()).map(Number);
  let total = 1;
  for (const n of sizes) total *= n;
  if (!Number.isSafeInteger(total)) throw new Error(`its shape (${sizes}) overflows`);
  return { kind, bigEndian: descr?.[1] === ">", shape: sizes, fortran: fortran === "True", start };
}

/** Size of the elements, bytes. */
export function npyDataBytes({ kind, shape }: NpyHeader): number {
  return shape.reduce((n, d) => n * d, READERS[kind]?.bytes ?? 0);
}

/** The elements as numbers in row-major order; 64-bit integers beyond 2^53 are rounded. */
export function npyNumbers(header: NpyHeader, data: Uint8Array): Float64Array {
  const reader = READERS[header.kind];
  const count = header.shape.reduce((n, d) => n * d, 1);
  if (!reader || data.length !== count * reader.bytes) throw new Error("its data is cut off");
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const values = new Float64Array(count);
  for (let i = 0; i < count; i++) values[i] = reader.at(view, i * reader.bytes, !header.bigEndian);
  return header.fortran ? rowMajor(values, header.shape) : values;
}

function rowMajor(values: Float64Array, shape: readonly number[]): Float64Array {
  const out = new Float64Array(values.length);
  const position = shape.map(() => 0);
  for (let i = 0; i < out.length; i++) {
    let from = 0;
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      from = from * (shape[axis] as number) + (position[axis] as number);
    }
    out[i] = values[from] as number;
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      position[axis] = (position[axis] as number) + 1;
      if ((position[axis] as number) < (shape[axis] as number)) break;
      position[axis] = 0;
    }
  }
  return out;
}

/** NumPy's names of the types that can be written. */
const DTYPES = {
  Uint8Array: "|u1",
  Int32Array: "<i4",
  BigInt64Array: "<i8",
  Float32Array: "<f4",
  Float64Array: "<f8",
} as const;

/** The header (version 1.0) of an array with the element type of `sample`, padded to a multiple of 64 bytes. */
export function encodeNpyHeader(sample: NpyArray, shape: readonly number[]): Uint8Array {
  const descr = DTYPES[sample[Symbol.toStringTag]];
  const tuple = shape.length === 1 ? `${shape[0]},` : shape.join(", ");
  const text = `{'descr': '${descr}', 'fortran_order': False, 'shape': (${tuple}), }`;
  const length = Math.ceil((10 + text.length + 1) / 64) * 64;
  const bytes = new TextEncoder().encode(`\0NUMPY\x01\0\0\0${text.padEnd(length - 11)}\n`);
  bytes[0] = 0x93;
  new DataView(bytes.buffer).setUint16(8, length - 10, true);
  return bytes;
}
