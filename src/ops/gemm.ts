// Launches GEMMs: picks split-K and the tile, and sums the splits in a fixed order. What the text needs beyond that each
// backend decides in its generator (kernels/gemm_cpu.ts, gemm_gpu.ts). No gradients here; matmul.ts and conv.ts have them.

import {
  canSplitK,
  CONV_SIZES,
  type ConvSizes,
  cpuGroups,
  cpuIterations,
  cpuSpec,
  type GemmProblem,
  type GemmSource,
  gemmWgsl,
  gpuIterations,
  gpuSpec,
  matrixIterations,
  matrixSpec,
  usesKxInner,
} from "../../kernels/gemm.ts";
import { launch } from "../gpu/bind.ts";
import { device } from "../gpu/device.ts";
import { fold, kernel } from "../gpu/kernel.ts";
import { nominalImages, scope } from "../gpu/scope.ts";
import { stageable } from "../gpu/software/staging.ts";
import { empty, emptyActivation, type Shape, sizeOf, type Tensor, viewAs } from "../tensor/tensor.ts";
import {
  chooseTile,
  type GemmShape,
  isUniformA,
  kindOf,
  type Machine,
  splitLength,
  thisMachine,
} from "./gemm_tiles.ts";
import { pointwise } from "./pointwise.ts";
import { sumChunks, sumTo } from "./reduce.ts";

export interface GemmOptions {
  source: GemmSource;
  /** M, N and K. */
  dims: readonly [M: number, N: number, K: number];
  /** Elements between rows (between columns where transposed); of conv sources, between rows of dy and of the weight. */
  lda: number;
  ldb: number;
  /** Elements between rows of C: N where absent. */
  ldc?: number;
  /** Rows of C are padded to a multiple of 4; the padding may be overwritten. */
  paddedRows?: boolean;
  bias?: Tensor | undefined;
  /** C is f32 even where activations are fp16: the gradient of a weight, attention scores. */
  f32Output?: boolean;
  alpha?: number;
  /** Number of matrices, and elements from one to the next; contiguous C where that is absent. */
  batch?: Strides;
  /** Matrices of each batch element. */
  heads?: Strides;
  /** Number of images, and the axis that holds them: M or the batch. Absent where the sum over K mixes images. */
  images?: { axis: "M" | "batch"; count: number };
  /** Sizes of a convolution. */
  conv?: ConvSizes;
  /** Loads may be vec4s; see GemmProblem. */
  vector: boolean;
}

export interface Strides {
  count: number;
  a: number;
  b: number;
  c?: number;
}

/** In place of the sizes that only convolutions read. */
const NO_CONV = Object.fromEntries(CONV_SIZES.map((name) => [name, 1])) as ConvSizes;

/** C = alpha A B + bias, as a tensor of `shape` ([batch, M, N] in memory). */
export function gemm(a: Tensor, b: Tensor, shape: Shape, o: GemmOptions): Tensor {
  return launchGemm(a, b, shape, o, false).y;
}

/** Gradients of a weight and its bias: C = dy^T x, and the row sums of dy^T, f32 [M], in one launch on a CPU. */
export function gemmAndSums(dy: Tensor, x: Tensor, shape: Shape, o: GemmOptions): [Tensor, Tensor] {
  const { y, rowSums } = launchGemm(dy, x, shape, o, true), [M, , K] = o.dims;
  return [y, rowSums ? sumChunks(rowSums, 1) : sumTo(viewAs(dy, [K, M]), [M])];
}

/** Length of the splits that K is cut into. */
function lengthOfSplits(
  machine: Machine,
  { source, dims: [M, N, K], images }: GemmOptions,
  count: number,
): number {
  if (machine.profile === "cpu" && !canSplitK(source)) return K;
  if (!images) return splitLength(machine, M, N, K, count);
  // Splits of a single output are summed in another order than those of several.
  if (N === 1 && scope().batchInvariant) return K;
  const nominal = (n: number) => n / images.count * nominalImages(images.count);
  return images.axis === "M"
    ? splitLength(machine, nominal(M), N, K, count)
    : splitLength(machine, M, N, K, nominal(count));
}

