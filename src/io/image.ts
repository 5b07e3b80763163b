// PNG, JPEG and WebP files to RGB bytes and back; the only file where pixels are bytes. The contents decide the format,
// not the name. Colours are those of Pillow's convert("RGB"): alpha is dropped, EXIF orientation is ignored, CMYK is
// converted without a profile; only 16-bit gray keeps its high byte, where Pillow clips. PNG and WebP are exact, JPEG
// within 3 levels of libjpeg. The size is read from the header first: 400 kB of PNG can ask for gigabytes.

import jpeg, { type JpegDecoder, type JpegFrame } from "imagescript/jpeg";
import png, { encode, type PngDecoder } from "imagescript/png";
import { ShapeError, UsageError } from "../errors.ts";
import { explained, writeAtomic } from "./files.ts";
import { imageHeader, lastMarkerIsEnd } from "./image_header.ts";
import type { Image } from "./resize.ts";

export type { Image } from "./resize.ts";

/** Pixels of the largest image that is decoded. */
export const MOST_PIXELS = 100_000_000;

/** Decodes a file. @throws UsageError as decodeImage() does, and when it cannot be read */
export async function readImage(path: string): Promise<Image> {
  let bytes: Uint8Array<ArrayBuffer>;
  try {
    bytes = await Deno.readFile(path);
  } catch (error) {
    throw explained(error, "read", path);
  }
  return await decodeImage(bytes, path);
}

/**
 * Decodes a PNG, JPEG or WebP file.
 * @param name of the file, for messages
 * @throws UsageError for another format, a damaged or cut file, and more than 100 megapixels
 */
export async function decodeImage(bytes: Uint8Array<ArrayBuffer>, name: string): Promise<Image> {
  const refuse = (reason: string) => new UsageError(`Cannot decode the image "${name}": ${reason}`);
  if (bytes.length === 0) throw refuse("the file is empty");
  const header = imageHeader(bytes);
  if (header === undefined) throw refuse("it is not a PNG, JPEG or WebP file; convert it first");
  const { format, width, height } = header;
  if (!width || !height) throw refuse(`the ${format} header is damaged or cut off; replace the file`);
  if (width * height > MOST_PIXELS) {
    throw refuse(
      `${width} x ${height} pixels are more than ${MOST_PIXELS / 1e6} million; scale it down first`,
    );
  }
  let image: Image;
  try {
    image = format === "PNG"
      ? await decodePng(bytes)
      : format === "JPEG"
      ? await decodeJpeg(bytes)
      : await decodeByRuntime(bytes);
  } catch {
    throw refuse(`the ${format} data is damaged or cut off; replace the file`);
  }
  if (image.width !== width || image.height !== height) throw refuse(`the ${format} header is damaged`);
  return image;
}

// The wasm decoders never give all their memory back: after this many pixels a new one takes over.
const PIXELS_PER_DECODER = 32_000_000;

/** A decoder that is made when first needed, and anew after much work or a failure. */
function renewed<D>(make: () => Promise<D>) {
  let decoder: D | undefined, budget = 0;
  return async <I extends { width: number; height: number }>(decode: (decoder: D) => I): Promise<I> => {
    if (!decoder || budget <= 0) [decoder, budget] = [await make(), PIXELS_PER_DECODER];
    try {
      const image = decode(decoder);
      budget -= image.width * image.height + 65_536;
      return image;
    } catch (error) {
      decoder = undefined;
      throw error;
    }
  };
}

const withJpeg = renewed<JpegDecoder>(() => jpeg.init());
const withPng = renewed<PngDecoder>(() => png.init());

async function decodePng(bytes: Uint8Array): Promise<Image> {
  const { width, height, framebuffer } = await withPng((decoder) => decoder.decode(bytes));
  return { width, height, data: dropAlpha(framebuffer, width * height) };
}

