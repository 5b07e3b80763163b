// Resampling and cropping of RGB bytes, bit for bit as Pillow does it: two passes, horizontal first, in 8-bit fixed point
// with 22 fractional bits, the filter widened by the scale when shrinking (antialias). Also the crops of the field:
// shorter side + centre (torchvision, Hugging Face) and ADM's, which scores at 256 x 256 are measured with.
// Pillow, src/libImaging/Resample.c; Dhariwal and Nichol (2021), guided-diffusion's center_crop_arr.

import { ShapeError } from "../errors.ts";

/** Pixels as rows of RGB bytes. */
export interface Image {
  width: number;
  height: number;
  /** `[height,width,3]` */
  data: Uint8Array<ArrayBuffer>;
}

export type Filter = "box" | "bilinear" | "bicubic" | "lanczos";

const sinc = (x: number) => x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);

const FILTERS: Readonly<Record<Filter, { support: number; weight: (x: number) => number }>> = {
  box: { support: 0.5, weight: (x) => x > -0.5 && x <= 0.5 ? 1 : 0 },
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    support: 2,
    weight: (signed) => {
      const x = Math.abs(signed), a = -0.5;
      if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
      return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
    },
  },
  lanczos: { support: 3, weight: (x) => x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0 },
};

const FRACTION_BITS = 22;

/** For each output position: the first input position, and the weights from there on; they add up to 1. */
function coefficients(from: number, to: number, filter: Filter) {
  const { support, weight } = FILTERS[filter];
  const scale = from / to, stretch = Math.max(scale, 1), reach = support * stretch;
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const last = Math.min(from, Math.trunc(centre + reach + 0.5));
    const weights = new Float64Array(last - first);
    let sum = 0;
    for (let k = 0; k < weights.length; k++) {
      sum += weights[k] = weight((k + first - centre + 0.5) * (1 / stretch));
    }
    return { first, weights: sum === 0 ? weights : weights.map((w) => w / sum) };
  });
}

const fixedPoint = (weights: Float64Array) =>
  Int32Array.from(weights, (w) => Math.trunc((w < 0 ? -0.5 : 0.5) + w * 2 ** FRACTION_BITS));

/**
 * Resamples along one axis. The picture is taken as `outer` blocks of `from` positions of `inner` bytes.
 * Columns: outer = height, inner = 3. Rows: outer = 1, inner = 3 * width.
 */
function pass(data: Uint8Array, outer: number, from: number, to: number, inner: number, filter: Filter) {
  const out = new Uint8Array(outer * to * inner);
  coefficients(from, to, filter).forEach(({ first, weights: exact }, i) => {
    const weights = fixedPoint(exact);
    for (let o = 0; o < outer; o++) {
      const source = (o * from + first) * inner, target = (o * to + i) * inner;
      for (let c = 0; c < inner; c++) {
        let sum = 1 << (FRACTION_BITS - 1);
        for (let k = 0; k < weights.length; k++) {
          sum += (data[source + k * inner + c] as number) * (weights[k] as number);
        }
        const value = sum >> FRACTION_BITS;
        out[target + c] = value < 0 ? 0 : value > 255 ? 255 : value;
      }
    }
  });
  return out;
}

/** `Image.resize((width, height), filter)` of Pillow. @throws ShapeError for a size below 1 */
export function resizeImage(image: Image, width: number, height: number, filter: Filter = "bicubic"): Image {
  if (!(Number.isInteger(width) && Number.isInteger(height) && width > 0 && height > 0)) {
    throw new ShapeError(`Cannot resize an image to ${width} x ${height}`);
  }
  let { data } = image;
  if (width !== image.width) data = pass(data, image.height, image.width, width, 3, filter);
  if (height !== image.height) data = pass(data, 1, image.height, height, 3 * width, filter);
  return { width, height, data };
}

/**
 * The same in floating point, neither rounded nor clamped between the passes or after them: what torchvision does with
 * tensors that are not bytes.
 * @returns `[height,width,3]`, 0..255 as the bytes were
 */
export function resizeFloat(image: Image, width: number, height: number, filter: Filter): Float32Array {
  const along = (data: ArrayLike<number>, outer: number, from: number, to: number, inner: number) => {
    const out = new Float64Array(outer * to * inner);
    coefficients(from, to, filter).forEach(({ first, weights }, i) => {
      for (let o = 0; o < outer; o++) {
        const source = (o * from + first) * inner, target = (o * to + i) * inner;
        for (let k = 0; k < weights.length; k++) {
          const w = weights[k] as number;
          for (let c = 0; c < inner; c++) {
            out[target + c] = (out[target + c] as number) + w * (data[source + k * inner + c] as number);
          }
        }
      }
    });
    return out;
  };
  let data: ArrayLike<number> = image.data;
  if (width !== image.width) data = along(data, image.height, image.width, width, 3);
  if (height !== image.height) data = along(data, 1, image.height, height, 3 * width);
  return Float32Array.from(data);
}

/** Cuts out a rectangle. @throws ShapeError when it does not lie in the image */
export function crop(image: Image, left: number, top: number, width: number, height: number): Image {
  if (left < 0 || top < 0 || left + width > image.width || top + height > image.height) {
    throw new ShapeError(
      `Cannot crop ${width} x ${height} at (${left}, ${top}): the image is ${image.width} x ${image.height}`,
    );
  }
  const data = new Uint8Array(3 * width * height);
  for (let y = 0; y < height; y++) {
    const from = 3 * ((top + y) * image.width + left);
    data.set(image.data.subarray(from, from + 3 * width), 3 * y * width);
  }
  return { width, height, data };
}

/** The square of side `size` in the middle, by default the largest one. */
export function centerCropSquare(image: Image, size = Math.min(image.width, image.height)): Image {
  const left = Math.floor((image.width - size) / 2), top = Math.floor((image.height - size) / 2);
  return crop(image, left, top, size, size);
}

/** The shorter side becomes `size`; the longer one keeps the aspect ratio, rounded down as torchvision does. */
export function sizeOfShorterSide({ width, height }: Image, size: number): { width: number; height: number } {
  const longer = Math.floor(size * Math.max(width, height) / Math.min(width, height));
  return width <= height ? { width: size, height: longer } : { width: longer, height: size };
}

/**
 * What an encoder's `preprocessor_config.json` asks for: the shorter side to `shorter`, then the central square of `size`,
 * an odd rest rounded as Hugging Face does (torchvision rounds halves to even).
 * @throws ShapeError when the square is larger than the resized image
 */
export function resizeAndCrop(
  image: Image,
  shorter: number,
  size = shorter,
  filter: Filter = "bicubic",
): Image {
  const { width, height } = sizeOfShorterSide(image, shorter);
  return centerCropSquare(resizeImage(image, width, height, filter), size);
}

/** ADM's centre crop: halved by boxes while at least twice too large, bicubic to the exact size, central square. */
export function centerCropAdm(image: Image, size: number): Image {
  while (Math.min(image.width, image.height) >= 2 * size) {
    image = resizeImage(image, Math.floor(image.width / 2), Math.floor(image.height / 2), "box");
  }
  const scale = size / Math.min(image.width, image.height);
  const fit = (n: number) => roundHalfToEven(n * scale);
  return centerCropSquare(resizeImage(image, fit(image.width), fit(image.height)), size);
}

/** Python's round(). */
function roundHalfToEven(x: number): number {
  const floor = Math.floor(x);
  return x - floor === 0.5 ? floor + floor % 2 : Math.round(x);
}
