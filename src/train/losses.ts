// Losses: means over pixels, or over elements of features and latents, in fp32 also where the inputs are fp16.

import { gradOf, noGrad, type Root } from "../tensor/autograd.ts";
import { within } from "../gpu/scope.ts";
import type { Discriminator } from "../models/discriminator.ts";
import type { Lpips } from "../models/lpips.ts";
import type { Posterior } from "../models/posterior.ts";
import {
  abs,
  add,
  div,
  exp,
  mul,
  neg,
  relu,
  scale,
  shift,
  softplus,
  sqrt,
  square,
  sub,
} from "../ops/math.ts";
import { pointwise } from "../ops/pointwise.ts";
import { mean, sum, sumOfSquares } from "../ops/reduce.ts";
import { check, type Tensor } from "../tensor/tensor.ts";

/** mean |a - b| */
export const l1 = (a: Tensor, b: Tensor): Tensor => within({ precision: "f32" }, () => mean(abs(sub(a, b))));

/** mean (a - b)^2 */
export const l2 = (a: Tensor, b: Tensor): Tensor =>
  within({ precision: "f32" }, () => mean(square(sub(a, b))));

/** Added under the root of |a|^2 |b|^2, so that a vector of zeros has a finite gradient. */
const COSINE_EPS = 1e-8;

/** mean of 1 - cos(a, b) over the last axis */
export function cosineDistance(a: Tensor, b: Tensor): Tensor {
  return within({ precision: "f32" }, () => {
    const dot = sum(mul(a, b), [-1]);
    const norms2 = mul(sum(square(a), [-1]), sum(square(b), [-1]));
    return shift(neg(mean(div(dot, sqrt(shift(norms2, COSINE_EPS))))), 1);
  });
}

/**
 * KL divergence of a Gaussian posterior from N(0, 1): 0.5 mean (mean^2 + exp(logvar) - 1 - logvar) over the elements of latents.
 * LDM sums it, and the reconstruction loss, over an image: its `kl_weight` k is k C / (3 factor^2) here.
 */
export function klDivergence({ mean: mu, logvar }: Posterior): Tensor {
  check(logvar !== undefined, "compute the KL loss", "the posterior is a point", mu);
  return within(
    { precision: "f32" },
    () => scale(mean(shift(sub(add(square(mu), exp(logvar)), logvar), -1)), 0.5),
  );
}

/** mean LPIPS of images from their originals, which get no gradient */
export function lpipsLoss(lpips: Lpips, y: Tensor, original: Tensor): Tensor {
  const expected = noGrad(() => lpips.describe(original)), got = lpips.describe(y);
  return within({ precision: "f32" }, () => mean(lpips.compare(expected, got)));
}

/** Adversarial loss of the generator, LDM's for every loss of the discriminator: -mean D(fake). */
export const generatorLoss = (fake: Tensor): Tensor => within({ precision: "f32" }, () => neg(mean(fake)));

/** What logits of fakes cost the discriminator, and logits of real images with the other sign. */
const PENALTIES = { hinge: (x: Tensor) => relu(shift(x, 1)), vanilla: softplus };
/** Losses of the discriminator: hinge, or binary cross-entropy. */
export const GAN_LOSSES = Object.keys(PENALTIES) as ["hinge", "vanilla"];
export type GanLoss = typeof GAN_LOSSES[number];

/** Loss of the discriminator: half of the mean penalties of real images and of fakes; LDM's hinge_d_loss and vanilla_d_loss. */
export function discriminatorLoss(
  discriminator: Discriminator,
  real: Tensor,
  fake: Tensor,
  loss: GanLoss = "hinge",
): Tensor {
  const logits = [real, fake].map((x) => discriminator.forward(x, "train")) as [Tensor, Tensor];
  return within({ precision: "f32" }, () => {
    const [onReal, onFake] = [neg(logits[0]), logits[1]].map((x) => mean(PENALTIES[loss](x))) as [
      Tensor,
      Tensor,
    ];
    return scale(add(onReal, onFake), 0.5);
  });
}

/**
 * An adaptive weight: the ratio of the norms of two gradients at a parameter, ||dFirst|| / (||dSecond|| + 1e-4), at most `max`,
 * times `factor`.
 * @param first, second losses' gradients at tensors, multiplied by `lossScale` if there is one
 * @returns scalars that stay on the device: the weight, and the squared norms, which may overflow where the gradients do not
 */
export function gradientRatio(
  at: Tensor,
  [first, second]: readonly [Root, Root],
  { factor, max, lossScale }: { factor: number; max: number; lossScale?: Tensor | undefined },
): { weight: Tensor; norms: [Tensor, Tensor] } {
  const norm2 = (root: Root) => sumOfSquares(gradOf([root], [at])[0] as Tensor);
  const scaled = lossScale ? [lossScale] : [];
  const ratio = `min(sqrt(x0) / (sqrt(x1) + 1e-4${
    lossScale ? " * x2" : ""
  }), T(${max.toExponential()})) * s0`;
  const norms: [Tensor, Tensor] = [norm2(first), norm2(second)];
  return { weight: pointwise([ratio], [...norms, ...scaled], [factor]), norms };
}

/**
 * The adversarial weight of VQGAN: ||dRec|| / (||dGan|| + 1e-4) at the decoder's last layer, at most 1e4, times `factor`.
 * @param y reconstruction; `dRec` and `dGan` are gradients of both losses at it, multiplied by `lossScale` if there is one
 * @returns scalars that stay on the device: the weight, and the squared norms, which may overflow where the gradients do not
 */
export function adaptiveWeight(
  y: Tensor,
  lastLayer: Tensor,
  dRec: Tensor,
  dGan: Tensor,
  factor: number,
  lossScale?: Tensor,
): { weight: Tensor; norms: [Tensor, Tensor] } {
  return gradientRatio(lastLayer, [{ y, dy: dRec }, { y, dy: dGan }], { factor, max: 1e4, lossScale });
}

/** A scalar and its weight. */
export type Weighted = readonly [loss: Tensor, weight: number];

/** The sum of at least one loss, each times its weight. */
export function weightedSum(losses: readonly Weighted[]): Tensor {
  return losses.map(([loss, weight]) => weight === 1 ? loss : scale(loss, weight)).reduce(add);
}
