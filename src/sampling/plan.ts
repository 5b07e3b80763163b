// The plan of a sampling, from configuration and options alone: what each step evaluates, and its evaluations of the network (NFE).
// Sampler records and replays it; a sweep estimates its time by it.

import { keySteps } from "../cli/key_steps.ts";
import { UsageError } from "../errors.ts";
import type { Denoiser } from "../models/denoiser.ts";
import { boundaries, type GuidanceOptions, type Terms, termsAt } from "./guidance.ts";
import { checkReuse, shareBetweenKeySteps } from "./reuse.ts";
import { gridOf, type SamplerName, type SamplerOptions, SAMPLERS } from "./samplers.ts";

/** A step of the grid; for dopri5, which has no grid, the time between two changes of the terms. */
export interface Stretch {
  from: number;
  to: number;
  terms: Terms;
  /** false: the second half of the network only, see reuse.ts. */
  complete: boolean;
  /** Evaluations of the network (NFE) in the step; for dopri5, in one velocity. */
  evaluations: number;
}

type PlanOptions = SamplerOptions & GuidanceOptions;

/**
 * The steps from noise to data, in order.
 * @param config of the model
 * @throws UsageError for options that the sampler or the model cannot take
 */
export function planOf(config: Denoiser["config"], options: PlanOptions): Stretch[] {
  const { sampler, reuseEncoder } = options;
  if (sampler !== "dopri5") return gridPlan(config, options, sampler);
  if (reuseEncoder === undefined) return segments(config, options);
  throw new UsageError("Cannot reuse the encoder: dopri5 chooses its own steps; use another --sampler");
}

function gridPlan(
  config: Denoiser["config"],
  options: PlanOptions,
  sampler: Exclude<SamplerName, "dopri5">,
): Stretch[] {
  const times = gridOf(options), n = times.length - 1, { init = 0 } = options.zeroStar ?? {};
  const isKey = keySteps(options.reuseEncoder, n), share = shareBetweenKeySteps(config);
  // The last step is never 0: it would leave noise.
  const terms = times.slice(0, n).map((t, i) => termsAt(config, options, t, i / n < init && i < n - 1));
  const steps = terms.map((terms, i, all): Stretch => {
    // Other terms have other batches, whose tokens were not kept.
    const complete = isKey[i] === true || terms.key !== all[i - 1]?.key;
    const evaluations = SAMPLERS[sampler].evaluations * passes(terms, complete ? 1 : share);
    return { from: times[i] as number, to: times[i + 1] as number, terms, complete, evaluations };
  });
  const partial = steps.filter(({ complete }) => !complete);
  if (partial.length) checkReuse(config, partial.some(({ terms }) => terms.internal));
  return steps;
}

function segments(config: Denoiser["config"], options: PlanOptions): Stretch[] {
  const inside = boundaries(options).filter((t) => t > 0 && t < 1);
  const ends = [0, ...new Set(inside), 1].sort((a, b) => a - b);
  return ends.slice(0, -1).map((from, i) => {
    const to = ends[i + 1] as number, terms = termsAt(config, options, (from + to) / 2);
    return { from, to, terms, complete: true, evaluations: passes(terms) };
  });
}

/** Evaluations of networks for one velocity. @param share of the network that a pass runs; a guide runs in full */
export const passes = ({ zeroed, cfg, guide }: Terms, share = 1): number =>
  zeroed ? 0 : (1 + Number(cfg)) * share + Number(guide);

/** About the velocities that dopri5 evaluates for an image, which depend on the image. */
const ADAPTIVE = 60;

/** Expected evaluations of the network for an image. @throws UsageError as {@link planOf} */
export function expectedEvaluations(config: Denoiser["config"], options: PlanOptions): number {
  const velocities = ({ from, to }: Stretch) => options.sampler === "dopri5" ? ADAPTIVE * (to - from) : 1;
  return planOf(config, options).reduce((sum, s) => sum + velocities(s) * s.evaluations, 0);
}
