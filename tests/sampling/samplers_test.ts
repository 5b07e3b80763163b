// Samplers against closed forms: orders on a flow between two Gaussians, the law of the stochastic ones, single steps of the
// multistep ones against the published formulas in f64, NFE, batch invariance, and refused options.

import { assert } from "@std/assert";
import type { Denoiser } from "../../src/models/denoiser.ts";
import { reshape } from "../../src/ops/layout.ts";
import { pointwise } from "../../src/ops/pointwise.ts";
import { normal } from "../../src/philox.ts";
import { Sampler, type SamplingOptions } from "../../src/sampling/sampler.ts";
import type { SamplerName } from "../../src/sampling/samplers.ts";
import { readTensor, type Tensor } from "../../src/tensor/tensor.ts";
import { testDevice } from "../helpers/check.ts";

const S = 2, C = 4, SIZE = S * S * C;

/** A network with velocity `formula` of x0 = x and x1 = t. */
function network(formula: string, side = S): Denoiser {
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
const M = 0.8, D = 1.5;

/** A flow from N(0, 1) over the path sin(pi t / 2) x1 + cos(pi t / 2) x0: on the linear one the midpoint method has order 3. */
const HALF_PI = Math.PI / 2;
const [SINE, COSINE] = [`sin(${HALF_PI} * x1)`, `cos(${HALF_PI} * x1)`];
const CURVED = network(
  `${HALF_PI} * (${M} * ${COSINE} + ${D * D - 1} * ${SINE} * ${COSINE} / ` +
    `(${D * D} * ${SINE} * ${SINE} + ${COSINE} * ${COSINE}) * (x0 - ${M} * ${SINE}))`,
);
/** Where it takes x0. */
const flowed = (x0: number) => M + D * x0;

const DEFAULTS: Omit<SamplingOptions, "sampler"> = {
  batchSize: 1,
  steps: 8,
  shift: 1,
  cfg: 1,
  cfgInterval: [0, 1],
  seed: 3,
};

async function sampled(
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
const start = (i = 0, size = SIZE) => normal(DEFAULTS.seed, 0, size, 0, i);

const maxError = (x: Float32Array, expected: readonly number[]) =>
  expected.reduce((worst, e, i) => Math.max(worst, Math.abs(e - (x[i] as number))), 0);

const ORDERS: [SamplerName, order: number, steps: readonly [number, number], Partial<SamplingOptions>][] = [
  ["euler", 1, [16, 32], {}],
  ["heun", 2, [16, 32], {}],
  ["midpoint", 2, [16, 32], {}],
  ["rk4", 4, [4, 8], {}],
  ["dpm++2m", 2, [24, 48], { spacing: "log-snr" }],
  ["unipc", 3, [24, 48], { spacing: "log-snr" }],
];
for (const [sampler, order, [few, many], options] of ORDERS) {
  Deno.test(`${sampler} solves a flow between Gaussians with order ${order}`, async () => {
    await testDevice();
    const expected = [...start()].map(flowed);
    const error = async (steps: number) =>
      maxError((await sampled(CURVED, { sampler, steps, ...options })).x, expected);
    const [coarse, fine] = [await error(few), await error(many)];
    const slope = Math.log(coarse / fine) / Math.log(many / few);
    assert(Math.abs(slope - order) < 0.2, `${sampler}: errors ${coarse} and ${fine}, slope ${slope}`);
  });
}
