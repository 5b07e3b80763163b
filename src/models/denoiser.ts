// Interface of diffusion models for training and sampling: the velocity dx/dt of a latent. Dit implements it.

import type { Tensor } from "../tensor/tensor.ts";

export interface Denoiser {
  /** Side and channels of a latent; the number of classes, which is also the index of "no class". */
  readonly config: {
    readonly input_size: number;
    readonly in_channels: number;
    readonly num_classes: number;
  };
  /**
   * @param x noised latents [B, S, S, C]
   * @param t times [B] in 0..1: 0 noise, 1 data
   * @param y class numbers u32 [B]
   * @returns velocity [B, S, S, C]
   */
  forward(x: Tensor, t: Tensor, y: Tensor): Tensor;
}
