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
 * x (1 + scale) + shift, or x (1 + scale). Where an image has one shift and scale, their gradients, sums over the same tokens,
 * are computed together.
 * @param x [B, T, C]
 * @param modulation shift and scale of an image [B, 1, 2C] or of each token [B, T, 2C], as adaLN's projection has them; scale
 * alone: C channels
 */
export function modulate(x: Tensor, modulation: Tensor): Tensor {
  const [B, T, C] = x.shape as [number, number, number];
  const shapes = [C, 2 * C].flatMap((channels) => [1, T].map((tokens) => `${B},${tokens},${channels}`));
  check(
    x.rank === 3 && shapes.includes(modulation.shape.join()),
    "modulate",
    "x must be [B, T, C], and shift and scale [B, 1, 2C] or [B, T, 2C], or scale alone",
    x,
    modulation,
  );
  if (modulation.dim(2) === C) return mul(x, plus(modulation, 1));
  if (modulation.dim(1) !== 1) {
    const [shift, scale] = split(modulation, [C, C], 2) as [Tensor, Tensor];
    return add(mul(x, plus(scale, 1)), shift);
  }
  const [y, factor] = noGrad(() => {
    const [shift, scale] = split(modulation, [C, C], 2) as [Tensor, Tensor];
    const factor = plus(scale, 1);
    return [add(mul(x, factor), shift), factor];
  });
  return differentiable(
    y,
    [x, modulation],
    (dy) => [mul(dy, factor), viewAs(sumAndDot(dy, x), modulation.shape)],
  );
}

/** x + gate y: x and y [B, T, C], gate [B, 1, C] or [B, T, C]. */
export function gatedAdd(x: Tensor, y: Tensor, gate: Tensor): Tensor {
  return add(x, mul(y, gate));
}

/**
 * Consecutive parts of an adaLN output, of `parts[i]` times C channels each.
 * @param modulation of images [B, n * C], or of their tokens [B, T, n * C]
 * @returns [B, 1, parts[i] * C], or [B, T, parts[i] * C]
 */
export function splitModulation(modulation: Tensor, parts: readonly number[]): Tensor[] {
  const count = parts.reduce((a, b) => a + b, 0), all = modulation.dim(-1);
  check(
    (modulation.rank === 2 || modulation.rank === 3) && all % count === 0,
    "split a modulation",
    `it must be [B, ${count} * C] or [B, T, ${count} * C]`,
    modulation,
  );
  const tokens = modulation.rank === 2 ? reshape(modulation, [modulation.dim(0), 1, all]) : modulation;
  return split(tokens, parts.map((n) => n * all / count), 2);
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
