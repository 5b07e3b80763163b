// The wasm decoders of JPEG and WebP. Their memory grows with the largest image and is never freed, so an instance is replaced
// after some work.

import jpeg, { type JpegDecoder, type JpegFrame } from "imagescript/jpeg";
import { type WebpDecoder, webpDecoder } from "jsquash/webp";

/** Pixels after which a decoder is replaced. */
const PIXELS_PER_DECODER = 32_000_000;

/** A decoder that is created on first use, and replaced after much work or a failure. */
function renewed<D, I extends { width: number; height: number }>(
  make: () => Promise<D>,
  decode: (decoder: D, ...args: [bytes: Uint8Array, width: number, height: number]) => I,
) {
  let decoder: D | undefined, budget = 0;
  return async (bytes: Uint8Array, width = 0, height = 0): Promise<I> => {
    if (!decoder) [decoder, budget] = [await make(), PIXELS_PER_DECODER];
    let image: I;
    try {
      image = decode(decoder, bytes, width, height);
    } catch (error) {
      decoder = undefined;
      throw error;
    }
    budget -= image.width * image.height + 65_536;
    if (budget <= 0) decoder = undefined;
    return image;
  };
}

/** At full size, or scaled by the smallest of 1/8, 1/4, 1/2 and 1 that gives at least `width` x `height`. */
export const decodeJpegFrame = renewed<JpegDecoder, JpegFrame>(
  () => jpeg.init(),
  (decoder, bytes, width, height) => decoder.decode(bytes, width, height),
);

/** RGBA with the stored colours, not premultiplied. */
export const decodeWebpFrame = renewed<WebpDecoder, ImageData>(webpDecoder, (decoder, bytes) => {
  const image = decoder.decode(bytes);
  if (!image) throw new Error("libwebp refuses the data");
  return image;
});
