// Scaled dot-product attention and its gradients (Vaswani et al., 2017). Of few keys it is matrix products with the T x S
// matrix of weights in memory, which is small then. Of many keys that matrix is never whole: on a GPU it is streaming softmax,
// whose recomputing backward pass is FlashAttention's (Dao et al., 2022); on a software adapter, where products are four
// times as fast, it is products of a block of queries at a time, whose weights are computed again in the backward pass.

import { type AttentionEntry, attentionTiling, attentionWgsl, WIDEST_HEAD } from "../../kernels/attention.ts";
import rowsSource from "../../kernels/attention_rows.wgsl" with { type: "text" };
import { checkpoint, differentiable } from "../autograd.ts";
import { device } from "../gpu/device.ts";
import { fold, kernel } from "../gpu/kernel.ts";
import { activation, check, empty, type Tensor, viewAs } from "../tensor.ts";
import { gemm } from "./gemm.ts";
import { rowKernel } from "./rows.ts";
import { concat, split } from "./shape.ts";

/** From this many keys on, the matrix of weights is not kept. */
const MANY_KEYS = 512;

/** Bytes of the weights of a block of queries at most; larger blocks are a tenth faster, and take as much more memory. */
const BLOCK_BYTES = 16 * 1024 * 1024;
/** Queries of a block at least. */
const LEAST_QUERIES = 16;

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
  const [B, T, NH, HS] = q.shape as [number, number, number, number];
  const S = k.dim(1);
  const { profile, lanes: vector } = device();
  // Products load heads in vectors, or else one number at a time, which is slower than streaming.
  const fast = HS % 4 === 0 && (S < MANY_KEYS || profile === "cpu");
  if (fast || HS > WIDEST_HEAD) return (S < MANY_KEYS ? attentionByProducts : attentionByBlocks)(q, k, v);
  const text = attentionWgsl(HS, profile, vector);
  const params = { batch: B, queries: T, keys: S, heads: NH, scale: HS ** -0.5 };
  const { lanes, rows } = attentionTiling(HS, profile, vector);
  const grid = (entry: AttentionEntry, length: number) =>
    fold(Math.ceil(B * Math.ceil(length / rows[entry]) * NH / lanes));
  const products = B * NH * T * S * HS * 2;

  const y = activation(q.shape), lse = empty([B, T, NH], "f32", "log sum exp");
  kernel(text, "attention").launch({ q, k, v, y, lse_out: lse }, params, grid("attention", T), {
    flops: 2 * products,
    fusion: { stores: ["y"] },
  });
  differentiable(y, [q, k, v], (dy) => {
    const [dq, dk, dv] = [q, k, v].map(({ shape }) => activation(shape)) as [Tensor, Tensor, Tensor];
    const dsum = empty([B, T, NH]);
    kernel(text, "attention_backward_q").launch(
      { q, k, v, dy, lse, y_saved: y, y: dq, dsum_out: dsum },
      params,
      grid("attention_backward_q", T),
      { flops: 3 * products, fusion: { stores: ["y"] } },
    );
    kernel(text, "attention_backward_kv").launch(
      { q, k, v, dy, lse, dsum, dk, dv },
      params,
      grid("attention_backward_kv", S),
      {
        flops: 4 * products,
        fusion: { stores: ["dk", "dv"] },
      },
    );
    return [dq, dk, dv];
  });
  return flatten(y, [B, T, NH * HS]);
}

/** Elements from one image, head and row to the next. */
interface Layout {
  image: number;
  head: number;
  row: number;
}

/** The same as products, batched over images and heads, that read and write heads where they lie. */
function attentionByProducts(q: Tensor, k: Tensor, v: Tensor): Tensor {
  const [B, T, NH, HS] = q.shape as [number, number, number, number], S = k.dim(1);
  const scale = HS ** -0.5;
  const padded = Math.ceil(S / 4) * 4;
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
      alpha,
      paddedRows: inC === weights,
      whole: inC === weights,
      vector: HS % 4 === 0,
    });
  const toScores = [matrix, weights] as const;
  const rows = (entry: string) => rowKernel(rowsSource, entry, B * NH * T, padded);
  const sizes = { rows: B * NH * T, size: S };

  const scores = product("nt", [T, S, HS], [q, ofQ], [k, ofK], toScores, scale);
  const p = activation(matrix), forward = rows("attention_rows");
  forward.kernel.launch({ x: scores, y: p }, sizes, forward.grid, { flops: 5 * B * NH * T * S });
  const y = product("nn", [T, HS, S], [p, weights], [v, ofK], [[B, T, NH * HS], ofQ]);
  return differentiable(y, [q, k, v], (dy) => {
    const dp = product("nt", [T, S, HS], [dy, ofQ], [v, ofK], toScores);
    const ds = activation(matrix), backward = rows("attention_rows_backward");
    backward.kernel.launch({ saved: p, dy: dp, dx: ds }, sizes, backward.grid, { flops: 4 * B * NH * T * S });
    return [
      product("nn", [T, HS, S], [ds, weights], [k, ofK], [q.shape, ofQ], scale),
      product("tn", [S, HS, T], [ds, weights], [q, ofQ], [k.shape, ofK], scale),
      product("tn", [S, HS, T], [p, weights], [dy, ofQ], [v.shape, ofK]),
    ];
  });
}

/** The same, of so many images or queries at a time that their weights take `bytes`, and nothing of them is kept. */
export function attentionByBlocks(q: Tensor, k: Tensor, v: Tensor, bytes = BLOCK_BYTES): Tensor {
  const [B, T, NH] = q.shape as [number, number, number], all = 4 * B * T * NH * k.dim(1);
  if (B > 1 && all > bytes) {
    const [qs, ks, vs] = [q, k, v].map((x) => split(x, Array(B).fill(1), 0)) as [
      Tensor[],
      Tensor[],
      Tensor[],
    ];
    return concat(qs.map((q, b) => attentionByBlocks(q, ks[b] as Tensor, vs[b] as Tensor, bytes)), 0);
  }
  const once = (q: Tensor) => checkpoint(attentionByProducts, [q, k, v], []);
  const most = Math.ceil(T / Math.ceil(all / bytes) / LEAST_QUERIES) * LEAST_QUERIES;
  if (most >= T) return once(q);
  const sizes = Array.from({ length: Math.ceil(T / most) }, (_, i) => Math.min(most, T - i * most));
  return concat(split(q, sizes, 1).map(once), 1);
}

function flatten(y: Tensor, shape: readonly number[]): Tensor {
  return differentiable(viewAs(y, shape), [y], (dy) => [viewAs(dy, y.shape)]);
}
