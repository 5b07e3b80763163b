// Image files to RGB bytes and back. The contents decide the format, not the name. All formats follow Pillow's convert("RGB"),
// which keeps the stored numbers: EXIF orientation and colour profiles are ignored, alpha is removed without blending, CMYK is
// converted without a profile. JPEG is within 3 levels of libjpeg, the others are exact. The size is read from the header
// first: 400 kB of PNG can need gigabytes.

import { encode } from "imagescript/png";
import { ShapeError, UsageError } from "../errors.ts";
import { bmpRows } from "./bmp.ts";
import { explained, formatBytes, MAX_BYTES, openRegular, writeAtomic } from "../formats/files.ts";
import { foreign } from "../formats/foreign.ts";
import { gifRows } from "./gif.ts";
import { FORMATS, type ImageHeader, imageHeader, jpegBytes } from "./header.ts";
import { defaultImageMemory, ImageMemory } from "./memory.ts";
import { jpegRows } from "./jpeg.ts";
import { pngRows } from "./png.ts";
import type { Size } from "./resize.ts";
import { fullImage, type Image, type Rows, Unsupported } from "./rows.ts";
import { tiffRows } from "./tiff.ts";
import { webpRows } from "./webp.ts";

export type { Image } from "./rows.ts";

/** Maximum number of pixels. */
export const MAX_PIXELS = 100_000_000;

/** Number of first bytes in which the header is searched. */
const HEAD = 1 << 20;

/** A note for the user about the decoding of an image; printed once for each kind. */
export interface Note {
  kind: "reduced" | "clipped";
  text: string;
}

/** An image during decoding. */
export interface Decoded extends Rows {
  /** Size in the file; the rows differ if a JPEG is decoded at reduced size. */
  readonly original: Size;
  readonly notes: readonly Note[];
}

export interface DecodeOptions {
  /** Shared with other threads; by default a quarter of the RAM, for this image alone. */
  memory?: ImageMemory;
  /**
   * The smallest sufficient size: a JPEG that does not fit in memory is decoded at 1/2, 1/4 or 1/8, but not below it.
   * Undefined (the default): the complete image is needed.
   */
  enough?: (original: Size) => Size | undefined;
}

/** A part of a file, such as a member of an archive. */
export interface FilePart {
  path: string;
  /** For messages. */
  name: string;
  offset: number;
  size: number;
}

/** Decodes a file. @throws UsageError as decodeImage(), and if it is not a regular file or not readable */
export async function readImage(path: string): Promise<Image> {
  return await withImage(path, {}, fullImage);
}

/**
 * Decodes an image file.
 * @param name of the file, for messages
 * @throws UsageError for an unknown format, a damaged or truncated file, and more than 100 megapixels
 */
export async function decodeImage(bytes: Uint8Array<ArrayBuffer>, name: string): Promise<Image> {
  return await withImage({ name, bytes }, {}, fullImage);
}

/**
 * Calls `use` with the rows of an image, while reserving the memory that decoding needs.
 * @param image a file, a part of one, or its bytes
 * @throws UsageError as readImage(), and if the memory limit is too small for the image
 */
export async function withImage<T>(
  image: string | FilePart | { name: string; bytes: Uint8Array<ArrayBuffer> },
  options: DecodeOptions,
  use: (image: Decoded) => Promise<T>,
): Promise<T> {
  if (typeof image === "object" && "bytes" in image) {
    const { name, bytes } = image;
    return await decoded(
      { name, size: bytes.length, read: (length) => bytes.subarray(0, length) },
      options,
      use,
    );
  }
  const { path, name, offset } = typeof image === "string" ? { path: image, name: image, offset: 0 } : image;
  const { file, size: all } = openRegular(path, typeof image === "string" ? MAX_BYTES.image : Infinity);
  try {
    const size = typeof image === "string" ? all : image.size, bytes = new Uint8Array(size);
    let at = 0;
    if (offset > 0) file.seekSync(offset, Deno.SeekMode.Start);
    const read = (length: number) => {
      try {
        for (let n: number | null = 1; n && at < length; at += n ?? 0) {
          n = file.readSync(bytes.subarray(at, length));
        }
      } catch (error) {
        throw explained(error, "read", path);
      }
      return bytes.subarray(0, Math.min(at, length));
    };
    return await decoded({ name, size, read }, options, use);
  } finally {
    file.close();
  }
}

