// Where training and evaluation images come from: a folder (dataset.ts) or a generator. Both look the same to a loop.
// Pixels are f32 in [-1,1], channels-last.

export interface ImageSource {
  /** Number of images. */
  readonly length: number;
  /** Class names in label order; empty where images have no class. */
  readonly classes: readonly string[];
  /** Class of image `i`, 0 where there are no classes. */
  label(i: number): number;
  /** Image `i` as `[size,size,3]` in [-1,1]. */
  image(i: number, size: number): Promise<Float32Array> | Float32Array;
  /** A name that is unique in the source, for reports and file names. */
  name(i: number): string;
}
