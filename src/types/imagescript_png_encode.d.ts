// Types of imagescript's PNG encoder; the sub-path has none.

export interface EncodeOptions {
  width: number;
  height: number;
  channels: 1 | 2 | 3 | 4;
  /** 0 stores, 9 is slowest. */
  level?: number;
  text?: Record<string, string>;
}

declare const encoder: { encode(pixels: Uint8Array, options: EncodeOptions): Uint8Array };
export default encoder;
