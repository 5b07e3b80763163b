// The segments of a JPEG file, parsed like libjpeg: stray bytes between segments are skipped, bytes after the end are ignored.
// They are rewritten to a plain stream with an explicit colour space for the decoder: component ids and one Adobe marker, by
// libjpeg's rule (jdapimin.c, default_decompress_parms).
// ITU-T T.81.

/** A frame header. */
export interface JpegFrame {
  width: number;
  height: number;
  /** Bits per sample. */
  precision: number;
  components: number;
  progressive: boolean;
  /** Samples per pixel over all components: 1.5 for 4:2:0. */
  samples: number;
}

/** Why a valid file cannot be decoded, by the kind of its frame. */
const UNSUPPORTED: Readonly<Record<number, string>> = {
  0xc3: "lossless JPEG",
  0xc5: "hierarchical JPEG",
  0xc6: "hierarchical JPEG",
  0xc7: "hierarchical JPEG",
  0xc9: "arithmetic coding",
  0xca: "arithmetic coding",
  0xcb: "lossless JPEG with arithmetic coding",
  0xcd: "hierarchical JPEG with arithmetic coding",
  0xce: "hierarchical JPEG with arithmetic coding",
  0xcf: "hierarchical JPEG with arithmetic coding",
};

const EOI = 0xd9, SOS = 0xda;
const isFrame = (marker: number) => marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
/** Markers without a length. */
const isBare = (marker: number) => marker === 0x01 || (marker >= 0xd0 && marker <= 0xd9);

/** The next marker from `at` on, and its offset; undefined at the end. */
function nextMarker(bytes: Uint8Array, at: number): { marker: number; at: number } | undefined {
  for (let from = at;; from++) {
    from = bytes.indexOf(0xff, from);
    if (from < 0 || from + 1 >= bytes.length) return undefined;
    const marker = bytes[from + 1] as number;
    if (marker !== 0 && marker !== 0xff) return { marker, at: from };
  }
}

/** End of a scan's data that starts at `at`: the next marker other than a restart. */
function endOfScan(bytes: Uint8Array, at: number): number {
  for (let next = nextMarker(bytes, at); next; next = nextMarker(bytes, next.at + 2)) {
    if (next.marker < 0xd0 || next.marker > 0xd7) return next.at;
  }
  return bytes.length;
}

interface Segment {
  marker: number;
  /** Contents after the length. */
  data: Uint8Array<ArrayBuffer>;
  /** Entropy-coded data of a scan. */
  coded?: Uint8Array<ArrayBuffer>;
}

/** Segments up to the end marker; a truncated file has none. */
function* segments(bytes: Uint8Array<ArrayBuffer>): Generator<Segment> {
  let next = nextMarker(bytes, 2);
  while (next) {
    const { marker, at } = next;
    if (isBare(marker)) {
      if (marker === EOI) return yield { marker, data: new Uint8Array() };
      next = nextMarker(bytes, at + 2);
      continue;
    }
    if (at + 4 > bytes.length) return;
    let end = at + 2 + 256 * (bytes[at + 2] as number) + (bytes[at + 3] as number);
    if (end > bytes.length) return;
    const data = bytes.subarray(at + 4, end);
    if (marker === SOS) {
      const from = end;
      end = endOfScan(bytes, from);
      yield { marker, data, coded: bytes.subarray(from, end) };
    } else yield { marker, data };
    next = nextMarker(bytes, end);
  }
}

function frameOf(marker: number, data: Uint8Array): JpegFrame {
  const [precision = 0, h1 = 0, h0 = 0, w1 = 0, w0 = 0, components = 0] = data;
  const factors = Array.from({ length: components }, (_, c) => {
    const byte = data[7 + 3 * c] ?? 0;
    return { h: byte >> 4, v: byte & 15 };
  });
  const most = (side: "h" | "v") => Math.max(1, ...factors.map((f) => f[side]));
  const samples = factors.reduce((sum, { h, v }) => sum + h * v / (most("h") * most("v")), 0);
  return {
    width: 256 * w1 + w0,
    height: 256 * h1 + h0,
    precision,
    components,
    progressive: marker === 0xc2,
    samples,
  };
}

