// Elementwise work on tensors: broadcasts shapes and records an expression (gpu/elementwise.ts), which the plan may fuse with
// other launches. No gradients here; see math.ts.

import { ShapeError } from "../errors.ts";
import { broadcast, contiguous } from "../gpu/strides.ts";
import { launchExpression } from "../gpu/elementwise.ts";
import { emptyActivation, type Shape, type Tensor } from "../tensor/tensor.ts";

/**
 * y = body(x0, x1, ...; s0, s1, ...) elementwise over the broadcast shape of the inputs.
 * @param body WGSL expressions t0, t1, ...; the last is the result; `T` is the vector type
 * @param shape of the result, where it is larger than what the inputs broadcast to
 * @throws ShapeError when the shapes cannot be broadcast
 */
export function pointwise(
  body: readonly string[],
  inputs: readonly Tensor[],
  scalars: readonly number[] = [],
  shape: Shape = broadcastShape(inputs.map((x) => x.shape)),
): Tensor {
  const y = emptyActivation(shape);
  launchExpression({
    count: y.size,
    inputs: inputs.map((x) => ({ storage: x.storage, view: broadcast(x.shape, shape) })),
    scalars,
    body,
    outputs: [{ value: `t${body.length - 1}`, storage: y.storage, view: contiguous(y.size) }],
  });
  return y;
}

/** NumPy's rule: trailing axes are aligned, sizes must be equal or 1. */
export function broadcastShape(shapes: readonly Shape[]): Shape {
  const rank = Math.max(0, ...shapes.map((s) => s.length));
  return Array.from({ length: rank }, (_, i) => {
    const sizes = new Set(shapes.map((s) => s[s.length - rank + i] ?? 1));
    sizes.delete(1);
    if (sizes.size > 1) {
      throw new ShapeError(
        `Cannot broadcast: the shapes are ${shapes.map((s) => `[${s.join(", ")}]`).join(" and ")}`,
      );
    }
    return [...sizes][0] ?? 1;
  });
}
