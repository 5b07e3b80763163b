// The diffusion transformer, LightningDiT by default: patches, time and class, adaLN-Zero blocks, output head; its options make
// it SiT or RAE's DiT-DH. Yao et al. (2025), github.com/hustvl/LightningDiT; DiT: Peebles and Xie (2023).
// Velocity prediction: t = 0 is noise, t = 1 is data.

import { embedding } from "../ops/embedding.ts";
import { add, neg, silu } from "../ops/math.ts";
import { pointwise } from "../ops/pointwise.ts";
import { reshape } from "../ops/layout.ts";
import { Conv2d, countParameters, type Linear, type Published } from "../nn/layers.ts";
import { recomputable } from "../nn/recompute.ts";
import type { Initializer } from "../nn/init.ts";
import { noGrad } from "../tensor/autograd.ts";
import { check, parameter, type Tensor, variable } from "../tensor/tensor.ts";
import type { Denoiser, DenoiserOutputs, PassOptions } from "./denoiser.ts";
import { Block, FinalLayer, type Rope, ropeTables, sineTable2d, TimeEmbedder } from "./dit_blocks.ts";
import type { DitConfig } from "./dit_config.ts";
import { WideHead, wideHeadName } from "./dit_head.ts";

export { DIT_SIZES, type DitConfig, ditConfig } from "./dit_config.ts";

/** Number of parameters as LightningDiT's authors count them: with the table of positions, which is not trained. */
export const countDit = (dit: Dit): number => countParameters(dit) + dit.pos_embed.size;

export class Dit implements Denoiser, Published {
  readonly x_embedder: { proj: Conv2d };
  readonly t_embedder: TimeEmbedder;
  readonly y_embedder: { embedding_table: { weight: Tensor } };
  readonly pos_embed: Tensor;
  readonly feat_rope?: Rope;
  readonly blocks: Block[];
  readonly final_layer: FinalLayer;
  /** The inner head, by its name in the code of Internal Guidance. */
  readonly final_layer_xr?: FinalLayer;
  readonly head?: WideHead;

  constructor(readonly config: DitConfig) {
    const { hidden_size: C, in_channels, input_size, patch_size: P, num_classes, head } = config;
    const S = input_size / P;
    for (const { hidden_size, num_heads } of head ? [config, head] : [config]) {
      check(
        hidden_size % (4 * num_heads) === 0,
        "build a DiT",
        `hidden_size ${hidden_size} is not divisible by 4 x ${num_heads} heads`,
      );
    }
    this.x_embedder = { proj: new Conv2d(in_channels, C, P, { stride: P }) };
    this.t_embedder = new TimeEmbedder(config);
    const rows = num_classes + 1; // the last row means "no class"
    this.y_embedder = {
      embedding_table: { weight: parameter([rows, C], () => new Float32Array(rows * C), "classes") },
    };
    this.pos_embed = variable([1, S * S, C], { label: "pos_embed", init: () => sineTable2d(S, C) });
    if (config.use_rope) this.feat_rope = ropeTables(S, C / config.num_heads);
    this.blocks = Array.from({ length: config.depth }, () => new Block(config));
    this.final_layer = new FinalLayer(config, head?.hidden_size ?? C);
    if (config.inner_head) this.final_layer_xr = new FinalLayer(config, C);
    if (head) this.head = new WideHead(config, head);
  }

  /** Models with a wide head have RAE's names. */
  fileName(path: string): string {
    return this.head ? wideHeadName(path, this.config.depth) : path;
  }

  get classTable(): { weight: Tensor } {
    return this.y_embedder.embedding_table;
  }

  /**
   * LightningDiT's first values: Glorot linears with zero bias, normal(0.02) embeddings, adaLN and output heads zero. With a
   * wide head RAE's: PyTorch's defaults instead of Glorot's.
   */
  init(init: Initializer): void {
    const glorot = ({ weight, bias }: Linear | Conv2d) => {
      init.xavier(weight);
      init.constant(bias, 0);
    };
    const linear = this.head ? (layer: Linear) => init.torchDefault(layer) : glorot;
    glorot(this.x_embedder.proj);
    this.t_embedder.init(init);
    init.normal(this.y_embedder.embedding_table.weight, 0.02);
    for (const block of this.blocks) block.init(init, linear);
    if (this.head) {
      glorot(this.head.x_embedder.proj);
      if (this.head.projector) linear(this.head.projector);
      for (const block of this.head.blocks) block.init(init, linear);
    }
    for (const layer of [this.final_layer, this.final_layer_xr]) layer?.init(init);
  }

  /**
   * @param x noised latents [B, S, S, in_channels]
   * @param t times [B] in 0..1
   * @param y class numbers u32 [B]; num_classes means none
   * @returns velocity [B, S, S, in_channels]
   */
  forward(x: Tensor, t: Tensor, y: Tensor): Tensor {
    return this.#pass(x, t, y, {}).velocity;
  }

  outputs(x: Tensor, t: Tensor, y: Tensor, options: PassOptions = {}): DenoiserOutputs {
    return this.#pass(x, t, y, { ...options, innerHead: this.final_layer_xr });
  }

  /** One pass. @param options.innerHead the inner head, if it is to run */
  #pass(
    x: Tensor,
    t: Tensor,
    y: Tensor,
    { features: wanted = 0, start, innerHead }: PassOptions & { innerHead?: FinalLayer | undefined },
  ): DenoiserOutputs {
    const { hidden_size: C, depth, inner_head, reversed_time: reversed } = this.config;
    const B = x.dim(0), from = start?.block ?? 0;
    check(
      from <= depth && (wanted === 0 || from < wanted && wanted <= depth),
      "run a DiT",
      `it has blocks 1 to ${depth}, features are of block ${wanted}, the pass starts after block ${from}`,
    );
    const own = reversed ? noGrad(() => pointwise(["1.0 - x0"], [t])) : t;
    const velocityOf = (output: Tensor) => reversed ? neg(output) : output;
    const time = this.t_embedder.forward(own); // [B, C]
    const sum = silu(add(time, embedding(this.y_embedder.embedding_table.weight, y)));
    const c = this.head ? silu(sum) : sum; // [B, C]; RAE's has a SiLU of its own before adaLN's
    let h = start?.tokens ??
      add(reshape(this.x_embedder.proj.forward(x), [B, -1, C]), this.pos_embed); // [B, T, C]
    let inner: Tensor | undefined, features: Tensor | undefined;
    for (const [i, block] of this.blocks.entries()) {
      if (i < from) continue;
      h = recomputable(block, (h, c) => block.forward(h, c, this.feat_rope), h, c);
      if (i + 1 === inner_head && innerHead) inner = velocityOf(innerHead.forward(h, c));
      if (i + 1 === wanted) features = h;
    }
    const last = this.head?.forward(x, h, time) ?? { tokens: h, c };
    const output = this.final_layer.forward(last.tokens, last.c);
    return { velocity: velocityOf(output), ...inner && { inner }, ...features && { features } };
  }
}
