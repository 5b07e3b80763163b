// Convolution over channels-last maps as implicit GEMM, with gradients for input, weight and bias. Channels are padded to
// multiples of 4, so that every load is a vec4; a kernel that tiles the image (patch embedding) is a linear layer.

import { differentiable } from "../tensor/autograd.ts";
import { castWeight, check, type Tensor } from "../tensor/tensor.ts";
import type { ConvSizes } from "../../kernels/gemm.ts";
import { gemm, gemmAndSums, type GemmOptions } from "./gemm.ts";
import { linear } from "./matmul.ts";
import { pad, permute, reshape, slice } from "./layout.ts";

export interface ConvOptions {
  stride?: number;
  /** Zeros on every side, or [top, bottom, left, right]. */
  padding?: number | readonly [number, number, number, number];
}

/**
 * [B,H,W,Cin] -> [B,Ho,Wo,Cout] with Ho = (H + top + bottom - KH) / stride + 1, rounded down.
 * @param weight [Cout,KH,KW,Cin]
 * @param bias [Cout]
 */
export function conv2d(x: Tensor, weight: Tensor, bias?: Tensor, options: ConvOptions = {}): Tensor {
  const { stride = 1, padding = 0 } = options;
  check(
    x.rank === 4 && weight.rank === 4 && x.dim(3) === weight.dim(3),
    "convolve",
    "x must be [B,H,W,Cin] and the weight [Cout,KH,KW,Cin]",
    x,
    weight,
  );
  const [B, H, W, C] = x.shape as [number, number, number, number];
  const [Co, KH, KW] = weight.shape as [number, number, number, number];
  check(
    !bias || bias.shape.join() === `${Co}`,
    "convolve",
    "the bias must be [Cout]",
    weight,
    ...bias ? [bias] : [],
  );
  const [top, bottom, left, right] = typeof padding === "number"
    ? [padding, padding, padding, padding]
    : padding;
  const Ho = Math.floor((H + top + bottom - KH) / stride) + 1;
  const Wo = Math.floor((W + left + right - KW) / stride) + 1;
  check(Ho > 0 && Wo > 0, "convolve", `a ${KH}x${KW} kernel does not fit into the padded map`, x);

  const tiles = KH === stride && KW === stride && top + bottom + left + right === 0 && H % KH === 0 &&
    W % KW === 0;
  if (tiles) {
    const patches = permute(reshape(x, [B, Ho, KH, Wo, KW, C]), [0, 1, 3, 2, 4, 5]);
    const flat = reshape(patches, [B, Ho, Wo, KH * KW * C]);
    return linear(flat, reshape(weight, [Co, KH * KW * C]), bias);
  }
  const moreIn = -C & 3, moreOut = -Co & 3;
  if (moreIn || moreOut) {
    const none: [number, number] = [0, 0];
    const wideX = moreIn ? pad(x, [none, none, none, [0, moreIn]]) : x;
    const wide = pad(weight, [[0, moreOut], none, none, [0, moreIn]]);
    const wideBias = bias && moreOut ? pad(bias, [[0, moreOut]]) : bias;
    const y = conv2d(wideX, wide, wideBias, options);
    return moreOut ? slice(y, 3, 0, Co) : y;
  }
  const sizes: ConvSizes = { H, W, C, Ho, Wo, Co, KH, KW, stride, top, left };
  const taps = KH * KW;
  const w = castWeight(weight);
  const y = gemm(x, w, [B, Ho, Wo, Co], {
    source: { kind: "conv" },
    dims: [B * Ho * Wo, Co, taps * C],
    lda: C,
    ldb: taps * C,
    bias,
    images: { axis: "M", count: B },
    conv: sizes,
    vector: true,
  });
  return differentiable(y, bias ? [x, weight, bias] : [x, weight], (dy) => {
    const dx = gemm(dy, w, x.shape, {
      source: { kind: "conv_dx" },
      dims: [B * H * W, C, taps * Co],
      lda: Co,
      ldb: taps * C,
      conv: sizes,
      vector: true,
    });
    const weightGemm: GemmOptions = {
      source: { kind: "conv_dweight" },
      f32Output: true,
      dims: [Co, taps * C, B * Ho * Wo],
      lda: Co,
      ldb: C,
      conv: sizes,
      vector: true,
    };
    const gradients = bias
      ? gemmAndSums(dy, x, weight.shape, weightGemm)
      : [gemm(dy, x, weight.shape, weightGemm)];
    return [dx, ...gradients];
  });
}
