// PNG to rows of RGB bytes, band by band, so that a file of any size is decoded in little memory (except interlaced files).
// Colours as in Pillow's convert("RGB"): alpha and tRNS are ignored, 16-bit colours keep their high byte, 16-bit gray is
// clipped at 255.
// W3C, Portable Network Graphics Specification, third edition.

import { crc32, inflateSync } from "node:zlib";
import type { Rows } from "./rows.ts";

/** Samples per pixel of each colour type. */
const CHANNELS: Readonly<Record<number, number>> = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 };
const DEPTHS: Readonly<Record<number, readonly number[]>> = {
  0: [1, 2, 4, 8, 16],
  2: [8, 16],
  3: [1, 2, 4, 8],
  4: [8, 16],
  6: [8, 16],
};
const PALETTE = 3;

/** Files up to this size are inflated at once, larger ones as a stream in bands of about this size; bytes. */
const BAND = 1 << 20;

interface Png {
  width: number;
  height: number;
  depth: number;
  type: number;
  interlaced: boolean;
  /** 256 RGB entries. */
  palette: Uint8Array;
  /** The compressed rows, in chunks. */
  parts: Uint8Array<ArrayBuffer>[];
}

/** @throws Error for a damaged file, also while rows are read */
export function pngRows(bytes: Uint8Array<ArrayBuffer>): Rows {
  const png = parse(bytes), { width, height } = png;
  return { width, height, bands: () => png.interlaced ? interlaced(png) : sequential(png) };
}

function parse(bytes: Uint8Array<ArrayBuffer>): Png {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let png: Png | undefined;
  for (let at = 8; at + 12 <= bytes.length;) {
    const length = view.getUint32(at), data = bytes.subarray(at + 8, at + 8 + length);
    const type = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (at + 12 + length > bytes.length) break;
    const known = ["IHDR", "PLTE", "IDAT", "IEND"].includes(type);
    if (known && crc32(bytes.subarray(at + 4, at + 8 + length)) !== view.getUint32(at + 8 + length)) {
      throw new Error(`the checksum of ${type} is wrong`);
    }
    if (type === "IHDR") png = header(data);
    else if (!png) throw new Error("the first chunk is not IHDR");
    else if (type === "PLTE") png.palette.set(data.subarray(0, 768));
    else if (type === "IDAT") png.parts.push(data);
    else if (type === "IEND") break;
    at += 12 + length;
  }
  if (!png) throw new Error("there is no IHDR");
  return png;
}

function header(data: Uint8Array): Png {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const [depth = 0, type = 0, compression, filter, interlace = 2] = data.subarray(8);
  if (!DEPTHS[type]?.includes(depth) || compression !== 0 || filter !== 0 || interlace > 1) {
    throw new Error("IHDR is damaged");
  }
  const palette = new Uint8Array(768); // missing entries are black, as in Pillow
  return {
    width: view.getUint32(0),
    height: view.getUint32(4),
    depth,
    type,
    interlaced: interlace === 1,
    palette,
    parts: [],
  };
}

/** The inflated bytes in chunks; a small file is one chunk. */
async function* inflated(parts: Uint8Array<ArrayBuffer>[], length: number): AsyncGenerator<Uint8Array> {
  if (length <= BAND) {
    const compressed = parts.length === 1
      ? parts[0] as Uint8Array
      : new Uint8Array(await new Blob(parts).arrayBuffer());
    yield inflateSync(compressed, { maxOutputLength: BAND + 65536 });
    return;
  }
  const next = parts.values();
  const source = new ReadableStream<Uint8Array<ArrayBuffer>>({
    pull(controller) {
      const { value, done } = next.next();
      if (done) controller.close();
      else controller.enqueue(value);
    },
  });
  yield* source.pipeThrough(new DecompressionStream("deflate"));
}

/** Reads a given number of bytes from the inflated chunks. */
class Reader {
  readonly #pieces: AsyncGenerator<Uint8Array>;
  #piece: Uint8Array = new Uint8Array();

  constructor(png: Png, length: number) {
    this.#pieces = inflated(png.parts, length);
  }

  async fill(target: Uint8Array): Promise<void> {
    for (let at = 0; at < target.length;) {
      if (this.#piece.length === 0) {
        const { value, done } = await this.#pieces.next();
        if (done) throw new Error("the pixels end too early");
        this.#piece = value;
        continue;
      }
      const part = this.#piece.subarray(0, target.length - at);
      target.set(part, at);
      at += part.length;
      this.#piece = this.#piece.subarray(part.length);
    }
  }

  /** Cancels the stream, which would continue to inflate. */
  async close(): Promise<void> {
    await this.#pieces.return(undefined);
  }
}

const rowBytes = (png: Png, width: number) =>
  Math.ceil(width * (CHANNELS[png.type] as number) * png.depth / 8);