/** The frame of a file, from its first segments; undefined if there is none. */
export function jpegFrame(bytes: Uint8Array<ArrayBuffer>): JpegFrame | undefined {
  for (const { marker, data } of segments(bytes)) {
    if (isFrame(marker)) return frameOf(marker, data);
    if (marker === SOS || marker === EOI) return undefined;
  }
  return undefined;
}

/** Why a valid file cannot be decoded: it is no 8-bit Huffman-coded image. */
export function unsupportedJpeg(bytes: Uint8Array<ArrayBuffer>): string | undefined {
  for (const { marker, data } of segments(bytes)) {
    if (!isFrame(marker)) continue;
    const { precision, components } = frameOf(marker, data);
    if (UNSUPPORTED[marker]) return UNSUPPORTED[marker];
    if (precision !== 8) return `${precision}-bit JPEG`;
    return [1, 3, 4].includes(components) ? undefined : `JPEG of ${components} components`;
  }
  return undefined;
}

/** Component ids and Adobe transform of each colour space. */
const SPACES = {
  gray: { ids: [1], transform: 0 },
  rgb: { ids: [0x52, 0x47, 0x42], transform: 0 },
  ycc: { ids: [1, 2, 3], transform: 1 },
  cmyk: { ids: [1, 2, 3, 4], transform: 0 },
  ycck: { ids: [1, 2, 3, 4], transform: 2 },
} as const;

/** The colour space by libjpeg's rule. @param adobe transform of Adobe's marker, if there is one */
function spaceOf(ids: readonly number[], jfif: boolean, adobe: number | undefined): keyof typeof SPACES {
  if (ids.length === 1) return "gray";
  if (ids.length === 4) return adobe === undefined || adobe === 0 ? "cmyk" : "ycck";
  if (jfif) return "ycc";
  if (adobe !== undefined) return adobe === 0 ? "rgb" : "ycc";
  return ids.join() === SPACES.rgb.ids.join() ? "rgb" : "ycc";
}

const textOf = (data: Uint8Array, length: number) => String.fromCharCode(...data.subarray(0, length));

/**
 * The same image without application segments, comments and stray bytes, and with an explicit colour space.
 * @throws Error for a file that is truncated or damaged before its data
 */
export function plainJpeg(bytes: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
  const parts: Uint8Array<ArrayBuffer>[] = [];
  const put = (marker: number, data: Uint8Array) => {
    const length = data.length + 2;
    parts.push(new Uint8Array([0xff, marker, length >> 8, length & 255, ...data]));
  };
  let jfif = false, adobe: number | undefined, from: number[] = [], to: readonly number[] = [], scans = 0;
  for (const { marker, data, coded } of segments(bytes)) {
    if (marker === 0xe0 && data.length >= 14 && textOf(data, 5) === "JFIF\0") jfif = true;
    else if (marker === 0xee && data.length >= 12 && textOf(data, 5) === "Adobe") adobe = data[11];
    else if (isFrame(marker)) {
      if (from.length > 0) throw new Error("there are two frames");
      from = Array.from({ length: data[5] ?? 0 }, (_, c) => data[6 + 3 * c] ?? 0);
      const space = SPACES[spaceOf(from, jfif, adobe)];
      to = space.ids;
      put(0xee, new Uint8Array([...new TextEncoder().encode("Adobe"), 0, 100, 0, 0, 0, 0, space.transform]));
      put(marker, data.map((byte, i) => i >= 6 && i % 3 === 0 ? to[i / 3 - 2] as number : byte));
    } else if (marker === SOS && coded) {
      scans++;
      put(
        marker,
        data.map((byte, i) => i % 2 === 1 && i <= 2 * (data[0] ?? 0) - 1 ? renamed(byte, from, to) : byte),
      );
      parts.push(coded);
    } else if (marker === EOI) {
      if (scans === 0) throw new Error("there is no scan");
      return joined([new Uint8Array([0xff, 0xd8]), ...parts, new Uint8Array([0xff, EOI])]);
    } else if (marker < 0xe0 || marker > 0xef && marker !== 0xfe) put(marker, data);
  }
  throw new Error("the end is missing");
}

function renamed(id: number, from: readonly number[], to: readonly number[]): number {
  const name = to[from.indexOf(id)];
  if (name === undefined) throw new Error(`a scan names the component ${id}, which the frame does not have`);
  return name;
}

function joined(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
