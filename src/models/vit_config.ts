// Configuration of a vision transformer: the fields of a Hugging Face `config.json` that decide the architecture. Fields with one
// allowed value have it in all published checkpoints of these families. What depends on the family only is in vit_families.ts.

import { z } from "zod";
import { count, countOrNone, fitsPositions, POSITIONS_ERROR } from "../bounds.ts";

/** A side; some files give two equal numbers. */
const side = () =>
  z.preprocess((v) => Array.isArray(v) && v.length === 2 && v[0] === v[1] ? v[0] : v, count("pixels"));

export const MODEL_TYPES = [
  "dinov2",
  "dinov2_with_registers",
  "dinov3_vit",
  "siglip_vision_model",
  "clip_vision_model",
  "vit",
  "vit_mae",
] as const;
export type ModelType = typeof MODEL_TYPES[number];

/** Sizes and switches of an encoder. Defaults are DINOv2's. */
export const vitConfig = z.object({
  model_type: z.enum(MODEL_TYPES).default("dinov2"),
  hidden_size: count("channels"),
  num_hidden_layers: count("layers"),
  num_attention_heads: count("heads"),
  /** Hidden width of the feed-forward; default `mlp_ratio` times the hidden size. */
  intermediate_size: count("channels").optional(),
  mlp_ratio: z.number().positive().max(64).default(4),
  patch_size: side().default(14),
  /** Image side of the stored position embeddings, pixels. */
  image_size: side().default(224),
  num_channels: z.literal(3).default(3),
  hidden_act: z.enum(["gelu", "gelu_pytorch_tanh", "quick_gelu", "silu"]).default("gelu"),
  layer_norm_eps: z.number().positive().default(1e-6),
  qkv_bias: z.literal(true).default(true),
  query_bias: z.boolean().default(true),
  key_bias: z.boolean().default(true),
  value_bias: z.boolean().default(true),
  proj_bias: z.literal(true).default(true),
  mlp_bias: z.literal(true).default(true),
  /** DINOv2's SwiGLU: one fused input projection, hidden width 2/3 of the MLP's. */
  use_swiglu_ffn: z.boolean().default(false),
  /** DINOv3's gated feed-forward: `hidden_act` of a gate times a projection, of the full hidden width. */
  use_gated_mlp: z.boolean().default(false),
  use_mask_token: z.boolean().default(true),
  /** Initial value of LayerScale. */
  layerscale_value: z.number().default(1),
  num_register_tokens: countOrNone("tokens").default(0),
  /** Base of the rotary frequencies. */
  rope_theta: z.number().positive().default(100),
  /**
   * Offset in position-embedding interpolation from N to n patches, scale = (n + offset) / N: 0 in Hugging Face, 0.1 in the code
   * of DINOv2's authors for models without registers.
   */
  interpolate_offset: z.number().min(0).lt(1).default(0),
  /** Antialias in position-embedding interpolation [only DINOv2 with registers, as published]; timm's code uses it always. */
  interpolate_antialias: z.boolean().optional(),
}).refine(
  ({ model_type: type, image_size, patch_size, hidden_size }) =>
    type === "dinov3_vit" || fitsPositions(image_size / patch_size, hidden_size),
  { ...POSITIONS_ERROR, path: ["image_size"] },
);
export type VitConfig = z.infer<typeof vitConfig>;
