// Softmax over the last axis, and the mean cross entropy with class numbers.

import source from "../../kernels/softmax.wgsl" with { type: "text" };
import { differentiable } from "../autograd.ts";
import { fold } from "../gpu/kernel.ts";
import { check, empty, type Tensor } from "../tensor.ts";
import { mean } from "./reduce.ts";
import { rowKernel } from "./rows.ts";

/** exp(x) / sum(exp(x)) over the last axis. */
export function softmax(x: Tensor): Tensor {
  const C = x.dim(-1), R = x.size / C;
  const y = empty(x.shape);
  const forward = rowKernel(source, "softmax", R, C);
  const params = { rows: R, size: forward.size, scale: 1 };
  forward.kernel.launch({ x, y }, params, forward.grid, {
    flops: 5 * x.size,
    fusion: { stores: ["y"] },
  });
  return differentiable(y, [x], (dy) => {
    const dx = empty(x.shape);
    const backward = rowKernel(source, "softmax_backward", R, C);
    backward.kernel.launch({ saved: y, dy, dx }, params, backward.grid, {
      flops: 4 * x.size,
      fusion: { stores: ["dx"] },
    });
    return [dx];
  });
}

/**
 * Mean over rows of -log softmax(logits)[label].
 * @param logits [R, K]
 * @param labels u32 [R]; a number past the last class counts as the last one (the host checks its data)
 */
export function crossEntropy(logits: Tensor, labels: Tensor): Tensor {
  check(
    logits.rank === 2 && labels.shape.join() === `${logits.dim(0)}` && labels.dtype === "u32",
    "take a cross entropy",
    "logits must be [R, K] and labels u32 [R]",
    logits,
    labels,
  );
  const [R, K] = logits.shape as [number, number];
  const loss = empty([R]);
  const params = { rows: R, size: K, scale: 1 / R };
  const run = (entry: string) => rowKernel(source, entry, R, K).kernel;
  const grid = fold(Math.ceil(R / 8));
  run("cross_entropy").launch({ x1: logits, labels, loss }, params, grid, { flops: 4 * R * K });
  const y = mean(loss);
  return differentiable(y, [logits], (dy) => {
    const dx1 = empty(logits.shape);
    run("cross_entropy_backward").launch({ x1: logits, labels, dloss: dy, dx1 }, params, grid, {
      flops: 6 * R * K,
    });
    return [dx1];
  });
}
