// AlignTok's adapter: two linear layers from the encoder's features to the latent, the same for every token.
// The paper states width 1024 -> C only; GELU and the hidden width are our choice. For a Gaussian posterior the second
// layer has 2 C outputs: mean and log-variance.

import { Linear } from "../nn/layers.ts";
import type { Initializer } from "../nn/init.ts";
import { reshape } from "../ops/layout.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { type Posterior, posteriorOf } from "./posterior.ts";

export class Adapter {
  readonly fc1: Linear;
  readonly fc2: Linear;

  constructor(
    features: number,
    private readonly latentChannels: number,
    hidden: number = features,
    gaussian = false,
  ) {
    this.fc1 = new Linear(features, hidden);
    this.fc2 = new Linear(hidden, (gaussian ? 2 : 1) * latentChannels);
  }

  /** Glorot weights, zero biases. */
  init(init: Initializer): void {
    for (const { weight, bias } of [this.fc1, this.fc2]) {
      init.xavier(weight);
      init.constant(bias, 0);
    }
  }

  /** Tokens of a square grid [B, side * side, features] to the posterior of the latent [B, side, side, C]. */
  forward(x: Tensor): Posterior {
    const side = Math.sqrt(x.dim(1));
    const moments = this.fc2.forward(this.fc1.forward(x, { activation: "gelu" }));
    return posteriorOf(reshape(moments, [x.dim(0), side, side, -1]), this.latentChannels);
  }
}
