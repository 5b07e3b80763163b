// The options of `train-dit` about optimizers and averages of the weights, and the one that rebuilds such an average.

import { z } from "zod";
import { count } from "../bounds.ts";
import { GROUPS } from "./about.ts";
import { amount, decay } from "./options.ts";

const { optimizer, sample, training } = GROUPS;

/** How `train-dit` chooses between AdamW and Muon. */
export const muonOptions = {
  optimizer: optimizer(
    z.enum(["adamw", "muon"]).default("adamw"),
    "Optimizer; muon: Muon for the weight matrices of the blocks, AdamW for everything else",
  ),
  muonLr: optimizer(
    amount().optional(),
    "Learning rate of Muon; its updates are scaled to AdamW's RMS, so --lr usually fits",
    { otherwise: "as --lr", advanced: true },
  ),
  momentum: optimizer(z.number().min(0).lt(1).default(0.95), "Muon's Nesterov momentum", {
    advanced: true,
  }),
};

/** The averages of the weights that `train-dit` keeps. */
export const emaOptions = {
  ema: training(
    z.union([decay, z.literal("posthoc")]).default(0.99),
    "EMA decay (LightningDiT: 0.9999); 0: no EMA; posthoc: save snapshots, and choose the decay after training by " +
      "`tok sample --ema`",
    { value: "N|posthoc" },
  ),
  emaEvery: training(count().optional(), "Steps between EMA snapshots, with --ema posthoc", {
    otherwise: "a twentieth of the steps",
    advanced: true,
    free: true,
  }),
};

/** The average of the weights that a run's model is rebuilt with. */
export const emaWidth = sample(
  z.number().gt(0).lt(1).optional(),
  "Use another EMA of a run of `train-dit --ema posthoc`: a relative width below 0.289 (EDM2's sigma_rel, such as 0.1), or a " +
    "decay such as 0.9999",
  { otherwise: "the model's own", advanced: true },
);
