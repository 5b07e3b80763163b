// Resampling of 8-bit images exactly as Pillow does it: two passes, 22-bit fixed-point weights, antialiased; and the crops
// that image preprocessing uses. Training and scores see the same pixels as the Python world.

/** 8-bit RGB, rows from the top, [height, width, 3]. */
export interface Image {
  width: number;
  height: number;
  data: Uint8Array;
}

export type Filter = "box" | "bilinear" | "bicubic" | "lanczos";

const sinc = (x: number) => x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);

const FILTERS: Record<Filter, { support: number; weight: (x: number) => number }> = {
  box: { support: 0.5, weight: (x) => x > -0.5 && x <= 0.5 ? 1 : 0 },
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    support: 2,
    weight: (x) => {
      const d = Math.abs(x), a = -0.5;
      if (d < 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
      return d < 2 ? (((d - 5) * d + 8) * d - 4) * a : 0;
    },
  },
  lanczos: { support: 3, weight: (x) => x > -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0 },
};

const BITS = 22;

interface Weights {
  first: Int32Array;
  count: Int32Array;
  /** `most` fixed-point weights for each output. */
  values: Int32Array;
  most: number;
}

function weightsOf(from: number, to: number, filter: Filter): Weights {
  const { support: reach, weight } = FILTERS[filter];
  const scale = from / to, stretch = Math.max(scale, 1), support = reach * stretch;
  const most = Math.ceil(support) * 2 + 1;
  const first = new Int32Array(to), count = new Int32Array(to), values = new Int32Array(to * most);
  for (let i = 0; i < to; i++) {
    const centre = (i + 0.5) * scale;
    const begin = Math.max(0, Math.trunc(centre - support + 0.5)),
      end = Math.min(from, Math.trunc(centre + support + 0.5));
    const row = Array.from({ length: end - begin }, (_, k) => weight((k + begin - centre + 0.5) / stretch));
    const sum = row.reduce((a, b) => a + b, 0);
    row.forEach((w, k) => {
      const fixed = (sum === 0 ? w : w / sum) * 2 ** BITS;
      values[i * most + k] = Math.trunc(fixed < 0 ? fixed - 0.5 : fixed + 0.5);
    });
    first[i] = begin;
    count[i] = end - begin;
  }
  return { first, count, values, most };
}

/** Resizes to `width` x `height`. */
export function resizeImage(image: Image, width: number, height: number, filter: Filter): Image {
  const across = width === image.width ? image : pass(image, width, filter, "x");
  return height === image.height ? across : pass(across, height, filter, "y");
}

function pass({ width, height, data }: Image, to: number, filter: Filter, axis: "x" | "y"): Image {
  const alongX = axis === "x";
  const { first, count, values, most } = weightsOf(alongX ? width : height, to, filter);
  const [outWidth, outHeight] = alongX ? [to, height] : [width, to];
  const out = new Uint8Array(outWidth * outHeight * 3);
  const step = alongX ? 3 : width * 3;
  for (let y = 0, at = 0; y < outHeight; y++) {
    for (let x = 0; x < outWidth; x++) {
      const i = alongX ? x : y;
      const begin = alongX ? (y * width + (first[i] as number)) * 3 : ((first[i] as number) * width + x) * 3;
      const n = count[i] as number;
      for (let c = 0; c < 3; c++) {
        let sum = 2 ** (BITS - 1);
        for (let k = 0, p = begin + c; k < n; k++, p += step) {
          sum += (data[p] as number) * (values[i * most + k] as number);
        }
        const value = Math.floor(sum / 2 ** BITS);
        out[at++] = value < 0 ? 0 : value > 255 ? 255 : value;
      }
    }
  }
  return { width: outWidth, height: outHeight, data: out };
}

/** The `width` x `height` part with its corner at (left, top). */
export function crop(image: Image, left: number, top: number, width: number, height: number): Image {
  const data = new Uint8Array(width * height * 3);
  for (let y = 0; y < height; y++) {
    const from = ((top + y) * image.width + left) * 3;
    data.set(image.data.subarray(from, from + width * 3), y * width * 3);
  }
  return { width, height, data };
}

/** torchvision's Resize(shorter) and CenterCrop(size): the usual preprocessing of encoders. */
export function resizeAndCrop(image: Image, shorter: number, size: number, filter: Filter): Image {
  const { width, height } = image;
  const [w, h] = width <= height
    ? [shorter, Math.trunc(shorter * height / width)]
    : [Math.trunc(shorter * width / height), shorter];
  const resized = resizeImage(image, w, h, filter);
  return crop(resized, roundHalfEven((w - size) / 2), roundHalfEven((h - size) / 2), size, size);
}

/** ADM's centre crop: halve with a box while twice too large, then bicubic, then crop (Dhariwal and Nichol, 2021). */
export function centerCropAdm(image: Image, size: number): Image {
  let current = image;
  while (Math.min(current.width, current.height) >= 2 * size) {
    current = resizeImage(current, Math.floor(current.width / 2), Math.floor(current.height / 2), "box");
  }
  const scale = size / Math.min(current.width, current.height);
  const w = roundHalfEven(current.width * scale), h = roundHalfEven(current.height * scale);
  current = resizeImage(current, w, h, "bicubic");
  return crop(current, Math.floor((w - size) / 2), Math.floor((h - size) / 2), size, size);
}

/** Python's round(). */
function roundHalfEven(x: number): number {
  const floor = Math.floor(x);
  if (x - floor !== 0.5) return Math.round(x);
  return floor % 2 === 0 ? floor : floor + 1;
}
