// Parts of a diffusion transformer under LightningDiT's tensor names: attention with rotary positions, MLPs, adaLN-Zero blocks,
// output heads, time embeddings. Yao et al. (2025), github.com/hustvl/LightningDiT; DiT: Peebles and Xie (2023).

import { timestepEmbedding } from "../ops/embedding.ts";
import { attention } from "../ops/attention.ts";
import { concat, permute, reshape, slice, split } from "../ops/layout.ts";
import { gatedAdd, modulate, splitModulation, swiglu } from "../ops/modulate.ts";
import { layerNorm } from "../ops/norm.ts";
import { pointwise } from "../ops/pointwise.ts";
import { rotary, rotaryTables2d } from "../ops/rotary.ts";
import { LayerNorm, Linear, RmsNorm } from "../nn/layers.ts";
import type { Initializer } from "../nn/init.ts";
import { noGrad } from "../tensor/autograd.ts";
import { check, constant, type Tensor, variable, viewAs } from "../tensor/tensor.ts";
import type { DitConfig } from "./dit_config.ts";

/** Features of a time. */
const TIME_FEATURES = 256;
const EPS = 1e-6;

/** Width and heads of some blocks, and the architecture that all blocks of a model share. */
export type BlockConfig = Pick<
  DitConfig,
  "hidden_size" | "num_heads" | "use_qknorm" | "use_swiglu" | "use_rope" | "use_rmsnorm" | "wo_shift"
>;

/** LayerNorm without weight and bias. */
class PlainNorm {
  forward(x: Tensor): Tensor {
    return layerNorm(x, undefined, undefined, EPS);
  }
}

const norm = (C: number, { use_rmsnorm }: Pick<DitConfig, "use_rmsnorm">) =>
  use_rmsnorm ? new RmsNorm(C, EPS) : new PlainNorm();

/** Tables of rotary positions [T, HS], which files hold. */
export interface Rope {
  freqs_cos: Tensor;
  freqs_sin: Tensor;
}

/** The tables for heads of `HS` channels on a grid of side `S`. */
export function ropeTables(S: number, HS: number): Rope {
  const { cos, sin } = rotaryTables2d(S, S, HS);
  return { freqs_cos: constant(cos, [S * S, HS]), freqs_sin: constant(sin, [S * S, HS]) };
}

class Attention {
  readonly qkv: Linear;
  readonly q_norm?: RmsNorm | LayerNorm;
  readonly k_norm?: RmsNorm | LayerNorm;
  readonly proj: Linear;

  constructor(readonly config: BlockConfig) {
    const { hidden_size: C, num_heads, use_qknorm, use_rmsnorm } = config, HS = C / num_heads;
    this.qkv = new Linear(C, 3 * C);
    if (use_qknorm) {
      // PyTorch's LayerNorm with its default epsilon, as in the published code.
      [this.q_norm, this.k_norm] = use_rmsnorm
        ? [new RmsNorm(HS, EPS), new RmsNorm(HS, EPS)]
        : [new LayerNorm(HS, 1e-5), new LayerNorm(HS, 1e-5)];
    }
    this.proj = new Linear(C, C);
  }

