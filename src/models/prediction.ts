// What a diffusion network outputs: the velocity v, or the data X = x + (1 - t) v. A network of data is used as one of velocities,
// v = (X - x) / max(1 - t, 0.05): JiT (Li and He, arXiv 2511.13720), whose bound on the denominator this is; RAEv2. Where a
// sampler needs X, or the velocity without the bound, it is undone.

import { within } from "../gpu/scope.ts";
import { div, sub } from "../ops/math.ts";
import { reshape } from "../ops/layout.ts";
import { pointwise } from "../ops/pointwise.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Denoiser, DenoiserOutputs, PassOptions } from "./denoiser.ts";

export const PREDICTIONS = ["velocity", "data"] as const;
export type Prediction = typeof PREDICTIONS[number];

/** Minimum of 1 - t in the denominator. */
const MIN_TIME_LEFT = 0.05;

/**
 * The velocity at `x` [B,S,S,C] and times `t` [B] of a line that reaches `data` [B,S,S,C] at t = 1; up to t = 0.95, and
 * from there on smaller. In fp32.
 */
export function velocityTowards(data: Tensor, x: Tensor, t: Tensor): Tensor {
  return within({ precision: "f32" }, () => {
    const left = pointwise(["max(T(1.0) - x0, T(s0))"], [reshape(t, [-1, 1, 1, 1])], [MIN_TIME_LEFT]);
    return div(sub(data, x), left);
  });
}

/** The divisor of a network's velocity at time `t`: the time left, or where that is larger the network's bound. */
export const timeLeft = ({ minTimeLeft = 0 }: Denoiser, t: number): number => Math.max(1 - t, minTimeLeft);

/** The data that `x` and its velocity `v` [B,S,S,C] predict, X = x + (1 - t) v. @param left {@link timeLeft}, [1] */
export const dataPrediction = (x: Tensor, v: Tensor, left: Tensor): Tensor =>
  pointwise(["x0 + x2 * x1"], [x, v, left]);

/** A network of data as one of velocities. */
class DataPrediction implements Denoiser {
  readonly minTimeLeft = MIN_TIME_LEFT;
  readonly classTable?: { weight: Tensor };

  constructor(private readonly network: Denoiser) {
    if (network.classTable) this.classTable = network.classTable;
  }

  get config(): Denoiser["config"] {
    return this.network.config;
  }

  forward(x: Tensor, t: Tensor, y: Tensor): Tensor {
    return velocityTowards(this.network.forward(x, t, y), x, t);
  }

  outputs(x: Tensor, t: Tensor, y: Tensor, options?: PassOptions): DenoiserOutputs {
    const { velocity, inner, ...others } = this.network.outputs(x, t, y, options);
    return {
      ...others,
      velocity: velocityTowards(velocity, x, t),
      ...inner && { inner: velocityTowards(inner, x, t) },
    };
  }
}

/** The network as one that outputs velocities. */
export function velocitiesOf(network: Denoiser, prediction: Prediction = "velocity"): Denoiser {
  return prediction === "data" ? new DataPrediction(network) : network;
}
