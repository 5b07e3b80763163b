// Activation recomputation. A model runs its blocks by `recomputable`; within({ recompute: true }) their activations are
// not kept but computed again in the backward pass, from the block's inputs.

import { scope } from "../gpu/scope.ts";
import { recompute } from "../tensor/autograd.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { parameters } from "./layers.ts";

/** `forward(...inputs)` of a block, recomputed where the scope says so; `forward` reads no parameters but the block's. */
export function recomputable(
  module: object,
  forward: (...inputs: Tensor[]) => Tensor,
  ...inputs: Tensor[]
): Tensor {
  return scope().recompute
    ? recompute(forward, inputs, [...parameters(module).values()])
    : forward(...inputs);
}
