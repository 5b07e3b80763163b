// Faster Diffusion for transformers (Li et al., 2023, arXiv 2312.09608): the first half of the blocks, the encoder, runs in key
// steps only. The steps in between start from its tokens of the last key step and run the second half, with their own times.

import { UsageError } from "../errors.ts";
import { copy } from "../gpu/memory.ts";
import type { Denoiser, DenoiserOutputs, PassOptions } from "../models/denoiser.ts";
import { type Tensor, variable } from "../tensor/tensor.ts";

type Config = Denoiser["config"];

/** The last block of the first half, from 1. */
const lastReused = ({ depth }: Config): number => Math.floor(depth / 2);

/** The share of the network's blocks, those of a wide head included, that a pass between key steps runs. */
export const shareBetweenKeySteps = (config: Config): number =>
  1 - lastReused(config) / (config.depth + (config.head?.depth ?? 0));

/**
 * Checks that a network can start behind the first half of its blocks.
 * @param internal whether the inner head is evaluated in such passes
 * @throws UsageError for a network of one block, and if the inner head reads a block of the first half
 */
export function checkReuse(config: Config, internal: boolean): void {
  const { inner_head } = config, block = lastReused(config);
  if (block === 0) {
    throw new UsageError(
      "Cannot reuse the encoder: the model has a single block; leave --reuse-encoder out",
    );
  }
  if (!internal || inner_head > block) return;
  throw new UsageError(
    `Cannot reuse the encoder: the inner head of the model reads block ${inner_head}, and blocks 1 to ${block} ` +
      `run in key steps only; leave --reuse-encoder or internal guidance out`,
  );
}

/** A network whose passes keep the tokens after the first half of its blocks, or start from them. Each evaluation of a step has its own. */
export class ReusedBlocks implements Denoiser {
  readonly config: Config;
  /** Tokens [B, T, width] by evaluation of a step and batch, which depends on the guidance. */
  readonly #kept = new Map<string, Tensor>();
  #key = true;
  #evaluation = 0;

  /** @param model one that {@link checkReuse} accepts */
  constructor(readonly model: Denoiser) {
    this.config = model.config;
  }

  /** Begins to record a step: the passes after it keep their tokens, or start from those of the last key step. */
  beginStep(key: boolean): void {
    this.#key = key;
    this.#evaluation = 0;
  }

  forward(x: Tensor, t: Tensor, y: Tensor): Tensor {
    return this.outputs(x, t, y).velocity;
  }

  outputs(x: Tensor, t: Tensor, y: Tensor, options: PassOptions = {}): DenoiserOutputs {
    const slot = `${this.#evaluation++} ${x.dim(0)}`, block = lastReused(this.config);
    const known = this.#kept.get(slot);
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
