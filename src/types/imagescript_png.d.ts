// Types of imagescript's wasm PNG decoder; the sub-path has none.

export interface PngDecoder {
  /** RGBA, 8 bits each, whatever the file holds. */
  decode(bytes: Uint8Array): { width: number; height: number; framebuffer: Uint8Array };
}

declare const png: { init(): Promise<PngDecoder> };
export default png;
