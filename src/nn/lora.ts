// Low-rank adaptation (Hu et al., 2021, arXiv 2106.09685): W = W0 + (alpha / R) B A with trained A [R, Cin], B [Cout, R] and a
// frozen W0. The model's own weight always holds W, so that encoding and saving see merged weights; W0 is kept elsewhere, and
// the gradients of A and B are computed from that of W.

import { copy } from "../gpu/memory.ts";
import { within } from "../gpu/scope.ts";
import { matmul } from "../ops/matmul.ts";
import { add } from "../ops/math.ts";
import { differentiable, noGrad } from "../tensor/autograd.ts";
import { parameter, type Tensor } from "../tensor/tensor.ts";
import type { Initializer } from "./init.ts";

/** A weight [Cout, Cin] that is adapted, and the frozen one that it starts from. */
export interface AdaptedWeight {
  name: string;
  weight: Tensor;
  base: Tensor;
}

interface Update {
  A: Tensor;
  B: Tensor;
}

export class Lora {
  /** A and B by the name of the weight. */
  readonly updates: Readonly<Record<string, Update>>;
  readonly #weights: readonly (AdaptedWeight & Update)[];

  /** @param config.alpha the update is scaled by alpha / rank */
  constructor(weights: readonly AdaptedWeight[], readonly config: { rank: number; alpha: number }) {
    const zeros = (rows: number, columns: number) =>
      parameter([rows, columns], () => new Float32Array(rows * columns), "lora");
    this.#weights = weights.map((adapted) => {
      const [Cout, Cin] = adapted.weight.shape as [number, number];
      return { ...adapted, A: zeros(config.rank, Cin), B: zeros(Cout, config.rank) };
    });
    this.updates = Object.fromEntries(this.#weights.map(({ name, A, B }) => [name, { A, B }]));
  }

  /** Normal A of variance 1 / Cin, zero B: at first W is W0. */
  init(init: Initializer): void {
    for (const { A, B } of this.#weights) {
      init.normal(A, 1 / Math.sqrt(A.dim(1)));
      init.constant(B, 0);
    }
  }

  /** Runs `fn` with gradients that flow through each W to its A and B; that of a W is freed once they are computed. */
  tracked<T>(fn: () => T): T {
    within({ precision: "f32" }, () => {
      for (const { weight, A, B } of this.#weights) {
        differentiable(weight, [A, B], (dW) => [
          matmul(B, dW, { transposeA: true, alpha: this.#scale }),
          matmul(dW, A, { transposeB: true, alpha: this.#scale }),
        ]);
        weight.node &&= { ...weight.node, eager: true };
      }
    });
    try {
      return fn();
    } finally {
      for (const { weight } of this.#weights) weight.node = undefined;
    }
  }

  /** Records that each W becomes W0 + (alpha / R) B A. */
  merge(): void {
    within({ precision: "f32" }, () =>
      noGrad(() => {
        for (const { weight, base, A, B } of this.#weights) {
          copy(add(base, matmul(B, A, { alpha: this.#scale })), weight);
        }
      }));
  }

  get #scale(): number {
    return this.config.alpha / this.config.rank;
  }
}
