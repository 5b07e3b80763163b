// The first frame of a GIF to rows of RGB bytes: stored palette colours, the transparent one included. The canvas around the
// frame is filled as in Pillow: with the transparent colour, else with the first one.
// CompuServe, Graphics Interchange Format, version 89a.

import { type Rows, rowsOf } from "./rows.ts";

interface Frame {
  left: number;
  top: number;
  width: number;
  height: number;
  interlaced: boolean;
  palette: Uint8Array | undefined;
  transparent: number | undefined;
  codeSize: number;
  /** Concatenated sub-blocks of codes. */
  codes: Uint8Array;
}

const u16 = (bytes: Uint8Array, at: number) => (bytes[at] ?? 0) + 256 * (bytes[at + 1] ?? 0);

/** @throws Error for a damaged file, or one without a frame */
export function gifRows(bytes: Uint8Array): Rows {
  const frame = firstFrame(bytes), { left, top, transparent, palette } = frame;
  const width = u16(bytes, 6), height = u16(bytes, 8);
  if (left + frame.width > width || top + frame.height > height) throw new Error("the frame is too large");
  const indices = new Uint8Array(width * height).fill(transparent ?? 0), pixels = unpacked(frame);
  const order = frame.interlaced ? interlacedRows(frame.height) : undefined;
  for (let y = 0; y < frame.height; y++) {
    const row = pixels.subarray(y * frame.width, (y + 1) * frame.width);
    indices.set(row, (top + (order?.[y] ?? y)) * width + left);
  }
  const data = new Uint8Array(3 * width * height);
  for (let i = 0, at = 0; i < indices.length; i++, at += 3) {
    const index = indices[i] as number;
    // Without a palette an index is a gray level; missing palette entries are black.
    data[at] = palette ? palette[3 * index] ?? 0 : index;
    data[at + 1] = palette ? palette[3 * index + 1] ?? 0 : index;
    data[at + 2] = palette ? palette[3 * index + 2] ?? 0 : index;
  }
  return rowsOf({ width, height, data });
}

function firstFrame(bytes: Uint8Array): Frame {
  let at = 13, transparent: number | undefined;
  const paletteAt = (flags: number) => {
    if (!(flags & 0x80)) return undefined;
    const length = 3 << ((flags & 7) + 1), palette = bytes.subarray(at, at + length);
    at += length;
    return palette;
  };
  const blocks = () => {
    const parts: Uint8Array[] = [];
    for (let length = bytes[at++] ?? 0; length > 0; length = bytes[at++] ?? 0) {
      parts.push(bytes.subarray(at, at + length));
      at += length;
    }
    const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
    let end = 0;
    for (const part of parts) {
      all.set(part, end);
      end += part.length;
    }
    return all;
  };
  const global = paletteAt(bytes[10] ?? 0);
  while (at < bytes.length) {
    const kind = bytes[at++];
    if (kind === 0x21) { // an extension
      const label = bytes[at++], data = blocks();
      if (label === 0xf9 && (data[0] ?? 0) & 1) transparent = data[3];
    } else if (kind === 0x2c) {
      const flags = bytes[at + 8] ?? 0;
      const place = {
        left: u16(bytes, at),
        top: u16(bytes, at + 2),
        width: u16(bytes, at + 4),
        height: u16(bytes, at + 6),
      };
      at += 9;
      const palette = paletteAt(flags) ?? global, codeSize = bytes[at++] ?? 0;
      return { ...place, interlaced: (flags & 0x40) > 0, palette, transparent, codeSize, codes: blocks() };
    } else if (kind !== 0) break;
  }
  throw new Error("there is no frame");
}

/** Rows of an interlaced frame in stored order. */
function interlacedRows(height: number): number[] {
  const passes = [[0, 8], [4, 8], [2, 4], [1, 2]] as const;
  return passes.flatMap(([start, step]) =>
    Array.from({ length: Math.max(0, Math.ceil((height - start) / step)) }, (_, i) => start + i * step)
  );
}

/** Decodes LZW to indices. @throws Error for damaged or missing codes */
function unpacked({ width, height, codeSize, codes }: Frame): Uint8Array {
  if (codeSize < 1 || codeSize > 11) throw new Error(`the code size is ${codeSize}`);
  const out = new Uint8Array(width * height), clear = 1 << codeSize;
  const prefix = new Uint16Array(4096), suffix = new Uint8Array(4096), length = new Uint16Array(4096);
  for (let i = 0; i < clear; i++) [suffix[i], length[i]] = [i, 1];
  let bits = codeSize + 1, next = clear + 2, previous = -1, end = 0, buffer = 0, held = 0;
  for (let i = 0; end < out.length;) {
    while (held < bits) {
      if (i >= codes.length) throw new Error("the codes end too early");
      buffer |= (codes[i++] as number) << held;
      held += 8;
    }
    const code = buffer & ((1 << bits) - 1);
    buffer >>>= bits;
    held -= bits;
    if (code === clear) {
      [bits, next, previous] = [codeSize + 1, clear + 2, -1];
      continue;
    }
    if (code === clear + 1) throw new Error("the codes end too early");
    if (code > next || previous < 0 && code >= clear || code === next && next >= 4096) {
      throw new Error("a code is damaged");
    }
    // The code that is being defined means the previous one plus its first index.
    const known = code < next ? code : previous, count = (length[known] as number) + (code < next ? 0 : 1);
    let first = known;
    for (let k = length[known] as number, c = known; k > 0; k--, c = prefix[c] as number) {
      if (end + k - 1 < out.length) out[end + k - 1] = suffix[c] as number;
      first = c;
    }
    const head = suffix[first] as number;
    if (code === next && end + count - 1 < out.length) out[end + count - 1] = head;
    end += count;
    if (previous >= 0 && next < 4096) {
      prefix[next] = previous;
      suffix[next] = head;
      length[next] = (length[previous] as number) + 1;
      next++;
      if (next === 1 << bits && bits < 12) bits++;
    }
    previous = code;
  }
  return out;
}
