// Resampling and cropping of RGB bytes, bit for bit as in Pillow: two passes, horizontal first, in 8-bit fixed point with 22
// fractional bits, the filter widened by the scale when shrinking (antialias). Rows arrive band by band, and only the
// pixels of a crop are computed. Source: Pillow, src/libImaging/Resample.c.

import { ShapeError } from "../errors.ts";
import type { Image, Rows } from "./rows.ts";

/** "bicubic-sampled" is torch's `interpolate(mode="bicubic")` without antialias: four taps with a = -0.75, edges repeated. */
export type Filter = "box" | "bilinear" | "bicubic" | "bicubic-sampled" | "lanczos";

const sinc = (x: number) => x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);

/** Keys' cubic convolution. */
const cubic = (a: number) => (signed: number): number => {
  const x = Math.abs(signed);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
};

const FILTERS: Readonly<Record<Filter, { support: number; weight: (x: number) => number }>> = {
  box: { support: 0.5, weight: (x) => x > -0.5 && x <= 0.5 ? 1 : 0 },
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, weight: cubic(-0.5) },
  "bicubic-sampled": { support: 2, weight: cubic(-0.75) },
  lanczos: { support: 3, weight: (x) => x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0 },
};

const FRACTION_BITS = 22;

export interface Size {
  width: number;
  height: number;
}

/** A rectangle of a resized image. Its pixels do not depend on the rest of the image. */
export interface Target {
  /** Size of the resized image. */
  size: Size;
  left: number;
  top: number;
  width: number;
  height: number;
}

/** The central rectangle of `width` x `height`; an odd margin is rounded down. */
export function centerOf(size: Size, width: number, height: number): Target {
  const left = Math.floor((size.width - width) / 2), top = Math.floor((size.height - height) / 2);
  return { size, left, top, width, height };
}

/** First input position of an output position, and the weights from there on, which sum to 1. */
interface Taps {
  first: number;
  weights: Float64Array;
}

/** Taps of the output positions `start` to `start + count` - 1 when resizing from `from` to `to` positions. */
function tapsOf(from: number, to: number, start: number, count: number, filter: Filter): Taps[] {
  const { support, weight } = FILTERS[filter];
  const scale = from / to, stretch = Math.max(scale, 1), reach = support * stretch;
  return Array.from({ length: count }, (_, i) => {
    if (from === to) return { first: start + i, weights: new Float64Array([1]) };
    const center = (start + i + 0.5) * scale;
    if (filter === "bicubic-sampled") return sampledTaps(center - 0.5, from, weight);
    const first = Math.max(0, Math.trunc(center - reach + 0.5));
    const last = Math.min(from, Math.trunc(center + reach + 0.5));
    const weights = new Float64Array(last - first);
    let sum = 0;
    for (let k = 0; k < weights.length; k++) {
      sum += weights[k] = weight((k + first - center + 0.5) * (1 / stretch));
    }
    return { first, weights: sum === 0 ? weights : weights.map((w) => w / sum) };
  });
}

/** Four taps around a position, those outside added to the edges. */
function sampledTaps(position: number, from: number, weight: (x: number) => number): Taps {
  const before = Math.floor(position) - 1, inside = (k: number) => Math.min(Math.max(k, 0), from - 1);
  const first = inside(before), weights = new Float64Array(inside(before + 3) - first + 1);
  for (let k = before; k < before + 4; k++) {
    weights[inside(k) - first] = (weights[inside(k) - first] as number) + weight(position - k);
  }
  return { first, weights };
}

const toFixedPoint = ({ first, weights }: Taps): Taps => ({
  first,
  weights: weights.map((w) => Math.trunc((w < 0 ? -0.5 : 0.5) + w * 2 ** FRACTION_BITS)),
});

