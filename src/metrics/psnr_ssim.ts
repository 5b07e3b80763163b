// PSNR, SSIM and MS-SSIM of byte images. SSIM: Wang et al. (2004), Gaussian window of 11 with sigma 1.5, K1 = 0.01, K2 = 0.03,
// range 255, without padding, mean over channels.

import { ShapeError } from "../errors.ts";

/** Mean squared difference of two byte images. */
export function mse(a: Uint8Array, b: Uint8Array): number {
  if (a.length !== b.length) {
    throw new ShapeError(`Cannot compare images: ${a.length} bytes against ${b.length}`);
  }
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += ((a[i] as number) - (b[i] as number)) ** 2;
  return sum / a.length;
}

/** Peak signal-to-noise ratio, dB; infinite for equal images. */
export function psnr(a: Uint8Array, b: Uint8Array): number {
  return 10 * Math.log10(255 ** 2 / mse(a, b));
}

const RADIUS = 5;
const WINDOW = Float64Array.from((() => {
  const w = Array.from({ length: 2 * RADIUS + 1 }, (_, i) => Math.exp(-((i - RADIUS) ** 2) / (2 * 1.5 ** 2)));
  const sum = w.reduce((a, b) => a + b, 0);
  return w.map((v) => v / sum);
})());

/** Minimum side of an image for ssim(), pixels. */
export const SSIM_SIDE = 2 * RADIUS + 1;

/** Structural similarity of two [height, width, 3] images; sides of at least 11. */
export function ssim(a: Uint8Array, b: Uint8Array, width: number, height: number): number {
  checkSizes(a, b, width, height, SSIM_SIDE);
  let total = 0;
  for (let c = 0; c < 3; c++) total += similarity(plane(a, c), plane(b, c), width, height).ssim / 3;
  return total;
}

/** Weights of the scales, full resolution first. */
const SCALES = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333];

/** Minimum side of an image for msSsim(): the coarsest scale has the side of the window. */
export const MS_SSIM_SIDE = (SSIM_SIDE - 1) * 2 ** (SCALES.length - 1) + 1;

/**
 * Multi-scale structural similarity of two [height, width, 3] images; sides of at least 161. Wang et al. (2003): the product over
 * scales of contrast and structure, with luminance at the coarsest. Per channel, negative means as 0, odd sides zero-padded
 * before the 2 x 2 average, as in pytorch-msssim.
 */
export function msSsim(a: Uint8Array, b: Uint8Array, width: number, height: number): number {
  checkSizes(a, b, width, height, MS_SSIM_SIDE);
  let total = 0;
  for (let c = 0; c < 3; c++) {
    let x = plane(a, c), y = plane(b, c), w = width, h = height, product = 1;
    SCALES.forEach((weight, scale) => {
      if (scale > 0) {
        [x, y] = [halved(x, w, h), halved(y, w, h)];
        [w, h] = [half(w), half(h)];
      }
      const { ssim, contrast } = similarity(x, y, w, h);
      product *= Math.max(0, scale === SCALES.length - 1 ? ssim : contrast) ** weight;
    });
    total += product / 3;
  }
  return total;
}

function checkSizes(a: Uint8Array, b: Uint8Array, width: number, height: number, side: number): void {
  if (Math.min(width, height) >= side && a.length === width * height * 3 && b.length === a.length) return;
  throw new ShapeError(
    `Cannot compare images: ${width} x ${height} with ${a.length} and ${b.length} bytes`,
  );
}

/** One channel of an image. */
const plane = (image: Uint8Array, channel: number) =>
  Float64Array.from({ length: image.length / 3 }, (_, i) => image[3 * i + channel] as number);

/** Side after {@link halved}. */
const half = (side: number) => (side + 1) >> 1;

/** Average of each 2 x 2 pixels; an odd side begins with a zero. */
function halved(plane: Float64Array, width: number, height: number): Float64Array<ArrayBuffer> {
  const w = half(width), h = half(height), out = new Float64Array(w * h);
  for (let y = 0; y < height; y++) {
    const row = ((y + height % 2) >> 1) * w;
    for (let x = 0; x < width; x++) {
      const at = row + ((x + width % 2) >> 1);
      out[at] = (out[at] as number) + (plane[y * width + x] as number) / 4;
    }
  }
  return out;
}

type Planes = [Float64Array, Float64Array, Float64Array, Float64Array, Float64Array];

/** Means of SSIM and of its factor for contrast and structure over one channel of two images. */
function similarity(
  a: Float64Array,
  b: Float64Array,
  width: number,
  height: number,
): { ssim: number; contrast: number } {
  const c1 = (0.01 * 255) ** 2, c2 = (0.03 * 255) ** 2;
  const moments = [a, b, a.map((v) => v * v), b.map((v) => v * v), a.map((v, i) => v * (b[i] as number))];
  const [ma, mb, aa, bb, ab] = moments.map((plane) => blur(plane, width, height)) as Planes;
  let total = 0, contrasts = 0;
  for (let i = 0; i < ma.length; i++) {
    const x = ma[i] as number, y = mb[i] as number;
    const vx = (aa[i] as number) - x * x, vy = (bb[i] as number) - y * y, cov = (ab[i] as number) - x * y;
    const contrast = (2 * cov + c2) / (vx + vy + c2);
    contrasts += contrast;
    total += contrast * (2 * x * y + c1) / (x * x + y * y + c1);
  }
  return { ssim: total / ma.length, contrast: contrasts / ma.length };
}

/** Convolution with the window, without padding. */
function blur(plane: Float64Array, width: number, height: number): Float64Array {
  const w = width - 2 * RADIUS, h = height - 2 * RADIUS;
  const rows = new Float64Array(w * height), out = new Float64Array(w * h);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < w; x++) {
      let sum = 0;
      for (let k = 0; k < WINDOW.length; k++) {
        sum += (WINDOW[k] as number) * (plane[y * width + x + k] as number);
      }
      rows[y * w + x] = sum;
    }
  }
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      let sum = 0;
      for (let k = 0; k < WINDOW.length; k++) {
        sum += (WINDOW[k] as number) * (rows[(y + k) * w + x] as number);
      }
      out[y * w + x] = sum;
    }
  }
  return out;
}
