// LightningDiT with its tensor names: RMSNorm, adaLN-Zero, rotary positions in addition to a fixed sine table, SwiGLU,
// optional QK-norm. Yao et al. (2025), github.com/hustvl/LightningDiT; DiT: Peebles and Xie (2023).
// Velocity prediction: t = 0 is noise, t = 1 is data.

import { z } from "zod";
import { count, countOrNone, fitsPositions, POSITIONS_ERROR } from "../bounds.ts";
import { UsageError } from "../errors.ts";
import { validated } from "../formats/files.ts";
import { attention } from "../ops/attention.ts";
import { embedding, timestepEmbedding } from "../ops/embedding.ts";
import { add, silu } from "../ops/math.ts";
import { gatedAdd, modulate, splitModulation, swiglu } from "../ops/modulate.ts";
import { rotary, rotaryTables2d } from "../ops/rotary.ts";
import { reshape, split } from "../ops/layout.ts";
import { Conv2d, Linear, RmsNorm } from "../nn/layers.ts";
import { recomputable } from "../nn/recompute.ts";
import type { Initializer } from "../nn/init.ts";
import type { Denoiser, DenoiserOutputs, PassOptions } from "./denoiser.ts";
import { check, constant, parameter, type Tensor, variable } from "../tensor/tensor.ts";

export const ditConfig = z.object({
  /** Side of the latent grid. */
  input_size: count("cells").default(16),
  patch_size: z.literal(1).default(1),
  in_channels: count("channels").default(32),
  hidden_size: count("channels").default(1152),
  depth: count("layers").default(28),
  num_heads: count("heads").default(16),
  /** 0: unconditional, the label table has the row "no class" alone. */
  num_classes: countOrNone("classes").default(1000),
  use_qknorm: z.boolean().default(false),
  /** Block, from 1, after which an inner head predicts the velocity, too; 0 for none. Internal Guidance, arXiv 2512.24176. */
  inner_head: countOrNone("layers").default(0),
}).refine(({ input_size, hidden_size }) => fitsPositions(input_size, hidden_size), {
  ...POSITIONS_ERROR,
  path: ["input_size"],
}).refine(({ inner_head, depth }) => inner_head < depth, {
  error: "the inner head must come before the last block",
  path: ["inner_head"],
});
export type DitConfig = z.infer<typeof ditConfig>;

/** The published sizes. */
export const DIT_SIZES = {
  "S/1": { depth: 12, hidden_size: 384, num_heads: 6 },
  "B/1": { depth: 12, hidden_size: 768, num_heads: 12 },
  "L/1": { depth: 24, hidden_size: 1024, num_heads: 16 },
  "XL/1": { depth: 28, hidden_size: 1152, num_heads: 16 },
} as const satisfies Record<string, Partial<DitConfig>>;

/** The block of the inner head in Internal Guidance's published models, whose files do not say it. */
const PUBLISHED_INNER_HEAD = 8;

/** A tensor that identifies LightningDiT. */
export const DIT_ANCHOR = "x_embedder.proj.weight";

/**
 * Infers the architecture of a published LightningDiT from its tensors.
 * @throws UsageError that names an unsupported part
 */
export function inferDit(name: string, shapes: ReadonlyMap<string, readonly number[]>): DitConfig {
  const refuse = (reason: string) =>
    new UsageError(
      `Cannot load the diffusion model "${name}": ${reason}; supported is LightningDiT with patch size 1, SwiGLU, ` +
        `RMSNorm, rotary positions and shifts in adaLN`,
    );
  const size = (key: string, axis: number): number => {
    const n = shapes.get(key)?.[axis];
    if (n === undefined) throw refuse(`there is no "${key}"`);
    return n;
  };
  const [C, channels, patch] = [0, 1, 2].map((axis) => size(DIT_ANCHOR, axis)) as [number, number, number];
  if (patch !== 1) throw refuse(`its patch size is ${patch}`);
  if (shapes.has("blocks.0.mlp.fc1.weight")) throw refuse("its MLP is plain (mlp.fc1), not SwiGLU (mlp.w12)");
  if (!shapes.has("blocks.0.norm1.weight")) throw refuse("its norms have no weight, they are LayerNorm");
  if (!shapes.has("feat_rope.freqs_cos")) throw refuse('it has no rotary positions ("feat_rope.freqs_cos")');
  const modulation = size("blocks.0.adaLN_modulation.1.weight", 0);
  if (modulation !== 6 * C) throw refuse(`its adaLN makes ${modulation / C} values a channel instead of 6`);
  const out = size("final_layer.linear.weight", 0);
  if (out === 2 * channels) throw refuse("it also predicts a variance (learn_sigma)");
  const T = size("pos_embed", 1), side = Math.sqrt(T), HS = size("feat_rope.freqs_cos", 1);
  if (!Number.isInteger(side)) throw refuse(`its ${T} positions are not a square`);
  if (C % HS) throw refuse(`heads of ${HS} do not divide its width of ${C}`);
  const blocks = [...shapes.keys()].map((key) => Number(/^blocks\.(\d+)\./.exec(key)?.[1] ?? -1));
  const config = {
    input_size: side,
    in_channels: channels,
    hidden_size: C,
    depth: blocks.reduce((a, b) => Math.max(a, b)) + 1,
    num_heads: C / HS,
    num_classes: size("y_embedder.embedding_table.weight", 0) - 1,
    use_qknorm: shapes.has("blocks.0.attn.q_norm.weight"),
    inner_head: shapes.has("final_layer_xr.linear.weight") ? PUBLISHED_INNER_HEAD : 0,
  };
  return validated(ditConfig, config, name);
}

