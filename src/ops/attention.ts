// Scaled dot-product attention and its gradients (Vaswani et al., 2017) as matrix products. Of few keys the T x S matrix of
// weights is small, and kept for the backward pass. Of many keys it is never whole: a block of queries at a time has its
// weights, and computes them again in the backward pass, as FlashAttention does (Dao et al., 2022). Blocks that stay in
// registers and workgroup memory would save what the weights cost to write and read, a quarter of the time on an H100; but
// products take the rest either way, and theirs are the fastest kernels there are. (A streaming kernel of a query a lane took
// 11 times as long there, and 60 times with gradients.)

import rowsSource from "../../kernels/attention_rows.wgsl" with { type: "text" };
import { differentiable, recompute } from "../tensor/autograd.ts";
import { launch } from "../gpu/bind.ts";
import { device } from "../gpu/device.ts";
import { check, emptyActivation, type Tensor } from "../tensor/tensor.ts";
import { gemm } from "./gemm.ts";
import { rowKernel } from "./row_kernel.ts";
import { concat, split } from "./layout.ts";

/** From this many keys on, the matrix of weights is not kept. */
const MANY_KEYS = 512;

/** Bytes of the weights of a block: enough to fill a GPU; on a CPU larger ones are a tenth faster, and take as much more. */
const BLOCK_BYTES = { cpu: 16 << 20, gpu: 256 << 20 };
/** Blocks have a multiple of so many queries. */
const SOME_QUERIES = 16;

/**
 * softmax(q k^T / sqrt(HS)) v for each head: -> [B, T, NH * HS].
 * @param q [B, T, NH, HS]
 * @param k [B, S, NH, HS]
 * @param v [B, S, NH, HS]
 */
export function attention(q: Tensor, k: Tensor, v: Tensor): Tensor {
  check(
    q.rank === 4 && k.rank === 4 && k.shape.join() === v.shape.join() && q.dim(0) === k.dim(0) &&
      q.shape.slice(2).join() === k.shape.slice(2).join(),
    "attend",
    "q must be [B,T,NH,HS], k and v [B,S,NH,HS]",
    q,
    k,
    v,
  );
  if (k.dim(1) < MANY_KEYS) return attentionByGemm(q, k, v);
  const { profile, limits } = device();
  return attentionByBlocks(q, k, v, Math.min(BLOCK_BYTES[profile], limits.maxStorageBufferBindingSize));
}

/** Elements from one image, head and row to the next. */
interface Layout {
  image: number;
  head: number;
  row: number;
}

/** Batched over images and heads, by products that read and write heads where they lie. */
function attentionByGemm(q: Tensor, k: Tensor, v: Tensor): Tensor {
  const [B, T, NH, HS] = q.shape as [number, number, number, number], S = k.dim(1);
  const scale = HS ** -0.5;
  const padded = paddedKeys(S);
  const matrix = [B, NH, T, padded]; // rows end in zeros
  const weights: Layout = { image: NH * T * padded, head: T * padded, row: padded };
  const heads = (length: number): Layout => ({ image: length * NH * HS, head: HS, row: NH * HS });
  const ofQ = heads(T), ofK = heads(S);
  /** C = alpha op(A) op(B) for every head of every image; C of shape [B, NH, T, padded] holds scores, which stay f32. */
  const product = (
    kind: "nn" | "nt" | "tn",
    [M, N, K]: readonly [number, number, number],
    [a, inA]: readonly [Tensor, Layout],
    [b, inB]: readonly [Tensor, Layout],
    [shape, inC]: readonly [readonly number[], Layout],
    alpha = 1,
  ) =>
    gemm(a, b, shape, {
      source: { kind: "plain", transposeA: kind === "tn", transposeB: kind === "nt" },
      M,
      N,
      K,
      lda: inA.row,
      ldb: inB.row,
      ldc: inC.row,
      batch: { count: B, a: inA.image, b: inB.image, c: inC.image },
      heads: { count: NH, a: inA.head, b: inB.head, c: inC.head },
      images: { axis: "batch", count: B },
      alpha,
      paddedRows: inC === weights,
      f32Output: inC === weights,
      vector: HS % 4 === 0,
    });
  const toScores = [matrix, weights] as const;
  const rows = (entry: string, loops: number) => rowKernel(rowsSource, entry, B * NH * T, padded, loops);
  const sizes = { rows: B * NH * T, size: S };

  const scores = product("nt", [T, S, HS], [q, ofQ], [k, ofK], toScores, scale);
  const p = emptyActivation(matrix), forward = rows("attention_rows", 3);
  launch(forward.kernel, { x: scores, y: p }, sizes, forward.grid, {
    flops: 5 * B * NH * T * S,
    iterations: forward.iterations,
  });
  const y = product("nn", [T, HS, S], [p, weights], [v, ofK], [[B, T, NH * HS], ofQ]);
  return differentiable(y, [q, k, v], (dy) => {
    const dp = product("nt", [T, S, HS], [dy, ofQ], [v, ofK], toScores);
    const ds = emptyActivation(matrix), backward = rows("attention_rows_backward", 2);
    launch(backward.kernel, { y: p, dy: dp, dx: ds }, sizes, backward.grid, {
      flops: 4 * B * NH * T * S,
      iterations: backward.iterations,
    });
    return [
      product("nn", [T, HS, S], [ds, weights], [k, ofK], [q.shape, ofQ], scale),
      product("tn", [S, HS, T], [ds, weights], [q, ofQ], [k.shape, ofK], scale),
      product("tn", [S, HS, T], [p, weights], [dy, ofQ], [v.shape, ofK]),
    ];
  });
}

/** Elements of a row of weights: rows are whole vectors. */
const paddedKeys = (S: number) => Math.ceil(S / 4) * 4;

/**
 * The same, of so many images at a time, or queries of one, that their weights take at most `bytes` (or 16 queries), and
 * nothing of them is kept.
 */
export function attentionByBlocks(q: Tensor, k: Tensor, v: Tensor, bytes: number): Tensor {
  const [B, T, NH] = q.shape as [number, number, number], ofQuery = 4 * NH * paddedKeys(k.dim(1));
  const images = Math.floor(bytes / (ofQuery * T));
  const once = (q: Tensor) => recompute(attentionByGemm, [q, k, v], []);
  if (images >= B) return once(q);
  if (B > 1) {
    const sizes = parts(B, Math.max(1, images));
    const [qs, ks, vs] = [q, k, v].map((x) => split(x, sizes, 0)) as [Tensor[], Tensor[], Tensor[]];
    return concat(qs.map((q, i) => attentionByBlocks(q, ks[i] as Tensor, vs[i] as Tensor, bytes)), 0);
  }
  const most = Math.max(1, Math.floor(bytes / (ofQuery * SOME_QUERIES))) * SOME_QUERIES;
  if (most >= T) return once(q);
  const even = Math.ceil(T / Math.ceil(T / most) / SOME_QUERIES) * SOME_QUERIES;
  return concat(split(q, parts(T, even), 1).map(once), 1);
}

/** `all` in parts of `most`, the last one of what is left. */
function parts(all: number, most: number): number[] {
  return Array.from({ length: Math.ceil(all / most) }, (_, i) => Math.min(most, all - i * most));
}
