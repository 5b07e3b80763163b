// VA-VAE's vision foundation loss against f64 loops, with gradients, on both sides of each margin.

import { assert } from "@std/assert";
import { ShapeError } from "../../src/errors.ts";
import { grad } from "../../src/tensor/autograd.ts";
import type { Tensor } from "../../src/tensor/tensor.ts";
import { vfLoss } from "../../src/train/vf_loss.ts";
import { checkOp, evaluate, randomArray, testDevice } from "../helpers/check.ts";
import type { Nd } from "../helpers/reference.ts";

/** The loss by loops over images, tokens and pairs. */
function reference(z: Nd, f: Nd, cosine: number, distance: number): Nd {
  const [B, T, C] = z.shape as [number, number, number];
  const token = ({ data }: Nd, b: number, t: number) => data.subarray((b * T + t) * C, (b * T + t + 1) * C);
  const dot = (a: Float64Array, b: Float64Array) => a.reduce((s, v, i) => s + v * (b[i] as number), 0);
  const cos = (a: Float64Array, b: Float64Array) => dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
  let tokens = 0, pairs = 0;
  for (let b = 0; b < B; b++) {
    for (let i = 0; i < T; i++) {
      tokens += Math.max(0, 1 - cosine - cos(token(z, b, i), token(f, b, i)));
      for (let j = 0; j < T; j++) {
        const d = cos(token(z, b, i), token(z, b, j)) - cos(token(f, b, i), token(f, b, j));
        pairs += Math.max(0, Math.abs(d) - distance);
      }
    }
  }
  return { shape: [], data: Float64Array.of(tokens / (B * T) + pairs / (B * T * T)) };
}

Deno.test("vfLoss() is VA-VAE's marginal cosine and distance matrix loss, with its gradient for the latents", async () => {
  for (const [cosine, distance] of [[0.5, 0.25], [0, 0]] as const) {
    await checkOp({
      op: (z, f) => vfLoss(z, f, { cosine, distance }),
      reference: (z, f) => reference(z, f, cosine, distance),
      shapes: cosine > 0 ? [[[2, 5, 7], [2, 5, 7]]] : [[[1, 4, 8], [1, 4, 8]]],
      differentiable: [true, false],
      // |cos - cos| of a token with itself is 0, where abs has a kink: both are rounding without a margin.
      gradientTolerance: distance === 0 ? 2e-4 : 2e-5,
      tolerance: 1e-5,
    });
  }
});

Deno.test("vfLoss() is zero within the margins, finite for latents of zeros, and refuses other shapes", async () => {
  await testDevice();
  const shape = [2, 4, 8], f = { shape, data: randomArray(64, 1) };
  const of = (z: Float32Array, cosine: number, distance: number) =>
    evaluate({ z: { shape, data: z }, f }, (t) => {
      const z = t.z as Tensor;
      z.requiresGrad = true;
      const y = vfLoss(z, t.f as Tensor, { cosine, distance });
      return { y, dz: grad(y, [z])[0] as Tensor };
    });
  const turned = f.data.map((v, i) => 3 * v + 0.1 * (i % 3));
  const near = await of(turned, 0.5, 0.25);
  assert(near.y[0] === 0 && near.dz.every((v) => v === 0), "within the margins");
  const strict = await of(turned, 0, 0);
  assert((strict.y[0] as number) > 1e-4 && strict.dz.some((v) => v !== 0), "without margins");
  const zero = await of(new Float32Array(64), 0.5, 0.25);
  assert(Number.isFinite(zero.y[0]) && zero.dz.every(Number.isFinite), "latents of zeros");
  let refused = false;
  try {
    await evaluate({ z: { shape: [2, 8, 4], data: f.data }, f }, (t) => ({
      y: vfLoss(t.z as Tensor, t.f as Tensor, { cosine: 0, distance: 0 }),
    }));
  } catch (error) {
    refused = error instanceof ShapeError;
  }
  assert(refused, "other shapes");
});
