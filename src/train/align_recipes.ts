// The methods of `tok align` as a table: AlignTok and the baselines that it is compared with. An entry says what the tokenizer
// is made of, what its stages are, which options have other defaults, and which do nothing in it. Each stage becomes a Recipe
// of the training run (stage_recipe.ts).

import type { AlignConfig } from "../cli/config.ts";
import type { RecipeOptions } from "../cli/flags.ts";

export type StageName = "latent" | "perceptual" | "refine" | "joint" | "decoder";

/** A stage; the options have its modules and its numbers. */
export interface StageKind {
  name: StageName;
  /** Whether a single value of --ema applies to it. */
  ema: boolean;
}

export interface AlignRecipe extends RecipeOptions {
  /** Description, for people. */
  about: string;
  /**
   * The encoder of the tokenizer: a vision encoder with its weights; one of the same architecture from scratch; a vision encoder
   * whose normalised patch tokens are the latent; LDM's convolutional encoder.
   */
  encoder: "pretrained" | "scratch" | "frozen" | "convolutional";
  stages: readonly StageKind[];
}

/** Reasons why options do nothing. */
const NO_SEMANTIC_LOSS = "it has no semantic loss";
const NO_LORA = "it fine-tunes no pretrained encoder";
const ONE_STAGE = {
  stages: "it has one stage",
  wSemantic: NO_SEMANTIC_LOSS,
  semanticLoss: NO_SEMANTIC_LOSS,
  semanticAt: NO_SEMANTIC_LOSS,
  loraRank: NO_LORA,
  loraAlpha: NO_LORA,
};
const NO_VF_LOSS = {
  wVf: "it has no vision foundation loss",
  vfMargins: "it has no vision foundation loss",
};
const VIT_ENCODER = { encoderBlocks: "its encoder is a vision transformer" };
const CONVOLUTIONAL = { layers: "its encoder is convolutional", adapterHidden: "it has no adapter" };

/**
 * The numbers of the three stages as those of one stage.
 * @param rate index of the stage whose learning rate it has
 */
function oneStage({ steps, lr, ganStart }: AlignConfig, rate: number) {
  let begin = 0, first: number | "off" = "off";
  for (const [i, n] of steps.entries()) {
    const start = ganStart[i] ?? ganStart[0] ?? "off";
    if (first === "off" && start !== "off" && start < n) first = begin + start;
    begin += n;
  }
  return { steps: [begin], lr: [lr[rate] ?? 0], ganStart: [first] };
}

/** LDM's KL weight of 1e-6, which goes with sums over an image, for means. */
function ldmKlWeight({ latentChannels, decoderMultiples }: AlignConfig): number {
  return 1e-6 * latentChannels / (3 * 4 ** (decoderMultiples.length - 1));
}

/**
 * The highest default learning rate from scratch. The tiny preset's 3e-3, which an adapter behind a pretrained encoder bears,
 * ends at 15.4 dB after 480 steps of the VAE, with wrong colours; 1e-3 ends at 19.4 dB.
 */
const MAX_LR = 1e-3;

/** Both encoder and decoder from scratch, without EMA, as LDM and VA-VAE are trained. */
const fromScratch = (preset: AlignConfig) => ({
  ...oneStage(preset, 1),
  lr: [Math.min(preset.lr[1] ?? 0, MAX_LR)],
  train: ["encoder+adapter+decoder"],
  encoderLr: 1,
  ema: 0,
  wKl: ldmKlWeight(preset),
});

const JOINT: readonly StageKind[] = [{ name: "joint", ema: true }];

export const ALIGN_RECIPES: Readonly<Record<AlignConfig["recipe"], AlignRecipe>> = {
  aligntok: {
    about: "AlignTok (arXiv 2509.25162): a pretrained encoder and an adapter, three stages",
    encoder: "pretrained",
    stages: [
      { name: "latent", ema: false },
      { name: "perceptual", ema: true },
      { name: "refine", ema: false },
    ],
    options: () => ({}),
    without: { ...NO_VF_LOSS, ...VIT_ENCODER },
  },
  vae: {
    about: "LDM's convolutional VAE (arXiv 2112.10752), from scratch",
    encoder: "convolutional",
    stages: JOINT,
    options: fromScratch,
    without: { ...ONE_STAGE, ...NO_VF_LOSS, ...CONVOLUTIONAL },
  },
  "va-vae": {
    about: "VA-VAE (arXiv 2501.01423): LDM's VAE with the vision foundation loss",
    encoder: "convolutional",
    stages: JOINT,
    options: (preset) => ({ ...fromScratch(preset as AlignConfig), wVf: 0.1 }),
    without: { ...ONE_STAGE, ...CONVOLUTIONAL },
  },
  "va-vae-vit": {
    about: "VA-VAE's losses, with a vision transformer from scratch and an adapter as the encoder",
    encoder: "scratch",
    stages: JOINT,
    options: (preset) => ({ ...fromScratch(preset as AlignConfig), wVf: 0.1 }),
    without: { ...ONE_STAGE, ...VIT_ENCODER },
  },
  rae: {
    about: "RAE-style (arXiv 2510.11690): a frozen encoder without an adapter, and a convolutional decoder",
    encoder: "frozen",
    stages: [{ name: "decoder", ema: true }],
    options: (preset) => ({ ...oneStage(preset as AlignConfig, 0), train: ["decoder"], noiseTau: 0.8 }),
    without: {
      ...ONE_STAGE,
      ...NO_VF_LOSS,
      adapterHidden: "it has no adapter",
      ...VIT_ENCODER,
      latentChannels: "its latent has the channels of the encoder",
      train: "it trains the decoder only",
      encoderLr: "its encoder is frozen",
      adapterLr: "it has no adapter",
      wKl: "its latent is a point",
    },
  },
};
