// Faster Diffusion for transformers (Li et al., 2023, arXiv 2312.09608): the first half of the blocks, the encoder, runs in key
// steps only. The steps in between start from its tokens of the last key step and run the second half, with their own times.

import { UsageError } from "../errors.ts";
import { copy } from "../gpu/memory.ts";
import type { Denoiser, DenoiserOutputs, PassOptions } from "../models/denoiser.ts";
import { type Tensor, variable } from "../tensor/tensor.ts";

/** A network whose passes keep the tokens after the first half of its blocks, or start from them. Each evaluation of a step has its own. */
export class ReusedEncoder implements Denoiser {
  readonly config: Denoiser["config"];
  /** The last block of the first half, from 1. */
  readonly #block: number;
  /** Tokens [B, T, width] by evaluation of a step and batch, which depends on the guidance. */
  readonly #kept = new Map<string, Tensor>();
  #key = true;
  #evaluation = 0;

  /** @throws UsageError for a network of one block */
  constructor(readonly model: Denoiser) {
    this.config = model.config;
    this.#block = Math.floor(model.config.depth / 2);
    if (this.#block === 0) {
      throw new UsageError(
        "Cannot reuse the encoder: the model has a single block; leave --reuse-encoder out",
      );
    }
  }

  /** The share of the network that a pass between key steps runs. */
  get share(): number {
    return 1 - this.#block / this.config.depth;
  }

  /** Begins to record a step: the passes after it keep their tokens, or start from those of the last key step. */
  beginStep(key: boolean): void {
    this.#key = key;
    this.#evaluation = 0;
  }

  forward(x: Tensor, t: Tensor, y: Tensor): Tensor {
    return this.#pass(x, t, y, {}).velocity;
  }

  /** @throws UsageError if the inner head reads a block of the first half */
  outputs(x: Tensor, t: Tensor, y: Tensor, options: PassOptions = {}): DenoiserOutputs {
    const { inner_head } = this.config;
    if (inner_head > 0 && inner_head <= this.#block) {
      throw new UsageError(
        `Cannot reuse the encoder: the inner head of the model reads block ${inner_head}, and blocks 1 to ${this.#block} ` +
          `run in key steps only; leave --reuse-encoder or internal guidance out`,
      );
    }
    return this.#pass(x, t, y, options);
  }

  #pass(x: Tensor, t: Tensor, y: Tensor, options: PassOptions): DenoiserOutputs {
    const slot = `${this.#evaluation++} ${x.dim(0)}`, block = this.#block, known = this.#kept.get(slot);
    if (!this.#key && known) {
      return this.model.outputs(x, t, y, { ...options, start: { block, tokens: known } });
    }
    const outputs = this.model.outputs(x, t, y, { ...options, features: block });
    const features = outputs.features as Tensor;
    const kept = known ?? variable(features.shape, { label: "tokens of the encoder" });
    this.#kept.set(slot, kept);
    copy(features, kept);
    return outputs;
  }

  destroy(): void {
    for (const { storage } of this.#kept.values()) storage.destroy();
  }
}
