// Vision transformer (Dosovitskiy et al., 2021): patch embedding, optional CLS token and registers, pre-norm blocks, final norm.
// A row of vit_families.ts configures each family: DINOv2 and DINOv3 (LayerScale, registers, SwiGLU), SigLIP, CLIP, MAE, plain
// ViT. Field paths are Hugging Face's names of DINOv2; `fileName` maps them to the names of the family. Position embeddings
// are interpolated to the input's grid as in the family's code.

import { activate, type Activation, add, mul, sub } from "../ops/math.ts";
import { attention } from "../ops/attention.ts";
import { resize } from "../ops/resize.ts";
import { rotary, rotaryTablesCentred } from "../ops/rotary.ts";
import { broadcastTo, concat, reshape, slice } from "../ops/layout.ts";
import { swiglu } from "../ops/modulate.ts";
import { Conv2d, LayerNorm, Linear, type Published } from "../nn/layers.ts";
import { recomputable } from "../nn/recompute.ts";
import type { Initializer } from "../nn/init.ts";
import { check, constant, parameter, type Tensor, variable } from "../tensor/tensor.ts";
import type { VitConfig } from "./vit_config.ts";
import { FAMILIES, publishedName } from "./vit_families.ts";

export { type VitConfig, vitConfig } from "./vit_config.ts";

/** Outputs of a forward pass. */
export interface VitOutput {
  /**
   * Patch tokens of the last layer [B, T, C], row by row: Hugging Face's `last_hidden_state` without the leading tokens. DINOv2,
   * DINOv3, SigLIP, ViT and MAE: after the final norm. CLIP: before it, since its final norm is for the CLS token only.
   */
  patches: Tensor;
  /** CLS token after the final norm [B, C] (CLIP: `pooler_output`); SigLIP has none. */
  cls?: Tensor;
  /** Register tokens after the final norm [B, R, C], if the model has them. */
  registers?: Tensor;
  /** Patch tokens after each of the blocks that were asked for [B, T, C], before the final norm. */
  hidden: Tensor[];
}

/** Activations by their names in config.json. */
export const ACTIVATIONS: Readonly<Record<VitConfig["hidden_act"], Activation>> = {
  gelu: "gelu",
  gelu_pytorch_tanh: "geluTanh",
  quick_gelu: "quickGelu",
  silu: "silu",
};

/** Whether an image may have this side: a multiple of the patch size, or the model's image size. */
export const fits = (
  side: number,
  { patch_size, image_size }: Pick<VitConfig, "patch_size" | "image_size">,
): boolean => side % patch_size === 0 || side === image_size;

/** Angles of the rotary positions, [tokens, HS] each. */
interface Angles {
  cos: Tensor;
  sin: Tensor;
}

class Attention {
  readonly attention: { query: Linear; key: Linear; value: Linear };
  readonly output: { dense: Linear };

  constructor(readonly config: VitConfig) {
    const { hidden_size: C, query_bias, key_bias, value_bias } = config;
    this.attention = {
      query: new Linear(C, C, query_bias),
      key: new Linear(C, C, key_bias),
      value: new Linear(C, C, value_bias),
    };
    this.output = { dense: new Linear(C, C) };
  }

  forward(x: Tensor, angles?: Angles): Tensor {
    const [B, T, C] = x.shape as [number, number, number];
    const NH = this.config.num_attention_heads;
    const heads = (y: Tensor) => reshape(y, [B, T, NH, C / NH]);
    const turn = (y: Tensor) => angles ? rotary(y, angles.cos, angles.sin, "half") : y;
    const q = turn(heads(this.attention.query.forward(x))); // [B, T, NH, HS]
    const k = turn(heads(this.attention.key.forward(x)));
    const v = heads(this.attention.value.forward(x));
    return this.output.dense.forward(attention(q, k, v)); // [B, T, C]
  }
}

export class Mlp {
  readonly fc1: Linear;
  readonly fc2: Linear;

  constructor(C: number, hidden: number, readonly config: { activation: Activation }) {
    this.fc1 = new Linear(C, hidden);
    this.fc2 = new Linear(hidden, C);
  }

