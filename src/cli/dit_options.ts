// The options of `train-dit` about its objective, how it is watched, and how images become its latents.

import { z } from "zod";
import { count } from "../bounds.ts";
import { GROUPS } from "./about.ts";
import { amount, flag, text } from "./options.ts";

const { data, input, losses, output } = GROUPS;

/** The objective of a diffusion training. */
export const objective = {
  time: losses(
    z.enum(["logit-normal", "uniform"]).default("logit-normal"),
    "Distribution of the training time t (0 noise, 1 data): logit-normal (sigmoid of a normal) or uniform",
  ),
  timeMu: losses(z.number().default(0), "Mean of logit-normal times before the sigmoid; JiT: -0.8", {
    advanced: true,
  }),
  timeSigma: losses(
    z.number().positive().default(1),
    "Standard deviation of logit-normal times before the sigmoid; JiT: 0.8",
    { advanced: true },
  ),
  timeShift: losses(
    z.number().positive().default(1),
    "Shift of training times, t' = S t / (1 + (S - 1) t), as --shift of `tok sample`; below 1: more of them near the noise. " +
      "RAE: sqrt(4096 / latent dimensions)",
    { value: "S", advanced: true },
  ),
  prediction: losses(
    z.enum(["velocity", "data"]).default("velocity"),
    "What the network predicts: the velocity, or the data (the clean latent: x-prediction of JiT and RAEv2)",
  ),
  wDirection: losses(
    amount().default(1),
    "Weight of the direction loss, 1 - cos(predicted, target velocity)",
    { advanced: true },
  ),
  innerWeight: losses(amount().default(1), "Weight of the loss of --inner-head", { advanced: true }),
  repa: losses(
    text(),
    "Align features of a block with this encoder's (REPA): as --encoder of `tok align`, or embedded. Runs the encoder in each " +
      "step; needs images, not --latents",
    { value: "ENCODER", otherwise: "no alignment" },
  ),
  repaBlock: losses(count("layers").optional(), "Block whose output is aligned (first: 1), with --repa", {
    otherwise: "8, at most half of the blocks",
    advanced: true,
  }),
  repaHidden: losses(
    count("channels").default(2048),
    "Hidden width of REPA's projection MLP (used in training only)",
    { advanced: true },
  ),
  repaWeight: losses(amount().default(0.5), "Weight of REPA's alignment loss", { advanced: true }),
  download: input(flag(), "Download the encoder of --repa or --val-encoder if it is not in the cache", {
    free: true,
  }),
};

/** Watching a diffusion training. */
export const watching = {
  sampleEvery: output(
    z.number().int().nonnegative().default(0),
    "Steps between sample grids (EMA weights, fixed noise and classes); 0: only at the end",
    { free: true },
  ),
  valEvery: output(
    z.number().int().nonnegative().default(0),
    "Steps between validations: Frechet distance of --val-num samples (EMA weights) to the data; keeps the best checkpoint; 0: none",
    { free: true },
  ),
  valNum: output(count("images").min(2).default(500), "Number of samples per validation", { advanced: true }),
  valCfg: output(z.number().default(1), "Guidance weight of the samples of a validation", {
    value: "W",
    advanced: true,
  }),
  valSteps: output(
    count().default(20),
    "Integration steps of the samples of --val-every and --sample-every",
    {
      advanced: true,
    },
  ),
  valEncoder: output(text(), "Encoder of the Frechet distance of --val-every, as --encoder of `tok eval`", {
    value: "MODEL",
    otherwise: "the embedded encoder",
    advanced: true,
  }),
};

/** How images become the latents of a diffusion training. */
export const encoding = {
  online: data(
    flag(),
    "Encode images on the fly, with fresh crops and flips, instead of caching their latents",
  ),
  crop: data(
    z.enum(["center", "adm", "random", "resize"]).default("center"),
    "Crop of images to squares: center, ADM's center crop, or with --online ADM's random crop; resize ignores the aspect ratio",
    { advanced: true },
  ),
  statImages: data(
    count("images").default(10000),
    "Images over which --online measures the statistics of the latents",
    { advanced: true },
  ),
};
