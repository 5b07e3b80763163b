// JPEG to rows of RGB bytes with the colours of Pillow's convert("RGB"), within 3 levels, since inverse DCTs round differently.
// CMYK is read as inverted, with or without Adobe's marker, and converted without a profile.

import { decodeJpegFrame } from "./decoders.ts";
import { jpegFrame, plainJpeg, unsupportedJpeg } from "./jpeg_markers.ts";
import { pngRows } from "./png.ts";
import { cmykToRgb, fullImage, type Rows, rowsOf, Unsupported } from "./rows.ts";

/** Maximum number of pixels for the runtime's decoder, which needs five times the memory. */
const MAX_BY_RUNTIME = 16_000_000;

/**
 * @param width with `height`: the smallest size to which the DCT may scale the image down; 0: full size
 * @throws Unsupported for an unsupported kind; Error for a damaged file
 */
export async function jpegRows(bytes: Uint8Array<ArrayBuffer>, width = 0, height = 0): Promise<Rows> {
  const unsupported = unsupportedJpeg(bytes);
  if (unsupported) throw new Unsupported(unsupported);
  const plain = plainJpeg(bytes);
  let frame;
  try {
    frame = await decodeJpegFrame(plain, width, height);
  } catch (error) {
    const size = jpegFrame(plain), pixels = size ? size.width * size.height : Infinity;
    if (width > 0 || pixels > MAX_BY_RUNTIME) throw error;
    return rowsOf(await decodeByRuntime(plain)); // tolerates the damage that libjpeg tolerates
  }
  const { format, buffer } = frame, size = { width: frame.width, height: frame.height };
  const channels = [1, 3, 4][format] ?? 0, stride = channels * size.width;
  if (channels === 0 || buffer.length < stride * size.height) {
    throw new Error("the decoder returned too little");
  }
  return {
    ...size,
    async *bands() {
      if (channels === 3) return yield buffer.subarray(0, stride * size.height);
      for (let y = 0; y < size.height; y++) {
        yield (channels === 1 ? fromGray : cmykToRgb)(buffer.subarray(y * stride, (y + 1) * stride));
      }
    },
  };
}

function fromGray(gray: Uint8Array): Uint8Array {
  const rgb = new Uint8Array(3 * gray.length);
  for (let i = 0, j = 0; i < gray.length; i++, j += 3) rgb[j] = rgb[j + 1] = rgb[j + 2] = gray[i] as number;
  return rgb;
}

/** The runtime decodes to a bitmap, whose pixels can only be read back as a PNG file. */
async function decodeByRuntime(bytes: Uint8Array<ArrayBuffer>) {
  const bitmap = await createImageBitmap(new Blob([bytes]));
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext("bitmaprenderer")?.transferFromImageBitmap(bitmap);
  return await fullImage(pngRows(await (await canvas.convertToBlob({ type: "image/png" })).bytes()));
}
