// Softmax over the last axis, and the mean cross entropy with labels.

import source from "../../kernels/softmax.wgsl" with { type: "text" };
import { differentiable } from "../tensor/autograd.ts";
import { check, empty, type Tensor } from "../tensor/tensor.ts";
import { mean } from "./reduce.ts";
import { rowKernel } from "./row_kernel.ts";

/** exp(x) / sum(exp(x)) over the last axis. */
export function softmax(x: Tensor): Tensor {
  const C = x.dim(-1), R = x.size / C;
  const y = empty(x.shape);
  const forward = rowKernel(source, "softmax", R, C, 3);
  const params = { rows: R, size: forward.size, scale: 1 };
  forward.launch({ x, y }, params, { flops: 5 * x.size, fusion: { stores: ["y"] } });
  return differentiable(y, [x], (dy) => {
    const dx = empty(x.shape);
    const backward = rowKernel(source, "softmax_backward", R, C, 2);
    backward.launch({ y, dy, dx }, params, { flops: 4 * x.size, fusion: { stores: ["dx"] } });
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
  const forward = rowKernel(source, "cross_entropy", R, K, 2);
  const params = { rows: R, size: forward.size, scale: 1 / R };
  forward.launch({ x: logits, labels, loss }, params, { flops: 4 * R * K });
  const y = mean(loss);
  return differentiable(y, [logits], (dy) => {
    const dx = empty(logits.shape);
    const backward = rowKernel(source, "cross_entropy_backward", R, K, 3);
    backward.launch({ x: logits, labels, dloss: dy, dx }, params, { flops: 6 * R * K });
    return [dx];
  });
}
