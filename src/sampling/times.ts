// The times of a sampler's steps, from noise (t = 0) to data (t = 1).

import type { SampleConfig } from "../cli/config.ts";

export type Spacing = SampleConfig["spacing"];

/** Log-SNR / 2 at the ends of its spacing: those of diffusers' flow sigmas 0.999 and 0.001. The ends become 0 and 1. */
const MAX_LAMBDA = Math.log(999);

/** log(alpha / sigma) of x_t = t x1 + (1 - t) x0: -Infinity at the noise, Infinity at the data. */
export const lambda = (t: number): number => Math.log(t) - Math.log1p(-t);

/**
 * The grid of times, steps + 1 of them from 0 to 1.
 * @param shift s of the spacing "shifted", t' = s t / (1 + (s - 1) t): it adds log s to {@link lambda}
 * @param spacing shifted; uniform in t; uniform in log-SNR
 */
export function timeGrid(steps: number, shift: number, spacing: Spacing = "shifted"): number[] {
  return Array.from({ length: steps + 1 }, (_, i) => {
    const t = i / steps;
    if (i === 0 || i === steps) return t;
    switch (spacing) {
      case "shifted":
        return shift * t / (1 + (shift - 1) * t);
      case "uniform":
        return t;
      case "log-snr":
        return 1 / (1 + Math.exp(MAX_LAMBDA * (1 - 2 * t)));
    }
  });
}
