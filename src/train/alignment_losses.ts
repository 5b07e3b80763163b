// The losses of an alignment: one entry for each, which serves the options, the step and the columns of the log. The
// adversarial loss, whose weight depends on the gradients of the others, is in stage_run.ts.

import type { AlignConfig } from "../cli/config.ts";
import type { Part } from "../models/tokenizer.ts";
import type { Posterior } from "../models/posterior.ts";
import { noGrad } from "../tensor/autograd.ts";
import { check, type Tensor } from "../tensor/tensor.ts";
import type { StageName } from "./align_recipes.ts";
import type { Alignment, AlignmentOptions } from "./alignment.ts";
import { cosineDistance, klDivergence, l1, l2 } from "./losses.ts";
import { vfLoss } from "./vf_loss.ts";

/** What a loss may compare. */
export interface LossInputs {
  alignment: Alignment;
  options: AlignmentOptions;
  /** Images [B,S,S,3]. */
  x: Tensor;
  /** Their reconstructions [B,S,S,3]. */
  y: Tensor;
  /** Of the latents [B,side,side,C]. */
  posterior: Posterior;
  /** The latents that the decoder gets: a sample of the posterior. */
  z: Tensor;
  /** What the encoder outputs: patch tokens [B,T,features]. */
  features: Tensor;
  /** Patch tokens of the frozen encoder [B,T,features], if the alignment has one. */
  frozen: Tensor | undefined;
}

/** The fields of a stage that weights depend on. */
interface StageParts {
  name: StageName;
  train: readonly Part[];
}

interface Loss {
  /** Whether its weight is the factor of an adaptive one: the ratio of gradient norms at the last encoding layer (false). */
  adaptive?: boolean;
  /** Whether it depends on the reconstruction alone: the gradients of such losses set the adaptive weights. */
  reconstruction: boolean;
  /** Reported even where its weight is 0 (false). */
  always?: boolean;
  /** Whether it has a column in the log only where its weight is not 0 (false). */
  optional?: boolean;
  weight(c: AlignConfig, stage: StageParts): number;
  value(inputs: LossInputs): Tensor;
}

export const LOSSES = {
  l1: { reconstruction: true, always: true, weight: (c) => c.wL1, value: ({ x, y }) => l1(y, x) },
  perceptual: {
    reconstruction: true,
    weight: (c) => c.perceptual === "none" ? 0 : c.wPerceptual,
    value: ({ alignment, x, y, frozen }) => alignment.perceptual(y, x, frozen),
  },
  /** Holds the latents of stage 2 to those of stage 1. */
  semantic: {
    reconstruction: false,
    weight: (c, { name }) => name === "perceptual" ? c.wSemantic : 0,
    value({ alignment: { anchor }, options, posterior, features, frozen }) {
      const distance = options.semanticLoss === "cosine" ? cosineDistance : l2;
      check(anchor && frozen, "compute the semantic loss", "the tokenizer has no vision encoder");
      if (options.semanticAt === "before") return distance(features, frozen);
      return distance(posterior.mean, noGrad(() => anchor.forward(frozen).mean));
    },
  },
  /** Holds the posterior to N(0, 1) where the adapter is trained. */
  kl: {
    reconstruction: false,
    optional: true,
    weight: (c, { train }) => train.includes("adapter") ? c.wKl : 0,
    value: ({ posterior }) => klDivergence(posterior),
  },
  /** VA-VAE: aligns latents with the features of the frozen encoder. */
  vf: {
    reconstruction: false,
    optional: true,
    adaptive: true,
    weight: (c, { train }) => train.includes("encoder") ? c.wVf : 0,
    value({ alignment, options: { vfMargins: [cosine = 0, distance = 0] = [] }, z, frozen }) {
      check(frozen, "compute the vision foundation loss", "the alignment has no vision encoder");
      return vfLoss(alignment.projected(z), frozen, { cosine, distance });
    },
  },
} satisfies Record<string, Loss>;

export type LossName = keyof typeof LOSSES;

/** The table in its order. */
export const LOSS_TABLE = Object.entries(LOSSES) as [LossName, Loss][];

/** Weights of the losses in a stage. */
export function weightsOf(c: AlignConfig, stage: StageParts): Record<LossName, number> {
  const weights = LOSS_TABLE.map(([name, { weight }]) => [name, weight(c, stage)]);
  return Object.fromEntries(weights) as Record<LossName, number>;
}
