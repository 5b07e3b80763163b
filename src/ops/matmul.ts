// Matrix multiplication and linear layers with their gradients, which are GEMMs again.

import { differentiable } from "../tensor/autograd.ts";
import { castWeight, check, type Tensor } from "../tensor/tensor.ts";
import { gemm, gemmAndSums, type GemmOptions } from "./gemm.ts";
import { activate, type Activation } from "./math.ts";

/** alpha op(a) op(b): [..., M, K] x [..., K, N] -> [..., M, N], leading axes equal; op swaps the last two axes. */
export function matmul(
  a: Tensor,
  b: Tensor,
  { transposeA = false, transposeB = false, alpha = 1 }: Partial<
    Pick<DenseGemm, "transposeA" | "transposeB" | "alpha">
  > = {},
): Tensor {
  check(a.rank >= 2 && b.rank >= 2, "multiply matrices", "both need two axes or more", a, b);
  const [M, K] = transposeA ? [a.dim(-1), a.dim(-2)] : [a.dim(-2), a.dim(-1)];
  const [Kb, N] = transposeB ? [b.dim(-1), b.dim(-2)] : [b.dim(-2), b.dim(-1)];
  const lead = a.shape.slice(0, -2);
  check(
    K === Kb && lead.join() === b.shape.slice(0, -2).join(),
    "multiply matrices",
    "the shapes do not fit",
    a,
    b,
  );
  const count = lead.reduce((x, y) => x * y, 1);
  const images = lead.length ? { axis: "batch", count: a.dim(0) } as const : undefined;
  const y = gemm(
    a,
    b,
    [...lead, M, N],
    dense({ dims: [M, N, K], transposeA, transposeB, alpha, count, images }),
  );
  return differentiable(y, [a, b], (dy) => {
    const da = transposeA
      ? matmul(b, dy, { transposeA: transposeB, transposeB: true, alpha })
      : matmul(dy, b, { transposeB: !transposeB, alpha });
    const db = transposeB
      ? matmul(dy, a, { transposeA: true, transposeB: transposeA, alpha })
      : matmul(a, dy, { transposeA: !transposeA, alpha });
    return [da, db];
  });
}

/** y = activation(x W^T + b): [..., Cin] -> [..., Cout]. @param weight [Cout, Cin] @param bias [Cout] */
export function linear(
  x: Tensor,
  weight: Tensor,
  bias?: Tensor,
  { activation = "none" }: { activation?: Activation } = {},
): Tensor {
  const K = x.dim(-1), [N, Kw] = [weight.dim(0), weight.dim(-1)], R = x.size / K;
  check(weight.rank === 2 && K === Kw, "apply a linear layer", "the weight does not fit", x, weight);
  check(
    !bias || (bias.rank === 1 && bias.size === N),
    "apply a linear layer",
    "the bias does not fit",
    weight,
    ...bias ? [bias] : [],
  );
  const shape = [...x.shape.slice(0, -1), N];
  const w = castWeight(weight);
  const images = x.rank > 1 ? { axis: "M", count: x.dim(0) } as const : undefined;
  const y = gemm(x, w, shape, dense({ dims: [R, N, K], transposeA: false, transposeB: true, bias, images }));
  const inputs = bias ? [x, weight, bias] : [x, weight];
  differentiable(y, inputs, (dy) => {
    const dx = gemm(dy, w, x.shape, dense({ dims: [R, K, N], transposeA: false, transposeB: false }));
    const weightGemm = dense({ dims: [N, K, R], transposeA: true, transposeB: false, f32Output: true });
    return bias
      ? [dx, ...gemmAndSums(dy, x, weight.shape, weightGemm)]
      : [dx, gemm(dy, x, weight.shape, weightGemm)];
  });
  return activate(y, activation);
}

interface DenseGemm extends Pick<GemmOptions, "dims" | "bias" | "alpha" | "f32Output"> {
  transposeA: boolean;
  transposeB: boolean;
  count?: number;
  images?: GemmOptions["images"] | undefined;
}

/** Options of a GEMM of contiguous matrices. */
function dense(
  { dims, transposeA, transposeB, bias, alpha = 1, count = 1, f32Output = false, images }: DenseGemm,
): GemmOptions {
  const [M, N, K] = dims, lda = transposeA ? M : K, ldb = transposeB ? K : N;
  return {
    source: { kind: "plain", transposeA, transposeB },
    dims,
    lda,
    ldb,
    bias,
    f32Output,
    alpha,
    batch: { count, a: M * K, b: K * N },
    ...(images ? { images } : {}),
    // Where neither operand is contiguous along K, as in weight gradients, K need not be a multiple of 4.
    vector: (K % 4 === 0 || (transposeA && !transposeB)) && lda % 4 === 0 && ldb % 4 === 0,
  };
}