interface Source {
  name: string;
  size: number;
  /** The first bytes. */
  read(length: number): Uint8Array<ArrayBuffer>;
}

async function decoded<T>(
  { name, size, read }: Source,
  { memory = new ImageMemory(defaultImageMemory()), enough }: DecodeOptions,
  use: (image: Decoded) => Promise<T>,
): Promise<T> {
  const refuse = (reason: string) => new UsageError(`Cannot decode the image "${name}": ${reason}`);
  if (size === 0) throw refuse("the file is empty");
  if (size > MAX_BYTES.image) {
    throw refuse(`it has ${formatBytes(size)}, at most ${formatBytes(MAX_BYTES.image)} are supported`);
  }
  const head = read(Math.min(size, HEAD));
  let header = imageHeader(head);
  if (header && !header.width && size > head.length) header = imageHeader(read(size)); // the frame may be further back
  if (header === undefined) {
    const other = foreign(head);
    throw refuse(
      other
        ? `it is ${other.what}; ${other.remedy}`
        : `it is in none of the formats ${FORMATS}; convert it first`,
    );
  }
  const { format, width, height } = header;
  const unread = (what: string) => refuse(`${what} is not supported; convert it to PNG first`);
  if (header.unsupported) throw unread(header.unsupported);
  if (!width || !height) throw refuse(`the ${format} header is damaged or cut off; replace the file`);
  if (width * height > MAX_PIXELS) {
    throw refuse(
      `${width} x ${height} pixels are more than ${MAX_PIXELS / 1e6} million; scale it down first`,
    );
  }
  const { factor, bytes } = fitting(header, size, enough?.({ width, height }), memory.limit);
  const needed = `${width} x ${height} pixels of ${format} need ${formatBytes(bytes)}`;
  if (bytes > memory.limit) {
    throw refuse(
      `${needed}, more than the ${formatBytes(memory.limit)} for all images; raise --image-memory, or ` +
        `scale it down`,
    );
  }
  const notes: Note[] = [];
  if (factor > 1) {
    notes.push({
      kind: "reduced",
      text: `"${name}" (${width} x ${height}) and other JPEGs that do not fit in --image-memory ` +
        `(${
          formatBytes(memory.limit)
        }) are decoded at 1/${factor} of their size or less, which changes the pixels a little`,
    });
  }
  if (header.clipped) {
    notes.push({
      kind: "clipped",
      text:
        `"${name}" and other gray images of 16 bits are clipped at 255, as Pillow does it, and may be white; ` +
        `convert them to 8 bits first`,
    });
  }
  return await memory.hold(bytes, async () => {
    const contents = read(size);
    const explain = (error: unknown) =>
      error instanceof Unsupported
        ? unread(error.message)
        : refuse(`the ${format} data is damaged or cut off; replace the file`);
    const reduced = { width: Math.ceil(width / factor), height: Math.ceil(height / factor) };
    let rows: Rows;
    try {
      rows = await rowsOfFile(format, contents, reduced, factor > 1);
    } catch (error) {
      throw explain(error);
    }
    if (rows.width !== reduced.width || rows.height !== reduced.height) {
      throw refuse(`the ${format} header is damaged; replace the file`);
    }
    const bands = async function* () {
      try {
        yield* rows.bands();
      } catch (error) {
        throw explain(error);
      }
    };
    return await use({ ...reduced, original: { width, height }, notes, bands });
  });
}

/** @param size of the rows; `reduced`: a JPEG is scaled down to it */
async function rowsOfFile(
  format: ImageHeader["format"],
  bytes: Uint8Array<ArrayBuffer>,
  { width, height }: Size,
  reduced: boolean,
): Promise<Rows> {
  switch (format) {
    case "PNG":
      return pngRows(bytes);
    case "JPEG":
      return await (reduced ? jpegRows(bytes, width, height) : jpegRows(bytes));
    case "WebP":
      return await webpRows(bytes, width, height);
    case "GIF":
      return gifRows(bytes);
    case "BMP":
      return bmpRows(bytes);
    case "TIFF":
      return tiffRows(bytes);
  }
}

/** Memory for the decoded image and a band of rows, bytes. */
const WORKING = 16 << 20;

