// Guidance: the velocity of a step from several evaluations of the network. Classifier-free guidance (Ho and Salimans, 2022)
// inside an interval of times (Kynkaanniemi et al., 2024): v = v_u + w (v_c - v_u).

import type { Denoiser } from "../models/denoiser.ts";
import { concat, slice } from "../ops/layout.ts";
import { add, mul, sub } from "../ops/math.ts";
import { constant, type Tensor } from "../tensor/tensor.ts";

export interface GuidanceOptions {
  /** w; 1 for no guidance. */
  cfg: number;
  /** Guidance acts for times in [from, to]. */
  cfgInterval: readonly [number, number];
  /** Channels that are guided; undefined for all. */
  cfgChannels?: number | undefined;
}

/** What a step evaluates in addition to the network with its classes. Steps with the same terms share a program. */
export interface Terms {
  /** The names of the others, joined. */
  readonly key: string;
  /** The network without classes. */
  readonly cfg: boolean;
}

/** Velocities of a network with and without guidance. */
export class Guidance {
  constructor(readonly model: Denoiser, readonly options: GuidanceOptions) {}

  /** The terms of a step from time `t`. */
  terms(t: number): Terms {
    const { cfg, cfgInterval: [from, to] } = this.options;
    const terms = { cfg: cfg !== 1 && t >= from && t <= to };
    return { ...terms, key: Object.entries(terms).filter(([, on]) => on).map(([name]) => name).join("+") };
  }

  /** Times at which the terms change. */
  boundaries(): readonly number[] {
    return this.options.cfgInterval;
  }

  /** Evaluations of a network for one velocity with these terms. */
  evaluations({ cfg }: Terms): number {
    return cfg ? 2 : 1;
  }

  /**
   * Records the velocity at x [B,S,S,C] and times t [B].
   * @param labels class numbers u32 [B]
   * @param terms of the step
   */
  velocity(x: Tensor, t: Tensor, labels: Tensor, terms: Terms): Tensor {
    const { model, options: { cfg, cfgChannels } } = this;
    if (!terms.cfg) return model.forward(x, t, labels);
    const { in_channels: C, num_classes } = model.config, B = x.dim(0);
    const none = constant(new Uint32Array(B).fill(num_classes), [B], "no class");
    const both = model.forward(concat([x, x], 0), concat([t, t], 0), concat([labels, none], 0));
    const conditional = slice(both, 0, 0, B), unconditional = slice(both, 0, B, 2 * B);
    // Unguided channels keep the conditional velocity.
    const weights = Float32Array.from({ length: C }, (_, c) => c < (cfgChannels ?? C) ? cfg : 1);
    return add(unconditional, mul(sub(conditional, unconditional), constant(weights, [C], "guidance")));
  }
}