  forward(x: Tensor, rope: Rope | undefined): Tensor {
    const [B, T, C] = x.shape as [number, number, number];
    const NH = this.config.num_heads;
    const parts = split(this.qkv.forward(x), [C, C, C], 2); // 3 x [B, T, C]
    let [q, k, v] = parts.map((p) => reshape(p, [B, T, NH, C / NH])) as [Tensor, Tensor, Tensor];
    if (this.q_norm && this.k_norm) [q, k] = [this.q_norm.forward(q), this.k_norm.forward(k)];
    if (rope) {
      const { freqs_cos, freqs_sin } = rope;
      [q, k] = [rotary(q, freqs_cos, freqs_sin), rotary(k, freqs_cos, freqs_sin)];
    }
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

class Mlp {
  readonly fc1: Linear;
  readonly fc2: Linear;

  constructor(C: number) {
    this.fc1 = new Linear(C, 4 * C);
    this.fc2 = new Linear(4 * C, C);
  }

  forward(x: Tensor): Tensor {
    return this.fc2.forward(this.fc1.forward(x, { activation: "geluTanh" }));
  }
}

/** adaLN: the published sequence is (SiLU, Linear), so the Linear is entry 1. */
type Modulation = [activation: "silu", linear: Linear];

/** Sets the linear layer of an adaLN, or an output layer, to zero. */
function zero(init: Initializer, { weight, bias }: Linear): void {
  init.constant(weight, 0);
  init.constant(bias, 0);
}

export class Block {
  readonly norm1: RmsNorm | PlainNorm;
  readonly attn: Attention;
  readonly norm2: RmsNorm | PlainNorm;
  readonly mlp: SwiGlu | Mlp;
  readonly adaLN_modulation: Modulation;

  constructor(readonly config: BlockConfig) {
    const { hidden_size: C, use_swiglu, wo_shift } = config;
    this.norm1 = norm(C, config);
    this.attn = new Attention(config);
    this.norm2 = norm(C, config);
    this.mlp = use_swiglu ? new SwiGlu(C) : new Mlp(C);
    this.adaLN_modulation = ["silu", new Linear(C, (wo_shift ? 4 : 6) * C)];
  }

  /** @param linear initialises the layers that do not start at zero */
  init(init: Initializer, linear: (layer: Linear) => void): void {
    const { norm1, norm2, attn, mlp, adaLN_modulation } = this;
    for (const norm of [norm1, norm2, attn.q_norm, attn.k_norm]) {
      if (norm && !(norm instanceof PlainNorm)) init.norm(norm);
    }
    const layers = mlp instanceof SwiGlu ? [mlp.w12, mlp.w3] : [mlp.fc1, mlp.fc2];
    for (const layer of [attn.qkv, attn.proj, ...layers]) linear(layer);
    zero(init, adaLN_modulation[1]); // every block starts as the identity
  }

  /** @param c conditioning after SiLU, of images [B, C] or of their tokens [B, T, C] */
  forward(x: Tensor, c: Tensor, rope: Rope | undefined): Tensor {
    const [norm1, gate1, norm2, gate2] = splitModulation(
      this.adaLN_modulation[1].forward(c),
      this.config.wo_shift ? [1, 1, 1, 1] : [2, 1, 2, 1],
    ) as [Tensor, Tensor, Tensor, Tensor];
    const y = gatedAdd(x, this.attn.forward(modulate(this.norm1.forward(x), norm1), rope), gate1);
    return gatedAdd(y, this.mlp.forward(modulate(this.norm2.forward(y), norm2)), gate2); // [B, T, C]
  }
}

/** An output head: norm, adaLN, linear, and from tokens back to the grid. */
export class FinalLayer {
  readonly norm_final: RmsNorm | PlainNorm;
  readonly linear: Linear;
  readonly adaLN_modulation: Modulation;

  /** @param C width of the tokens */
  constructor(readonly config: DitConfig, C: number) {
    const { in_channels, patch_size: P, learn_sigma } = config;
    this.norm_final = norm(C, config);
    this.linear = new Linear(C, P * P * (learn_sigma ? 2 : 1) * in_channels);
    this.adaLN_modulation = ["silu", new Linear(C, 2 * C)];
  }

  init(init: Initializer): void {
    if (!(this.norm_final instanceof PlainNorm)) init.norm(this.norm_final);
    zero(init, this.adaLN_modulation[1]);
    zero(init, this.linear);
  }

  /**
   * @param x tokens [B, T, C]
   * @param c conditioning after SiLU, of images [B, C] or of their tokens [B, T, C]
   * @returns [B, S, S, in_channels]
   */
  forward(x: Tensor, c: Tensor): Tensor {
    const { input_size: S, patch_size: P, in_channels } = this.config, B = x.dim(0), G = S / P;
    const [shiftAndScale] = splitModulation(this.adaLN_modulation[1].forward(c), [2]) as [Tensor];
    const tokens = this.linear.forward(modulate(this.norm_final.forward(x), shiftAndScale)); // [B, T, P * P * out]
    const cells = permute(reshape(tokens, [B, G, G, P, P, -1]), [0, 1, 3, 2, 4, 5]);
    const maps = reshape(cells, [B, S, S, -1]);
    return this.config.learn_sigma ? slice(maps, 3, 0, in_channels) : maps;
  }
}

/** Fixed frequencies and an MLP; with `W`, random Fourier features and an MLP (RAE). */
export class TimeEmbedder {
  /** Frequencies, which are not trained. */
  readonly W?: Tensor;
  readonly mlp: [Linear, "silu", Linear];

  constructor({ hidden_size: C, use_gembed }: Pick<DitConfig, "hidden_size" | "use_gembed">) {
    if (use_gembed) this.W = variable([TIME_FEATURES], { label: "frequencies" });
    this.mlp = [new Linear(this.W ? 2 * TIME_FEATURES : TIME_FEATURES, C), "silu", new Linear(C, C)];
  }

  init(init: Initializer): void {
    for (const layer of this.mlp) {
      if (layer === "silu") continue;
      init.normal(layer.weight, 0.02);
      init.constant(layer.bias, 0);
    }
    if (this.W) init.normal(this.W, 1);
  }

  /** [B] -> [B, C] */
  forward(t: Tensor): Tensor {
    const [in_, , out] = this.mlp;
    const features = this.W ? fourierFeatures(t, this.W) : timestepEmbedding(t, TIME_FEATURES);
    return out.forward(in_.forward(features, { activation: "silu" }));
  }
}

/** sin(2 pi t W), then cos(2 pi t W): t [B], W [N] -> [B, 2N]. Not differentiable. */
function fourierFeatures(t: Tensor, W: Tensor): Tensor {
  const inputs = [viewAs(t, [t.size, 1]), viewAs(W, [1, W.size])], angle = "x0 * x1 * 6.28318530717958648";
  return noGrad(() => concat(["sin", "cos"].map((f) => pointwise([`${f}(${angle})`], inputs)), 1));
}

/** MAE's fixed table: the first half of the channels encodes the column, the second the row, each sin then cos. */
export function sineTable2d(S: number, C: number): Float32Array {
  check(C % 4 === 0, "make a table of positions", `${C} channels are no multiple of 4`);
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