/** The largest size at which an image fits in memory, and its memory; if none fits, the full size. */
function fitting(
  { format, width, height, bytesPerPixel, frame }: ImageHeader,
  fileBytes: number,
  least: Size | undefined,
  limit: number,
): { factor: number; bytes: number } {
  const pixels = width * height;
  // A wasm decoder holds a copy of the file, and a JPEG is copied again.
  const files = fileBytes * (format === "JPEG" || format === "WebP" ? 3 : 1);
  const working = Math.min(WORKING, 12 * pixels);
  const full = { factor: 1, bytes: Math.ceil(files + pixels * (bytesPerPixel + (least ? 0 : 3)) + working) };
  if (full.bytes <= limit || !frame || !least) return full;
  for (const factor of [2, 4, 8]) {
    const bytes = Math.ceil(files + pixels * jpegBytes(frame, factor) + working);
    if (width < factor * least.width || height < factor * least.height) break;
    if (bytes <= limit) return { factor, bytes };
  }
  return full;
}

/** The bytes of a PNG file. @throws ShapeError if the pixels do not fill the size */
export async function encodePng({ width, height, data }: Image): Promise<Uint8Array> {
  if (data.length !== 3 * width * height) {
    throw new ShapeError(
      `Cannot encode a PNG of ${width} x ${height} pixels: there are ${data.length} bytes`,
    );
  }
  return encode(data, { width, height, channels: 3, level: 3 });
}

/** Writes a PNG file atomically. */
export async function writePng(path: string, image: Image): Promise<void> {
  writeAtomic(path, await encodePng(image));
}

/** Bytes to f32 in [-1,1]: b / 127.5 - 1. */
export function toFloat(bytes: Uint8Array): Float32Array<ArrayBuffer> {
  const pixels = new Float32Array(bytes.length);
  for (let i = 0; i < bytes.length; i++) pixels[i] = (bytes[i] as number) / 127.5 - 1;
  return pixels;
}

/** f32 in [-1,1] to bytes, clamped, rounded to the nearest; NaN becomes 0. */
export function toBytes(pixels: Float32Array): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(pixels.length);
  for (let i = 0; i < pixels.length; i++) {
    bytes[i] = Math.max(0, Math.min(255, Math.floor((pixels[i] as number) * 127.5 + 128)));
  }
  return bytes;
}

/**
 * A grid of images, row by row, with white lines between; each pixel becomes `scale` x `scale`.
 * @param images each `[imageHeight,size,3]` bytes; square by default
 * @throws ShapeError without images, or if one has another size
 */
export function grid(
  images: readonly Uint8Array[],
  size: number,
  columns: number,
  scale = Math.max(1, Math.ceil(64 / size)),
  gap = 2,
  imageHeight = size,
): Image {
  const wrong = images.findIndex((image) => image.length !== 3 * size * imageHeight);
  if (images.length === 0 || wrong >= 0) {
    throw new ShapeError(
      images.length === 0
        ? "Cannot make a grid: there are no images"
        : `Cannot make a grid: image ${wrong} is not ${size} x ${imageHeight}`,
    );
  }
  const across = Math.min(columns, images.length), down = Math.ceil(images.length / across);
  const [w, h] = [size * scale, imageHeight * scale];
  const width = across * (w + gap) + gap, height = down * (h + gap) + gap;
  const data = new Uint8Array(3 * width * height).fill(255);
  images.forEach((image, i) => {
    const left = gap + (i % across) * (w + gap), top = gap + Math.floor(i / across) * (h + gap);
    for (let y = 0; y < h; y++) {
      for (let x = 0; x < w; x++) {
        const from = 3 * (Math.floor(y / scale) * size + Math.floor(x / scale));
        data.set(image.subarray(from, from + 3), 3 * ((top + y) * width + left + x));
      }
    }
  });
  return { width, height, data };
}

/** A grid of pairs of images: each row of first images is above its row of second ones; a short row is padded. */
export function pairGrid(
  pairs: readonly (readonly [Uint8Array, Uint8Array])[],
  size: number,
  columns: number,
  imageHeight = size,
): Image {
  const across = Math.min(columns, pairs.length), rows: Uint8Array[] = [];
  const white = new Uint8Array(3 * size * imageHeight).fill(255);
  for (let at = 0; at < pairs.length; at += across) {
    for (const k of [0, 1] as const) {
      for (let i = at; i < at + across; i++) rows.push(pairs[i]?.[k] ?? white);
    }
  }
  return grid(rows, size, across, undefined, undefined, imageHeight);
}