  forward(x: Tensor): Tensor {
    return this.fc2.forward(this.fc1.forward(x, this.config));
  }
}

/** DINOv2 giant's feed-forward: hidden size 2/3 of the MLP's, rounded up to 8. */
class SwiGlu {
  readonly weights_in: Linear;
  readonly weights_out: Linear;

  constructor(C: number, mlpHidden: number) {
    const hidden = Math.floor((Math.floor(mlpHidden * 2 / 3) + 7) / 8) * 8;
    this.weights_in = new Linear(C, 2 * hidden);
    this.weights_out = new Linear(hidden, C);
  }

  forward(x: Tensor): Tensor {
    return this.weights_out.forward(swiglu(this.weights_in.forward(x)));
  }
}

/** The gated feed-forward of DINOv3's larger models: two projections to the full hidden size. */
class GatedMlp {
  readonly gate_proj: Linear;
  readonly up_proj: Linear;
  readonly down_proj: Linear;

  constructor(C: number, hidden: number, readonly config: { activation: Activation }) {
    this.gate_proj = new Linear(C, hidden);
    this.up_proj = new Linear(C, hidden);
    this.down_proj = new Linear(hidden, C);
  }

  forward(x: Tensor): Tensor {
    const gate = activate(this.gate_proj.forward(x), this.config.activation);
    return this.down_proj.forward(mul(gate, this.up_proj.forward(x)));
  }
}

class LayerScale {
  readonly lambda1: Tensor;

  constructor(C: number, value: number) {
    this.lambda1 = parameter([C], () => new Float32Array(C).fill(value));
  }
}

class Block {
  readonly norm1: LayerNorm;
  readonly attention: Attention;
  readonly layer_scale1?: LayerScale;
  readonly norm2: LayerNorm;
  readonly mlp: Mlp | SwiGlu | GatedMlp;
  readonly layer_scale2?: LayerScale;

  constructor(c: VitConfig) {
    const C = c.hidden_size, hidden = c.intermediate_size ?? Math.floor(C * c.mlp_ratio);
    const scaled = FAMILIES[c.model_type].layerScale, activation = ACTIVATIONS[c.hidden_act];
    this.norm1 = new LayerNorm(C, c.layer_norm_eps);
    this.attention = new Attention(c);
    if (scaled) this.layer_scale1 = new LayerScale(C, c.layerscale_value);
    this.norm2 = new LayerNorm(C, c.layer_norm_eps);
    this.mlp = c.use_swiglu_ffn
      ? new SwiGlu(C, hidden)
      : c.use_gated_mlp
      ? new GatedMlp(C, hidden, { activation })
      : new Mlp(C, hidden, { activation });
    if (scaled) this.layer_scale2 = new LayerScale(C, c.layerscale_value);
  }

  forward(x: Tensor, angles?: Angles): Tensor {
    const scaled = (y: Tensor, by?: LayerScale) => by ? mul(y, by.lambda1) : y;
    const y = add(x, scaled(this.attention.forward(this.norm1.forward(x), angles), this.layer_scale1));
    return add(y, scaled(this.mlp.forward(this.norm2.forward(y)), this.layer_scale2)); // [B, T, C]
  }
}

export class Vit implements Published {
  readonly embeddings: {
    cls_token?: Tensor;
    mask_token?: Tensor;
    position_embeddings?: Tensor;
    register_tokens?: Tensor;
    patch_embeddings: { projection: Conv2d };
  };
  readonly input_norm?: LayerNorm;
  readonly encoder: { layer: Block[] };
  readonly layernorm: LayerNorm;

