// The wide head of DiT-DH: a few blocks of great width on the noised latent, each token conditioned by the token of the other
// blocks at its place. Zheng et al. (2025), arXiv 2510.11690, github.com/bytetriper/RAE (DiTwDDTHead).

import { add, silu } from "../ops/math.ts";
import { reshape } from "../ops/layout.ts";
import { Conv2d, Linear } from "../nn/layers.ts";
import { recomputable } from "../nn/recompute.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { Block, type Rope, ropeTables } from "./dit_blocks.ts";
import type { DitConfig } from "./dit_config.ts";

export class WideHead {
  readonly x_embedder: { proj: Conv2d };
  /** From the width of the other blocks to the head's; absent where they are equal. */
  readonly projector?: Linear;
  readonly feat_rope?: Rope;
  readonly blocks: Block[];

  constructor(config: DitConfig, { hidden_size: C, depth, num_heads }: NonNullable<DitConfig["head"]>) {
    const { input_size: S, patch_size: P, in_channels, hidden_size, use_rope } = config;
    this.x_embedder = { proj: new Conv2d(in_channels, C, P, { stride: P }) };
    if (hidden_size !== C) this.projector = new Linear(hidden_size, C);
    if (use_rope) this.feat_rope = ropeTables(S / P, C / num_heads);
    this.blocks = Array.from({ length: depth }, () => new Block({ ...config, hidden_size: C, num_heads }));
  }

  /**
   * @param x noised latents [B, S, S, in_channels]
   * @param tokens of the other blocks [B, T, hidden_size]
   * @param time embedding of the times [B, hidden_size]
   * @returns the head's tokens and their conditioning after SiLU, for the output layer: [B, T, width]
   */
  forward(x: Tensor, tokens: Tensor, time: Tensor): { tokens: Tensor; c: Tensor } {
    const [B, T, C] = tokens.shape as [number, number, number];
    const conditioned = silu(add(tokens, reshape(time, [B, 1, C])));
    const c = silu(this.projector?.forward(conditioned) ?? conditioned); // [B, T, width]
    let h = reshape(this.x_embedder.proj.forward(x), [B, T, -1]);
    for (const block of this.blocks) {
      h = recomputable(block, (h, c) => block.forward(h, c, this.feat_rope), h, c);
    }
    return { tokens: h, c };
  }
}

/** The name in RAE's files of a tensor of a DiT with a wide head, whose first `depth` blocks are not the head's. */
export function wideHeadName(path: string, depth: number): string {
  const [first = "", ...rest] = path.split(".");
  if (first !== "head") {
    return [{ x_embedder: "s_embedder", feat_rope: "enc_feat_rope" }[first] ?? first, ...rest].join(".");
  }
  const [part = "", ...own] = rest;
  if (part === "blocks") own[0] = `${Number(own[0]) + depth}`;
  return [{ projector: "s_projector", feat_rope: "dec_feat_rope" }[part] ?? part, ...own].join(".");
}
