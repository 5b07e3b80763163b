// Flows between Gaussians with velocities and solutions in closed form, and latents that a Sampler makes from a network.

import type { Denoiser } from "../../src/models/denoiser.ts";
import { velocitiesOf } from "../../src/models/prediction.ts";
import { reshape } from "../../src/ops/layout.ts";
import { pointwise } from "../../src/ops/pointwise.ts";
import { normal } from "../../src/philox.ts";
import { Sampler, type SamplingOptions } from "../../src/sampling/sampler.ts";
import type { SamplerName } from "../../src/sampling/samplers.ts";
import { readTensor, type Tensor } from "../../src/tensor/tensor.ts";

export const S = 2, C = 4, SIZE = S * S * C;

/** A network with velocity `formula` of x0 = x and x1 = t. */
export function network(formula: string, side = S): Denoiser {
  const forward = (x: Tensor, t: Tensor) => pointwise([formula], [x, reshape(t, [t.size, 1, 1, 1])]);
  return {
    config: {
      input_size: side,
      in_channels: C,
      num_classes: 3,
      inner_head: 0,
      depth: 1,
      hidden_size: C,
    },
    forward,
    outputs: (x, t) => ({ velocity: forward(x, t) }),
  };
}

/** Data of mean M and standard deviation D. */
export const M = 0.8, D = 1.5;

/** dx/dt = p x + q where the noise is independent of the data: x_t = t x1 + (1 - t) x0 is Gaussian. */
export const LINEAR = network(
  `${M} + (x1 * ${D * D} - (1.0 - x1)) / (x1 * x1 * ${D * D} + (1.0 - x1) * (1.0 - x1)) * (x0 - x1 * ${M})`,
  16,
);
export function linear(t: number): { p: number; q: number } {
  const p = (t * D * D - (1 - t)) / (t * t * D * D + (1 - t) ** 2);
  return { p, q: M - p * t * M };
}

/** The mean of the data given x_t, in closed form: what a network that predicts data learns of the flow of {@link LINEAR}. */
export const POSTERIOR = velocitiesOf(
  network(
    `${M} + x1 * ${D * D} / (x1 * x1 * ${D * D} + (1.0 - x1) * (1.0 - x1)) * (x0 - x1 * ${M})`,
  ),
  "data",
);
export const posterior = (x: number, t: number): number =>
  M + t * D * D / (t * t * D * D + (1 - t) ** 2) * (x - t * M);

/** A flow from N(0, 1) to the same data over the path sin(pi t / 2) x1 + cos(pi t / 2) x0: on the linear one the midpoint method has order 3. */
const HALF_PI = Math.PI / 2;
const [SINE, COSINE] = [`sin(${HALF_PI} * x1)`, `cos(${HALF_PI} * x1)`];
export const CURVED = network(
  `${HALF_PI} * (${M} * ${COSINE} + ${D * D - 1} * ${SINE} * ${COSINE} / ` +
    `(${D * D} * ${SINE} * ${SINE} + ${COSINE} * ${COSINE}) * (x0 - ${M} * ${SINE}))`,
);
export function curved(x: number, t: number): number {
  const [s, c] = [Math.sin(HALF_PI * t), Math.cos(HALF_PI * t)];
  return HALF_PI * (M * c + (D * D - 1) * s * c / (D * D * s * s + c * c) * (x - M * s));
}
/** Where it takes x0. */
export const flowed = (x0: number) => M + D * x0;

export const DEFAULTS: Omit<SamplingOptions, "sampler"> = {
  batchSize: 1,
  steps: 8,
  shift: 1,
  cfg: 1,
  cfgInterval: [0, 1],
  seed: 3,
};

export async function sampled(
  model: Denoiser,
  options: Partial<SamplingOptions> & { sampler: SamplerName },
  first = 0,
): Promise<{ x: Float32Array; evaluations: readonly number[] }> {
  const sampler = await new Sampler(model, { ...DEFAULTS, ...options }).prepare();
  try {
    const labels = Uint32Array.from(
      { length: sampler.options.batchSize },
      (_, i) => (first + i) % 3,
    );
    const x = await readTensor(await sampler.run(labels, first));
    return { x, evaluations: sampler.evaluations };
  } finally {
    sampler.destroy();
  }
}

/** The noise that image `i` starts from. */
export const start = (i = 0, size = SIZE) => normal(DEFAULTS.seed, 0, size, 0, i);

/** Half of log-SNR. */
export const lambda = (t: number) => Math.log(t / (1 - t));
