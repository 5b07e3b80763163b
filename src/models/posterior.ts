// The posterior of a latent: a point, or a Gaussian with a diagonal covariance as in LDM (Rombach et al., 2022). A sample is
// mean + exp(logvar / 2) * noise; inference uses the mean.

import { within } from "../gpu/scope.ts";
import { slice } from "../ops/layout.ts";
import { add, clamp, exp, mul, scale } from "../ops/math.ts";
import { normal, type RandomSource, uniform } from "../ops/random.ts";
import { noGrad } from "../tensor/autograd.ts";
import type { Tensor } from "../tensor/tensor.ts";

export interface Posterior {
  /** [B, side, side, C] */
  mean: Tensor;
  /** Log-variance of each element, like `mean`; absent for a point. */
  logvar?: Tensor;
}

/** LDM's bounds of the log-variance. */
const LOGVAR = [-30, 20] as const;

/**
 * A posterior from the outputs of a network.
 * @param moments [B, side, side, C] for a point; [B, side, side, 2 x C], mean first, for a Gaussian
 */
export function posteriorOf(moments: Tensor, channels: number): Posterior {
  if (moments.dim(-1) === channels) return { mean: moments };
  const part = (from: number) => slice(moments, moments.rank - 1, from, from + channels);
  return { mean: part(0), logvar: clamp(part(channels), ...LOGVAR) };
}

/** Streams of random numbers in a training step. */
const STREAMS = { posterior: 1, sigma: 2, noise: 3 };

/** A sample mean + exp(logvar / 2) n with n ~ N(0, 1), in fp32; of a point: the point. */
export function sampleOf({ mean, logvar }: Posterior, random: RandomSource): Tensor {
  if (!logvar) return mean;
  return within({ precision: "f32" }, () => {
    const noise = noGrad(() => normal(mean.shape, random, STREAMS.posterior));
    return add(mean, mul(exp(scale(logvar, 0.5)), noise));
  });
}

/**
 * Latents z [B, side, side, C] plus sigma n with n ~ N(0, 1) and sigma ~ U(0, tau) for each image, in fp32: what the decoder of RAE
 * is trained on (arXiv 2510.11690).
 */
export function perturbed(z: Tensor, tau: number, random: RandomSource): Tensor {
  return within({ precision: "f32" }, () => {
    const noise = noGrad(() => {
      const sigma = scale(uniform([z.dim(0), 1, 1, 1], random, STREAMS.sigma), tau);
      return mul(normal(z.shape, random, STREAMS.noise), sigma);
    });
    return add(z, noise);
  });
}
