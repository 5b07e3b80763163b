// The losses of an alignment: one entry for each, which serves the options, the step and the columns of the log. The
// adversarial loss, whose weight depends on the gradients of the others, is in stage_run.ts.

import type { AlignConfig } from "../cli/config.ts";
import { noGrad } from "../tensor/autograd.ts";
import { reshape } from "../ops/layout.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Alignment, AlignmentOptions, StageName } from "./alignment.ts";
import { cosineDistance, l1, l2 } from "./losses.ts";

/** What a loss may compare. */
export interface LossInputs {
  alignment: Alignment;
  options: AlignmentOptions;
  /** Images [B,S,S,3]. */
  x: Tensor;
  /** Their reconstructions [B,S,S,3]. */
  y: Tensor;
  /** Latents [B,side,side,C]. */
  z: Tensor;
  /** Patch tokens of the encoder, and of the frozen encoder [B,T,features]. */
  features: Tensor;
  frozen: Tensor;
}

interface Loss {
  /** Whether it depends on the reconstruction alone: the gradients of such losses set the adaptive weight of the adversarial one. */
  ofReconstruction: boolean;
  /** Reported even where its weight is 0 (false). */
  always?: boolean;
  weight(c: AlignConfig, stage: StageName): number;
  value(inputs: LossInputs): Tensor;
}

export const LOSSES = {
  l1: { ofReconstruction: true, always: true, weight: (c) => c.wL1, value: ({ x, y }) => l1(y, x) },
  perceptual: {
    ofReconstruction: true,
    weight: (c) => c.perceptual === "none" ? 0 : c.wPerceptual,
    value: ({ alignment, x, y, frozen }) => alignment.perceptual(y, x, frozen),
  },
  /** Holds the latents of stage 2 to those of stage 1. */
  semantic: {
    ofReconstruction: false,
    weight: (c, stage) => stage === "perceptual" ? c.wSemantic : 0,
    value({ alignment, options, z, features, frozen }) {
      const distance = options.semanticLoss === "cosine" ? cosineDistance : l2;
      if (options.semanticAt === "before") return distance(features, frozen);
      return distance(z, reshape(noGrad(() => alignment.anchor.forward(frozen)), z.shape));
    },
  },
} satisfies Record<string, Loss>;

export type LossName = keyof typeof LOSSES;

/** The table in its order. */
export const LOSS_TABLE = Object.entries(LOSSES) as [LossName, Loss][];

/** Weights of the losses in a stage. */
export function weightsOf(c: AlignConfig, stage: StageName): Record<LossName, number> {
  const weights = LOSS_TABLE.map(([name, { weight }]) => [name, weight(c, stage)]);
  return Object.fromEntries(weights) as Record<LossName, number>;
}
