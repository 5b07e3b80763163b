// Every loss of the recipes and the adaptive GAN weight against f64 references, with gradients.

import { assert, assertEquals } from "@std/assert";
import type { Discriminator } from "../../src/models/discriminator.ts";
import type { Lpips } from "../../src/models/lpips.ts";
import { mul, scale, square, sub } from "../../src/ops/math.ts";
import { matmul } from "../../src/ops/matmul.ts";
import { sum } from "../../src/ops/reduce.ts";
import { grad } from "../../src/tensor/autograd.ts";
import type { Tensor } from "../../src/tensor/tensor.ts";
import {
  adaptiveWeight,
  cosineDistance,
  discriminatorLoss,
  generatorLoss,
  l1,
  l2,
  lpipsLoss,
} from "../../src/train/losses.ts";
import { assertClose, checkOp, evaluate, PROFILES, randomArray, testDevice } from "../helpers/check.ts";
import type { Nd } from "../helpers/reference.ts";

const scalar = (value: number): Nd => ({ shape: [], data: Float64Array.of(value) });

/** Mean of `f` over the elements of arrays of one size. */
const meanOf = (f: (...x: number[]) => number) => (...xs: Nd[]): Nd => {
  const [{ data }] = xs as [Nd];
  return scalar(data.reduce((s, _, i) => s + f(...xs.map((x) => x.data[i] as number)), 0) / data.length);
};

const PAIRS = [[[1], [1]], [[2, 3, 5], [2, 3, 5]], [[4, 16, 16, 3], [4, 16, 16, 3]]];

Deno.test("l1() is the mean of |a - b|", async () => {
  await checkOp({ op: l1, reference: meanOf((a = 0, b = 0) => Math.abs(a - b)), shapes: PAIRS });
});

Deno.test("l2() is the mean of (a - b)^2", async () => {
  await checkOp({ op: l2, reference: meanOf((a = 0, b = 0) => (a - b) ** 2), shapes: PAIRS });
});

Deno.test("cosineDistance() is the mean of 1 - cos over the last axis", async () => {
  await checkOp({
    op: cosineDistance,
    reference: (a, b) => {
      const C = a.shape.at(-1) as number, rows = a.data.length / C;
      let total = 0;
      for (let r = 0; r < rows; r++) {
        let dot = 0, aa = 0, bb = 0;
        for (let i = r * C; i < (r + 1) * C; i++) {
          const [u, v] = [a.data[i] as number, b.data[i] as number];
          [dot, aa, bb] = [dot + u * v, aa + u * u, bb + v * v];
        }
        total += 1 - dot / Math.sqrt(aa * bb);
      }
      return scalar(total / rows);
    },
    shapes: [[[3, 4], [3, 4]], [[2, 4, 4, 32], [2, 4, 4, 32]], [[1, 7], [1, 7]]],
  });
});

Deno.test("losses of equal images are zero, and their gradients at zero vectors are finite", async () => {
  const shape = [2, 3, 8], data = randomArray(48, 1), zeros = new Float32Array(48);
  for (const profile of PROFILES) {
    await testDevice(profile);
    for (const [name, loss] of Object.entries({ l1, l2, cosineDistance })) {
      const of = (a: Float32Array, b: Float32Array) =>
        evaluate({ a: { shape, data: a }, b: { shape, data: b } }, (t) => {
          const a = t.a as Tensor;
          a.requiresGrad = true;
          const y = loss(a, t.b as Tensor);
          return { y, da: grad(y, [a])[0] as Tensor };
        });
      const equal = await of(data, data);
      assert(Math.abs(equal.y[0] as number) < 1e-6 && equal.da.every((v) => Math.abs(v) < 1e-6), `${name}`);
      const zero = await of(zeros, data);
      assert(Number.isFinite(zero.y[0]) && zero.da.every(Number.isFinite), `${name} of zeros`);
    }
  }
});

Deno.test("generatorLoss() is minus the mean of the logits", async () => {
  await checkOp({ op: generatorLoss, reference: meanOf((a = 0) => -a), shapes: [[[1]], [[2, 5, 5, 1]]] });
});

for (
  const [loss, penalty, formula] of [
    ["hinge", (a: number) => Math.max(0, 1 + a), "relu(1 - D(real)) + mean relu(1 + D(fake))"],
    ["vanilla", (a: number) => Math.log1p(Math.exp(a)), "softplus(-D(real)) + mean softplus(D(fake))"],
  ] as const
) {
  Deno.test(`discriminatorLoss() "${loss}" is half of mean ${formula}, with running statistics updated`, async () => {
    const modes: string[] = [];
    // Logits 1.5 x: on both sides of the hinge.
    const discriminator = {
      forward: (x: Tensor, mode: string) => (modes.push(mode), scale(x, 1.5)),
    } as unknown as Discriminator;
    await checkOp({
      op: (real, fake) => discriminatorLoss(discriminator, real, fake, loss),
      reference: (real, fake) => {
        const [r] = meanOf((a = 0) => penalty(-1.5 * a))(real).data;
        const [f] = meanOf((a = 0) => penalty(1.5 * a))(fake).data;
        return scalar(((r as number) + (f as number)) / 2);
      },
      shapes: [[[2, 5, 5, 1], [2, 5, 5, 1]], [[1, 3, 2, 1], [1, 3, 2, 1]]],
    });
    assert(modes.every((mode) => mode === "train"));
  });
}

