// BMP to rows of RGB bytes: 1, 4, 8, 16, 24 and 32 bits, OS/2 headers, run-length encoding and bit fields.
// Microsoft, BITMAPINFOHEADER and its successors.

import { type Rows, Unsupported } from "./rows.ts";

interface Bmp {
  width: number;
  height: number;
  /** Whether the first row is the top one. */
  topDown: boolean;
  bits: number;
  compression: number;
  palette: Uint8Array;
  /** Bytes per palette entry. */
  entry: number;
  /** Bit masks of red, green and blue. */
  masks: readonly number[];
  data: Uint8Array;
}

const RAW = 0, RLE8 = 1, RLE4 = 2, BIT_FIELDS = 3, ALPHA_FIELDS = 6;

/** Parses the header. @throws Error for an unknown kind */
export function bmpHeader(
  bytes: Uint8Array,
): Omit<Bmp, "data" | "palette"> & { start: number; paletteAt: number } {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const size = view.getUint32(14, true), start = view.getUint32(10, true);
  if (size === 12) {
    const [width, height, bits] = [18, 20, 24].map((at) => view.getUint16(at, true)) as [
      number,
      number,
      number,
    ];
    const fixed = { topDown: false, compression: RAW, entry: 3, paletteAt: 26 };
    return { width, height, bits, start, masks: masksOf(bits), ...fixed };
  }
  if (size < 40) throw new Error("the header is too short");
  const tall = view.getInt32(22, true), bits = view.getUint16(28, true);
  const compression = view.getUint32(30, true);
  const fields = compression === BIT_FIELDS || compression === ALPHA_FIELDS;
  const after = size === 40 && fields ? (compression === ALPHA_FIELDS ? 16 : 12) : 0;
  return {
    width: view.getUint32(18, true),
    height: Math.abs(tall),
    topDown: tall < 0,
    bits,
    compression,
    entry: 4,
    masks: fields ? [54, 58, 62].map((at) => view.getUint32(at, true)) : masksOf(bits),
    start,
    paletteAt: 14 + size + after,
  };
}

const masksOf = (bits: number) => bits === 16 ? [0x7c00, 0x3e0, 0x1f] : [0xff0000, 0xff00, 0xff];

/** @throws Unsupported for an unsupported kind; Error for a damaged file, also while rows are read */
export function bmpRows(bytes: Uint8Array): Rows {
  const header = bmpHeader(bytes), { width, height, bits, compression, start, paletteAt } = header;
  const indexed = [1, 4, 8].includes(bits);
  const runs = compression === RLE8 && bits === 8 || compression === RLE4 && bits === 4;
  const fields = (compression === BIT_FIELDS || compression === ALPHA_FIELDS) && (bits === 16 || bits === 32);
  if (!(runs || fields || compression === RAW && (indexed || [16, 24, 32].includes(bits)))) {
    throw new Unsupported(`BMP with compression ${compression} of ${bits} bits`);
  }
  const bmp: Bmp = { ...header, data: bytes.subarray(start), palette: bytes.subarray(paletteAt, start) };
  const stride = runs ? width : 4 * Math.ceil(width * bits / 32);
  const data = runs ? expanded(bmp) : bmp.data;
  if (data.length < stride * height - (runs ? 0 : 3)) throw new Error("the pixels end too early");
  const toRow = indexed ? indexedRow({ ...bmp, bits: runs ? 8 : bits }) : directRow(bmp);
  return {
    width,
    height,
    async *bands() {
      const step = Math.max(1, Math.floor((1 << 18) / width));
      for (let y = 0; y < height; y += step) {
        const rows = Math.min(step, height - y), rgb = new Uint8Array(3 * width * rows);
        for (let r = 0; r < rows; r++) {
          const row = bmp.topDown ? y + r : height - 1 - y - r;
          toRow(data.subarray(row * stride, (row + 1) * stride), rgb, 3 * width * r);
        }
        yield rgb;
      }
    },
  };
}

type ToRow = (row: Uint8Array, rgb: Uint8Array, at: number) => void;

function indexedRow({ width, bits, palette, entry }: Bmp): ToRow {
  const mask = (1 << bits) - 1;
  return (row, rgb, at) => {
    for (let x = 0; x < width; x++, at += 3) {
      const bit = x * bits, index = ((row[bit >> 3] as number) >> (8 - bits - (bit & 7))) & mask;
      for (let c = 0; c < 3; c++) rgb[at + c] = palette[entry * index + 2 - c] ?? 0;
    }
  };
}

function directRow({ width, bits, masks }: Bmp): ToRow {
  const bytes = bits / 8;
  const channels = masks.map((mask) => {
    const shift = mask === 0 ? 0 : 31 - Math.clz32(mask & -mask), most = mask >>> shift;
    return { shift, most };
  });
  return (row, rgb, at) => {
    for (let x = 0, from = 0; x < width; x++, from += bytes, at += 3) {
      let value = 0;
      for (let b = 0; b < bytes; b++) value |= (row[from + b] as number) << (8 * b);
      channels.forEach(({ shift, most }, c) => {
        const sample = (value >>> shift) & most;
        rgb[at + c] = most === 255 || most === 0 ? sample : Math.trunc(sample * 255 / most);
      });
    }
  };
}

/** Decodes run lengths to one index per byte, rows in stored order. */
function expanded({ width, height, compression, data }: Bmp): Uint8Array {
  const out = new Uint8Array(width * height), four = compression === RLE4;
  let x = 0, y = 0;
  for (let at = 0; at + 1 < data.length;) {
    const count = data[at] as number, value = data[at + 1] as number;
    at += 2;
    const put = (index: number) => {
      if (x < width && y < height) out[y * width + x] = index;
      x++;
    };
    if (count > 0) {
      for (let k = 0; k < count; k++) put(four ? (k & 1 ? value & 15 : value >> 4) : value);
    } else if (value === 0) [x, y] = [0, y + 1];
    else if (value === 1) break;
    else if (value === 2) {
      x += data[at] ?? 0;
      y += data[at + 1] ?? 0;
      at += 2;
    } else {
      for (let k = 0; k < value; k++) {
        const byte = data[at + (four ? k >> 1 : k)] ?? 0;
        put(four ? (k & 1 ? byte & 15 : byte >> 4) : byte);
      }
      const length = four ? Math.ceil(value / 2) : value;
      at += length + (length & 1);
    }
  }
  if (y * width + Math.min(x, width) < out.length) throw new Error("the pixels end too early");
  return out;
}
