// AlignTok's adapter: two linear layers from the encoder's features to the latent, the same for every token.
// The paper states width 1024 -> C only; GELU and the hidden width are our choice.

import { Linear } from "../nn/layers.ts";
import type { Initializer } from "../nn/init.ts";
import type { Tensor } from "../tensor/tensor.ts";

export class Adapter {
  readonly fc1: Linear;
  readonly fc2: Linear;

  constructor(features: number, latentChannels: number, hidden: number = features) {
    this.fc1 = new Linear(features, hidden);
    this.fc2 = new Linear(hidden, latentChannels);
  }

  /** Glorot weights, zero biases. */
  init(init: Initializer): void {
    for (const { weight, bias } of [this.fc1, this.fc2]) {
      init.xavier(weight);
      init.constant(bias, 0);
    }
  }

  /** [B, T, features] -> [B, T, C] */
  forward(x: Tensor): Tensor {
    return this.fc2.forward(this.fc1.forward(x, { activation: "gelu" }));
  }
}
