// Discriminators of images: what every kind has, and PatchGAN, strided 4x4 convolutions that classify overlapping patches: Isola
// et al. (2017), in LDM's form (three layers, batch norm, no bias before a norm), with tensors named as in LDM's `main` sequence.

import { z } from "zod";
import { count } from "../bounds.ts";
import { leakyRelu } from "../ops/math.ts";
import { BatchNorm2d, Conv2d, type StatisticsMode } from "../nn/layers.ts";
import type { Initializer } from "../nn/init.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Encoder } from "./tokenizer.ts";

/** A discriminator; its tensors are those that are trained, and the state of its norms. */
export interface Discriminator {
  /** The frozen encoder whose features it classifies; its tensors are not the discriminator's. */
  readonly encoder?: Encoder;
  init(init: Initializer): void;
  /**
   * Images [B, H, W, 3] in -1..1 to logits [B, ...], positive where an image looks real.
   * @param mode `train` updates the state of the norms, `frozen` does not
   */
  forward(x: Tensor, mode: StatisticsMode): Tensor;
}

export const discriminatorConfig = z.object({
  /** Channels after the first convolution; each layer doubles them, up to 8x. */
  ndf: count("channels").default(64),
  n_layers: count("levels").default(3),
});
export type DiscriminatorConfig = z.infer<typeof discriminatorConfig>;

export class PatchDiscriminator implements Discriminator {
  /** Indices as in the published sequence, activations included. */
  readonly main: (Conv2d | BatchNorm2d | "leaky")[];

  constructor(readonly config: DiscriminatorConfig) {
    const { ndf, n_layers } = config;
    this.main = [new Conv2d(3, ndf, 4, { stride: 2, padding: 1 }), "leaky"];
    let C = ndf;
    for (let n = 1; n <= n_layers; n++) {
      const width = ndf * Math.min(2 ** n, 8);
      const stride = n === n_layers ? 1 : 2;
      this.main.push(new Conv2d(C, width, 4, { stride, padding: 1 }, false), new BatchNorm2d(width), "leaky");
      C = width;
    }
    this.main.push(new Conv2d(C, 1, 4, { stride: 1, padding: 1 }));
  }

  /** pix2pix: convolutions normal(0, 0.02), norm weights normal(1, 0.02) (here exactly 1), biases 0. */
  init(init: Initializer): void {
    for (const layer of this.main) {
      if (layer instanceof Conv2d) {
        init.normal(layer.weight, 0.02);
        init.constant(layer.bias, 0);
      } else if (layer instanceof BatchNorm2d) init.norm(layer);
    }
  }

  /** Pixels [B, H, W, 3] to logits [B, h, w, 1]: positive where a patch looks real. */
  forward(x: Tensor, mode: StatisticsMode): Tensor {
    return this.main.reduce<Tensor>((y, layer) => {
      if (layer === "leaky") return leakyRelu(y, 0.2);
      return layer instanceof Conv2d ? layer.forward(y) : layer.forward(y, mode);
    }, x);
  }
}
