// Matrix multiplication and linear layers with their gradients, which are GEMMs again.

import { differentiable } from "../tensor/autograd.ts";
import { castWeight, check, type Tensor } from "../tensor/tensor.ts";
import { gemm, gemmAndSums, type GemmOptions } from "./gemm.ts";
import { activate, type Activation } from "./math.ts";

export interface MatmulOptions {
  /** Swaps the last two axes of a (of b) first. */
  transposeA?: boolean;
  transposeB?: boolean;
  /** Factor of the result. */
  alpha?: number;
}

/**
 * alpha * op(a) op(b): [..., M, K] x [..., K, N] -> [..., M, N]. Leading axes must be equal.
 * @throws ShapeError when the shapes do not fit
 */
export function matmul(a: Tensor, b: Tensor, options: MatmulOptions = {}): Tensor {
  const { transposeA = false, transposeB = false, alpha = 1 } = options;
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
  const y = gemmOf(a, b, [...lead, M, N], { M, N, K, transposeA, transposeB, alpha, count, images });
  return differentiable(y, [a, b], (dy) => {
    const t = (x: boolean) => ({ transposeA: x });
    const da = transposeA
      ? matmul(b, dy, { ...t(transposeB), transposeB: true, alpha })
      : matmul(dy, b, { transposeB: !transposeB, alpha });
    const db = transposeB
      ? matmul(dy, a, { ...t(true), transposeB: transposeA, alpha })
      : matmul(a, dy, { ...t(!transposeA), alpha });
    return [da, db];
  });
}

export interface LinearOptions {
  activation?: Activation;
}

/**
 * y = activation(x W^T + b): [..., Cin] -> [..., Cout].
 * @param weight [Cout, Cin]
 * @param bias [Cout]
 */
export function linear(
  x: Tensor,
  weight: Tensor,
  bias?: Tensor,
  { activation = "none" }: LinearOptions = {},
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
  const y = gemmOf(x, w, shape, { M: R, N, K, transposeA: false, transposeB: true, bias, images });
  const inputs = bias ? [x, weight, bias] : [x, weight];
  differentiable(y, inputs, (dy) => {
    const dx = gemmOf(dy, w, x.shape, { M: R, N: K, K: N, transposeA: false, transposeB: false });
    const weightGemm = dense({ M: N, N: K, K: R, transposeA: true, transposeB: false, f32Output: true });
    return bias
      ? [dx, ...gemmAndSums(dy, x, weight.shape, weightGemm)]
      : [dx, gemm(dy, x, weight.shape, weightGemm)];
  });
  return activate(y, activation);
}

interface DenseGemm {
  M: number;
  N: number;
  K: number;
  transposeA: boolean;
  transposeB: boolean;
  bias?: Tensor | undefined;
  alpha?: number;
  count?: number;
  f32Output?: boolean;
  images?: GemmOptions["images"] | undefined;
}

function gemmOf(a: Tensor, b: Tensor, shape: readonly number[], o: DenseGemm): Tensor {
  return gemm(a, b, shape, dense(o));
}

/** Options of a GEMM of contiguous matrices. */
function dense(o: DenseGemm): GemmOptions {
  const { M, N, K, transposeA, transposeB, bias, alpha = 1, count = 1, f32Output = false, images } = o;
  const lda = transposeA ? M : K, ldb = transposeB ? K : N;
  return {
    source: { kind: "plain", transposeA, transposeB },
    M,
    N,
    K,
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
