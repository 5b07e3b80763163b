// PSNR and SSIM of byte images. SSIM: Wang et al. (2004), Gaussian window of 11 with sigma 1.5, K1 = 0.01, K2 = 0.03, range 255,
// without padding, mean over channels.

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

type Planes = [Float64Array, Float64Array, Float64Array, Float64Array, Float64Array];

/** Minimum side of an image for ssim(), pixels. */
export const SSIM_SIDE = 2 * RADIUS + 1;

/** Structural similarity of two [height, width, 3] images; sides of at least 11. */
export function ssim(a: Uint8Array, b: Uint8Array, width: number, height: number): number {
  if (
    width <= 2 * RADIUS || height <= 2 * RADIUS || a.length !== width * height * 3 || b.length !== a.length
  ) {
    throw new ShapeError(
      `Cannot compare images: ${width} x ${height} with ${a.length} and ${b.length} bytes`,
    );
  }
  const c1 = (0.01 * 255) ** 2, c2 = (0.03 * 255) ** 2, pixels = width * height;
  // One channel of a, b, a^2, b^2 and ab.
  const planes = [0, 0, 0, 0, 0].map(() => new Float64Array(pixels)) as Planes;
  const [pa, pb, paa, pbb, pab] = planes;
  let total = 0, count = 0;
  for (let c = 0; c < 3; c++) {
    for (let i = 0; i < pixels; i++) {
      const x = a[3 * i + c] as number, y = b[3 * i + c] as number;
      pa[i] = x;
      pb[i] = y;
      paa[i] = x * x;
      pbb[i] = y * y;
      pab[i] = x * y;
    }
    const [ma, mb, aa, bb, ab] = planes.map((plane) => blur(plane, width, height)) as Planes;
    for (let i = 0; i < ma.length; i++) {
      const x = ma[i] as number, y = mb[i] as number;
      const vx = (aa[i] as number) - x * x, vy = (bb[i] as number) - y * y, cov = (ab[i] as number) - x * y;
      total += (2 * x * y + c1) * (2 * cov + c2) / ((x * x + y * y + c1) * (vx + vy + c2));
      count++;
    }
  }
  return total / count;
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
