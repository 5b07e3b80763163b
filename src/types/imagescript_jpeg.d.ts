// Types of imagescript's wasm JPEG decoder; the sub-path has none.

export interface JpegFrame {
  width: number;
  height: number;
  /** 0: one gray byte a pixel, 1: RGB, 2: CMYK with 0 = no ink. */
  format: number;
  buffer: Uint8Array;
}

export interface JpegDecoder {
  /** With a width and height of 0 in full size; otherwise scaled down by the DCT to at least that size. */
  decode(bytes: Uint8Array, width: number, height: number): JpegFrame;
}

declare const jpeg: { init(): Promise<JpegDecoder> };
export default jpeg;