/** What imagescript cannot read although it is whole (CMYK without Adobe's marker) goes to the runtime's decoder. */
async function decodeJpeg(bytes: Uint8Array<ArrayBuffer>): Promise<Image> {
  try {
    const frame = await withJpeg((decoder) => decoder.decode(bytes, 0, 0));
    return { width: frame.width, height: frame.height, data: rgbOf(frame) };
  } catch (error) {
    if (!lastMarkerIsEnd(bytes)) throw error;
    return await decodeByRuntime(bytes);
  }
}

/** The runtime decodes to a bitmap, which only comes out again as a PNG file. */
async function decodeByRuntime(bytes: Uint8Array<ArrayBuffer>): Promise<Image> {
  const bitmap = await createImageBitmap(new Blob([bytes]));
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext("bitmaprenderer")?.transferFromImageBitmap(bitmap);
  return await decodePng(await (await canvas.convertToBlob({ type: "image/png" })).bytes());
}

function dropAlpha(rgba: Uint8Array, pixels: number): Uint8Array<ArrayBuffer> {
  if (rgba.length !== 4 * pixels) throw new Error("the decoder returned another number of pixels");
  const rgb = new Uint8Array(3 * pixels);
  for (let i = 0, j = 0; j < rgb.length; i += 4, j += 3) {
    rgb[j] = rgba[i] as number;
    rgb[j + 1] = rgba[i + 1] as number;
    rgb[j + 2] = rgba[i + 2] as number;
  }
  return rgb;
}

function rgbOf({ width, height, format, buffer }: JpegFrame): Uint8Array<ArrayBuffer> {
  const pixels = width * height, channels = [1, 3, 4][format];
  if (channels === undefined || buffer.length < channels * pixels) {
    throw new Error("the decoder returned too little");
  }
  const rgb = new Uint8Array(3 * pixels);
  if (channels === 3) rgb.set(buffer.subarray(0, 3 * pixels));
  else {
    for (let i = 0; i < pixels; i++) {
      for (let c = 0; c < 3; c++) {
        if (channels === 1) rgb[3 * i + c] = buffer[i] as number;
        else {
          const white = 255 - (buffer[4 * i + 3] as number); // what the black ink leaves
          const ink = (buffer[4 * i + c] as number) * white + 128;
          rgb[3 * i + c] = white - ((ink + (ink >> 8)) >> 8);
        }
      }
    }
  }
  return rgb;
}

/** The bytes of a PNG file. @throws ShapeError when the pixels do not fill the size */
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
  return Float32Array.from(bytes, (b) => b / 127.5 - 1);
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
 * One picture of many square ones, row by row with white lines between; each pixel becomes `scale` x `scale`.
 * @param images each `[size,size,3]` bytes
 * @throws ShapeError when there is no image, or one has another size
 */
export function grid(
  images: readonly Uint8Array[],
  size: number,
  columns: number,
  scale = Math.max(1, Math.ceil(64 / size)),
  gap = 2,
): Image {
  const wrong = images.findIndex((image) => image.length !== 3 * size * size);
  if (images.length === 0 || wrong >= 0) {
    throw new ShapeError(
      images.length === 0
        ? "Cannot make a grid: there are no images"
        : `Cannot make a grid: image ${wrong} is not ${size} x ${size}`,
    );
  }
  const across = Math.min(columns, images.length), down = Math.ceil(images.length / across);
  const side = size * scale, cell = side + gap;
  const width = across * cell + gap, height = down * cell + gap;
  const data = new Uint8Array(3 * width * height).fill(255);
  images.forEach((image, i) => {
    const left = gap + (i % across) * cell, top = gap + Math.floor(i / across) * cell;
    for (let y = 0; y < side; y++) {
      for (let x = 0; x < side; x++) {
        const from = 3 * (Math.floor(y / scale) * size + Math.floor(x / scale));
        data.set(image.subarray(from, from + 3), 3 * ((top + y) * width + left + x));
      }
    }
  });
  return { width, height, data };
}