  constructor(readonly config: VitConfig) {
    const { hidden_size: C, patch_size: P, num_register_tokens: R, layer_norm_eps: eps } = config;
    const { cls, maskToken, patchBias, inputNorm, positions, axes } = FAMILIES[config.model_type];
    check(
      C % config.num_attention_heads === 0,
      "build a ViT",
      `hidden_size ${C} is not divisible by its heads`,
    );
    const zeros = (leading: number, ...rest: number[]) => {
      const shape = [...Array<number>(leading).fill(1), ...rest];
      return parameter(shape, () => new Float32Array(rest.reduce((a, b) => a * b, 1)), "embeddings");
    };
    const rows = this.#grid ** 2 + (cls ? 1 : 0);
    this.embeddings = {
      ...(cls ? { cls_token: zeros(axes.cls, C) } : {}),
      ...(maskToken && config.use_mask_token ? { mask_token: zeros(axes.mask, C) } : {}),
      ...(positions === "learned" ? { position_embeddings: zeros(axes.positions, rows, C) } : {}),
      ...(positions === "fixed"
        ? { position_embeddings: variable([1, rows, C], { label: "positions" }) }
        : {}),
      ...(R ? { register_tokens: zeros(1, R, C) } : {}),
      patch_embeddings: { projection: new Conv2d(3, C, P, { stride: P }, patchBias) },
    };
    if (inputNorm) this.input_norm = new LayerNorm(C, eps);
    this.encoder = { layer: Array.from({ length: config.num_hidden_layers }, () => new Block(config)) };
    this.layernorm = new LayerNorm(C, eps);
  }

  /** The family's published name of a tensor. */
  fileName(path: string): string {
    return publishedName(this.config.model_type, path);
  }

  /** DINOv2's initialisation: normal(0.02), LayerScale at its configured value. */
  init(init: Initializer): void {
    const { cls_token, position_embeddings, register_tokens, patch_embeddings } = this.embeddings;
    for (const table of [cls_token, position_embeddings, register_tokens]) {
      if (table) init.normal(table, 0.02);
    }
    init.torchDefault(patch_embeddings.projection);
    for (const { norm1, norm2, attention, mlp, layer_scale1, layer_scale2 } of this.encoder.layer) {
      init.norm(norm1);
      init.norm(norm2);
      const layers = [...Object.values(attention.attention), attention.output.dense, ...Object.values(mlp)];
      for (const layer of layers) {
        if (!(layer instanceof Linear)) continue;
        init.normal(layer.weight, 0.02);
        init.constant(layer.bias, 0);
      }
      for (const scale of [layer_scale1, layer_scale2]) {
        init.constant(scale?.lambda1, this.config.layerscale_value);
      }
    }
    for (const norm of [this.input_norm, this.layernorm]) if (norm) init.norm(norm);
  }

  /** The linear layers of the blocks by name, such as `0.query` and `0.fc1`. */
  linears(): Map<string, Linear> {
    const found = new Map<string, Linear>();
    for (const [i, { attention, mlp }] of this.encoder.layer.entries()) {
      const layers = { ...attention.attention, dense: attention.output.dense, ...mlp };
      for (const [name, layer] of Object.entries(layers)) {
        if (layer instanceof Linear) found.set(`${i}.${name}`, layer);
      }
    }
    return found;
  }

  /**
   * Patch tokens [B, T, C] of the last layer, or the sum of those of several layers, each as the last layer's are: after the final
   * norm (CLIP: without).
   * @param layers numbers of blocks, from 1
   */
  patches(x: Tensor, layers: readonly number[] = []): Tensor {
    const last = this.encoder.layer.length, inner = layers.filter((n) => n !== last);
    const { patches, hidden } = this.forward(x, { after: inner });
    if (inner.length === 0) return patches;
    const normed = FAMILIES[this.config.model_type].normed === "all"
      ? hidden.map((tokens) => this.layernorm.forward(tokens))
      : hidden;
    return (layers.includes(last) ? [...normed, patches] : normed).reduce(add);
  }

