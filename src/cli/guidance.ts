// The guidance options of the commands that sample, and their names in messages. sampling/guidance.ts has what they do.

import { z } from "zod";
import { count } from "../bounds.ts";
import { GROUPS } from "./about.ts";

const { sample } = GROUPS;
const advanced = true;
const flag = () => z.boolean().default(false);
const interval = () =>
  z.array(z.number().min(0).max(1)).length(2)
    .refine(([from = 0, to = 0]) => from <= to, "give the smaller time first");

export const guidance = {
  cfg: sample(z.number().default(4), "Weight of classifier-free guidance; 1: no guidance", { value: "W" }),
  cfgInterval: sample(
    interval().default([0.1, 1]),
    "Apply --cfg and --guide only at times from FROM to TO (0 noise, 1 data)",
    {
      value: "FROM,TO",
      advanced,
    },
  ),
  cfgChannels: sample(
    z.union([z.literal("all"), count()]).default("all"),
    "Guide all latent channels, or only the first N; LightningDiT: 3",
    { advanced },
  ),
  cfgSchedule: sample(
    z.enum(["constant", "linear", "cosine", "power"]).default("constant"),
    "Guidance weight over time: constant W, or 1 + (W - 1) f(t), which rises from 1 (noise) to W (data): linear f = t, cosine " +
      "f = (1 - cos(pi t)) / 2, power f = t^P",
    { advanced },
  ),
  cfgPower: sample(z.number().nonnegative().default(2), "Exponent P of --cfg-schedule power", {
    value: "P",
    advanced,
  }),
  cfgRescale: sample(
    z.number().min(0).max(1).default(0),
    "Rescale the guided velocity towards the standard deviation of the conditional one; 0: off, 1: fully; Lin et al.: 0.7",
    { value: "PHI", advanced },
  ),
  cfgZero: sample(
    flag(),
    "CFG-Zero*: scale the unconditional velocity of each image to best fit the conditional one",
    {
      advanced,
    },
  ),
  zeroInit: sample(
    z.number().min(0).lt(1).default(0.04),
    "Fraction of initial steps with zero velocity, with --cfg-zero and --sampler euler, heun, midpoint or rk4",
    { advanced },
  ),
  apg: sample(flag(), "Adaptive projected guidance: less oversaturation at a large --cfg", { advanced }),
  apgEta: sample(
    z.number().default(0),
    "Weight of the guidance component parallel to the conditional velocity, with --apg; 1: keep it",
    { advanced },
  ),
  apgNorm: sample(
    z.union([z.literal("none"), z.number().positive()]).default("none"),
    "Clip the norm of the guidance difference of each image to this, with --apg",
    { advanced },
  ),
  apgMomentum: sample(
    z.number().gt(-1).lt(1).default(0),
    "Momentum of the guidance difference over steps, with --apg; paper: -0.75 to -0.25",
    { advanced },
  ),
  guide: sample(
    z.string().optional(),
    "Autoguidance: extrapolate away from this weaker model (smaller or less trained, of the same latents and classes); " +
      "--cfg 1: without classifier-free guidance",
    { value: "RUN", otherwise: "none" },
  ),
  guideWeight: sample(z.number().default(1.5), "Weight of --guide; 1: no autoguidance", { value: "W" }),
  ig: sample(
    z.number().default(1),
    "Weight of internal guidance: extrapolate away from the model's inner head (train-dit --inner-head), at no extra cost; " +
      "1: no internal guidance",
    { value: "W" },
  ),
  igInterval: sample(
    interval().default([0, 1]),
    "Apply --ig only at times from FROM to TO (0 noise, 1 data)",
    {
      value: "FROM,TO",
      advanced,
    },
  ),
};
export type GuidanceConfig = z.infer<z.ZodObject<typeof guidance>>;

/** The guidance in words, such as "guidance 4, cosine, CFG-Zero*". */
export function guidanceText(c: GuidanceConfig): string {
  return [
    `guidance ${c.cfg}`,
    ...c.cfg === 1 || c.cfgSchedule === "constant" ? [] : [c.cfgSchedule],
    ...c.cfgZero ? ["CFG-Zero*"] : [],
    ...c.apg ? ["APG"] : [],
    ...c.cfgRescale > 0 ? [`rescaled ${c.cfgRescale}`] : [],
    ...c.guide === undefined ? [] : [`autoguidance ${c.guideWeight}`],
    ...c.ig === 1 ? [] : [`internal guidance ${c.ig}`],
  ].join(", ");
}
