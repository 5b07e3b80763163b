// Guidance: the velocity of a step from several evaluations of networks. guidance_forms.ts has the formulas. In this order:
// internal guidance changes the network's outputs with and without classes, classifier-free guidance extrapolates from one to the
// other, autoguidance adds its own difference, and the result is rescaled.

import { idleOptions } from "../cli/conditions.ts";
import { SAMPLING, type SamplingConfig } from "../cli/sampling_conditions.ts";
import { copy, fill } from "../gpu/memory.ts";
import type { Denoiser } from "../models/denoiser.ts";
import { concat, slice } from "../ops/layout.ts";
import { add, mul, sub } from "../ops/math.ts";
import { pointwise } from "../ops/pointwise.ts";
import { check, constant, empty, type Shape, type Tensor, variable } from "../tensor/tensor.ts";
import {
  channelwise,
  extrapolate,
  projected,
  type ProjectionOptions,
  rescaled,
  type ScheduleName,
  type Weight,
  weightAt,
  weightsOf,
  zeroStar,
} from "./guidance_forms.ts";

export interface GuidanceOptions {
  /** w of classifier-free guidance; 1 for none. */
  cfg: number;
  /** Classifier-free guidance and autoguidance act in steps from times in [from, to]. */
  cfgInterval: readonly [number, number];
  /** Channels that they guide; undefined for all. */
  cfgChannels?: number | undefined;
  /** How the weight grows with time (constant). @see SCHEDULES */
  schedule?: { readonly name: ScheduleName; readonly power: number };
  /** phi of the rescaling; 0 for none. */
  rescale?: number;
  /** CFG-Zero*, with velocity 0 in the first `init` of the steps (a share) but the last. */
  zeroStar?: { readonly init: number } | undefined;
  /** Adaptive projected guidance; beta is `momentum`. */
  apg?: ProjectionOptions & { readonly momentum: number } | undefined;
  /** Autoguidance (Karras et al., 2024, arXiv 2406.02507) by a weaker model of the same latents and prediction. */
  guide?: { readonly model: Denoiser; readonly weight: number } | undefined;
  /** Internal guidance (Zhou et al., 2025, arXiv 2512.24176) by the network's inner head, in steps from times in the interval. */
  internal?: { readonly weight: number; readonly interval: readonly [number, number] } | undefined;
}

/** What a step evaluates in addition to the network with its classes. Steps with the same terms share a program. */
export interface Terms {
  /** The names of the others, joined. */
  readonly key: string;
  /** Nothing at all: the velocity is 0. */
  readonly zeroed: boolean;
  /** The network without classes. */
  readonly cfg: boolean;
  /** The guide with the classes. */
  readonly guide: boolean;
  /** The inner head, which is a part of each pass of the network. */
  readonly internal: boolean;
}

/**
 * The terms of a step from time `t`.
 * @param zeroed whether its velocity is 0, as CFG-Zero* has it in the first steps
 */
export function termsAt(
  { num_classes }: Pick<Denoiser["config"], "num_classes">,
  options: GuidanceOptions,
  t: number,
  zeroed = false,
): Terms {
  const { cfgInterval, guide, internal } = options;
  const within = ([from, to]: readonly [number, number]) => !zeroed && t >= from && t <= to;
  const on = {
    zeroed,
    cfg: num_classes !== 0 && within(cfgInterval) && weightAt(weightOf(options), t) !== 1,
    guide: within(cfgInterval) && guide !== undefined && guide.weight !== 1,
    internal: internal !== undefined && internal.weight !== 1 && within(internal.interval),
  };
  return { ...on, key: Object.entries(on).filter(([, on]) => on).map(([name]) => name).join("+") };
}

/** Times at which the terms change. */
export const boundaries = ({ cfgInterval, internal }: GuidanceOptions): readonly number[] => [
  ...cfgInterval,
  ...internal?.interval ?? [],
];

/** Velocities of a network with and without guidance. */
export class Guidance {
  /** Running mean of c - u over the steps, for the momentum of APG. */
  #mean: Tensor | undefined;
  /** The mean that the first velocity of the step being recorded has. */
  #nextMean: Tensor | undefined;

  constructor(readonly model: Denoiser, readonly options: GuidanceOptions) {}

