// Bilinear and bicubic resizing of channels-last maps, equal to PyTorch's interpolate with align_corners=False.
// Separable: each axis is a GEMM with a small table of weights, and the gradient a GEMM with its transpose.

import { differentiable } from "../tensor/autograd.ts";
import { check, constant, type Tensor } from "../tensor/tensor.ts";
import { gemm } from "./gemm.ts";

export interface ResizeOptions {
  filter: "bilinear" | "bicubic";
  /** Widen the filter when shrinking. */
  antialias?: boolean;
  /** Pixel centres are integers and not half-integers, as in TensorFlow 1; bilinear without antialias only. */
  corners?: boolean;
  /** Input positions per output position, vertical and horizontal, if not the ratio of sizes: 1 / scale_factor in PyTorch. */
  steps?: readonly [number, number];
}

/** [B,H,W,C] -> [B,height,width,C]. Bicubic uses a = -0.75, with antialias a = -0.5, as PyTorch does. */
export function resize(x: Tensor, height: number, width: number, options: ResizeOptions): Tensor {
  check(x.rank === 4, "resize", "it must be [B,H,W,C]", x);
  const [B, H, W, C] = x.shape as [number, number, number, number];
  const [down, across] = options.steps ?? [H / height, W / width];
  const y = along(x, [B, H, W * C], height, down, options, [B, height, W, C]);
  return along(y, [B * height, W, C], width, across, options, [B, height, width, C]);
}

/** Table times the middle axis of x seen as [outer, n, inner]. */
function along(
  x: Tensor,
  [outer, n, inner]: readonly [number, number, number],
  size: number,
  step: number,
  options: ResizeOptions,
  shape: readonly number[],
): Tensor {
  if (n === size && step === 1) return x;
  const table = constant(resizeTable(n, size, options, step), [size, n], "resize table");
  const apply = (from: Tensor, transpose: boolean, to: readonly number[]) => {
    const [M, K] = transpose ? [n, size] : [size, n];
    const lda = transpose ? M : K;
    return gemm(table, from, to, {
      source: { kind: "plain", transposeA: transpose, transposeB: false },
      dims: [M, inner, K],
      lda,
      ldb: inner,
      batch: { count: outer, a: 0, b: K * inner },
      images: { axis: "batch", count: shape[0] as number },
      vector: (K % 4 === 0 || transpose) && lda % 4 === 0 && inner % 4 === 0,
    });
  };
  return differentiable(apply(x, false, shape), [x], (dy) => [apply(dy, true, x.shape)]);
}

/** Weights [size, n]: row i says how much of each input goes into output i, whose width is `scale` inputs. */
export function resizeTable(
  n: number,
  size: number,
  { filter, antialias = false, corners = false }: ResizeOptions,
  scale = n / size,
): Float32Array {
  const table = new Float64Array(size * n);
  const stretch = antialias ? Math.max(scale, 1) : 1;
  const a = antialias ? -0.5 : -0.75;
  const weight = (distance: number) => {
    const d = Math.abs(distance);
    if (filter === "bilinear") return Math.max(0, 1 - d);
    if (d < 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
    return d < 2 ? ((d - 5) * d + 8) * d * a - 4 * a : 0;
  };
  const support = (filter === "bilinear" ? 1 : 2) * stretch;
  for (let i = 0; i < size; i++) {
    const centre = scale * (i + 0.5);
    if (antialias) {
      const first = Math.max(0, Math.trunc(centre - support + 0.5)),
        end = Math.min(n, Math.trunc(centre + support + 0.5));
      let sum = 0;
      for (let j = first; j < end; j++) sum += weight((j + 0.5 - centre) / stretch);
      for (let j = first; j < end; j++) table[i * n + j] = weight((j + 0.5 - centre) / stretch) / sum;
    } else {
      // Outside the map the border repeats; bilinear does not look left of the first centre.
      const at = corners ? scale * i : filter === "bilinear" ? Math.max(0, centre - 0.5) : centre - 0.5;
      const base = Math.floor(at), reach = filter === "bilinear" ? [0, 1] : [-1, 0, 1, 2];
      for (const r of reach) {
        const j = Math.min(Math.max(base + r, 0), n - 1);
        table[i * n + j] = (table[i * n + j] as number) + weight(at - base - r);
      }
    }
  }
  return Float32Array.from(table);
}
