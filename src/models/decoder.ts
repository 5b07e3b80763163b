// The convolutional decoder of LDM, SD-VAE and VA-VAE with their tensor names: conv_in, mid block (residual block, attention,
// residual block), then levels of residual blocks with nearest-2x upsampling between them.
// Rombach et al. (2022); Yao et al. (2025) for VA-VAE's sizes. Channels-last inside, [Cout,Cin,K,K] in files.

import { z } from "zod";
import { BOUNDS, count, countOrNone } from "../bounds.ts";
import { attention } from "../ops/attention.ts";
import { add } from "../ops/math.ts";
import { upsampleNearest2x } from "../ops/pool.ts";
import { reshape } from "../ops/layout.ts";
import { Conv2d, GroupNorm } from "../nn/layers.ts";
import { recomputable } from "../nn/recompute.ts";
import type { Initializer } from "../nn/init.ts";
import { check, type Tensor } from "../tensor/tensor.ts";

export const decoderConfig = z.object({
  /** Channels of the highest resolution; `ch_mult` gives each level's multiple, highest resolution first. */
  ch: count("channels").default(128),
  ch_mult: z.array(z.number().positive().max(BOUNDS.channels)).min(1).max(BOUNDS.levels)
    .default([1, 1, 2, 2, 4]),
  num_res_blocks: countOrNone("layers").default(2),
  /** Levels (as side of the latent grid times 2^k) with attention; VA-VAE: [16]. */
  attn_resolutions: z.array(count("pixels")).max(BOUNDS.levels).default([16]),
  /** Output side that attn_resolutions refer to. */
  resolution: count("pixels").default(256),
  z_channels: count("channels").default(32),
  groups: count("channels").default(32),
  /** Whether the mid block has attention; nearly all published decoders do. */
  mid_attention: z.boolean().default(true),
  out_ch: z.literal(3).default(3),
});
export type DecoderConfig = z.infer<typeof decoderConfig>;

/** Initial scale of the last layer of a residual branch. */
const BRANCH = 0.1;

export class ResBlock {
  readonly norm1: GroupNorm;
  readonly conv1: Conv2d;
  readonly norm2: GroupNorm;
  readonly conv2: Conv2d;
  readonly nin_shortcut?: Conv2d;

  constructor(from: number, to: number, groups: number) {
    this.norm1 = new GroupNorm(groups, from);
    this.conv1 = new Conv2d(from, to, 3, { padding: 1 });
    this.norm2 = new GroupNorm(groups, to);
    this.conv2 = new Conv2d(to, to, 3, { padding: 1 });
    if (from !== to) this.nin_shortcut = new Conv2d(from, to, 1);
  }

  forward(x: Tensor): Tensor {
    const y = this.conv1.forward(this.norm1.forward(x, { silu: true })); // [B, H, W, to]
    const residual = this.conv2.forward(this.norm2.forward(y, { silu: true }));
    return add(this.nin_shortcut ? this.nin_shortcut.forward(x) : x, residual);
  }
}

/** Single-head self-attention over all pixels. */
export class AttnBlock {
  readonly norm: GroupNorm;
  readonly q: Conv2d;
  readonly k: Conv2d;
  readonly v: Conv2d;
  readonly proj_out: Conv2d;

  constructor(C: number, groups: number) {
    this.norm = new GroupNorm(groups, C);
    this.q = new Conv2d(C, C, 1);
    this.k = new Conv2d(C, C, 1);
    this.v = new Conv2d(C, C, 1);
    this.proj_out = new Conv2d(C, C, 1);
  }

  forward(x: Tensor): Tensor {
    const [B, H, W, C] = x.shape as [number, number, number, number];
    const h = this.norm.forward(x);
    const heads = (conv: Conv2d) => reshape(conv.forward(h), [B, H * W, 1, C]);
    const y = attention(heads(this.q), heads(this.k), heads(this.v)); // [B, HW, C]
    return add(x, this.proj_out.forward(reshape(y, [B, H, W, C])));
  }
}

/** Residual block, attention, residual block at the lowest resolution. */
export class Middle {
  readonly block_1: ResBlock;
  readonly attn_1?: AttnBlock;
  readonly block_2: ResBlock;

  constructor(C: number, groups: number, attention: boolean) {
    this.block_1 = new ResBlock(C, C, groups);
    if (attention) this.attn_1 = new AttnBlock(C, groups);
    this.block_2 = new ResBlock(C, C, groups);
  }

