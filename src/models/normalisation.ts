// Normalisation of latents, channels last: diffusion works on x = (z - mean) / std of the tokenizer's latents z.

import { add, div, mul, sub } from "../ops/math.ts";
import { constant, type Tensor } from "../tensor/tensor.ts";

/** Mean and standard deviation of each channel. */
export interface Statistics {
  mean: ArrayLike<number>;
  std: ArrayLike<number>;
}

const channels = (values: ArrayLike<number>, label: string) =>
  constant(Float32Array.from(values), [values.length], label);

/** (z - mean) / std, z [B,S,S,C]. */
export function normalised(z: Tensor, { mean, std }: Statistics): Tensor {
  return div(sub(z, channels(mean, "latent mean")), channels(std, "latent std"));
}

/** x std + mean, x [B,S,S,C]. */
export function denormalised(x: Tensor, { mean, std }: Statistics): Tensor {
  return add(mul(x, channels(std, "latent std")), channels(mean, "latent mean"));
}
