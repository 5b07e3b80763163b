// Encoders in their authors' files, torch state dicts without a configuration: DINOv2, DINOv3 and MAE. The architecture is
// inferred from the shapes; queries, keys and values are one fused projection. Settings that cannot be inferred (norm epsilons,
// position interpolation) are those of the authors' code.
// https://github.com/facebookresearch: dinov2, dinov3, mae

import { UsageError } from "../errors.ts";
import { validated } from "../formats/files.ts";
import type { Origin } from "../formats/mapped_store.ts";
import type { Shape } from "../tensor/tensor.ts";
import { type VitConfig, vitConfig } from "./vit_config.ts";
import { publishedName } from "./vit_families.ts";
import { wrapperOf } from "./wrappers.ts";

export interface AuthorsModel {
  config: VitConfig;
  /** The Vit's tensors by their published names: origin in the file, and shape. */
  entries: Map<string, Origin>;
  /** Shapes that differ from the file's in leading axes of length 1. */
  shapes: Map<string, Shape>;
}

/** A tensor that all of them have. */
export const AUTHORS_ANCHOR = "patch_embed.proj.weight";

/** Prefixes of the authors' names and ours. */
const PATHS: Readonly<Record<string, string>> = {
  "cls_token": "embeddings.cls_token",
  "mask_token": "embeddings.mask_token",
  "pos_embed": "embeddings.position_embeddings",
  "register_tokens": "embeddings.register_tokens",
  "storage_tokens": "embeddings.register_tokens",
  "patch_embed.proj": "embeddings.patch_embeddings.projection",
  "norm": "layernorm",
  "block.norm1": "block.norm1",
  "block.norm2": "block.norm2",
  "block.attn.proj": "block.attention.output.dense",
  "block.ls1.gamma": "block.layer_scale1.lambda1",
  "block.ls2.gamma": "block.layer_scale2.lambda1",
  "block.mlp.fc1": "block.mlp.fc1",
  "block.mlp.fc2": "block.mlp.fc2",
  "block.mlp.w12": "block.mlp.weights_in",
  "block.mlp.w1": "block.mlp.gate_proj",
  "block.mlp.w2": "block.mlp.up_proj",
};

/** Ignored: MAE's decoder, heads, DINOv3's frequencies, bias masks and norm of local crops. */
const FOREIGN = /^(decoder_|head\.|local_cls_norm\.|rope_embed\.periods$)|\.attn\.qkv\.bias_mask$/;

/**
 * Recognises a state dict by its keys.
 * @param source its name and the shapes of its tensors
 * @returns undefined for other files
 * @throws UsageError for an unsupported architecture
 */
export function authorsModel(
  source: { name: string; shapes: ReadonlyMap<string, Shape> },
): AuthorsModel | undefined {
  const wrapper = wrapperOf(source.shapes.keys(), AUTHORS_ANCHOR);
  if (wrapper === undefined) return undefined;
  const shapes = new Map<string, Shape>(), origins = new Map<string, string>();
  for (const [key, shape] of source.shapes) {
    if (!key.startsWith(wrapper)) continue;
    // DINOv2's training code stores blocks in chunks for FSDP, blocks.CHUNK.N, where N counts over all chunks.
    const own = key.slice(wrapper.length).replace(/^blocks\.\d+\.(\d+)\./, "blocks.$1.");
    const other = origins.get(own);
    if (other !== undefined) {
      throw new UsageError(
        `Cannot load "${source.name}": "${key}" and "${other}" are the same tensor of the encoder; keep one of them`,
      );
    }
    shapes.set(own, shape);
    origins.set(own, key);
  }
  const config = inferred(source.name, shapes);
  const { model_type: type, hidden_size: C } = config;
  const name = (path: string) => publishedName(type, path);
  const entries = new Map<string, Origin>(), reshaped = new Map<string, Shape>();
  for (const [key, shape] of shapes) {
    // MAE's mask token is its decoder's.
    if (FOREIGN.test(key) || (type === "vit_mae" && key === "mask_token")) continue;
    const origin = origins.get(key) as string;
    const [, n, kind] = /^blocks\.(\d+)\.attn\.qkv\.(weight|bias)$/.exec(key) ?? [];
    if (n === undefined) {
      const own = ours(key, config);
      entries.set(own === undefined ? key : name(own), origin);
      if (type === "dinov3_vit" && key === "mask_token") {
        reshaped.set(name("embeddings.mask_token"), [1, ...shape]);
      }
      continue;
    }
    (["query", "key", "value"] as const).forEach((part, i) => {
      if (kind === "bias" && !config[`${part}_bias`]) return;
      const path = `encoder.layer.${n}.attention.attention.${part}.${kind}`;
      entries.set(name(path), { key: origin, rows: [i * C, (i + 1) * C] });
    });
  }
  return { config, entries, shapes: reshaped };
}

