// Times of training: a distribution on 0 (noise) to 1 (data), then the time shift of the samplers.

import { scale, shift, sigmoid } from "../ops/math.ts";
import { pointwise } from "../ops/pointwise.ts";
import { normal, type RandomSource, uniform } from "../ops/random.ts";
import type { Tensor } from "../tensor/tensor.ts";

export interface TimeOptions {
  /** sigmoid(mu + sigma n) of a standard normal n (SD3, arXiv 2403.03206), or uniform ["logit-normal"]. */
  time?: "logit-normal" | "uniform";
  /** mu of logit-normal (0). */
  timeMu?: number;
  /** sigma of logit-normal (1). */
  timeSigma?: number;
  /** s of t' = s t / (1 + (s - 1) t), as in sampling (1); below 1 makes more times near the noise. */
  timeShift?: number;
}

/**
 * Times [B,1,1,1].
 * @param stream of the random numbers
 */
export function randomTimes(
  B: number,
  random: RandomSource,
  stream: number,
  { time = "logit-normal", timeMu = 0, timeSigma = 1, timeShift = 1 }: TimeOptions,
): Tensor {
  const shape = [B, 1, 1, 1];
  const logits = () => {
    const n = normal(shape, random, stream), scaled = timeSigma === 1 ? n : scale(n, timeSigma);
    return timeMu === 0 ? scaled : shift(scaled, timeMu);
  };
  const t = time === "uniform" ? uniform(shape, random, stream) : sigmoid(logits());
  return timeShift === 1 ? t : pointwise(["s0 * x0 / ((s0 - T(1.0)) * x0 + T(1.0))"], [t], [timeShift]);
}