  /**
   * @param x normalised pixels [B, H, W, 3]; sides are multiples of the patch size, or the image size. If that is no multiple
   *   (SigLIP's 384 with patches of 14), the right and bottom margins are ignored, as in the published models
   * @param options.mask [B, T, 1], 1 where a patch is replaced by the mask token
   * @param options.after numbers of blocks, from 1: the output's `hidden` has the patch tokens after each of them
   */
  forward(
    x: Tensor,
    { mask, after = [] }: { mask?: Tensor | undefined; after?: readonly number[] } = {},
  ): VitOutput {
    const [B, H, W] = x.shape as [number, number, number];
    const { hidden_size: C, patch_size: P, num_register_tokens: R, num_attention_heads: NH } = this.config;
    const { cls: hasCls, positions, normed } = FAMILIES[this.config.model_type];
    check(
      [H, W].every((side) => fits(side, this.config)),
      "encode an image",
      `sides must be multiples of the patch size ${P}`,
      x,
    );
    const h = Math.floor(H / P), w = Math.floor(W / P), T = h * w, K = hasCls ? 1 : 0;
    if (H % P || W % P) x = slice(slice(x, 1, 0, h * P), 2, 0, w * P);
    const { cls_token, mask_token, register_tokens, patch_embeddings } = this.embeddings;
    let patches = reshape(patch_embeddings.projection.forward(x), [B, T, C]);
    if (mask) {
      check(mask_token !== undefined, "mask patches", "the model has no mask token", mask);
      patches = add(patches, mul(mask, sub(reshape(mask_token, [1, 1, C]), patches)));
    }
    let cls = cls_token && reshape(cls_token, [1, 1, C]);
    const table = this.#positions(h, w); // [1, K + T, C]
    if (table) {
      patches = add(patches, slice(table, 1, K, K + T));
      cls &&= add(cls, slice(table, 1, 0, 1));
    }
    const leading = [cls, register_tokens].filter((t) => t !== undefined);
    let y = concat([...leading.map((t) => broadcastTo(t, [B, t.dim(1), C])), patches], 1); // [B, K + R + T, C]
    if (this.input_norm) y = this.input_norm.forward(y);
    const angles = positions === "rotary" ? this.#angles(K + R, h, w, C / NH) : undefined;
    const patchesOf = (z: Tensor) => slice(z, 1, K + R, K + R + T);
    const blocks = this.encoder.layer,
      outputs = blocks.map((block) => y = recomputable(block, (y) => block.forward(y, angles), y));
    const hidden = after.map((n) => {
      check(outputs[n - 1] !== undefined, "read a hidden layer", `${n} is outside 1..${blocks.length}`, x);
      return patchesOf(outputs[n - 1] as Tensor);
    });
    if (normed === "cls") {
      const token = this.layernorm.forward(slice(y, 1, 0, 1));
      return { patches: patchesOf(y), cls: reshape(token, [B, C]), hidden };
    }
    const last = this.layernorm.forward(y);
    return {
      patches: patchesOf(last), // [B, T, C]
      ...(hasCls ? { cls: reshape(slice(last, 1, 0, 1), [B, C]) } : {}),
      ...(R ? { registers: slice(last, 1, K, K + R) } : {}),
      hidden,
    };
  }

  /** Patches along a side of the stored position embeddings. */
  get #grid(): number {
    return Math.floor(this.config.image_size / this.config.patch_size);
  }

  /** Position embeddings for an h x w grid: bicubic, with antialias for DINOv2 with registers (as published). */
  #positions(h: number, w: number): Tensor | undefined {
    const { position_embeddings: stored } = this.embeddings;
    if (!stored) return undefined;
    const { hidden_size: C, model_type, interpolate_offset: offset, interpolate_antialias } = this.config;
    const grid = this.#grid, K = FAMILIES[model_type].cls ? 1 : 0;
    const table = reshape(stored, [1, K + grid * grid, C]);
    if (h === grid && w === grid) return table;
    const map = reshape(slice(table, 1, K, K + grid * grid), [1, grid, grid, C]);
    const resized = resize(map, h, w, {
      filter: "bicubic",
      antialias: interpolate_antialias ?? model_type === "dinov2_with_registers",
      steps: [grid / (h + offset), grid / (w + offset)],
    });
    const patches = reshape(resized, [1, h * w, C]);
    return K ? concat([slice(table, 1, 0, 1), patches], 1) : patches;
  }

  /** Rotary angles for an h x w grid; zero for the leading tokens. */
  #angles(leading: number, h: number, w: number, HS: number): Angles {
    const { cos, sin } = rotaryTablesCentred(leading, h, w, HS, this.config.rope_theta);
    const shape = [leading + h * w, HS];
    return { cos: constant(cos, shape, "rotary cos"), sin: constant(sin, shape, "rotary sin") };
  }
}