function ours(key: string, config: VitConfig): string | undefined {
  const [, n] = /^blocks\.(\d+)\./.exec(key) ?? [];
  const general = key.replace(/^blocks\.\d+\./, "block.");
  if (general.startsWith("block.mlp.w3.")) {
    const last = config.use_swiglu_ffn ? "weights_out" : "down_proj";
    return `encoder.layer.${n}.mlp.${last}.${general.slice("block.mlp.w3.".length)}`;
  }
  const path = Object.keys(PATHS).find((p) => general === p || general.startsWith(`${p}.`));
  if (path === undefined) return undefined;
  return (PATHS[path] + general.slice(path.length)).replace(/^block\./, `encoder.layer.${n}.`);
}

/** Heads of 64 channels, with two exceptions. */
function headsOf(type: VitConfig["model_type"], C: number): number {
  if (type === "vit_mae" && C === 1280) return 16; // MAE's ViT-H
  if (type === "dinov3_vit" && C === 4096) return 32; // DINOv3's ViT-7B
  return C / 64;
}

function inferred(name: string, shapes: ReadonlyMap<string, Shape>): VitConfig {
  const refuse = (reason: string) =>
    new UsageError(`Cannot load "${name}": ${reason}; check that it is an encoder's checkpoint`);
  const at = (key: string, rank: number): Shape => {
    const shape = shapes.get(key);
    if (shape?.length !== rank) throw refuse(`"${key}" is ${shape ? `[${shape.join(", ")}]` : "missing"}`);
    return shape;
  };
  const [C, , P] = at("patch_embed.proj.weight", 4) as [number, number, number, number];
  const depth = [...shapes.keys()].filter((key) => /^blocks\.\d+\.norm1\.weight$/.test(key)).length;
  const rotary = !shapes.has("pos_embed"), scaled = shapes.has("blocks.0.ls1.gamma");
  const registers = shapes.get("register_tokens")?.[1] ?? shapes.get("storage_tokens")?.[1] ?? 0;
  const type = rotary ? "dinov3_vit" : !scaled ? "vit_mae" : registers ? "dinov2_with_registers" : "dinov2";
  const heads = headsOf(type, C);
  if (!depth || !Number.isInteger(heads)) {
    throw refuse(`${depth} blocks of ${C} channels are no known architecture`);
  }
  const common = {
    model_type: type,
    hidden_size: C,
    num_hidden_layers: depth,
    num_attention_heads: heads,
    patch_size: P,
    num_register_tokens: registers,
    use_mask_token: shapes.has("mask_token"),
  };
  const hidden = (key: string) => ({ intermediate_size: at(`blocks.0.mlp.${key}.weight`, 2)[0] as number });
  if (rotary) {
    const gated = shapes.has("blocks.0.mlp.w1.weight"), bias = shapes.has("blocks.0.attn.qkv.bias");
    const config = {
      ...common,
      ...(gated ? { use_gated_mlp: true, hidden_act: "silu", ...hidden("w1") } : hidden("fc1")),
      query_bias: bias,
      key_bias: bias && !shapes.has("blocks.0.attn.qkv.bias_mask"),
      value_bias: bias,
      layer_norm_eps: 1e-5,
    };
    return validated(vitConfig, config, name);
  }
  const positions = at("pos_embed", 3)[1] as number, grid = Math.sqrt(positions - 1);
  if (!Number.isInteger(grid)) {
    throw refuse(`${positions} positions are not a square of patches and one more`);
  }
  const swiglu = shapes.has("blocks.0.mlp.w12.weight");
  const config = {
    ...common,
    image_size: grid * P,
    ...(swiglu ? { use_swiglu_ffn: true } : hidden("fc1")),
    interpolate_offset: type === "dinov2" ? 0.1 : 0,
  };
  return validated(vitConfig, config, name);
}
