// Bilinear interpolation of RGB bytes without antialiasing, as FID implementations resize images for Inception. Sampling
// positions are rounded to f32 like the originals: in an image of 1,000 pixels that shifts them by up to 1e-4 pixels, which
// is visible at edges.
// PyTorch, aten/src/ATen/native/UpSample.h; TensorFlow 1, core/kernels/resize_bilinear_op.cc.

import type { Image } from "./rows.ts";

/**
 * Input position of output pixel i: scale (i + 1/2) - 1/2 for `pytorch` (F.interpolate, align_corners=False), scale i for
 * `tensorflow1` (align_corners=False, half_pixel_centers=False).
 */
export type Sampling = "pytorch" | "tensorflow1";

/** @returns `[height,width,3]` in -1..1, as b / 127.5 - 1 for a byte b */
export function interpolate(
  { width: W, height: H, data }: Image,
  width: number,
  height: number,
  sampling: Sampling,
): Float32Array<ArrayBuffer> {
  const rows = taps(H, height, sampling), columns = taps(W, width, sampling);
  const out = new Float32Array(3 * width * height);
  let at = 0;
  for (let y = 0; y < height; y++) {
    const upper = 3 * W * (rows.first[y] as number), lower = 3 * W * (rows.second[y] as number);
    const v = rows.weight[y] as number;
    for (let x = 0; x < width; x++) {
      const left = 3 * (columns.first[x] as number), right = 3 * (columns.second[x] as number);
      const u = columns.weight[x] as number;
      for (let c = 0; c < 3; c++) {
        const top = (1 - u) * (data[upper + left + c] as number) + u * (data[upper + right + c] as number);
        const bottom = (1 - u) * (data[lower + left + c] as number) + u * (data[lower + right + c] as number);
        out[at++] = ((1 - v) * top + v * bottom) / 127.5 - 1;
      }
    }
  }
  return out;
}

/** For each output position: its two input neighbours, and the weight of the second. */
function taps(from: number, to: number, sampling: Sampling) {
  const first = new Uint32Array(to), second = new Uint32Array(to), weight = new Float32Array(to);
  const scale = Math.fround(from / to);
  for (let i = 0; i < to; i++) {
    const at = sampling === "pytorch" ? Math.max(0, scale * (i + 0.5) - 0.5) : Math.fround(scale * i);
    first[i] = Math.min(Math.floor(at), from - 1);
    second[i] = Math.min((first[i] as number) + 1, from - 1);
    weight[i] = at - (first[i] as number);
  }
  return { first, second, weight };
}
