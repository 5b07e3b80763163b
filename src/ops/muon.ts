// Muon on flat sets of matrices: momentum whose singular values are replaced by about 1. Keller Jordan et al. (2024),
// "Muon: An optimizer for hidden layers in neural networks", kellerjordan.github.io/posts/muon; see kernels/muon.wgsl.
// The update is scaled to the root mean square of AdamW's (Liu et al., 2025, "Muon is Scalable for LLM Training",
// arXiv 2502.16982, section 2.2), so that AdamW's learning rate and weight decay fit. The gradients are overwritten.

import source from "../../kernels/muon.wgsl" with { type: "text" };
import { launch } from "../gpu/bind.ts";
import { fold, kernel } from "../gpu/kernel.ts";
import { copy } from "../gpu/memory.ts";
import { within } from "../gpu/scope.ts";
import { noGrad } from "../tensor/autograd.ts";
import { check, type Tensor } from "../tensor/tensor.ts";
import type { FlatSet, UpdateRule } from "./adamw.ts";
import { matmul } from "./matmul.ts";
import { pointwise } from "./pointwise.ts";
import { sumOfSquares } from "./reduce.ts";

/** A flat set whose parameters are all matrices; `m` is the momentum. */
export interface MatrixSet extends Omit<FlatSet, "v" | "lrFactor"> {
  /** The gradient of each matrix [rows, columns], a part of `gradients`. */
  matrices: readonly Tensor[];
}

/** a x + b (x x') x + c (x x')^2 x moves singular values in (0, 1] to about 1 in five steps; Jordan et al. (2024). */
const QUINTIC = { a: 3.4445, b: -4.775, c: 2.0315, steps: 5 };
/** No element of an orthogonalised matrix is larger: no singular value is. */
const LARGEST = 1.25;

/** Factor of an orthogonalised matrix for a root mean square of about 0.2, as AdamW's updates have. */
const rmsFactor = (rows: number, columns: number) => 0.2 * Math.sqrt(Math.max(rows, columns));

/**
 * `scale` U V' for x = U S V', about: singular values become 0.7 to 1.2, and those below about 1e-3 of the norm stay below that.
 * f32, not differentiable.
 * @param x [rows, columns]
 */
export function orthogonalised(x: Tensor, scale = 1): Tensor {
  check(x.rank === 2, "orthogonalise", "it must be a matrix", x);
  const [rows, columns] = x.shape as [number, number], tall = rows > columns, { a, b, c, steps } = QUINTIC;
  return noGrad(() =>
    within({ precision: "f32" }, () => {
      let y = pointwise(["x0 / (sqrt(x1) + 1e-7)"], [x, sumOfSquares(x)]);
      for (let step = 1; step <= steps; step++) {
        // The smaller of the two Gram matrices; it is symmetric, so any operand may be read transposed.
        const gram = tall ? matmul(y, y, { transposeA: true }) : matmul(y, y, { transposeB: true });
        const square = matmul(gram, gram, { transposeB: true });
        const inner = pointwise(["s0 * x0 + s1 * x1"], [gram, square], [b, c]);
        const product = tall
          ? matmul(y, inner, { transposeB: true })
          : matmul(inner, y, { transposeA: true });
        const factor = step === steps ? scale : 1;
        y = pointwise(["s0 * x0 + s1 * x1"], [y, product], [factor * a, factor]);
      }
      return y;
    })
  );
}

/** Muon as a rule of a step of `adamw()`, with that step's hyper-parameters. */
export function muon(sets: readonly MatrixSet[]): UpdateRule {
  const vectors = ({ parameters: p }: MatrixSet) => p.size / 4,
    grid = (size: number) => fold(Math.ceil(size / 256));
  const bound = ({ matrices }: MatrixSet) =>
    LARGEST * Math.max(...matrices.map(({ shape }) => rmsFactor(shape[0] as number, shape[1] as number)));
  return {
    check({ hyper, gradientNorm2, norm2, fault }) {
      for (const set of sets) {
        const size = vectors(set);
        launch(
          kernel(source, "check_update"),
          { p: set.parameters, hyper, norm2: gradientNorm2, checked_norm2: norm2, fault: fault ?? 0 },
          { size, bound: bound(set) },
          grid(size),
        );
      }
    },
    apply({ hyper, norm2, progress }) {
      for (const set of sets) {
        const { parameters: p, gradients: g, m, ema, working: work, matrices } = set, size = vectors(set);
        check(
          [g, m, ema ?? p, work ?? p].every((t) => t.shape.join() === p.shape.join()) && p.size % 4 === 0,
          "update matrices",
          "all flats of a set must be [n], n a multiple of 4",
          p,
          g,
          m,
        );
        const params = { size, bound: 0 };
        launch(kernel(source, "momentum"), { g, m, hyper, norm2, progress }, params, grid(size), {
          flops: 5 * p.size,
        });
        for (const matrix of matrices) {
          const [rows, columns] = matrix.shape as [number, number];
          copy(orthogonalised(matrix, rmsFactor(rows, columns)), matrix);
        }
        launch(
          kernel(source, "muon"),
          { p, g, hyper, norm2, ema: ema ?? 0, work: work ?? 0 },
          params,
          grid(size),
          { flops: 4 * p.size },
        );
      }
    },
  };
}
