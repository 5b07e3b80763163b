// Random tensors that are functions of (seed, stream, step, row, element): nothing to save, and image i gets the same noise in
// any batch. The state is a variable, so the step changes without a new capture.

import source from "../../kernels/random.wgsl" with { type: "text" };
import { launch } from "../gpu/bind.ts";
import { fold, kernel } from "../gpu/kernel.ts";
import { keyOf } from "../philox.ts";
import { check, empty, type Shape, sizeOf, type Tensor, variable } from "../tensor/tensor.ts";

/** What random ops draw from. */
export interface RandomSource {
  /** u32 [4]: seed low, seed high, step, number of the first row. */
  readonly tensor: Tensor;
}

/** Contents of a source's tensor. */
export function randomWords(seed: number, step: number, firstRow = 0): Uint32Array {
  return new Uint32Array([...keyOf(seed), step, firstRow]);
}

/** Seed, step and first row of the random ops of a program, in a variable. */
export class RandomState implements RandomSource {
  readonly tensor: Tensor;

  constructor(readonly seed: number) {
    this.tensor = variable([4], { dtype: "u32", label: "random state", init: () => randomWords(seed, 0) });
  }

  /** Sets what the next run draws from. */
  set(step: number, firstRow = 0): void {
    this.tensor.storage.write(randomWords(this.seed, step, firstRow));
  }
}

/** Uniform in (0, 1). Rows are along the first axis; `stream` tells this use of randomness from others. */
export function uniform(shape: Shape, state: RandomSource, stream: number): Tensor {
  return draw(shape, state, stream, 0);
}

/** Standard normal; otherwise as {@link uniform}. */
export function normal(shape: Shape, state: RandomSource, stream: number): Tensor {
  return draw(shape, state, stream, 1);
}

function draw(shape: Shape, state: RandomSource, stream: number, NORMAL: 0 | 1): Tensor {
  const rows = shape[0] ?? 1, size = sizeOf(shape) / rows, quads = Math.ceil(size / 4);
  const y = empty(shape, "f32", "random numbers");
  launch(kernel(source, "random", { NORMAL }), { state: state.tensor, y }, {
    rows,
    size,
    quads,
    stream,
    probability: 0,
    no_class: 0,
  }, fold(Math.ceil(rows * quads / 64)));
  return y;
}

/** Labels u32 [B], each replaced by `noClass` with a probability: label dropout for classifier-free guidance. */
export function dropLabels(
  labels: Tensor,
  probability: number,
  noClass: number,
  state: RandomSource,
  stream: number,
): Tensor {
  check(labels.rank === 1 && labels.dtype === "u32", "drop labels", "they must be u32 [B]", labels);
  const rows = labels.size;
  const kept = empty(labels.shape, "u32", "labels");
  launch(kernel(source, "drop_labels"), { state: state.tensor, labels, kept }, {
    rows,
    size: 1,
    quads: 1,
    stream,
    probability,
    no_class: noClass,
  }, [Math.ceil(rows / 64)]);
  return kept;
}
