// WebP to RGB bytes. Only the coded frame goes to libwebp: alpha, EXIF and profiles are separate chunks, which Pillow's
// convert("RGB") ignores. Of an animation the first frame is decoded, on black.
// RFC 9649.

import { decodeWebpFrame } from "./decoders.ts";
import { fullImage, placed, type Rows, rowsOf } from "./rows.ts";

/** Pixels converted at a time. */
const BAND = 1 << 18;

interface Chunk {
  name: string;
  data: Uint8Array<ArrayBuffer>;
}

const u24 = (bytes: Uint8Array, at: number) =>
  (bytes[at] ?? 0) + 256 * (bytes[at + 1] ?? 0) + 65536 * (bytes[at + 2] ?? 0);

/** @throws Error if a chunk is longer than the rest of the file */
function* chunks(bytes: Uint8Array<ArrayBuffer>): Generator<Chunk> {
  for (let at = 0; at + 8 <= bytes.length;) {
    const length = u24(bytes, at + 4) + 2 ** 24 * (bytes[at + 7] as number), end = at + 8 + length;
    if (end > bytes.length) throw new Error("a chunk is cut off");
    yield { name: String.fromCharCode(...bytes.subarray(at, at + 4)), data: bytes.subarray(at + 8, end) };
    at = end + (length & 1);
  }
}

const isCoded = ({ name }: Chunk) => name === "VP8 " || name === "VP8L";

/** A minimal file with one coded frame. */
function fileOf({ name, data }: Chunk): Uint8Array<ArrayBuffer> {
  const padded = data.length + (data.length & 1), file = new Uint8Array(20 + padded);
  const view = new DataView(file.buffer), text = new TextEncoder();
  text.encodeInto("RIFF", file);
  view.setUint32(4, 12 + padded, true);
  text.encodeInto(`WEBP${name}`, file.subarray(8));
  view.setUint32(16, data.length, true);
  file.set(data, 20);
  return file;
}

async function frameOf(coded: Chunk | undefined): Promise<Rows> {
  if (!coded) throw new Error("there is no image data");
  const { width, height, data: rgba } = await decodeWebpFrame(fileOf(coded));
  return {
    width,
    height,
    async *bands() {
      const step = Math.ceil(BAND / width);
      for (let y = 0; y < height; y += step) {
        const rgb = new Uint8Array(3 * width * Math.min(step, height - y));
        for (let i = 4 * y * width, j = 0; j < rgb.length; i += 4, j += 3) {
          rgb[j] = rgba[i] as number;
          rgb[j + 1] = rgba[i + 1] as number;
          rgb[j + 2] = rgba[i + 2] as number;
        }
        yield rgb;
      }
    },
  };
}

/** @throws Error for a damaged file */
export async function webpRows(bytes: Uint8Array<ArrayBuffer>, width: number, height: number): Promise<Rows> {
  for (const chunk of chunks(bytes.subarray(12))) {
    if (isCoded(chunk)) return await frameOf(chunk);
    if (chunk.name !== "ANMF") continue;
    const left = 2 * u24(chunk.data, 0), top = 2 * u24(chunk.data, 3);
    const frame = await frameOf([...chunks(chunk.data.subarray(16))].find(isCoded));
    if (frame.width === width && frame.height === height) return frame;
    return rowsOf(placed(await fullImage(frame), left, top, width, height));
  }
  throw new Error("there is no image data");
}