async function* sequential(png: Png): AsyncGenerator<Uint8Array> {
  const { width, height } = png, stride = rowBytes(png, width) + 1;
  const reader = new Reader(png, stride * height);
  try {
    const rows = Math.max(1, Math.min(height, Math.floor(BAND / Math.max(stride, 3 * width))));
    let above: Uint8Array = new Uint8Array(stride - 1);
    for (let y = 0; y < height; y += rows) {
      const count = Math.min(rows, height - y), data = new Uint8Array(count * stride);
      await reader.fill(data);
      const rgb = new Uint8Array(3 * width * count);
      for (let r = 0; r < count; r++) {
        const row = data.subarray(r * stride + 1, (r + 1) * stride);
        unfilter(data[r * stride] as number, row, above, png);
        toRgb(png, row, width, rgb, 3 * width * r, 3);
        above = row;
      }
      yield rgb;
    }
  } finally {
    await reader.close();
  }
}

/** Adam7: start and step of each pass. */
const PASSES = [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [
  0,
  1,
  1,
  2,
]] as const;

async function* interlaced(png: Png): AsyncGenerator<Uint8Array> {
  const { width, height } = png, rgb = new Uint8Array(3 * width * height);
  const reader = new Reader(png, (rowBytes(png, width) + 8) * (height + 8));
  try {
    for (const [left, top, dx, dy] of PASSES) {
      const across = Math.ceil((width - left) / dx), stride = rowBytes(png, across) + 1;
      if (across <= 0) continue;
      let above: Uint8Array = new Uint8Array(stride - 1);
      for (let y = top; y < height; y += dy) {
        const data = new Uint8Array(stride), row = data.subarray(1);
        await reader.fill(data);
        unfilter(data[0] as number, row, above, png);
        toRgb(png, row, across, rgb, 3 * (y * width + left), 3 * dx);
        above = row;
      }
    }
  } finally {
    await reader.close();
  }
  yield rgb;
}

/** Reverses the filter of a row in place. */
function unfilter(filter: number, row: Uint8Array, above: Uint8Array, png: Png): void {
  const n = Math.max(1, (CHANNELS[png.type] as number) * png.depth >> 3); // distance to the byte of the left pixel
  const length = row.length;
  switch (filter) {
    case 0:
      return;
    case 1:
      for (let i = n; i < length; i++) row[i] = (row[i] as number) + (row[i - n] as number);
      return;
    case 2:
      for (let i = 0; i < length; i++) row[i] = (row[i] as number) + (above[i] as number);
      return;
    case 3:
      for (let i = 0; i < length; i++) {
        const left = i < n ? 0 : row[i - n] as number;
        row[i] = (row[i] as number) + ((left + (above[i] as number)) >> 1);
      }
      return;
    case 4:
      for (let i = 0; i < length; i++) {
        const left = i < n ? 0 : row[i - n] as number, corner = i < n ? 0 : above[i - n] as number;
        const up = above[i] as number;
        const a = Math.abs(up - corner), b = Math.abs(left - corner), c = Math.abs(left + up - 2 * corner);
        row[i] = (row[i] as number) + (a <= b && a <= c ? left : b <= c ? up : corner);
      }
      return;
    default:
      throw new Error(`there is no filter ${filter}`);
  }
}

/** Converts a row of samples to RGB bytes from `at` on, one pixel every `step` bytes. */
function toRgb(png: Png, row: Uint8Array, width: number, rgb: Uint8Array, at: number, step: number): void {
  const { depth, type, palette } = png, wide = depth === 16 ? 2 : 1, size = wide * (CHANNELS[type] as number);
  if (type === 2 || type === 6) { // RGB, RGBA
    if (size === 3 && step === 3) return rgb.set(row.subarray(0, 3 * width), at);
    for (let x = 0, from = 0; x < width; x++, from += size, at += step) {
      rgb[at] = row[from] as number;
      rgb[at + 1] = row[from + wide] as number;
      rgb[at + 2] = row[from + 2 * wide] as number;
    }
    return;
  }
  const mask = (1 << Math.min(depth, 8)) - 1, scale = 255 / mask, clipped = type === 0 && depth === 16;
  for (let x = 0; x < width; x++, at += step) {
    let value: number;
    if (depth >= 8) {
      value = row[x * size] as number;
      if (clipped) value = value > 0 ? 255 : row[x * size + 1] as number;
    } else {
      const bit = x * depth;
      value = ((row[bit >> 3] as number) >> (8 - depth - (bit & 7))) & mask;
      if (type !== PALETTE) value *= scale;
    }
    if (type === PALETTE) {
      rgb[at] = palette[3 * value] as number;
      rgb[at + 1] = palette[3 * value + 1] as number;
      rgb[at + 2] = palette[3 * value + 2] as number;
    } else rgb[at] = rgb[at + 1] = rgb[at + 2] = value;
  }
}
