// Launching matrix products: picks the text, the tile and how K is split, and adds the splits up in a fixed order.
// No gradients here; matmul.ts and conv.ts have them.

import {
  type ConvSizes,
  type GemmSource,
  type GemmSpec,
  gemmWgsl,
  GPU_DEPTH,
  SUM_BLOCK,
} from "../../kernels/gemm.ts";
import { launch } from "../gpu/bind.ts";
import type { Profile } from "../gpu/device.ts";
import { fold, kernel } from "../gpu/kernel.ts";
import { nominalImages, scope } from "../gpu/scope.ts";
import { stageable, TEXELS } from "../gpu/software/staging.ts";
import { empty, emptyActivation, type Shape, sizeOf, type Tensor, viewAs } from "../tensor/tensor.ts";
import { chooseTile, kindOf, sharesTaps, splitDepth, thisMachine, tilesOfGroup } from "./gemm_tiles.ts";
import { pointwise } from "./pointwise.ts";
import { sumChunks, sumTo } from "./reduce.ts";

export interface GemmOptions {
  source: GemmSource;
  M: number;
  N: number;
  K: number;
  /** Elements between rows (between columns where transposed); for conv sources of dy and of the weight's rows. */
  lda: number;
  ldb: number;
  /** Elements between rows of C: N where absent. */
  ldc?: number;
  /** Rows of C end in padding up to a multiple of 4, which may be overwritten with anything. */
  paddedRows?: boolean;
  bias?: Tensor | undefined;
  /** Stays f32 where activations are halves: the gradient of a weight, scores. */
  whole?: boolean;
  alpha?: number;
  /** Number of matrices, and elements from one to the next; C's follow each other where that is absent. */
  batch?: Strides;
  /** Matrices inside each of the batch. */
  heads?: Strides;
  /** Images, and what counts them: M or the matrices of the batch. Absent where the product mixes images. */
  images?: { axis: "M" | "batch"; count: number };
  /** Sizes of a convolution. */
  conv?: ConvSizes;
  /** Every gathered axis is a multiple of 4 channels. */
  vector: boolean;
}

export interface Strides {
  count: number;
  a: number;
  b: number;
  c?: number;
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
  return product(a, b, shape, o).y;
}

/**
 * The gradients of a weight and of its bias: C = A B with A = dy transposed, and dy's sum over its rows, f32 [M]. On a
 * software adapter the product adds up what it loads anyway; on a GPU that would cost more.
 */
export function gemmAndSums(dy: Tensor, x: Tensor, shape: Shape, o: GemmOptions): [Tensor, Tensor] {
  const { y, sums } = product(dy, x, shape, o, true);
  return [y, sums ? sumChunks(sums, 1) : sumTo(viewAs(dy, [o.K, o.M]), [o.M])];
}

/** Depth of the parts that K is cut into. */
function depthOf(profile: Profile, { M, N, K, images }: GemmOptions, count: number): number {
  if (!images) return splitDepth(profile, M, N, K, count);
  // Parts of a single number are added up in another order than those of several.
  if (N === 1 && scope().batchInvariant) return K;
  const each = (n: number) => n / images.count * nominalImages(images.count);
  return images.axis === "M"
    ? splitDepth(profile, each(M), N, K, count)
    : splitDepth(profile, M, N, K, each(count));
}

/** @param summing asks for A's sums over K too: [splits, M], where the kernel can */
function product(
  a: Tensor,
  b: Tensor,
  shape: Shape,
  o: GemmOptions,
  summing = false,
): { y: Tensor; sums: Tensor | undefined } {
  const { source, M, N, K, bias, alpha = 1, conv = NO_CONV, ldc = N, vector } = o;
  const heads = { count: 1, a: 0, b: 0, c: 0, ...o.heads };
  const batch = { count: 1, a: 0, b: 0, c: M * ldc * heads.count, ...o.batch };
  const count = batch.count * heads.count;
  const machine = thisMachine(), { profile, lanes } = machine, cpu = profile === "cpu";
  const gathersA = source.kind === "conv" || source.kind === "conv_dx";
  // A software adapter walks over a map from its first tap to its last.
  const depth = cpu && gathersA ? K : depthOf(profile, o, count);
  const splits = Math.ceil(K / depth);
  // The innermost run of K that a lane walks without a break: a split's depth is a multiple of 16.
  const run = source.kind === "conv" ? conv.C : source.kind === "conv_dx" ? conv.Co : K;
  const tapsInside = cpu && gathersA && sharesTaps(run);
  const tile = chooseTile(machine, {
    kind: kindOf(source),
    M,
    N,
    K: depth,
    count: count * splits,
    vector,
    tapsInside,
  });
  const sums = summing && cpu && vector ? empty([splits, M], "f32", "sums") : undefined;
  const tilesM = Math.ceil(M / tile[0]), tilesN = Math.ceil(N / tile[1]);
  const vectorStore = [ldc, batch.c, heads.c, o.paddedRows ? 0 : N].every((n) => n % 4 === 0);
  const staged = cpu && vector && stageable(a.storage) && stageable(b.storage);
  // Rows of A transposed are loaded K by K, so that a longer turn of the loop would save no loads.
  const byRows = source.kind === "conv_dweight" || (source.kind === "plain" && source.transposeA);
  const passes = tapsInside && conv.stride === 1 &&
    (source.kind === "conv" ? conv.Wo : conv.W) % 4 === 0;
  const spec: GemmSpec = {
    source,
    profile,
    lanes,
    tile,
    vector,
    texels: staged ? TEXELS : 0,
    sizes: cpu ? undefined : o.conv,
    step: staged && !tapsInside && !byRows && run % 8 === 0 ? 8 : 4,
    stride: cpu && source.kind === "conv_dx" ? conv.stride : 1,
    tapsInside,
    segment: passes ? 4 : 1,
    ragged: vector && K % 4 !== 0,
    vectorStore,
    bias: bias !== undefined && splits === 1,
    sums: sums !== undefined,
  };
  const size = sizeOf(shape);
  const y = splits > 1
    ? empty([splits, size], "f32", "product")
    : o.whole
    ? empty(shape, "f32", "product")
    : emptyActivation(shape, "product");
  const tiles = tilesM * tilesN * count * splits;
  const overTaps = cpu && gathersA;
  const turns = Math.ceil((overTaps ? run : depth) / (cpu ? spec.step : GPU_DEPTH));
  const ofRow = tapsInside ? 1 + turns * (1 + conv.KW) : 1 + conv.KW * (1 + turns); // of taps
  launch(
    kernel(gemmWgsl(spec), "gemm"),
    { a, b, c: y, ...(bias && splits === 1 ? { bias } : {}), ...(sums ? { sums } : {}) },
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
      depth,
      c_split: size,
      alpha: splits === 1 ? alpha : 1,
      ...conv,
    },
    fold(Math.ceil(tiles / tilesOfGroup(machine))),
    // A software adapter compiles a product for seconds; carrying elementwise work, which is written out for each of a lane's
    // outputs, doubles that and saves a twentieth of the time of a step.
    {
      flops: 2 * M * N * K * count,
      iterations: overTaps ? conv.KH * ofRow : turns + (sums ? Math.ceil(depth / SUM_BLOCK) : 0),
      fusion: splits === 1 && !cpu ? { stores: ["c"] } : undefined,
    },
  );
  if (splits === 1) return { y, sums };
  const whole = viewAs(sumChunks(y, alpha), shape);
  return { y: bias ? pointwise(["x0 + x1"], [whole, bias]) : whole, sums };
}
