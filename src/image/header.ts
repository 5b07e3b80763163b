// Format and size of an image from its first bytes, and the memory that decoding needs, before any decoder allocates it.
// PNG: IHDR. JPEG: the frame header. WebP: the VP8, VP8L or VP8X chunk. TIFF: the first directory.

import { bmpHeader } from "./bmp.ts";
import { type JpegFrame, jpegFrame } from "./jpeg_markers.ts";
import { Unsupported } from "./rows.ts";
import { tiffHeader } from "./tiff.ts";

/** The supported formats, for messages. */
export const FORMATS = "PNG, JPEG, WebP, GIF, BMP, TIFF";

export interface ImageHeader {
  format: "PNG" | "JPEG" | "WebP" | "GIF" | "BMP" | "TIFF";
  /** 0 if the header is damaged. */
  width: number;
  height: number;
  /** Memory for decoding per pixel, without the file's bytes; 0 if rows are decoded band by band. */
  bytesPerPixel: number;
  /** The frame of a JPEG. */
  frame?: JpegFrame;
  /** 16-bit gray, which is clipped at 255. */
  clipped?: boolean;
  /** Why it cannot be decoded. */
  unsupported?: string;
}

/** Parses the first bytes; undefined for an unknown format. */
export function imageHeader(bytes: Uint8Array<ArrayBuffer>): ImageHeader | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const text = (at: number) => String.fromCharCode(...bytes.subarray(at, at + 4));
  if (text(0) === "\x89PNG") {
    if (bytes.length < 33 || text(12) !== "IHDR") return { format: "PNG", ...NO_SIZE, bytesPerPixel: 0 };
    const [depth, type, , , interlace] = bytes.subarray(24);
    return {
      format: "PNG",
      width: view.getUint32(16),
      height: view.getUint32(20),
      bytesPerPixel: interlace ? 3 : 0,
      clipped: depth === 16 && type === 0,
    };
  }
  if (bytes[0] === 0xff && bytes[1] === 0xd8) {
    const frame = jpegFrame(bytes);
    if (!frame) return { format: "JPEG", ...NO_SIZE, bytesPerPixel: 0 };
    const { width, height } = frame;
    return { format: "JPEG", width, height, bytesPerPixel: jpegBytes(frame, 1), frame };
  }
  if (text(0) === "RIFF" && text(8) === "WEBP") {
    // RGBA in libwebp and a copy; the lossless decoder keeps another one.
    const bytesPerPixel = text(12) === "VP8 " ? 8.5 : 13;
    return { format: "WebP", ...webpSize(view, text(12)), bytesPerPixel };
  }
  if (/^GIF8[79]a$/.test(text(0) + text(4).slice(0, 2))) {
    if (bytes.length < 13) return { format: "GIF", ...NO_SIZE, bytesPerPixel: 0 };
    return {
      format: "GIF",
      width: view.getUint16(6, true),
      height: view.getUint16(8, true),
      bytesPerPixel: 5, // indices of the frame and of the canvas, and colors
    };
  }
  const magic = bytes[0] === 0x49 ? [0x49, 0x49, 42, 0] : [0x4d, 0x4d, 0, 42];
  if (magic.every((byte, i) => bytes[i] === byte)) return { format: "TIFF", ...tiffSize(bytes) };
  if (text(0).startsWith("BM")) return { format: "BMP", ...bmpSize(bytes) };
  return undefined;
}

type Sizes = Omit<ImageHeader, "format">;

function tiffSize(bytes: Uint8Array): Sizes {
  try {
    const { width, height, bits, samples, photometric } = tiffHeader(bytes);
    // A strip may be the complete image: its samples and their colours.
    const clipped = bits === 16 && photometric === 1;
    return { width, height, bytesPerPixel: samples * Math.ceil(bits / 8) + 3, clipped };
  } catch (error) {
    const unsupported = error instanceof Unsupported ? { unsupported: error.message } : {};
    return { ...NO_SIZE, bytesPerPixel: 0, ...unsupported };
  }
}

function bmpSize(bytes: Uint8Array): Sizes {
  try {
    const { width, height, compression } = bmpHeader(bytes);
    return { width, height, bytesPerPixel: compression === 0 ? 0 : 1 };
  } catch {
    return { ...NO_SIZE, bytesPerPixel: 0 };
  }
}

const NO_SIZE = { width: 0, height: 0 };

/** Memory for a JPEG at 1/`factor` of its size: planes, pixels and a copy; all coefficients if it is progressive. */
export function jpegBytes({ components, samples, progressive }: JpegFrame, factor: number): number {
  return (samples + 2 * components) / factor ** 2 + (progressive ? 2 * samples : 0);
}

function webpSize(view: DataView, chunk: string): { width: number; height: number } {
  if (view.byteLength < 30) return NO_SIZE;
  const u24 = (at: number) => view.getUint16(at, true) + 65536 * view.getUint8(at + 2);
  switch (chunk) {
    case "VP8 ":
      return { width: view.getUint16(26, true) & 0x3fff, height: view.getUint16(28, true) & 0x3fff };
    case "VP8L": {
      const bits = view.getUint32(21, true);
      return { width: (bits & 0x3fff) + 1, height: ((bits >>> 14) & 0x3fff) + 1 };
    }
    case "VP8X":
      return { width: u24(24) + 1, height: u24(27) + 1 };
    default:
      return NO_SIZE;
  }
}