  forward(x: Tensor): Tensor {
    const { block_1, attn_1, block_2 } = this;
    return [block_1, attn_1, block_2].reduce((y, part) => part ? pass(part, y) : y, x);
  }
}

/** The blocks of one resolution; attention follows each of them, or none. */
export interface Level {
  block: ResBlock[];
  attn: AttnBlock[];
}

export function throughLevel({ block, attn }: Level, x: Tensor): Tensor {
  return block.reduce((y, b, i) => {
    const z = pass(b, y), a = attn[i];
    return a ? pass(a, z) : z;
  }, x);
}

/** Applies a block that may be recomputed in the backward pass. */
const pass = (block: ResBlock | AttnBlock, x: Tensor) => recomputable(block, (x) => block.forward(x), x);

/** Channels of each level, highest resolution first. @throws ShapeError if groups do not divide them */
export function widthsOf(
  { ch, ch_mult, groups }: Pick<DecoderConfig, "ch" | "ch_mult" | "groups">,
  what: string,
): number[] {
  const widths = ch_mult.map((m) => Math.round(ch * m));
  check(
    widths.every((width) => width % groups === 0),
    `build ${what}`,
    `channels ${widths} are not multiples of ${groups} groups`,
  );
  return widths;
}

/**
 * First values of the decoder, and of the encoder that mirrors it: the main path preserves variance and every residual branch
 * starts small. PyTorch's default shrinks a signal by 3 per layer: the branches dominate it, and a tiny decoder reaches 2 dB
 * less in the same time.
 * @param blocks convolutions and norms, in any nesting
 */
export function initBlocks(blocks: object, init: Initializer): void {
  for (const value of Object.values(blocks)) {
    if (value instanceof Conv2d) init.preserving(value);
    else if (value instanceof GroupNorm) init.norm(value);
    else if (typeof value === "object" && value !== null) initBlocks(value, init);
    if (value instanceof ResBlock) init.preserving(value.conv2, BRANCH);
    if (value instanceof AttnBlock) init.preserving(value.proj_out, BRANCH);
  }
}

export class Decoder {
  readonly conv_in: Conv2d;
  readonly mid: Middle;
  /** Highest resolution first, as in the checkpoints. */
  readonly up: (Level & { upsample?: { conv: Conv2d } })[];
  readonly norm_out: GroupNorm;
  readonly conv_out: Conv2d;

  constructor(readonly config: DecoderConfig) {
    const { groups, num_res_blocks, attn_resolutions, resolution } = config;
    const widths = widthsOf(config, "a decoder");
    let C = widths.at(-1) as number;
    let side = resolution / 2 ** (widths.length - 1);
    this.conv_in = new Conv2d(config.z_channels, C, 3, { padding: 1 });
    this.mid = new Middle(C, groups, config.mid_attention);
    this.up = [];
    for (let level = widths.length - 1; level >= 0; level--, side *= 2) {
      const width = widths[level] as number;
      const made: Decoder["up"][number] = { block: [], attn: [] };
      for (let i = 0; i <= num_res_blocks; i++, C = width) {
        made.block.push(new ResBlock(C, width, groups));
        if (attn_resolutions.includes(side)) made.attn.push(new AttnBlock(width, groups));
      }
      if (level > 0) made.upsample = { conv: new Conv2d(C, C, 3, { padding: 1 }) };
      this.up.unshift(made);
    }
    this.norm_out = new GroupNorm(groups, C);
    this.conv_out = new Conv2d(C, config.out_ch, 3, { padding: 1 });
  }

  init(init: Initializer): void {
    initBlocks({ ...this, config: undefined }, init);
  }

  /** Latents [B, h, w, z_channels] to pixels [B, h * 2^k, w * 2^k, 3], about -1..1, not clamped. */
  forward(latents: Tensor): Tensor {
    let y = this.mid.forward(this.conv_in.forward(latents)); // [B, h, w, C]
    for (const level of this.up.toReversed()) {
      y = throughLevel(level, y);
      const { upsample } = level;
      if (upsample) y = recomputable(upsample, (y) => upsample.conv.forward(upsampleNearest2x(y)), y);
    }
    const { norm_out, conv_out } = this;
    const last = (y: Tensor) => conv_out.forward(norm_out.forward(y, { silu: true }));
    return recomputable({ norm_out, conv_out }, (y) => last(y), y); // [B, H, W, 3]
  }

  /** The weight whose gradients determine the adaptive adversarial weight. */
  get lastLayer(): Tensor {
    return this.conv_out.weight;
  }
}
