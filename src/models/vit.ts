// Vision transformer in DINOv2's layout as Hugging Face names it: patch embedding, CLS token, optional registers,
// pre-norm blocks with LayerScale, exact-GELU MLP or SwiGLU, final LayerNorm.
// Oquab et al. (2023), Darcet et al. (2023) for the registers. Position embeddings are interpolated when the input's
// grid is not the native one, by the filter that each family's official code uses.

import { z } from "zod";
import { add, mul, sub } from "../ops/math.ts";
import { attention } from "../ops/attention.ts";
import { resize } from "../ops/resize.ts";
import { concat, reshape, slice } from "../ops/shape.ts";
import { swiglu } from "../ops/modulate.ts";
import { Conv2d, type Initializer, LayerNorm, Linear } from "../nn.ts";
import { broadcastTo } from "../ops/shape.ts";
import { check, parameter, type Tensor } from "../tensor.ts";

/** The fields of a Hugging Face `config.json` that decide the architecture. */
export const vitConfig = z.object({
  model_type: z.enum(["dinov2", "dinov2_with_registers"]).default("dinov2"),
  hidden_size: z.number().int().positive(),
  num_hidden_layers: z.number().int().positive(),
  num_attention_heads: z.number().int().positive(),
  mlp_ratio: z.number().positive().default(4),
  patch_size: z.number().int().positive().default(14),
  image_size: z.number().int().positive().default(224),
  num_channels: z.literal(3).default(3),
  hidden_act: z.literal("gelu").default("gelu"),
  layer_norm_eps: z.number().positive().default(1e-6),
  qkv_bias: z.literal(true).default(true),
  use_swiglu_ffn: z.boolean().default(false),
  layerscale_value: z.number().default(1),
  num_register_tokens: z.number().int().nonnegative().default(0),
});
export type VitConfig = z.infer<typeof vitConfig>;

/** What a forward pass gives. */
export interface VitOutput {
  /** Normed patch tokens of the last layer [B, T, C]. */
  patches: Tensor;
  /** Normed CLS token [B, C]. */
  cls: Tensor;
  /** Normed register tokens [B, R, C], where the model has them. */
  registers?: Tensor;
  /** Patch tokens after each block, without the final norm. */
  layers: Tensor[];
}

class Attention {
  readonly attention: { query: Linear; key: Linear; value: Linear };
  readonly output: { dense: Linear };

  constructor(C: number, readonly config: { NH: number }) {
    this.attention = { query: new Linear(C, C), key: new Linear(C, C), value: new Linear(C, C) };
    this.output = { dense: new Linear(C, C) };
  }

  forward(x: Tensor): Tensor {
    const [B, T, C] = x.shape as [number, number, number];
    const heads = [B, T, this.config.NH, C / this.config.NH];
    const q = reshape(this.attention.query.forward(x), heads); // [B, T, NH, HS]
    const k = reshape(this.attention.key.forward(x), heads);
    const v = reshape(this.attention.value.forward(x), heads);
    return this.output.dense.forward(attention(q, k, v)); // [B, T, C]
  }
}

class Mlp {
  readonly fc1: Linear;
  readonly fc2: Linear;

  constructor(C: number, hidden: number) {
    this.fc1 = new Linear(C, hidden);
    this.fc2 = new Linear(hidden, C);
  }

