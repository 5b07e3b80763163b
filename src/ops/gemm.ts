// Launching matrix products: picks the text, the tile and how K is split, and adds the splits up in a fixed order.
// No gradients here; matmul.ts and conv.ts have them.

import { CPU_LANES, type GemmSource, type GemmSpec, gemmWgsl, GPU_TILE } from "../../kernels/gemm.ts";
import { device } from "../gpu/device.ts";
import { fold, kernel } from "../gpu/kernel.ts";
import { stageable, TEXELS } from "../gpu/staging.ts";
import { activation, empty, type Shape, type Tensor, viewAs } from "../tensor.ts";
import { pointwise } from "./pointwise.ts";
import { sumChunks } from "./reduce.ts";

export interface GemmOptions {
  source: GemmSource;
  M: number;
  N: number;
  K: number;
  /** Elements between rows (between columns where transposed); for conv sources of dy and of the weight's rows. */
  lda: number;
  ldb: number;
  bias?: Tensor | undefined;
  /** A weight's gradient: stays f32 where activations are halves. */
  gradient?: boolean;
  alpha?: number;
  /** Number of matrices, and elements from one to the next. */
  batch?: { count: number; a: number; b: number };
  /** Sizes of a convolution. */
  conv?: ConvSizes;
  /** Every gathered axis is a multiple of 4 channels. */
  vector: boolean;
}

/** B is the batch; H, W, C the input; Ho, Wo, Co the output. */
export interface ConvSizes {
  H: number;
  W: number;
  C: number;
  Ho: number;
  Wo: number;
  Co: number;
  KH: number;
  KW: number;
  stride: number;
  top: number;
  left: number;
}

const NO_CONV: ConvSizes = {
  H: 1,
  W: 1,
  C: 4,
  Ho: 1,
  Wo: 1,
  Co: 4,
  KH: 1,
  KW: 1,
  stride: 1,
  top: 0,
  left: 0,
};

/** C = alpha A B + bias, as a tensor of `shape` ([batch, M, N] in memory). */
export function gemm(a: Tensor, b: Tensor, shape: Shape, o: GemmOptions): Tensor {
  const { source, M, N, K, bias, alpha = 1, conv = NO_CONV } = o;
  const { count, a: strideA, b: strideB } = o.batch ?? { count: 1, a: 0, b: 0 };
  const cpu = device().profile === "cpu";
  const tile: [number, number] = cpu ? cpuTile(M, N) : [GPU_TILE, GPU_TILE];
  const tilesM = Math.ceil(M / tile[0]), tilesN = Math.ceil(N / tile[1]);
  const splits = source.kind === "conv" || source.kind === "conv_dx"
    ? 1
    : splitsOf(tilesM * tilesN * count, K, cpu ? CPU_LANES * 8 : 264, cpu ? 128 : 256);
  const depth = splits === 1 ? K : Math.ceil(K / splits / 16) * 16;
  const used = Math.ceil(K / depth);
  const vectorStore = N % 4 === 0;
  const staged = cpu && o.vector && stageable(a.storage) && stageable(b.storage);
  // The innermost run of K that a lane walks without a break: a split's depth is a multiple of 16.
  const run = source.kind === "conv" ? conv.C : source.kind === "conv_dx" ? conv.Co : K;
  const spec: GemmSpec = {
    source,
    profile: cpu ? "cpu" : "gpu",
    tile,
    vector: o.vector,
    texels: staged ? TEXELS : 0,
    step: staged && run % 8 === 0 ? 8 : 4,
    vectorStore,
    bias: bias !== undefined && used === 1,
    looped: false,
  };
  const y = used > 1
    ? empty([used, count * M * N], "f32", "product")
    : o.gradient
    ? empty(shape, "f32", "product")
    : activation(shape, "product");
  const tiles = tilesM * tilesN * count * used;
  const fusion = used > 1
    ? undefined
    : { stores: ["c"], carrier: cpu ? kernel(gemmWgsl({ ...spec, looped: true }), "gemm") : undefined };
  kernel(gemmWgsl(spec), "gemm").launch(
    { a, b, c: y, ...(bias && used === 1 ? { bias } : {}) },
    {
      M,
      N,
      K,
      lda: o.lda,
      ldb: o.ldb,
      batch_a: strideA,
      batch_b: strideB,
      batch_c: M * N,
      tiles_m: tilesM,
      tiles_n: tilesN,
      tiles,
      splits: used,
      depth,
      c_split: count * M * N,
      alpha: used === 1 ? alpha : 1,
      ...conv,
    },
    fold(cpu ? Math.ceil(tiles / CPU_LANES) : tiles),
    { flops: 2 * M * N * K * count, fusion },
  );
  if (used === 1) return y;
  const whole = viewAs(sumChunks(y, alpha), shape);
  return bias ? pointwise(["x0 + x1"], [whole, bias]) : whole;
}

/** Sixteen by sixteen outputs a lane, or a narrow tile where the matrix itself is narrow. */
function cpuTile(M: number, N: number): [number, number] {
  if (N <= 4) return [16, 4];
  if (M <= 4) return [4, 16];
  return [16, 16];
}

/** How many parts K is cut into, so that a product with few outputs still fills the machine. */
function splitsOf(tiles: number, K: number, wanted: number, least: number): number {
  if (tiles >= wanted) return 1;
  return Math.max(1, Math.min(Math.floor(wanted / tiles), Math.floor(K / least)));
}