const TIME_FEATURES = 256;
const EPS = 1e-6;

class Attention {
  readonly qkv: Linear;
  readonly q_norm?: RmsNorm;
  readonly k_norm?: RmsNorm;
  readonly proj: Linear;

  constructor(readonly config: DitConfig) {
    const C = config.hidden_size, HS = C / config.num_heads;
    this.qkv = new Linear(C, 3 * C);
    if (config.use_qknorm) {
      this.q_norm = new RmsNorm(HS, EPS);
      this.k_norm = new RmsNorm(HS, EPS);
    }
    this.proj = new Linear(C, C);
  }

  forward(x: Tensor, cos: Tensor, sin: Tensor): Tensor {
    const [B, T, C] = x.shape as [number, number, number];
    const NH = this.config.num_heads;
    const parts = split(this.qkv.forward(x), [C, C, C], 2); // 3 x [B, T, C]
    let [q, k, v] = parts.map((p) => reshape(p, [B, T, NH, C / NH])) as [Tensor, Tensor, Tensor];
    if (this.q_norm && this.k_norm) [q, k] = [this.q_norm.forward(q), this.k_norm.forward(k)];
    [q, k] = [rotary(q, cos, sin), rotary(k, cos, sin)];
    return this.proj.forward(attention(q, k, v)); // [B, T, C]
  }
}

class SwiGlu {
  readonly w12: Linear;
  readonly w3: Linear;

  constructor(C: number) {
    const hidden = Math.floor(4 * C * 2 / 3);
    this.w12 = new Linear(C, 2 * hidden);
    this.w3 = new Linear(hidden, C);
  }

  forward(x: Tensor): Tensor {
    return this.w3.forward(swiglu(this.w12.forward(x)));
  }
}

/** adaLN: the published sequence is (SiLU, Linear), so the Linear is entry 1. */
type Modulation = [activation: "silu", linear: Linear];

class Block {
  readonly norm1: RmsNorm;
  readonly attn: Attention;
  readonly norm2: RmsNorm;
  readonly mlp: SwiGlu;
  readonly adaLN_modulation: Modulation;

  constructor(config: DitConfig) {
    const C = config.hidden_size;
    this.norm1 = new RmsNorm(C, EPS);
    this.attn = new Attention(config);
    this.norm2 = new RmsNorm(C, EPS);
    this.mlp = new SwiGlu(C);
    this.adaLN_modulation = ["silu", new Linear(C, 6 * C)];
  }

  /** @param c conditioning after SiLU [B, C] */
  forward(x: Tensor, c: Tensor, cos: Tensor, sin: Tensor): Tensor {
    const [norm1, gate1, norm2, gate2] = splitModulation(
      this.adaLN_modulation[1].forward(c),
      [2, 1, 2, 1],
    ) as [Tensor, Tensor, Tensor, Tensor];
    const y = gatedAdd(x, this.attn.forward(modulate(this.norm1.forward(x), norm1), cos, sin), gate1);
    return gatedAdd(y, this.mlp.forward(modulate(this.norm2.forward(y), norm2)), gate2); // [B, T, C]
  }
}

/** An output head: norm, adaLN, linear. */
class FinalLayer {
  readonly norm_final: RmsNorm;
  readonly linear: Linear;
  readonly adaLN_modulation: Modulation;

  constructor({ hidden_size: C, in_channels }: DitConfig) {
    this.norm_final = new RmsNorm(C, EPS);
    this.linear = new Linear(C, in_channels);
    this.adaLN_modulation = ["silu", new Linear(C, 2 * C)];
  }

  /** @param c conditioning after SiLU [B, C] */
  forward(x: Tensor, c: Tensor): Tensor {
    const [shiftAndScale] = splitModulation(this.adaLN_modulation[1].forward(c), [2]) as [Tensor];
    return this.linear.forward(modulate(this.norm_final.forward(x), shiftAndScale)); // [B, T, in_channels]
  }
}

export class Dit implements Denoiser {
  readonly x_embedder: { proj: Conv2d };
  readonly t_embedder: { mlp: [Linear, "silu", Linear] };
  readonly y_embedder: { embedding_table: { weight: Tensor } };
  readonly pos_embed: Tensor;
  readonly feat_rope: { freqs_cos: Tensor; freqs_sin: Tensor };
  readonly blocks: Block[];
  readonly final_layer: FinalLayer;
  /** The inner head, by its name in the code of Internal Guidance. */
  readonly final_layer_xr?: FinalLayer;