function roundFixedPoint(sum: number): number {
  const value = (sum + (1 << (FRACTION_BITS - 1))) >> FRACTION_BITS;
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

/** Values between and after the passes: bytes are rounded, floats are not. */
type Resampled = Uint8Array | Float32Array | Float64Array;

/** The first pass of a row of `band` from `from` on, into `out` from `at` on; an array of bytes is rounded. */
function resampleRow(
  band: Uint8Array,
  from: number,
  across: readonly Taps[],
  out: Resampled,
  at: number,
): void {
  const rounded = out instanceof Uint8Array;
  for (const { first, weights } of across) {
    let r = 0, g = 0, b = 0;
    for (let k = 0, i = from + 3 * first; k < weights.length; k++, i += 3) {
      const w = weights[k] as number;
      r += w * (band[i] as number);
      g += w * (band[i + 1] as number);
      b += w * (band[i + 2] as number);
    }
    out[at] = rounded ? roundFixedPoint(r) : r;
    out[at + 1] = rounded ? roundFixedPoint(g) : g;
    out[at + 2] = rounded ? roundFixedPoint(b) : b;
    at += 3;
  }
}

/** A term of the second pass: adds a row of `rows` to the sums. */
function addRow(rows: Resampled, from: number, weight: number, sums: Float64Array): void {
  for (let c = 0; c < sums.length; c++) {
    sums[c] = (sums[c] as number) + weight * (rows[from + c] as number);
  }
}

function storeRow(sums: Float64Array, out: Resampled, at: number): void {
  const rounded = out instanceof Uint8Array;
  for (let c = 0; c < sums.length; c++) {
    out[at + c] = rounded ? roundFixedPoint(sums[c] as number) : sums[c] as number;
  }
}

/** Resamples rows incrementally: keeps the target's columns of the rows that its second pass reads. */
class Resampler<A extends Resampled> {
  readonly #across: Taps[];
  readonly #down: Taps[];
  /** First needed row, and one past the last. */
  readonly #first: number;
  readonly #end: number;
  readonly #kept: A;
  #y = 0;

  /**
   * @param array type of the values between and after the passes
   * @throws ShapeError for a size below 1, and a rectangle outside the resized image
   */
  constructor(
    private readonly from: Size,
    private readonly target: Target,
    filter: Filter,
    private readonly array: (length: number) => A,
  ) {
    const { size: { width: W, height: H }, left, top, width, height } = target;
    if (!(Number.isInteger(W) && Number.isInteger(H) && W > 0 && H > 0)) {
      throw new ShapeError(`Cannot resize an image to ${W} x ${H}`);
    }
    if (left < 0 || top < 0 || left + width > W || top + height > H) {
      throw new ShapeError(
        `Cannot crop ${width} x ${height} at (${left}, ${top}): the resized image is ${W} x ${H}`,
      );
    }
    this.#across = tapsOf(from.width, W, left, width, filter);
    this.#down = tapsOf(from.height, H, top, height, filter);
    this.#first = this.#down.reduce((y, { first }) => Math.min(y, first), Infinity);
    this.#end = this.#down.reduce((y, { first, weights }) => Math.max(y, first + weights.length), 0);
    this.#kept = array(3 * width * (this.#end - this.#first));
    if (this.#kept instanceof Uint8Array) {
      this.#across = this.#across.map(toFixedPoint);
      this.#down = this.#down.map(toFixedPoint);
    }
  }

  /** Adds the next rows. @returns whether more are needed */
  add(band: Uint8Array): boolean {
    const stride = 3 * this.from.width;
    for (let at = 0; at < band.length && this.#y < this.#end; at += stride, this.#y++) {
      if (this.#y < this.#first) continue;
      resampleRow(band, at, this.#across, this.#kept, 3 * this.target.width * (this.#y - this.#first));
    }
    return this.#y < this.#end;
  }

  /** The second pass. @returns `[height,width,3]` of the target @throws Error if rows are missing */
  finish(): A {
    if (this.#y < this.#end) throw new Error("the decoder returned too few rows");
    const { width, height } = this.target, stride = 3 * width;
    const out = this.array(height * stride), sums = new Float64Array(stride);
    this.#down.forEach(({ first, weights }, y) => {
      sums.fill(0);
      for (let k = 0; k < weights.length; k++) {
        addRow(this.#kept, (first - this.#first + k) * stride, weights[k] as number, sums);
      }
      storeRow(sums, out, y * stride);
    });
    return out;
  }
}

const bytes = (length: number) => new Uint8Array(length);
const exact = (length: number) => new Float64Array(length);
const single = (length: number) => new Float32Array(length);

async function resample<A extends Resampled>(
  rows: Rows,
  resampler: Resampler<A>,
): Promise<A> {
  for await (const band of rows.bands()) if (!resampler.add(band)) break;
  return resampler.finish();
}

/**
 * A rectangle of Pillow's `Image.resize()`.
 * @throws ShapeError for a size below 1 and a rectangle outside the resized image; Error of the decoder
 */
export async function resizeRows(rows: Rows, target: Target, filter: Filter = "bicubic"): Promise<Image> {
  const data = await resample(rows, new Resampler(rows, target, filter, bytes));
  return { width: target.width, height: target.height, data };
}

/**
 * The same in floating point, neither rounded nor clamped between or after the passes, as torchvision resizes float tensors.
 * @returns `[height,width,3]`, 0..255
 */
export async function resizeRowsFloat(rows: Rows, target: Target, filter: Filter): Promise<Float32Array> {
  return Float32Array.from(await resample(rows, new Resampler(rows, target, filter, exact)));
}

/**
 * Pillow's `Image.resize()` of each channel as an image of mode F, as clean-fid does: f32 after each pass, neither rounded to
 * bytes nor clamped.
 * @returns `[height,width,3]`, about 0..255
 */
export async function resizeRowsSingle(
  rows: Rows,
  target: Target,
  filter: Filter,
): Promise<Float32Array<ArrayBuffer>> {
  return await resample(rows, new Resampler(rows, target, filter, single));
}

/** An image at half its size, rounded down, by the box filter, row by row: a few rows are in memory. */
export function halved(rows: Rows): Rows {
  const width = Math.floor(rows.width / 2), height = Math.floor(rows.height / 2), stride = 3 * width;
  const across = tapsOf(rows.width, width, 0, width, "box").map(toFixedPoint);
  const down = tapsOf(rows.height, height, 0, height, "box").map(toFixedPoint);
  return {
    width,
    height,
    async *bands() {
      const kept: Uint8Array[] = [], sums = new Float64Array(stride); // rows after the first pass
      let begin = 0, next = 0; // number of the first row in `kept`, and of the next row of the result
      for await (const band of rows.bands()) {
        for (let at = 0; at < band.length; at += 3 * rows.width) {
          const row = new Uint8Array(stride);
          resampleRow(band, at, across, row, 0);
          const y = begin + kept.push(row);
          for (let taps = down[next]; taps && taps.first + taps.weights.length <= y; taps = down[++next]) {
            const { first, weights } = taps, out = new Uint8Array(stride);
            sums.fill(0);
            weights.forEach((w, k) => addRow(kept[first - begin + k] as Uint8Array, 0, w, sums));
            storeRow(sums, out, 0);
            yield out;
            for (; begin < (down[next + 1]?.first ?? 0); begin++) kept.shift();
          }
        }
      }
    },
  };
}

/** Size with the shorter side `size`; the longer one keeps the aspect ratio, rounded down as in torchvision. */
export function sizeOfShorterSide({ width, height }: Size, size: number): Size {
  const longer = Math.floor(size * Math.max(width, height) / Math.min(width, height));
  return width <= height ? { width: size, height: longer } : { width: longer, height: size };
}

/** Shorter side to `size`, then the central square; an odd margin is rounded as in Hugging Face (torchvision: half to even). */
export function squareOf(original: Size, size: number): Target {
  return centerOf(sizeOfShorterSide(original, size), size, size);
}
