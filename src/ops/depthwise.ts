// Depthwise convolution of channels-last maps: each channel has its own K x K kernel, at stride 1. The gradient of the input is
// the same kernel with mirrored taps; that of the weight is a sum per tap, for fine-tuning rather than for speed.

import source from "../../kernels/depthwise.wgsl" with { type: "text" };
import { launch } from "../gpu/bind.ts";
import { fold, kernel } from "../gpu/kernel.ts";
import { differentiable } from "../tensor/autograd.ts";
import { check, emptyActivation, type Tensor } from "../tensor/tensor.ts";
import { concat, pad, permute, reshape, slice } from "./layout.ts";
import { add, mul } from "./math.ts";
import { sum } from "./reduce.ts";
import { byWidth } from "./row_kernel.ts";

/**
 * [B,H,W,C] -> [B,Ho,Wo,C] with Ho = H + 2 padding - K + 1.
 * @param weight [C,K,K,1]
 * @param bias [C]
 */
export function depthwiseConv2d(x: Tensor, weight: Tensor, bias: Tensor, padding = 0): Tensor {
  const [C, K] = weight.shape as [number, number];
  check(
    x.rank === 4 && weight.shape.join() === [x.dim(3), K, K, 1].join() && bias.shape.join() === `${C}`,
    "convolve each channel",
    "x must be [B,H,W,C], the weight [C,K,K,1] and the bias [C]",
    x,
    weight,
    bias,
  );
  const [Ho, Wo] = [x.dim(1), x.dim(2)].map((n) => n + 2 * padding - K + 1) as [number, number];
  check(
    Ho > 0 && Wo > 0 && padding < K,
    "convolve each channel",
    `a ${K}x${K} kernel with padding ${padding} does not fit`,
    x,
  );
  const taps = reshape(permute(weight, [1, 2, 3, 0]), [K * K, C]);
  return add(convolve(x, taps, [Ho, Wo], K, padding), bias);
}

/** @param taps [K * K, C] */
function convolve(
  x: Tensor,
  taps: Tensor,
  [Ho, Wo]: readonly [number, number],
  K: number,
  padding: number,
): Tensor {
  const [B, H, W, C] = x.shape as [number, number, number, number];
  const y = correlate(x, taps, [B, Ho, Wo, C], K, padding, 0);
  return differentiable(y, [x, taps], (dy) => {
    const around = [padding, padding] as const, none = [0, 0] as const;
    const padded = padding ? pad(x, [none, around, around, none]) : x;
    const rows = Array.from({ length: K * K }, (_, k) => {
      const [ky, kx] = [Math.floor(k / K), k % K];
      const window = slice(slice(padded, 1, ky, ky + Ho), 2, kx, kx + Wo);
      return reshape(sum(mul(window, dy), [0, 1, 2]), [1, C]);
    });
    return [correlate(dy, taps, [B, H, W, C], K, K - 1 - padding, 1), concat(rows, 0)];
  });
}

function correlate(
  x: Tensor,
  weight: Tensor,
  shape: readonly [number, number, number, number],
  K: number,
  padding: number,
  MIRRORED: 0 | 1,
): Tensor {
  const [, H, W, C] = x.shape as [number, number, number, number], [, Ho, Wo] = shape;
  const { source: text, width } = byWidth(source, C), y = emptyActivation(shape);
  const params = { count: y.size / width, H, W, C: C / width, Ho, Wo, K, padding };
  launch(
    kernel(text, "depthwise", { MIRRORED }),
    { x, weight, y },
    params,
    fold(Math.ceil(params.count / 64)),
    {
      flops: 2 * K * K * y.size,
      iterations: K * K,
    },
  );
  return y;
}
