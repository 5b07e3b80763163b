// The vision foundation loss of VA-VAE (Yao et al. 2025, arXiv 2501.01423, section 3.2): projected latents should point as the
// features of a frozen encoder do, and be as similar to one another. Means over tokens and over pairs of tokens, in fp32.

import { within } from "../gpu/scope.ts";
import { abs, add, div, mul, neg, relu, shift, sqrt, square, sub } from "../ops/math.ts";
import { matmul } from "../ops/matmul.ts";
import { mean, sum } from "../ops/reduce.ts";
import { check, type Tensor } from "../tensor/tensor.ts";

/** Margins, below which a difference costs nothing; VA-VAE: 0.5 and 0.25. */
export interface VfMargins {
  /** Of 1 - cos between a token and its feature. */
  cosine: number;
  /** Of the difference between two cosine similarities. */
  distance: number;
}

/** Added to |x|^2, so that a vector of zeros has a finite gradient. */
const NORM_EPS = 1e-12;

/**
 * The marginal cosine similarity loss, mean relu(1 - m1 - cos(z_i, f_i)), plus the marginal distance matrix similarity loss,
 * mean relu(|cos(z_i, z_j) - cos(f_i, f_j)| - m2) over all pairs of tokens of an image.
 * @param z projected latents @param f features, both [B, T, C]
 */
export function vfLoss(z: Tensor, f: Tensor, { cosine, distance }: VfMargins): Tensor {
  check(
    z.rank === 3 && f.shape.join() === z.shape.join(),
    "compare latents with features",
    "both must be [B, T, C]",
    z,
    f,
  );
  return within({ precision: "f32" }, () => {
    const [u, v] = [unit(z), unit(f)];
    const cosineLoss = mean(relu(shift(neg(sum(mul(u, v), [-1])), 1 - cosine)));
    const pairs = (x: Tensor) => matmul(x, x, { transposeB: true }); // [B, T, T]
    const distanceLoss = mean(relu(shift(abs(sub(pairs(u), pairs(v))), -distance)));
    return add(cosineLoss, distanceLoss);
  });
}

/** Vectors along the last axis, divided by their length. */
function unit(x: Tensor): Tensor {
  return div(x, sqrt(shift(sum(square(x), [-1], { keepDims: true }), NORM_EPS)));
}
