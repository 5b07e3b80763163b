// Image files to pixels and back. Files are known by their first bytes, not by their names; the size is read from the
// header before anything is decoded, so that a small file cannot ask for gigabytes. Alpha is dropped, as Pillow's
// convert("RGB") does; EXIF orientation is ignored, as torchvision's loader does.

import jpeg from "imagescript/jpeg";
import png from "imagescript/png";
import { UsageError } from "../errors.ts";
import { explained, writeAtomic } from "./files.ts";
import type { Image } from "./resize.ts";

export type { Image } from "./resize.ts";

/** Pixels of the largest image that is decoded. */
export const MOST_PIXELS = 100_000_000;

type Kind = "PNG" | "JPEG" | "WebP";

/** Decodes a PNG, JPEG or WebP file. @throws UsageError naming the file for anything that cannot be decoded */
export async function readImage(path: string): Promise<Image> {
  const bytes = await Deno.readFile(path).catch((error) => {
    throw explained(error, "read", path);
  });
  return await decodeImage(bytes, path);
}

/** Decodes bytes; `name` is for messages. */
export async function decodeImage(bytes: Uint8Array<ArrayBuffer>, name: string): Promise<Image> {
  const kind = kindOf(bytes);
  if (!kind) throw new UsageError(`Cannot decode "${name}": it is no PNG, JPEG or WebP image`);
  const size = headerSize(bytes, kind);
  if (!size) throw new UsageError(`Cannot decode "${name}": its ${kind} header is broken`);
  if (size.width * size.height > MOST_PIXELS) {
    throw new UsageError(
      `Cannot decode "${name}": ${size.width} x ${size.height} pixels are more than ${
        MOST_PIXELS / 1e6
      } million; shrink it`,
    );
  }
  try {
    const image = kind === "JPEG"
      ? await decodeJpeg(bytes)
      : await decodePng(kind === "PNG" ? bytes : await webpToPng(bytes));
    if (image.width !== size.width || image.height !== size.height) {
      throw new Error("its size is not what its header says");
    }
    return image;
  } catch (error) {
    throw new UsageError(
      `Cannot decode "${name}": the ${kind} data is broken (${
        error instanceof Error ? error.message : error
      })`,
    );
  }
}

function kindOf(b: Uint8Array): Kind | undefined {
  const text = (from: number, to: number) => String.fromCharCode(...b.subarray(from, to));
  if (b[0] === 0x89 && text(1, 4) === "PNG") return "PNG";
  if (b[0] === 0xff && b[1] === 0xd8) return "JPEG";
  if (text(0, 4) === "RIFF" && text(8, 12) === "WEBP") return "WebP";
  return undefined;
}

function headerSize(b: Uint8Array, kind: Kind): { width: number; height: number } | undefined {
  const view = new DataView(b.buffer, b.byteOffset, b.byteLength);
  const found = (width: number, height: number) => width > 0 && height > 0 ? { width, height } : undefined;
  if (kind === "PNG") return b.length >= 24 ? found(view.getUint32(16), view.getUint32(20)) : undefined;
  if (kind === "JPEG") {
    for (let at = 2; at + 9 < b.length;) {
      if (b[at] !== 0xff) return undefined;
      const marker = b[at + 1] as number;
      if (marker === 0xff || marker === 0x01 || (marker >= 0xd0 && marker <= 0xd7)) {
        at += marker === 0xff ? 1 : 2;
      } else if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
        return found(view.getUint16(at + 7), view.getUint16(at + 5));
      } else at += 2 + view.getUint16(at + 2);
    }
    return undefined;
  }
  const chunk = String.fromCharCode(...b.subarray(12, 16));
  if (b.length < 30) return undefined;
  if (chunk === "VP8 ") return found(view.getUint16(26, true) & 0x3fff, view.getUint16(28, true) & 0x3fff);
  if (chunk === "VP8L") {
    const bits = view.getUint32(21, true);
    return found((bits & 0x3fff) + 1, ((bits >>> 14) & 0x3fff) + 1);
  }
  const three = (at: number) => view.getUint16(at, true) + ((b[at + 2] as number) << 16);
  return chunk === "VP8X" ? found(three(24) + 1, three(27) + 1) : undefined;
}

let decoder: ReturnType<typeof jpeg.init> | undefined;

async function decodeJpeg(bytes: Uint8Array): Promise<Image> {
  const { decode } = await (decoder ??= jpeg.init());
  const { width, height, format, buffer } = decode(bytes);
  const data = new Uint8Array(width * height * 3);
  if (format === 1) data.set(buffer.subarray(0, data.length));
  else if (format === 0) {
    for (let i = 0; i < width * height; i++) data.fill(buffer[i] as number, 3 * i, 3 * i + 3);
  } else {
    // CMYK, stored inverted as Adobe does.
    for (let i = 0; i < width * height; i++) {
      const k = buffer[4 * i + 3] as number;
      for (let c = 0; c < 3; c++) data[3 * i + c] = Math.round((buffer[4 * i + c] as number) * k / 255);
    }
  }
  return { width, height, data };
}

async function decodePng(bytes: Uint8Array): Promise<Image> {
  const { width, height, pixels } = await png.decode(bytes);
  const data = new Uint8Array(width * height * 3);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) data[3 * i + c] = pixels[4 * i + c] as number;
  }
  return { width, height, data };
}

/** Through the runtime's own decoder, which has no way to give pixels but an encoded blob. */
async function webpToPng(bytes: Uint8Array<ArrayBuffer>): Promise<Uint8Array> {
  const bitmap = await createImageBitmap(new Blob([bytes]));
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext("bitmaprenderer")?.transferFromImageBitmap(bitmap);
  return new Uint8Array(await (await canvas.convertToBlob({ type: "image/png" })).arrayBuffer());
}

/** The bytes of a PNG file. */
export async function encodePng({ width, height, data }: Image): Promise<Uint8Array> {
  return await png.encode(data, { width, height, channels: 3, depth: 8, level: 3 });
}

/** Writes a PNG file atomically. */
export async function writePng(path: string, image: Image): Promise<void> {
  writeAtomic(path, await encodePng(image));
}

/** Bytes to f32 in -1..1. */
export function toFloat(data: Uint8Array): Float32Array {
  return Float32Array.from(data, (v) => v / 127.5 - 1);
}

/** f32 in -1..1 to bytes, clamped and rounded. */
export function toBytes(data: Float32Array): Uint8Array {
  return Uint8Array.from(data, (v) => Math.min(255, Math.max(0, Math.round((v + 1) * 127.5))));
}

/** Images of one size side by side, `columns` to a row, each pixel drawn as a square of `scale`. */
export function grid(
  images: readonly Uint8Array[],
  size: number,
  columns: number,
  scale = 1,
  gap = 2,
): Image {
  const rows = Math.ceil(images.length / columns), cell = size * scale + gap;
  const width = Math.min(columns, images.length) * cell + gap, height = rows * cell + gap;
  const data = new Uint8Array(width * height * 3).fill(255);
  images.forEach((image, i) => {
    const left = gap + (i % columns) * cell, top = gap + Math.floor(i / columns) * cell;
    for (let y = 0; y < size * scale; y++) {
      for (let x = 0; x < size * scale; x++) {
        const from = (Math.floor(y / scale) * size + Math.floor(x / scale)) * 3;
        const to = ((top + y) * width + left + x) * 3;
        for (let c = 0; c < 3; c++) data[to + c] = image[from + c] as number;
      }
    }
  });
  return { width, height, data };
}
