// How images become squares. The default is one bicubic resize of the shorter side and the central square. "adm" and "random" are
// the crops of ADM (Dhariwal and Nichol, 2021; openai/guided-diffusion, image_datasets.py): a box filter halves the image while its
// shorter side is at least twice the wanted one, sizes are rounded half to even, then bicubic.

import { centerOf, halved, resizeRows, type Size, squareOf, type Target } from "../image/resize.ts";
import type { Image, Rows } from "../image/rows.ts";
import { uniform } from "../philox.ts";

/** Names of the crops of training images. */
export type CropName = "center" | "adm" | "random" | "resize";

/** A crop of one image, as plain data for worker threads. */
export type Crop = Exclude<CropName, "random"> | RandomCrop;

interface RandomCrop {
  /** The shorter side is resized to this length. */
  shorter: number;
  /** Place of the square between left and right, top and bottom: 0 to 1. */
  x: number;
  y: number;
}

/** ADM's smallest square of a random crop, as a share of the shorter side. */
const MIN_SHARE = 0.8;
/** Random stream of {@link cropsAt}. */
const CROP_STREAM = 0xc409;

/**
 * The crops of the images of a step's batch: a function of seed, step and place in the batch.
 * @param size side of the squares
 */
export function cropsAt(name: CropName, size: number, batchSize: number, seed: number, step: number): Crop[] {
  if (name !== "random") return new Array<Crop>(batchSize).fill(name);
  const u = uniform(seed, CROP_STREAM, 3 * batchSize, step), sides = Math.ceil(size / MIN_SHARE) - size + 1;
  return Array.from({ length: batchSize }, (_, i) => {
    const [side, x, y] = u.subarray(3 * i, 3 * i + 3) as unknown as [number, number, number];
    return { shorter: size + oneOf(sides, side), x, y };
  });
}

/** The resized rectangle that a crop keeps of an image. */
export function targetOfCrop(crop: Crop, original: Size, size: number): Target {
  if (crop === "center") return squareOf(original, size);
  if (crop === "resize") return centerOf({ width: size, height: size }, size, size);
  const shorter = crop === "adm" ? size : crop.shorter;
  let { width, height } = original;
  while (isHalved({ width, height }, shorter)) {
    [width, height] = [Math.floor(width / 2), Math.floor(height / 2)];
  }
  const scale = shorter / Math.min(width, height);
  const resized = { width: roundHalfEven(width * scale), height: roundHalfEven(height * scale) };
  if (crop === "adm") return centerOf(resized, size, size);
  const left = oneOf(resized.width - size + 1, crop.x), top = oneOf(resized.height - size + 1, crop.y);
  return { size: resized, left, top, width: size, height: size };
}

/** The square [size, size, 3] of an image. @param original its size in the file, where the rows are of reduced size */
export async function croppedSquare(
  rows: Rows,
  crop: Crop,
  size: number,
  original: Size = rows,
): Promise<Image> {
  let source = rows;
  if (crop !== "center" && crop !== "resize") {
    const shorter = crop === "adm" ? size : crop.shorter;
    while (isHalved(source, shorter)) source = halved(source);
  }
  return await resizeRows(source, targetOfCrop(crop, original, size));
}

const isHalved = ({ width, height }: Size, shorter: number) => Math.min(width, height) >= 2 * shorter;

/** A number from 0 to count - 1. @param u uniform in (0, 1), rounded to f32 */
const oneOf = (count: number, u: number) => Math.min(count - 1, Math.floor(u * count));

/** Python's round(). */
function roundHalfEven(x: number): number {
  return x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x);
}
