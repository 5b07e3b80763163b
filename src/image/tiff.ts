// TIFF to rows of RGB bytes: strips and tiles; bilevel, gray, palette, RGB and CMYK; uncompressed, LZW, Deflate or PackBits.
// Alpha and 16 bits as in Pillow. Other kinds are refused by name.
// Adobe, TIFF 6.0.

import { inflateSync } from "node:zlib";
import { cmykToRgb, type Rows, Unsupported } from "./rows.ts";

const TAGS = {
  width: 256,
  height: 257,
  bits: 258,
  compression: 259,
  photometric: 262,
  fillOrder: 266,
  stripOffsets: 273,
  orientation: 274,
  samples: 277,
  rowsPerStrip: 278,
  stripBytes: 279,
  planar: 284,
  predictor: 317,
  colorMap: 320,
  tileWidth: 322,
  tileHeight: 323,
  tileOffsets: 324,
  tileBytes: 325,
  extra: 338,
  format: 339,
} as const;

type Tags = (name: keyof typeof TAGS) => readonly number[];

const COMPRESSIONS: Readonly<Record<number, string>> = {
  2: "CCITT compression",
  3: "CCITT compression",
  4: "CCITT compression",
  6: "JPEG compression",
  7: "JPEG compression",
  34925: "LZMA compression",
  50000: "Zstandard compression",
  50001: "WebP compression",
};

/** The first directory. @throws Error if it is outside the bytes */
function tagsOf(bytes: Uint8Array): { tags: Tags; little: boolean } {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const little = bytes[0] === 0x49, start = view.getUint32(4, little), found = new Map<number, number[]>();
  const sizes: Readonly<Record<number, number>> = { 1: 1, 3: 2, 4: 4 };
  for (let i = 0, n = view.getUint16(start, little); i < n; i++) {
    const at = start + 2 + 12 * i, size = sizes[view.getUint16(at + 2, little)];
    if (!size) continue; // texts and fractions
    const count = view.getUint32(at + 4, little);
    const from = size * count <= 4 ? at + 8 : view.getUint32(at + 8, little);
    if (from + size * count > bytes.length) throw new Error("a tag is beyond the end");
    const read = (place: number) => {
      if (size === 1) return view.getUint8(place);
      return size === 2 ? view.getUint16(place, little) : view.getUint32(place, little);
    };
    found.set(view.getUint16(at, little), Array.from({ length: count }, (_, k) => read(from + size * k)));
  }
  return { tags: (name) => found.get(TAGS[name]) ?? [], little };
}

interface Tiff {
  width: number;
  height: number;
  bits: number;
  samples: number;
  photometric: number;
  tags: Tags;
  little: boolean;
}

/** Parses the header. @throws Unsupported for an unsupported kind; Error for a damaged header */
export function tiffHeader(bytes: Uint8Array): Tiff {
  const { tags, little } = tagsOf(bytes);
  const one = (name: keyof typeof TAGS, missing: number) => tags(name)[0] ?? missing;
  const width = one("width", 0), height = one("height", 0);
  const samples = one("samples", 1), bits = one("bits", 1);
  const photometric = one("photometric", -1), compression = one("compression", 1);
  const refuse = (what: string) => {
    throw new Unsupported(`TIFF with ${what}`);
  };
  if (COMPRESSIONS[compression]) refuse(COMPRESSIONS[compression]);
  if (![1, 5, 8, 32773, 32946].includes(compression)) refuse(`compression ${compression}`);
  if (one("orientation", 1) !== 1) refuse(`orientation ${one("orientation", 1)}`);
  if (one("planar", 1) !== 1 && samples > 1) refuse("a plane for each sample");
  if (one("fillOrder", 1) !== 1) refuse("reversed bits");
  if (one("format", 1) !== 1) refuse("samples that are not unsigned integers");
  if (![1, 2].includes(one("predictor", 1))) refuse(`predictor ${one("predictor", 1)}`);
  if (tags("bits").some((b) => b !== bits)) refuse("samples of different sizes");
  const least = [1, 1, 3, 1, 0, 4][photometric] ?? 0;
  if (!least) refuse(`photometric interpretation ${photometric}`);
  const narrow = samples === 1 && (photometric === 3 || photometric < 2) ? [1, 2, 4] : [];
  const wide = photometric === 2 || photometric === 1 && samples === 1 ? [16] : [];
  if (samples < least || samples > least + 1 || ![8, ...narrow, ...wide].includes(bits)) {
    refuse(`${samples} samples of ${bits} bits`);
  }
  if (one("predictor", 1) === 2 && bits < 8) refuse("a predictor for less than 8 bits");
  return { width, height, bits, samples, photometric, tags, little };
}

/** @throws Unsupported for an unsupported kind; Error for a damaged file, also while rows are read */
export function tiffRows(bytes: Uint8Array): Rows {
  const tiff = tiffHeader(bytes), { width, height, tags } = tiff;
  const tiled = tags("tileWidth").length > 0;
  const across = tiled ? tags("tileWidth")[0] as number : width;
  const down = tiled ? tags("tileHeight")[0] ?? 0 : Math.min(tags("rowsPerStrip")[0] ?? height, height);
  const [offsets, counts] = tiled
    ? [tags("tileOffsets"), tags("tileBytes")]
    : [tags("stripOffsets"), tags("stripBytes")];
  const columns = Math.ceil(width / across), stride = Math.ceil(across * tiff.samples * tiff.bits / 8);
  if (!(across > 0 && down > 0) || across * down > 4 * (width + 64) * (height + 64)) {
    throw new Error("the tiles have no size");
  }
  if (offsets.length < columns * Math.ceil(height / down)) throw new Error("there are too few strips");
  return {
    width,
    height,
    async *bands() {
      for (let top = 0, part = 0; top < height; top += down) {
        const rows = Math.min(down, height - top), rgb = new Uint8Array(3 * width * rows);
        for (let left = 0; left < width; left += across, part++) {
          const at = offsets[part] as number, coded = bytes.subarray(at, at + (counts[part] ?? bytes.length));
          const data = unpacked(coded, tags("compression")[0] ?? 1, stride * (tiled ? down : rows));
          for (let r = 0; r < rows; r++) {
            const row = data.subarray(r * stride, (r + 1) * stride);
            if (tags("predictor")[0] === 2) undoPredictor(row, tiff);
            const wanted = Math.min(across, width - left);
            rgb.set(toRgb(row, wanted, tiff), 3 * (r * width + left));
          }
        }
        yield rgb;
      }
    },
  };
}

