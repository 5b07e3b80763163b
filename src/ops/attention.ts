// Scaled dot-product attention and its gradients (Vaswani et al., 2017) as GEMMs. With few keys the [T, S] attention matrix is
// kept for the backward pass. From MANY_KEYS on, attention is chunked so that a chunk's score matrix fits BLOCK_BYTES, and scores
// are recomputed in the backward pass, as in FlashAttention (Dao et al., 2022). Keeping chunks in registers and workgroup memory
// would save the traffic of the scores, a quarter of the time on an H100, but needs a slower GEMM; a kernel with one query
// per thread took 11 times as long there, and 60 times with gradients.

import rowsSource from "../../kernels/attention_rows.wgsl" with { type: "text" };
import { differentiable, recompute } from "../tensor/autograd.ts";
import { device } from "../gpu/device.ts";
import { check, emptyActivation, type Tensor } from "../tensor/tensor.ts";
import { gemm } from "./gemm.ts";
import { rowKernel } from "./row_kernel.ts";
import { concat, split } from "./layout.ts";

/** From this many keys on, the attention matrix is not kept. */
const MANY_KEYS = 512;

/** Bytes of a chunk's scores: enough to fill a GPU; on a CPU larger chunks are 10 % faster. */
const BLOCK_BYTES = { cpu: 16 << 20, gpu: 256 << 20 };
/** Chunks of queries are multiples of this. */
const QUERY_STEP = 16;

/** softmax(q k^T / sqrt(HS)) v for each head: q [B, T, NH, HS], k and v [B, S, NH, HS] -> [B, T, NH * HS]. */
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
  if (k.dim(1) < MANY_KEYS) return fullAttention(q, k, v);
  const { profile, limits } = device();
  return chunkedAttention(q, k, v, Math.min(BLOCK_BYTES[profile], limits.maxStorageBufferBindingSize));
}

/** Elements from one image, head and row to the next. */
interface Layout {
  image: number;
  head: number;
  row: number;
}

/** Batched over images and heads, by GEMMs that read and write heads in place. */
function fullAttention(q: Tensor, k: Tensor, v: Tensor): Tensor {
  const [B, T, NH, HS] = q.shape as [number, number, number, number], S = k.dim(1);
  const scale = HS ** -0.5;
  const padded = paddedKeys(S);
  const matrix = [B, NH, T, padded]; // rows are padded with zeros
  const weights: Layout = { image: NH * T * padded, head: T * padded, row: padded };
  const heads = (length: number): Layout => ({ image: length * NH * HS, head: HS, row: NH * HS });
  const queries = heads(T), keys = heads(S);
  /** C = alpha op(A) op(B) for every head of every image; C of shape [B, NH, T, padded] holds scores, which stay f32. */
  const headGemm = (
    kind: "nn" | "nt" | "tn",
    dims: readonly [number, number, number],
    [a, inA]: readonly [Tensor, Layout],
    [b, inB]: readonly [Tensor, Layout],
    [shape, inC]: readonly [readonly number[], Layout],
    alpha = 1,
  ) =>
    gemm(a, b, shape, {
      source: { kind: "plain", transposeA: kind === "tn", transposeB: kind === "nt" },
      dims,
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

  const scores = headGemm("nt", [T, S, HS], [q, queries], [k, keys], toScores, scale);
  const p = emptyActivation(matrix), forward = rows("attention_rows", 3);
  forward.launch({ x: scores, y: p }, sizes, { flops: 5 * B * NH * T * S });
  const y = headGemm("nn", [T, HS, S], [p, weights], [v, keys], [[B, T, NH * HS], queries]);
  return differentiable(y, [q, k, v], (dy) => {
    const dp = headGemm("nt", [T, S, HS], [dy, queries], [v, keys], toScores);
    const ds = emptyActivation(matrix), backward = rows("attention_rows_backward", 2);
    backward.launch({ y: p, dy: dp, dx: ds }, sizes, { flops: 4 * B * NH * T * S });
    return [
      headGemm("nn", [T, HS, S], [ds, weights], [k, keys], [q.shape, queries], scale),
      headGemm("tn", [S, HS, T], [ds, weights], [q, queries], [k.shape, keys], scale),
      headGemm("tn", [S, HS, T], [p, weights], [dy, queries], [v.shape, keys]),
    ];
  });
}

/** Length of a row of the attention matrix, padded to whole vec4s. */
const paddedKeys = (S: number) => Math.ceil(S / 4) * 4;

/** Chunked over images, then queries: a chunk's scores take at most `bytes` (or 16 queries). Backward recomputes them. */
export function chunkedAttention(q: Tensor, k: Tensor, v: Tensor, bytes: number): Tensor {
  const [B, T, NH] = q.shape as [number, number, number], queryBytes = 4 * NH * paddedKeys(k.dim(1));
  const images = Math.floor(bytes / (queryBytes * T));
  const once = (q: Tensor) => recompute(fullAttention, [q, k, v], []);
  if (images >= B) return once(q);
  if (B > 1) {
    const sizes = parts(B, Math.max(1, images));
    const [qs, ks, vs] = [q, k, v].map((x) => split(x, sizes, 0)) as [Tensor[], Tensor[], Tensor[]];
    return concat(qs.map((q, i) => chunkedAttention(q, ks[i] as Tensor, vs[i] as Tensor, bytes)), 0);
  }
  const most = Math.max(1, Math.floor(bytes / (queryBytes * QUERY_STEP))) * QUERY_STEP;
  if (most >= T) return once(q);
  const even = Math.ceil(T / Math.ceil(T / most) / QUERY_STEP) * QUERY_STEP;
  return concat(split(q, parts(T, even), 1).map(once), 1);
}

/** Sizes of chunks of at most `most` elements. */
function parts(all: number, most: number): number[] {
  return Array.from({ length: Math.ceil(all / most) }, (_, i) => Math.min(most, all - i * most));
}
