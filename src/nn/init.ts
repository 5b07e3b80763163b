// First values of parameters, by the published rules, reproducible from a seed. Which layer gets which is each model's own
// matter, in one method `init` with its reasons.

import { normal, uniform } from "../philox.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** Writes first values, reproducible from a seed: the k-th tensor initialised draws from stream k. */
export class Initializer {
  #stream = 0;

  constructor(readonly seed: number) {}

  constant(t: Tensor | undefined, value: number): void {
    if (t) t.storage.initialise(() => new Float32Array(t.size).fill(value));
  }

  normal(t: Tensor, std: number): void {
    const stream = this.#stream++;
    t.storage.initialise(() => normal(this.seed, stream, t.size).map((v) => v * std));
  }

  /** Uniform in -bound..bound. */
  uniform(t: Tensor, bound: number): void {
    const stream = this.#stream++;
    t.storage.initialise(() => uniform(this.seed, stream, t.size).map((v) => (2 * v - 1) * bound));
  }

  /** Glorot and Bengio (2010): uniform with variance 2 / (fan in + fan out), as a [rows, columns] matrix. */
  xavier(t: Tensor): void {
    const out = t.dim(0), rest = t.size / out;
    this.uniform(t, Math.sqrt(6 / (out + rest)));
  }

  /** PyTorch's default of Linear and Conv2d: uniform in +-1/sqrt(fan in), for weight and bias alike. */
  torchDefault({ weight, bias }: { weight: Tensor; bias?: Tensor }): void {
    const bound = 1 / Math.sqrt(weight.size / weight.dim(0));
    this.uniform(weight, bound);
    if (bias) this.uniform(bias, bound);
  }

  /** Uniform with variance `gain`^2 / (fan in), zero bias: the output varies as much as the input, times the gain. */
  preserving({ weight, bias }: { weight: Tensor; bias?: Tensor }, gain = 1): void {
    this.uniform(weight, gain * Math.sqrt(3 * weight.dim(0) / weight.size));
    this.constant(bias, 0);
  }

  norm({ weight, bias }: { weight: Tensor; bias?: Tensor }): void {
    this.constant(weight, 1);
    this.constant(bias, 0);
  }
}