/** @throws Error for fewer than `length` bytes */
function unpacked(coded: Uint8Array, compression: number, length: number): Uint8Array {
  const data = compression === 1
    ? coded.slice(0, length)
    : compression === 5
    ? lzw(coded, length)
    : compression === 32773
    ? packBits(coded, length)
    : new Uint8Array(inflateSync(coded, { maxOutputLength: length + 65536 }));
  if (data.length < length) throw new Error("a strip ends too early");
  return data;
}

function packBits(coded: Uint8Array, length: number): Uint8Array {
  const out = new Uint8Array(length);
  let end = 0;
  for (let at = 0; at < coded.length && end < length;) {
    const n = coded[at++] as number;
    if (n < 128) {
      out.set(coded.subarray(at, at + Math.min(n + 1, length - end)), end);
      [at, end] = [at + n + 1, end + n + 1];
    } else if (n > 128) {
      out.fill(coded[at++] ?? 0, end, end + 257 - n);
      end += 257 - n;
    }
  }
  return out.subarray(0, Math.min(end, length));
}

/** LZW: codes start at the highest bit; their length grows one code early. */
function lzw(coded: Uint8Array, length: number): Uint8Array {
  const out = new Uint8Array(length), from = new Uint32Array(4097), count = new Uint16Array(4097);
  let bits = 9, next = 258, end = 0, buffer = 0, held = 0, previous = -1;
  for (let at = 0; end < length;) {
    for (; held < bits && at < coded.length; held += 8) {
      buffer = (buffer << 8 | (coded[at++] as number)) & 0xffffff;
    }
    if (held < bits) break;
    const code = buffer >>> (held - bits) & ((1 << bits) - 1);
    held -= bits;
    if (code === 257) break;
    if (code === 256) {
      [bits, next, previous] = [9, 258, -1];
      continue;
    }
    if (code >= next && !(code === next && previous >= 0)) throw new Error("a code is damaged");
    // Each code is a range of the output; a new one is the previous range plus the next byte.
    const start = end;
    if (code < 256) out[end++] = code;
    else {
      const source = code < next ? from[code] as number : previous;
      const size = code < next ? count[code] as number : start - previous + 1;
      for (let k = 0; k < size && end < length; k++) out[end++] = out[source + k] as number;
    }
    if (previous >= 0 && next < 4096) {
      [from[next], count[next]] = [previous, start - previous + 1];
      next++;
    }
    if (next >= (1 << bits) - 1 && bits < 12) bits++;
    previous = start;
  }
  return out.subarray(0, end);
}

function undoPredictor(row: Uint8Array, { bits, samples, little }: Tiff): void {
  if (bits === 8) {
    for (let i = samples; i < row.length; i++) row[i] = (row[i] as number) + (row[i - samples] as number);
    return;
  }
  const view = new DataView(row.buffer, row.byteOffset, row.byteLength);
  for (let i = 2 * samples; i + 1 < row.length; i += 2) {
    view.setUint16(i, view.getUint16(i, little) + view.getUint16(i - 2 * samples, little), little);
  }
}

function toRgb(
  row: Uint8Array,
  width: number,
  { bits, samples, photometric, little, tags }: Tiff,
): Uint8Array {
  const rgb = new Uint8Array(3 * width), bytes = bits === 16 ? 2 : 1, high = bits === 16 && little ? 1 : 0;
  if (photometric === 5) {
    return cmykToRgb(samples === 4 ? row.subarray(0, 4 * width) : row.filter((_, i) => i % samples < 4));
  }
  if (photometric === 2) {
    const premultiplied = samples === 4 && bits === 8 && tags("extra")[0] === 1;
    for (let x = 0; x < width; x++) {
      const at = x * samples * bytes, alpha = premultiplied ? row[at + 3] as number : 255;
      for (let c = 0; c < 3; c++) {
        const value = row[at + c * bytes + high] as number;
        const whole = alpha === 0 ? 0 : Math.min(255, Math.trunc(value * 255 / alpha));
        rgb[3 * x + c] = alpha === 255 ? value : whole;
      }
    }
    return rgb;
  }
  const most = (1 << Math.min(bits, 8)) - 1, map = tags("colorMap"), colors = 1 << bits;
  for (let x = 0; x < width; x++) {
    const bit = x * bits;
    let value = bits < 8
      ? (row[bit >> 3] as number) >> (8 - bits - (bit & 7)) & most
      : row[x * samples * bytes] as number;
    if (photometric === 3) {
      for (let c = 0; c < 3; c++) rgb[3 * x + c] = (map[c * colors + value] ?? 0) >> 8;
      continue;
    }
    if (bits === 16 && row[2 * x + high] !== 0) value = 255; // clipped, as in Pillow
    else if (bits === 16) value = row[2 * x + 1 - high] as number;
    const gray = photometric === 0 ? most - value : value;
    rgb.fill(bits < 8 ? gray * 255 / most : gray, 3 * x, 3 * x + 3);
  }
  return rgb;
}
