// The options of `train-dit` about optimizers and averages of the weights, and the one that rebuilds such an average.

import { z } from "zod";
import { count } from "../bounds.ts";
import { amount, decay, GROUPS } from "./options.ts";

const { optimizer, sample, training } = GROUPS;

/** How `train-dit` chooses between AdamW and Muon. */
export const muon = {
  optimizer: optimizer(
    z.enum(["adamw", "muon"]).default("adamw"),
    "Optimizer; muon: Muon for the matrices of the blocks (attention, MLP, adaLN; each tensor is one matrix), AdamW for the rest",
  ),
  muonLr: optimizer(
    amount().optional(),
    "Learning rate of Muon, whose updates are scaled to the size of AdamW's by 0.2 sqrt(max(rows, columns))",
    { otherwise: "--lr", advanced: true },
  ),
  momentum: optimizer(z.number().min(0).lt(1).default(0.95), "Muon's Nesterov momentum", {
    advanced: true,
  }),
};

/** The averages of the weights that `train-dit` keeps. */
export const averaging = {
  ema: training(
    z.union([decay, z.literal("posthoc")]).default(0.99),
    "Decay of the EMA (LightningDiT: 0.9999), 0: none; posthoc: two averages from which any other is rebuilt afterwards",
    { value: "N|posthoc" },
  ),
  emaEvery: training(count().optional(), "Steps between the snapshots of --ema posthoc, which are kept", {
    otherwise: "a twentieth of the steps",
    advanced: true,
    free: true,
  }),
};

/** The average of the weights that a run's model is rebuilt with. */
export const rebuilt = sample(
  z.number().gt(0).lt(1).optional(),
  "Average of the weights to rebuild from the snapshots of `train-dit --ema posthoc`: its relative width sigma_rel, or from " +
    "0.289 on an exponential decay",
  { otherwise: "the model's own", advanced: true },
);
