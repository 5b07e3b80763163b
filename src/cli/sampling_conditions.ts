// Which sampling options have an effect with which others.

import type { z } from "zod";
import { type Condition as ConditionOf, type Conditions, needs } from "./conditions.ts";
import type { sampling } from "./options.ts";

/** The values of the sampling options. */
export type SamplingConfig = z.infer<z.ZodObject<typeof sampling>>;
type Condition = ConditionOf<SamplingConfig>;

const CFG: Condition = [({ cfg }) => cfg !== 1, "--cfg 1 turns guidance off", "choose another --cfg"];
const EITHER: Condition = [
  ({ cfg, guide }) => cfg !== 1 || guide !== undefined,
  "--cfg 1 turns guidance off, and there is no --guide",
  "choose another --cfg, add --guide",
];
const CFG_ZERO: Condition[] = [CFG, [
  ({ apg }) => !apg,
  "--apg is another form of guidance",
  "drop --apg",
]];
const APG: Condition[] = [needs("--apg", ({ apg }) => apg), CFG];
const GRID: Condition = [
  ({ sampler }) => sampler !== "dopri5",
  "--sampler dopri5 chooses its own steps",
  "choose another --sampler",
];
/** In other samplers a step of velocity 0 adds noise, or later steps remember it. */
const ONE_STEP = needs<SamplingConfig>(
  "--sampler euler, heun, midpoint or rk4",
  ({ sampler }) => ["euler", "heun", "midpoint", "rk4"].includes(sampler),
);
const DOPRI5 = needs<SamplingConfig>("--sampler dopri5", ({ sampler }) => sampler === "dopri5");
const SDE = needs<SamplingConfig>("--sampler sde", ({ sampler }) => sampler === "sde");

export const SAMPLING: Conditions<SamplingConfig> = {
  cfgInterval: [EITHER],
  cfgChannels: [EITHER],
  cfgSchedule: [CFG],
  cfgPower: [needs("--cfg-schedule power", (c) => c.cfgSchedule === "power"), CFG],
  cfgRescale: [EITHER],
  cfgZero: CFG_ZERO,
  zeroInit: [needs("--cfg-zero", ({ cfgZero }) => cfgZero), ...CFG_ZERO, GRID, ONE_STEP],
  apg: [CFG],
  apgEta: APG,
  apgNorm: APG,
  apgMomentum: [...APG, GRID],
  guideWeight: [needs("--guide", ({ guide }) => guide !== undefined)],
  igInterval: [[({ ig }) => ig !== 1, "--ig 1 turns internal guidance off", "choose another --ig"]],
  steps: [GRID],
  spacing: [GRID],
  shift: [GRID, needs("--spacing shifted", ({ spacing }) => spacing === "shifted")],
  atol: [DOPRI5],
  rtol: [DOPRI5],
  diffusionForm: [SDE],
  lastStep: [SDE],
  lastStepSize: [SDE],
  reuseEncoder: [GRID],
};
