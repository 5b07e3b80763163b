// Recomputation of parts of models. A model says where its parts are (`through`), a recipe whether they are recomputed
// (`withRecomputation`): their activations then live only around their own backward pass. What is kept is each part's inputs.

import { checkpoint } from "../tensor/autograd.ts";
import { parameters } from "./layers.ts";
import type { Tensor } from "../tensor/tensor.ts";

let recomputing = false;

/** Runs `fn`; where `on`, every part of a model in it is run again when its gradients are computed. */
export function withRecomputation<T>(on: boolean, fn: () => T): T {
  const before = recomputing;
  recomputing = on;
  try {
    return fn();
  } finally {
    recomputing = before;
  }
}

/**
 * `forward(...inputs)` of a part of a model; see {@link withRecomputation}.
 * @param module the part; `forward` reads no other parameters
 */
export function through(
  module: object,
  forward: (...inputs: Tensor[]) => Tensor,
  ...inputs: Tensor[]
): Tensor {
  return recomputing ? checkpoint(forward, inputs, [...parameters(module).values()]) : forward(...inputs);
}
