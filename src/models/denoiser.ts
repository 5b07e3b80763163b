// Interface of diffusion models for training and sampling: the velocity dx/dt of a latent, and what one pass of the network
// gives besides. Dit implements it.

import type { Tensor } from "../tensor/tensor.ts";

/** What a pass gives besides the velocity, and where it begins. */
export interface PassOptions {
  /** Also return the tokens after this block, from 1. */
  features?: number;
  /** Begin with these tokens [B, T, width] as the output of block `block`, from 1, instead of running it and those before it. */
  start?: { block: number; tokens: Tensor };
}

/** The outputs of one pass. */
export interface DenoiserOutputs {
  /** Velocity [B, S, S, C]. */
  velocity: Tensor;
  /** Velocity [B, S, S, C] of the inner head; undefined for a model without one, and for a pass that starts behind it. */
  inner?: Tensor;
  /** Tokens [B, T, width] after block `features`. */
  features?: Tensor;
}

export interface Denoiser {
  readonly config: {
    /** Side of a latent. */
    readonly input_size: number;
    /** Channels of a latent. */
    readonly in_channels: number;
    /** Number of classes, which is also the index of "no class". */
    readonly num_classes: number;
    /** The block, from 1, whose output the inner head reads; 0 for a model without one. */
    readonly inner_head: number;
    /** Number of blocks. */
    readonly depth: number;
    /** Channels of the tokens. */
    readonly hidden_size: number;
    /** A wide head, whose blocks follow. */
    readonly head?: { readonly depth: number } | undefined;
  };
  /** Minimum of 1 - t by which the velocity is divided, of a network that predicts data; 0 if absent. See prediction.ts. */
  readonly minTimeLeft?: number;
  /** The embeddings of the classes [num_classes + 1, hidden_size]; a longer table has labels for its further rows. */
  readonly classTable?: { weight: Tensor };
  /**
   * @param x noised latents [B, S, S, C]
   * @param t times [B] in 0..1: 0 noise, 1 data
   * @param y class numbers u32 [B]
   * @returns velocity [B, S, S, C]
   */
  forward(x: Tensor, t: Tensor, y: Tensor): Tensor;
  /** As {@link forward}, with the inner head's velocity and the tokens after a block. */
  outputs(x: Tensor, t: Tensor, y: Tensor, options?: PassOptions): DenoiserOutputs;
}