Deno.test("lpipsLoss() is the mean over images and has no gradient for the original", async () => {
  // One map of features x^2, weighted by 0.7; per image the sum of squared differences.
  const lpips = {
    describe: (x: Tensor) => [square(x)],
    compare: (a: Tensor[], b: Tensor[]) =>
      scale(sum(square(sub(a[0] as Tensor, b[0] as Tensor)), [1, 2, 3]), 0.7),
  } as unknown as Lpips;
  const perImage = (y: Nd, x: Nd) =>
    0.7 * y.data.reduce((s, v, i) => s + (v * v - (x.data[i] as number) ** 2) ** 2, 0);
  const shape = [3, 4, 4, 3];
  await checkOp({
    op: (y, x) => lpipsLoss(lpips, y, x),
    reference: (y, x) => scalar(perImage(y, x) / (y.shape[0] as number)),
    shapes: [[shape, shape]],
    differentiable: [true, false],
  });
  await testDevice();
  const image = { shape, data: randomArray(144, 1) };
  const { dx } = await evaluate({ y: image, x: image }, (t) => {
    const [y, x] = [t.y as Tensor, t.x as Tensor];
    y.requiresGrad = x.requiresGrad = true;
    return { dx: grad(lpipsLoss(lpips, scale(y, 2), x), [x])[0] as Tensor };
  });
  assertEquals([...dx], Array(144).fill(0));
});

Deno.test("adaptiveWeight() is the ratio of the gradients' norms at the last layer, at most 1e4, times the factor", async () => {
  const [M, K, N] = [12, 5, 7], factor = 0.5;
  const x = randomArray(M * K, 1),
    dRec = randomArray(M * N, 2),
    dGan = randomArray(M * N, 3).map((v) => v / 30);
  /** |x^T dy|, the gradient of y = x w at w. */
  const normOf = (dy: Float32Array) => {
    let squares = 0;
    for (let k = 0; k < K; k++) {
      for (let n = 0; n < N; n++) {
        let g = 0;
        for (let m = 0; m < M; m++) g += (x[m * K + k] as number) * (dy[m * N + n] as number);
        squares += g * g;
      }
    }
    return Math.sqrt(squares);
  };
  const run = (dRec: Float32Array, dGan: Float32Array, lossScale?: number) =>
    evaluate({
      x: { shape: [M, K], data: x },
      w: { shape: [K, N], data: randomArray(K * N, 4) },
      dRec: { shape: [M, N], data: dRec },
      dGan: { shape: [M, N], data: dGan },
      lossScale: { shape: [], data: Float32Array.of(lossScale ?? 1) },
    }, (t) => {
      const w = t.w as Tensor;
      w.requiresGrad = true;
      const scaled = (dy: Tensor) => lossScale ? mul(dy, t.lossScale as Tensor) : dy;
      const y = matmul(t.x as Tensor, w);
      const { weight, norms: [rec, gan] } = adaptiveWeight(
        y,
        w,
        scaled(t.dRec as Tensor),
        scaled(t.dGan as Tensor),
        factor,
        lossScale ? t.lossScale : undefined,
      );
      return { weight, rec, gan };
    });
  const [rec, gan] = [normOf(dRec), normOf(dGan)], expected = factor * rec / (gan + 1e-4);
  for (const profile of PROFILES) {
    await testDevice(profile);
    const plain = await run(dRec, dGan);
    assertClose(plain.weight, [expected], { tolerance: 1e-6 }, "weight");
    assertClose(plain.rec, [rec ** 2], { tolerance: 1e-6 }, "squared norm of the reconstruction loss");
    assertClose(plain.gan, [gan ** 2], { tolerance: 1e-6 }, "squared norm of the GAN loss");
    const scaled = await run(dRec, dGan, 1024);
    assertClose(scaled.weight, [expected], { tolerance: 1e-6 }, "weight by scaled gradients");
    assertEquals([...(await run(dRec, new Float32Array(M * N))).weight], [factor * 1e4], "largest weight");
    const none = await run(new Float32Array(M * N), dGan);
    assertEquals([...none.weight], [0], "weight without a reconstruction loss");
  }
});