  forward(x: Tensor): Tensor {
    return this.fc2.forward(this.fc1.forward(x, { activation: "gelu" }));
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

class Block {
  readonly norm1: LayerNorm;
  readonly attention: Attention;
  readonly layer_scale1: { lambda1: Tensor };
  readonly norm2: LayerNorm;
  readonly mlp: Mlp | SwiGlu;
  readonly layer_scale2: { lambda1: Tensor };

  constructor(c: VitConfig) {
    const C = c.hidden_size, hidden = Math.floor(C * c.mlp_ratio);
    const lambda = () => ({ lambda1: parameter([C], () => new Float32Array(C).fill(c.layerscale_value)) });
    this.norm1 = new LayerNorm(C, c.layer_norm_eps);
    this.attention = new Attention(C, { NH: c.num_attention_heads });
    this.layer_scale1 = lambda();
    this.norm2 = new LayerNorm(C, c.layer_norm_eps);
    this.mlp = c.use_swiglu_ffn ? new SwiGlu(C, hidden) : new Mlp(C, hidden);
    this.layer_scale2 = lambda();
  }

  forward(x: Tensor): Tensor {
    const y = add(x, mul(this.attention.forward(this.norm1.forward(x)), this.layer_scale1.lambda1)); // [B, T, C]
    return add(y, mul(this.mlp.forward(this.norm2.forward(y)), this.layer_scale2.lambda1));
  }
}

export class Vit {
  readonly embeddings: {
    cls_token: Tensor;
    mask_token: Tensor;
    position_embeddings: Tensor;
    register_tokens?: Tensor;
    patch_embeddings: { projection: Conv2d };
  };
  readonly encoder: { layer: Block[] };
  readonly layernorm: LayerNorm;

  constructor(readonly config: VitConfig) {
    const { hidden_size: C, patch_size: P, image_size, num_register_tokens: R } = config;
    check(
      C % config.num_attention_heads === 0,
      "build a ViT",
      `hidden_size ${C} is not divisible by its heads`,
    );
    const zeros = (...shape: number[]) =>
      parameter(shape, () => new Float32Array(shape.reduce((a, b) => a * b, 1)), "embeddings");
    const grid = Math.floor(image_size / P);
    this.embeddings = {
      cls_token: zeros(1, 1, C),
      mask_token: zeros(1, C),
      position_embeddings: zeros(1, 1 + grid * grid, C),
      ...(R ? { register_tokens: zeros(1, R, C) } : {}),
      patch_embeddings: { projection: new Conv2d(3, C, P, { stride: P }) },
    };
    this.encoder = { layer: Array.from({ length: config.num_hidden_layers }, () => new Block(config)) };
    this.layernorm = new LayerNorm(C, config.layer_norm_eps);
  }

  /** Random values as DINOv2 starts from: normal(0.02) everywhere, LayerScale at its configured value. */
  init(init: Initializer): void {
    const { cls_token, position_embeddings, register_tokens, patch_embeddings } = this.embeddings;
    init.normal(cls_token, 0.02);
    init.normal(position_embeddings, 0.02);
    if (register_tokens) init.normal(register_tokens, 0.02);
    init.torchDefault(patch_embeddings.projection);
    for (const { norm1, norm2, attention, mlp } of this.encoder.layer) {
      init.norm(norm1);
      init.norm(norm2);
      const linears = [...Object.values(attention.attention), attention.output.dense, ...Object.values(mlp)];
      for (const { weight } of linears) init.normal(weight, 0.02);
    }
    init.norm(this.layernorm);
  }

  /**
   * @param x normalised pixels [B, H, W, 3], H and W multiples of the patch size
   * @param mask [B, T, 1], 1 where a patch is replaced by the mask token
   */
  forward(x: Tensor, mask?: Tensor): VitOutput {
    const [B, H, W] = x.shape as [number, number, number];
    const { hidden_size: C, patch_size: P, num_register_tokens: R } = this.config;
    check(H % P === 0 && W % P === 0, "encode an image", `sides must be multiples of the patch size ${P}`, x);
    const h = H / P, w = W / P, T = h * w;
    const { cls_token, mask_token, register_tokens, patch_embeddings } = this.embeddings;
    let tokens = reshape(patch_embeddings.projection.forward(x), [B, T, C]);
    if (mask) tokens = add(tokens, mul(mask, sub(mask_token, tokens)));
    const position = this.#positions(h, w); // [1, 1 + T, C]
    const patches = add(tokens, slice(position, 1, 1, 1 + T));
    const cls = broadcastTo(add(cls_token, slice(position, 1, 0, 1)), [B, 1, C]);
    const parts = register_tokens ? [cls, broadcastTo(register_tokens, [B, R, C]), patches] : [cls, patches];
    let y = concat(parts, 1); // [B, 1 + R + T, C]
    const layers: Tensor[] = [];
    for (const block of this.encoder.layer) {
      y = block.forward(y);
      layers.push(slice(y, 1, 1 + R, 1 + R + T));
    }
    const normed = this.layernorm.forward(y);
    return {
      patches: slice(normed, 1, 1 + R, 1 + R + T), // [B, T, C]
      cls: reshape(slice(normed, 1, 0, 1), [B, C]),
      ...(R ? { registers: slice(normed, 1, 1, 1 + R) } : {}),
      layers,
    };
  }

  /** Position embeddings for an h x w grid: bicubic, with antialias in the family with registers (as published). */
  #positions(h: number, w: number): Tensor {
    const { position_embeddings: position } = this.embeddings;
    const { hidden_size: C, image_size, patch_size, model_type } = this.config;
    const grid = Math.floor(image_size / patch_size);
    if (h === grid && w === grid) return position;
    const map = reshape(slice(position, 1, 1, 1 + grid * grid), [1, grid, grid, C]);
    const antialias = model_type === "dinov2_with_registers";
    const resized = resize(map, h, w, { filter: "bicubic", antialias });
    return concat([slice(position, 1, 0, 1), reshape(resized, [1, h * w, C])], 1);
  }
}
