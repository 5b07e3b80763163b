// Nearest-2x upsampling, average and max pooling of channels-last maps, with gradients.

import source from "../../kernels/pool.wgsl" with { type: "text" };
import { differentiable } from "../tensor/autograd.ts";
import { partsOf } from "../gpu/iterations.ts";
import { launch } from "../gpu/bind.ts";
import { fold, kernel } from "../gpu/kernel.ts";
import { check, emptyActivation, type Tensor } from "../tensor/tensor.ts";
import { mean } from "./reduce.ts";
import { byWidth } from "./row_kernel.ts";
import { reshape } from "./layout.ts";

const over = (count: number) => fold(Math.ceil(count / 64));

/** Each pixel of [B,H,W,C] becomes a 2x2 square: -> [B,2H,2W,C]. */
export function upsampleNearest2x(x: Tensor): Tensor {
  check(x.rank === 4, "upsample", "it must be [B,H,W,C]", x);
  const [B, H, W, C] = x.shape as [number, number, number, number];
  const { source: text, width } = byWidth(source, C);
  const params = {
    count: x.size / width,
    H,
    W,
    C: C / width,
    Ho: 2 * H,
    Wo: 2 * W,
    K: 2,
    stride: 2,
    padding: 0,
  };
  const y = emptyActivation([B, 2 * H, 2 * W, C]);
  launch(kernel(text, "upsample"), { x, y }, params, over(params.count));
  return differentiable(y, [x], (dy) => {
    const dx = emptyActivation(x.shape);
    launch(kernel(text, "upsample_backward"), { dy, y: dx }, params, over(params.count), {
      flops: 3 * x.size,
    });
    return [dx];
  });
}

export interface PoolOptions {
  /** Side of the window. */
  kernel: number;
  /** Step between windows; the window's side when absent. */
  stride?: number;
  /** Cells around the map; zeros for the mean, ignored by the maximum. */
  padding?: number;
}

/** Mean over windows of [B,H,W,C]. @param options.countPadding whether padding counts (true); not in TensorFlow */
export function averagePool(x: Tensor, options: PoolOptions & { countPadding?: boolean }): Tensor {
  return pool(x, options, { MAX: 0, COUNT_PADDING: options.countPadding === false ? 0 : 1 });
}

/** Maximum over windows of [B,H,W,C]. */
export function maxPool(x: Tensor, options: PoolOptions): Tensor {
  return pool(x, options, { MAX: 1 });
}

function pool(
  x: Tensor,
  { kernel: K, stride = K, padding = 0 }: PoolOptions,
  switches: Record<string, number>,
): Tensor {
  check(x.rank === 4, "pool", "it must be [B,H,W,C]", x);
  const [B, H, W, C] = x.shape as [number, number, number, number];
  const side = (n: number) => Math.floor((n + 2 * padding - K) / stride) + 1;
  const Ho = side(H), Wo = side(W);
  check(
    Ho > 0 && Wo > 0 && padding <= K / 2,
    "pool",
    `windows of ${K} with padding ${padding} do not fit`,
    x,
  );
  // A thread loops over a window. Means of non-overlapping windows that are too large for a thread are reductions.
  if (!switches.MAX && partsOf(K * K) > 1 && stride === K && padding === 0 && Ho * K === H && Wo * K === W) {
    return mean(reshape(x, [B, Ho, K, Wo, K, C]), [2, 4]);
  }
  const { source: text, width } = byWidth(source, C);
  const y = emptyActivation([B, Ho, Wo, C]);
  const params = { H, W, C: C / width, Ho, Wo, K, stride, padding };
  const forward = { ...params, count: y.size / width };
  launch(kernel(text, "pool", switches), { x, y }, forward, over(forward.count), {
    flops: K * K * y.size,
    iterations: K * K,
  });
  return differentiable(y, [x], (dy) => {
    const dx = emptyActivation(x.shape);
    const backward = { ...params, count: x.size / width };
    launch(kernel(text, "pool_backward", switches), { x, dy, y: dx }, backward, over(backward.count), {
      flops: K * K * y.size,
      iterations: Math.ceil(K / stride) ** 2 * (switches.MAX ? 1 + 2 * K * K : 1),
    });
    return [dx];
  });
}
