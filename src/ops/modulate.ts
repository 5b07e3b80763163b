// The named steps of a DiT block: adaLN's modulation and gate, and SwiGLU. Modulation and gate are chains of
// elementwise ops that the plan fuses into one launch each.

import source from "../../kernels/swiglu.wgsl" with { type: "text" };
import { differentiable, noGrad } from "../tensor/autograd.ts";
import { launch } from "../gpu/bind.ts";
import { fold, kernel } from "../gpu/kernel.ts";
import { check, empty, emptyActivation, type Tensor, viewAs } from "../tensor/tensor.ts";
import { add, mul, shift as plus } from "./math.ts";
import { sumAndDot } from "./reduce.ts";
import { byWidth } from "./row_kernel.ts";
import { reshape, split } from "./layout.ts";

/**
 * x (1 + scale) + shift. The gradients of shift and scale are sums over the same tokens, computed together.
 * @param x [B, T, C]
 * @param shiftAndScale [B, 1, 2C], as adaLN's projection has them
 */
export function modulate(x: Tensor, shiftAndScale: Tensor): Tensor {
  const [B, , C] = x.shape as [number, number, number];
  check(
    x.rank === 3 && shiftAndScale.shape.join() === `${B},1,${2 * C}`,
    "modulate",
    "x must be [B, T, C], and shift and scale [B, 1, 2C]",
    x,
    shiftAndScale,
  );
  const [y, factor] = noGrad(() => {
    const [shift, scale] = split(shiftAndScale, [C, C], 2) as [Tensor, Tensor];
    const factor = plus(scale, 1);
    return [add(mul(x, factor), shift), factor];
  });
  return differentiable(
    y,
    [x, shiftAndScale],
    (dy) => [mul(dy, factor), viewAs(sumAndDot(dy, x), shiftAndScale.shape)],
  );
}

/** x + gate y: x and y [B, T, C], gate [B, 1, C]. */
export function gatedAdd(x: Tensor, y: Tensor, gate: Tensor): Tensor {
  return add(x, mul(y, gate));
}

/** Consecutive parts of an adaLN output [B, n * C], of `parts[i]` times C each, as [B, 1, parts[i] * C]. */
export function splitModulation(modulation: Tensor, parts: readonly number[]): Tensor[] {
  const [B, all] = modulation.shape as [number, number];
  const count = parts.reduce((a, b) => a + b, 0);
  check(
    modulation.rank === 2 && all % count === 0,
    "split a modulation",
    `it must be [B, ${count} * C]`,
    modulation,
  );
  return split(reshape(modulation, [B, 1, all]), parts.map((n) => n * all / count), 2);
}

/** silu(first half) * second half of the last axis: [..., 2H] -> [..., H]. */
export function swiglu(x: Tensor): Tensor {
  check(x.dim(-1) % 2 === 0, "apply SwiGLU", "the last axis must be even", x);
  const H = x.dim(-1) / 2;
  const { source: text, width } = byWidth(source, H);
  const y = emptyActivation([...x.shape.slice(0, -1), H]);
  const params = { count: y.size / width, size: H / width };
  const grid = fold(Math.ceil(params.count / 64));
  launch(kernel(text, "swiglu"), { x, y }, params, grid, {
    flops: 5 * y.size,
    fusion: { loads: ["x"], stores: ["y"] },
  });
  return differentiable(y, [x], (dy) => {
    // Scalar kernels store single elements, which fp16 cannot be: H decides, not the 2H of x.
    const dx = width === 4 ? emptyActivation(x.shape) : empty(x.shape);
    launch(kernel(text, "swiglu_backward"), { x, dy, y: dx }, params, grid, {
      flops: 10 * y.size,
      fusion: { loads: ["dy"], stores: ["y"] },
    });
    return [dx];
  });
}
