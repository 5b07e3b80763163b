// DiffAug: differentiable augmentation of the images that a discriminator sees (Zhao et al., 2020, arXiv 2006.10738): color
// (brightness, saturation, contrast), then translation, then cutout, each image by its own random numbers.

import source from "../../kernels/translate.wgsl" with { type: "text" };
import { launch } from "../gpu/bind.ts";
import { fold, kernel } from "../gpu/kernel.ts";
import { within } from "../gpu/scope.ts";
import { differentiable, noGrad } from "../tensor/autograd.ts";
import { check, constant, empty, type Tensor } from "../tensor/tensor.ts";
import { concat, reshape, slice } from "./layout.ts";
import { add, mul, sub } from "./math.ts";
import { pointwise } from "./pointwise.ts";
import { type RandomSource, uniform } from "./random.ts";
import { mean } from "./reduce.ts";

/** The augmentations, in the order in which they are applied. */
export const AUGMENTATIONS = ["color", "translation", "cutout"] as const;
export type Augmentation = typeof AUGMENTATIONS[number];

/** Largest translation and side of the square that is cut out, as fractions of the image's side: DiffAug's and StyleGAN-T's. */
const TRANSLATION = 0.125, CUTOUT = 0.2;

/** Random numbers of an image: brightness, saturation, contrast, translation down and right, cutout down and right. */
const COUNT = 7;

/** Tells these random numbers from those of other ops of a program. */
const STREAM = 0xa06;

/** Random numbers for {@link diffAugment}, [B, 7]. */
export const augmentationNumbers = (B: number, state: RandomSource): Tensor =>
  uniform([B, COUNT], state, STREAM);

/**
 * Images [B,H,W,C] in -1..1, augmented.
 * @param which augmentations to apply
 * @param numbers [B, 7], uniform in 0..1; see {@link augmentationNumbers}. Not differentiable
 */
export function diffAugment(x: Tensor, which: readonly Augmentation[], numbers: Tensor): Tensor {
  check(
    x.rank === 4 && numbers.shape.join() === `${x.dim(0)},${COUNT}`,
    "augment",
    `images must be [B,H,W,C] and the random numbers [B,${COUNT}]`,
    x,
    numbers,
  );
  const [B] = x.shape as [number];
  /** The k-th number of every image as a value [B,1,1,1] or another shape. */
  const number = (k: number, formula: string, scalars: readonly number[] = []) =>
    noGrad(() => reshape(pointwise([formula], [slice(numbers, 1, k, k + 1)], scalars), [B, 1, 1, 1]));
  const steps: Record<Augmentation, (x: Tensor) => Tensor> = {
    color(x) {
      const bright = add(x, number(0, "x0 - T(0.5)"));
      const gray = mean(bright, [3], { keepDims: true });
      const saturated = add(mul(sub(bright, gray), number(1, "x0 * T(2.0)")), gray);
      const level = mean(saturated, [1, 2, 3], { keepDims: true });
      return add(mul(sub(saturated, level), number(2, "x0 + T(0.5)")), level);
    },
    translation(x) {
      // A whole number in -n..n; a random number may be 1 by rounding.
      const shift = (k: number, n: number) =>
        number(k, "min(floor(x0 * s0), T(s1)) - s2", [2 * n + 1, 2 * n, n]);
      const [down, right] = [3, 4].map((k) => shift(k, Math.round(x.dim(k - 2) * TRANSLATION)));
      const shifts = noGrad(() => concat([down as Tensor, right as Tensor], 3));
      return translate(x, reshape(shifts, [B, 2]));
    },
    cutout: (x) => mul(x, noGrad(() => cutoutMask(x, number))),
  };
  return within(
    { precision: "f32" },
    () => AUGMENTATIONS.filter((name) => which.includes(name)).reduce((y, name) => steps[name](y), x),
  );
}

/** Image b moved up by shifts[b, 0] and left by shifts[b, 1] pixels, zeros outside. */
function translate(x: Tensor, shifts: Tensor): Tensor {
  const [, height, width, channels] = x.shape as [number, number, number, number];
  const apply = (x: Tensor, SIGN: 1 | -1) => {
    const y = empty(x.shape), count = x.size;
    const params = { count, height, width, channels };
    launch(kernel(source, "translate", { SIGN }), { x, shifts, y }, params, fold(Math.ceil(count / 64)));
    return y;
  };
  return differentiable(apply(x, 1), [x], (dy) => [apply(dy, -1)]);
}

/** 0 in a square around a random pixel of each image, 1 elsewhere: [B,H,W,1]. */
function cutoutMask(
  x: Tensor,
  number: (k: number, formula: string, scalars?: readonly number[]) => Tensor,
): Tensor {
  /** Whether each row (axis 1) or column (axis 2) is inside. */
  const inside = (axis: 1 | 2) => {
    const n = x.dim(axis), side = Math.round(n * CUTOUT), centres = n + (1 - side % 2);
    const first = number(4 + axis, "min(floor(x0 * s0), T(s1)) - s2", [
      centres,
      centres - 1,
      Math.floor(side / 2),
    ]);
    const shape = [1, 1, 1, 1].map((one, a) => a === axis ? n : one);
    const positions = constant(Float32Array.from({ length: n }, (_, i) => i), shape, "positions");
    return pointwise(["select(T(0.0), T(1.0), x0 >= x1) * select(T(0.0), T(1.0), x0 < x1 + s0)"], [
      positions,
      first,
    ], [side]);
  };
  return pointwise(["1.0 - x0 * x1"], [inside(1), inside(2)]);
}