  /**
   * Records the velocity at x [B,S,S,C] and times t [B].
   * @param labels class numbers u32 [B]
   * @param terms of the step
   */
  velocity(x: Tensor, t: Tensor, labels: Tensor, terms: Terms): Tensor {
    const { model, options: { apg, zeroStar: zero, guide, rescale = 0, cfgChannels } } = this;
    const { in_channels: C, num_classes } = model.config, B = x.dim(0), guided = cfgChannels ?? C;
    if (terms.zeroed) {
      const none = empty(x.shape);
      fill(none, 0);
      return none;
    }
    let c: Tensor, v: Tensor;
    if (terms.cfg) {
      const none = constant(new Uint32Array(B).fill(num_classes), [B], "no class");
      const both = this.#outputs(concat([x, x], 0), concat([t, t], 0), concat([labels, none], 0), terms);
      const u = slice(both, 0, B, 2 * B), w = weightsOf(weightOf(this.options), t, C, guided);
      c = slice(both, 0, 0, B);
      if (apg) v = projected(c, this.#averaged(sub(c, u), apg.momentum), w, apg);
      else v = (zero ? zeroStar : extrapolate)(u, c, w);
    } else c = v = this.#outputs(x, t, labels, terms);
    if (terms.guide && guide) {
      const b = guide.model.forward(x, t, labels);
      v = terms.cfg
        ? add(v, mul(sub(c, b), channelwise(C, guided, guide.weight - 1, 0)))
        : extrapolate(b, c, channelwise(C, guided, guide.weight, 1));
    }
    return rescale > 0 && v !== c ? rescaled(v, c, channelwise(C, guided, rescale, 0)) : v;
  }

  /** Records the end of a step: the mean of its first velocity is that of the next step. */
  endStep(): void {
    if (this.#mean && this.#nextMean) copy(this.#nextMean, this.#mean);
    this.#nextMean = undefined;
  }

  /** Records the start of new images [B,S,S,C]: what is kept between steps is reset. */
  reset(shape: Shape): void {
    if (!this.options.apg?.momentum) return;
    this.#mean ??= variable(shape, { label: "guidance mean" });
    fill(this.#mean, 0);
  }

  destroy(): void {
    this.#mean?.storage.destroy();
  }

  /** The network's velocity, with internal guidance. */
  #outputs(x: Tensor, t: Tensor, labels: Tensor, terms: Terms): Tensor {
    const { model, options: { internal } } = this;
    if (!terms.internal || !internal) return model.forward(x, t, labels);
    const { velocity, inner } = model.outputs(x, t, labels);
    check(inner, "guide internally", "the model has no inner head");
    return extrapolate(inner, velocity, constant(Float32Array.of(internal.weight), [1], "internal guidance"));
  }

  /** The running mean with this difference, difference + momentum mean. */
  #averaged(difference: Tensor, momentum: number): Tensor {
    if (!momentum) return difference;
    this.#mean ??= variable(difference.shape, { label: "guidance mean" });
    const mean = pointwise(["x0 + s0 * x1"], [difference, this.#mean], [momentum]);
    this.#nextMean ??= mean;
    return mean;
  }
}

function weightOf({ cfg: w, schedule }: GuidanceOptions): Weight {
  const { name, power } = schedule ?? { name: "constant", power: 0 };
  return { w, schedule: name, power };
}

/** The guidance options of a command; those without effect are off. @param guide the model of --guide */
export function guidanceOptions(c: SamplingConfig, guide?: Denoiser): GuidanceOptions {
  const { cfg, cfgInterval: [from = 0, to = 1], igInterval: [igFrom = 0, igTo = 1], cfgChannels } = c;
  const idle = idleOptions(c, SAMPLING);
  const norm = c.apgNorm === "none" ? Infinity : c.apgNorm;
  return {
    cfg,
    cfgInterval: [from, to],
    cfgChannels: cfgChannels === "all" ? undefined : cfgChannels,
    schedule: { name: c.cfgSchedule, power: c.cfgPower },
    rescale: c.cfgRescale,
    zeroStar: c.cfgZero && !idle.has("cfgZero") ? { init: idle.has("zeroInit") ? 0 : c.zeroInit } : undefined,
    apg: c.apg && !idle.has("apg")
      ? { eta: c.apgEta, norm, momentum: idle.has("apgMomentum") ? 0 : c.apgMomentum }
      : undefined,
    guide: guide && { model: guide, weight: c.guideWeight },
    internal: c.ig === 1 ? undefined : { weight: c.ig, interval: [igFrom, igTo] },
  };
}
