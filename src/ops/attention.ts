// Scaled dot-product attention with streaming softmax, and its gradients. Vaswani et al. (2017); the recomputing
// backward pass is FlashAttention's (Dao et al., 2022).

import { type AttentionEntry, attentionTiling, attentionWgsl, WIDEST_HEAD } from "../../kernels/attention.ts";
import { differentiable } from "../autograd.ts";
import { device } from "../gpu/device.ts";
import { fold, kernel } from "../gpu/kernel.ts";
import { activation, check, empty, type Tensor, viewAs } from "../tensor.ts";
import { matmul } from "./matmul.ts";
import { permute, reshape } from "./shape.ts";
import { softmax } from "./softmax.ts";

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
  if (HS > WIDEST_HEAD) return wideAttention(q, k, v);
  const S = k.dim(1);
  const { profile } = device();
  const text = attentionWgsl(HS, profile);
  const params = { batch: B, queries: T, keys: S, heads: NH, scale: HS ** -0.5 };
  const { lanes, rows } = attentionTiling(HS, profile);
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

/** The same as matrix products, with the T x S matrix in memory: for the few wide heads of convolutional autoencoders. */
function wideAttention(q: Tensor, k: Tensor, v: Tensor): Tensor {
  const [B, T, NH, HS] = q.shape as [number, number, number, number];
  const [a, b, c] = [q, k, v].map((x) => permute(x, [0, 2, 1, 3])) as [Tensor, Tensor, Tensor]; // [B, NH, T, HS]
  const weights = softmax(matmul(a, b, { transposeB: true, alpha: HS ** -0.5 })); // [B, NH, T, S]
  return reshape(permute(matmul(weights, c), [0, 2, 1, 3]), [B, T, NH * HS]);
}

function flatten(y: Tensor, shape: readonly number[]): Tensor {
  return differentiable(viewAs(y, shape), [y], (dy) => [viewAs(dy, y.shape)]);
}
