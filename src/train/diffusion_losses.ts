// The losses of a diffusion training: one more is an entry here, and an option for its weight.

import type { Tensor } from "../tensor/tensor.ts";
import { cosineDistance, l2, type Weighted } from "./losses.ts";

export interface DiffusionLossWeights {
  /** Weight of the direction loss. */
  directionWeight: number;
  /** Weight of the loss of the inner head (1). */
  innerWeight?: number;
  /** Weight of the alignment of inner tokens with those of an encoder (0.5). */
  repaWeight?: number;
}

/** What the losses of a micro-batch compare. */
export interface Compared {
  /** Velocities [B,S,S,C] of the network, and what they should be. */
  velocity: Tensor;
  target: Tensor;
  /** Velocities of the inner head. */
  inner?: Tensor | undefined;
  /** Projected tokens of an inner block [B,T,features], and the encoder's. */
  repa?: readonly [projected: Tensor, tokens: Tensor] | undefined;
}

interface Loss {
  weight(o: DiffusionLossWeights): number;
  /** Undefined where the model has nothing to compare. */
  value(c: Compared): Tensor | undefined;
}

const LOSSES = {
  velocity: { weight: () => 1, value: ({ velocity, target }) => l2(velocity, target) },
  /** LightningDiT's. */
  direction: {
    weight: (o) => o.directionWeight,
    value: ({ velocity, target }) => cosineDistance(velocity, target),
  },
  /** Internal Guidance, arXiv 2512.24176. */
  inner: { weight: (o) => o.innerWeight ?? 1, value: ({ inner, target }) => inner && l2(inner, target) },
  /** REPA, arXiv 2410.06940, equation 8, plus 1. */
  repa: { weight: (o) => o.repaWeight ?? 0.5, value: ({ repa }) => repa && cosineDistance(...repa) },
} satisfies Record<string, Loss>;

/** Names of the losses of a model, in order. */
export function lossNames(has: { inner: boolean; repa: boolean }): string[] {
  return Object.keys(LOSSES).filter((name) => has[name as keyof typeof has] ?? true);
}

/** The losses of a model with their weights, in order. */
export function diffusionLosses(compared: Compared, options: DiffusionLossWeights): Weighted[] {
  return Object.values<Loss>(LOSSES).flatMap(({ weight, value }) => {
    const loss = value(compared);
    return loss ? [[loss, weight(options)] as const] : [];
  });
}