/** @param wantsRowSums asks for the sums of A over K too: [splits, M], where the kernel can */
function launchGemm(
  a: Tensor,
  b: Tensor,
  shape: Shape,
  o: GemmOptions,
  wantsRowSums: boolean,
): { y: Tensor; rowSums: Tensor | undefined } {
  const { source, dims: [M, N, K], bias, alpha = 1, conv, ldc = N, vector } = o;
  const heads = { count: 1, a: 0, b: 0, c: 0, ...o.heads };
  const batch = { count: 1, a: 0, b: 0, c: M * ldc * heads.count, ...o.batch };
  const count = batch.count * heads.count;
  const kind = kindOf(source), fp16 = a.storage.half && b.storage.half;
  const machine = thisMachine(fp16 ? kind : undefined), { unit } = machine;
  const cpu = machine.profile === "cpu";
  const splitK = lengthOfSplits(machine, o, count);
  const splits = Math.ceil(K / splitK);
  const kxInner = cpu && usesKxInner({ source, conv, K });
  const gemmShape: GemmShape = {
    kind,
    M,
    N,
    K: splitK,
    count: count * splits,
    vector,
    kxInner,
  };
  const tile = chooseTile(machine, gemmShape);
  const problem: GemmProblem = {
    source,
    K,
    splitK,
    conv,
    tile,
    vector,
    vectorStore: [ldc, batch.c, heads.c, o.paddedRows ? 0 : N].every((n) => n % 4 === 0),
    bias: bias !== undefined && splits === 1,
  };
  const uniformA = isUniformA(machine, gemmShape, tile);
  const textured = vector && stageable(b.storage) && (uniformA || stageable(a.storage));
  const textures = { a: textured && !uniformA, b: textured };
  const { threads } = machine, { loadsFirst, loopsStores } = device().compiler;
  const spec = cpu
    ? cpuSpec(problem, { threads, textures, loadsFirst, loopsStores, uniformA }, wantsRowSums)
    : unit
    ? matrixSpec(problem, unit)
    : gpuSpec(problem);
  const rowSums = spec.backend === "cpu" && spec.rowSums ? empty([splits, M], "f32", "row sums") : undefined;
  const size = sizeOf(shape);
  const y = splits > 1
    ? empty([splits, size], "f32", "split-K")
    : o.f32Output
    ? empty(shape, "f32", "matmul")
    : emptyActivation(shape, "matmul");
  const tilesM = Math.ceil(M / tile[0]), tilesN = Math.ceil(N / tile[1]);
  const tiles = tilesM * tilesN * count * splits;
  launch(
    kernel(gemmWgsl(spec), "gemm"),
    { a, b, c: y, ...(spec.bias && bias ? { bias } : {}), ...(rowSums ? { row_sums: rowSums } : {}) },
    {
      M,
      N,
      K,
      lda: o.lda,
      ldb: o.ldb,
      ldc,
      heads: heads.count,
      head_a: heads.a,
      head_b: heads.b,
      head_c: heads.c,
      batch_a: batch.a,
      batch_b: batch.b,
      batch_c: batch.c,
      tiles_m: tilesM,
      tiles_n: tilesN,
      tiles,
      splits,
      split_k: splitK,
      c_split: size,
      alpha: splits === 1 ? alpha : 1,
      ...(conv ?? NO_CONV),
    },
    fold(cpu ? cpuGroups({ threads, uniformA }, tilesM, tilesN, count * splits) : tiles),
    // A software adapter compiles a GEMM for seconds. An epilogue is unrolled for each of a thread's outputs, which doubles that
    // and saves a twentieth of a step's time.
    {
      flops: 2 * M * N * K * count,
      iterations: spec.backend === "cpu"
        ? cpuIterations(spec, problem)
        : unit
        ? matrixIterations(problem, unit)
        : gpuIterations(problem),
      fusion: splits === 1 && !cpu ? { stores: ["c"] } : undefined,
    },
  );
  if (splits === 1) return { y, rowSums };
  const sum = viewAs(sumChunks(y, alpha), shape);
  return { y: bias ? pointwise(["x0 + x1"], [sum, bias]) : sum, rowSums };
}
