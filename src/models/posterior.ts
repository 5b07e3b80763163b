// The posterior of a latent: a point, or a Gaussian with a diagonal covariance as in LDM (Rombach et al., 2022). A sample is
// mean + exp(logvar / 2) * noise; inference uses the mean.

import { within } from "../gpu/scope.ts";
import { slice } from "../ops/layout.ts";
import { add, clamp, exp, mul, scale } from "../ops/math.ts";
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

/** mean + exp(logvar / 2) * noise (standard normal, shaped like the mean), in fp32; of a point: the point. */
export function sampleOf({ mean, logvar }: Posterior, noise: Tensor | undefined): Tensor {
  if (!logvar || !noise) return mean;
  return within({ precision: "f32" }, () => add(mean, mul(exp(scale(logvar, 0.5)), noise)));
}
