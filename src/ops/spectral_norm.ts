// Spectral normalization of a weight (Miyato et al., 2018, arXiv 1802.05957): W / sigma(W), where one step of the power
// method from the left singular vector of the step before estimates sigma.

import { copy } from "../gpu/memory.ts";
import { within } from "../gpu/scope.ts";
import { differentiable, noGrad } from "../tensor/autograd.ts";
import { check, type Tensor, viewAs } from "../tensor/tensor.ts";
import { mul } from "./math.ts";
import { pointwise } from "./pointwise.ts";
import { sum, sumOfSquares } from "./reduce.ts";

/**
 * W / (u' W v) with v = W' u / |W' u| and u' = W v / |W v|; the gradient takes u' and v as constants, as PyTorch's does.
 * @param w [Cout, ...], seen as a matrix of Cout rows
 * @param u [Cout], of any length but 0
 * @param options.update writes u' into `u`
 */
export function spectralNorm(w: Tensor, u: Tensor, { update }: { update: boolean }): Tensor {
  const rows = w.dim(0);
  check(u.shape.join() === `${rows}`, "normalise a weight", "u must be [Cout]", w, u);
  return within({ precision: "f32" }, () => {
    const matrix = viewAs(w, [rows, w.size / rows]);
    // Neither vector needs its length: sigma = |W a| / |a|.
    const [a, b, aa, bb] = noGrad(() => {
      const a = sum(mul(matrix, viewAs(u, [rows, 1])), [0], { keepDims: true }); // W' u, [1, K]
      const b = sum(mul(matrix, a), [1], { keepDims: true }); // W a, [Cout, 1]
      return [a, b, sumOfSquares(a), sumOfSquares(b)] as const;
    });
    const y = pointwise(["x0 * sqrt(x1 / x2)"], [w, aa, bb]);
    if (update) copy(pointwise(["x0 / sqrt(x1)"], [viewAs(b, [rows]), bb]), u);
    return differentiable(y, [w], (dy) => {
      // d(W / sigma) = dW / sigma - W d(sigma) / sigma^2, d(sigma) = u' . dW v = b . dW a / (|a| |b|)
      const dot = sum(pointwise(["x0 * x1"], [dy, w]));
      const dw = pointwise(
        ["sqrt(x4 / x5)", "x0 * t0 - x1 * t0 * t0 * x2 * x3 / sqrt(x4 * x5)"],
        [viewAs(dy, matrix.shape), dot, b, a, aa, bb],
      );
      return [viewAs(dw, w.shape)];
    });
  });
}