  constructor(readonly config: DitConfig) {
    const { hidden_size: C, in_channels, input_size: S, num_heads, num_classes } = config;
    check(
      C % (4 * num_heads) === 0,
      "build a DiT",
      `hidden_size ${C} is not divisible by 4 x ${num_heads} heads`,
    );
    this.x_embedder = { proj: new Conv2d(in_channels, C, 1) };
    this.t_embedder = { mlp: [new Linear(TIME_FEATURES, C), "silu", new Linear(C, C)] };
    const rows = num_classes + 1; // the last row means "no class"
    this.y_embedder = {
      embedding_table: { weight: parameter([rows, C], () => new Float32Array(rows * C), "classes") },
    };
    this.pos_embed = variable([1, S * S, C], { label: "pos_embed", init: () => sineTable2d(S, C) });
    const { cos, sin } = rotaryTables2d(S, S, C / num_heads);
    this.feat_rope = {
      freqs_cos: constant(cos, [S * S, C / num_heads]),
      freqs_sin: constant(sin, [S * S, C / num_heads]),
    };
    this.blocks = Array.from({ length: config.depth }, () => new Block(config));
    this.final_layer = new FinalLayer(config);
    if (config.inner_head) this.final_layer_xr = new FinalLayer(config);
  }

  /** LightningDiT's: Glorot linears with zero bias, normal(0.02) embeddings, adaLN and output heads zero. */
  init(init: Initializer): void {
    const glorot = ({ weight, bias }: Linear | Conv2d) => {
      init.xavier(weight);
      init.constant(bias, 0);
    };
    const zero = ({ weight, bias }: Linear) => {
      init.constant(weight, 0);
      init.constant(bias, 0);
    };
    glorot(this.x_embedder.proj);
    for (const layer of this.t_embedder.mlp) {
      if (layer === "silu") continue;
      init.normal(layer.weight, 0.02);
      init.constant(layer.bias, 0);
    }
    init.normal(this.y_embedder.embedding_table.weight, 0.02);
    for (const { norm1, norm2, attn, mlp, adaLN_modulation } of this.blocks) {
      for (const norm of [norm1, norm2, attn.q_norm, attn.k_norm]) if (norm) init.norm(norm);
      for (const layer of [attn.qkv, attn.proj, mlp.w12, mlp.w3]) glorot(layer);
      zero(adaLN_modulation[1]); // every block starts as the identity
    }
    for (const head of [this.final_layer, this.final_layer_xr]) {
      if (!head) continue;
      init.norm(head.norm_final);
      zero(head.adaLN_modulation[1]);
      zero(head.linear);
    }
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
    return this.#pass(x, t, y, { ...options, inner: this.final_layer_xr });
  }

  /** One pass. @param options.inner the inner head, if it is to run */
  #pass(
    x: Tensor,
    t: Tensor,
    y: Tensor,
    { features: wanted = 0, start, inner: head }: PassOptions & { inner?: FinalLayer | undefined },
  ): DenoiserOutputs {
    const { hidden_size: C, input_size: S, in_channels, depth, inner_head } = this.config;
    const B = x.dim(0), from = start?.block ?? 0;
    check(
      from <= depth && (wanted === 0 || from < wanted && wanted <= depth),
      "run a DiT",
      `it has blocks 1 to ${depth}, features are of block ${wanted}, the pass starts after block ${from}`,
    );
    const { freqs_cos, freqs_sin } = this.feat_rope;
    const [in_, , out] = this.t_embedder.mlp;
    const time = out.forward(in_.forward(timestepEmbedding(t, TIME_FEATURES), { activation: "silu" })); // [B, C]
    const c = silu(add(time, embedding(this.y_embedder.embedding_table.weight, y))); // [B, C]
    const unpatchify = (h: Tensor) => reshape(h, [B, S, S, in_channels]);
    let h = start?.tokens ??
      add(reshape(this.x_embedder.proj.forward(x), [B, S * S, C]), this.pos_embed); // [B, T, C]
    let inner: Tensor | undefined, features: Tensor | undefined;
    for (const [i, block] of this.blocks.entries()) {
      if (i < from) continue;
      h = recomputable(block, (h, c) => block.forward(h, c, freqs_cos, freqs_sin), h, c);
      if (i + 1 === inner_head && head) inner = unpatchify(head.forward(h, c));
      if (i + 1 === wanted) features = h;
    }
    const velocity = unpatchify(this.final_layer.forward(h, c));
    return { velocity, ...inner && { inner }, ...features && { features } };
  }
}

/** MAE's fixed table: the first half of the channels encodes the column, the second the row, each sin then cos. */
function sineTable2d(S: number, C: number): Float32Array {
  const table = new Float32Array(S * S * C);
  const quarter = C / 4;
  for (let row = 0; row < S; row++) {
    for (let column = 0; column < S; column++) {
      const at = (row * S + column) * C;
      for (let i = 0; i < quarter; i++) {
        const omega = 1 / 10000 ** (i / quarter);
        table[at + i] = Math.sin(column * omega);
        table[at + quarter + i] = Math.cos(column * omega);
        table[at + 2 * quarter + i] = Math.sin(row * omega);
        table[at + 3 * quarter + i] = Math.cos(row * omega);
      }
    }
  }
  return table;
}
