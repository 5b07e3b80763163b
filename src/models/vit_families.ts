// The supported families of vision transformers, one row each: architecture independent of size, defaults of config.json, names
// of the published tensors, and preprocessing. Names are those of the checkpoints on Hugging Face; saved tokenizers keep them.

import { z } from "zod";
import { UsageError } from "../errors.ts";
import { validated } from "../formats/files.ts";
import { MODEL_TYPES, type ModelType, type VitConfig, vitConfig } from "./vit_config.ts";
import { wrapperOf } from "./wrappers.ts";

export interface Family {
  /** Whether there is a CLS token. */
  cls: boolean;
  maskToken: boolean;
  layerScale: boolean;
  patchBias: boolean;
  /** A norm before the first block. */
  inputNorm: boolean;
  /** Position encoding: trained embeddings, a fixed table, or rotary. */
  positions: "learned" | "fixed" | "rotary";
  /** Tokens that the final norm applies to; CLIP: only CLS. */
  normed: "all" | "cls";
  /** Shapes in files: leading axes of length 1 of the single tokens, and of the table of positions. */
  axes: { cls: 0 | 2; mask: 1 | 2; positions: 0 | 1 };
  /** Defaults of its configuration class. */
  defaults: Readonly<Record<string, unknown>>;
  /** Prefix of every published name. */
  root: string;
  /** Prefixes of our paths and the published ones; N is the index of a block. */
  names: Readonly<Record<string, string>>;
  /** Prefix of every name inside a model with a head. */
  wrapper?: RegExp;
  /** Other names in use, and ours. */
  spellings?: readonly (readonly [RegExp, string])[];
  /** Ignored: heads, decoders and text towers. */
  foreign: RegExp;
  /** Processor class, and the default preprocessor_config.json. */
  processor: { type: string; published: Readonly<Record<string, unknown>> };
}

const IMAGENET = { image_mean: [0.485, 0.456, 0.406], image_std: [0.229, 0.224, 0.225] };

const BASE = { hidden_size: 768, num_hidden_layers: 12, num_attention_heads: 12 };

const dinov2 = {
  cls: true,
  maskToken: true,
  layerScale: true,
  patchBias: true,
  inputNorm: false,
  positions: "learned",
  normed: "all",
  axes: { cls: 2, mask: 1, positions: 1 },
  defaults: BASE,
  root: "",
  names: {},
  wrapper: /^dinov2\./,
  foreign: /^classifier\./,
  processor: {
    type: "BitImageProcessor",
    published: { ...IMAGENET, size: { shortest_edge: 256 }, crop_size: { height: 224, width: 224 } },
  },
} as const satisfies Family;

const vit = {
  ...dinov2,
  maskToken: false,
  layerScale: false,
  axes: { cls: 2, mask: 2, positions: 1 },
  defaults: { ...BASE, patch_size: 16, intermediate_size: 3072, layer_norm_eps: 1e-12 },
  names: {
    "encoder.layer.N.norm1": "encoder.layer.N.layernorm_before",
    "encoder.layer.N.norm2": "encoder.layer.N.layernorm_after",
    "encoder.layer.N.mlp.fc1": "encoder.layer.N.intermediate.dense",
    "encoder.layer.N.mlp.fc2": "encoder.layer.N.output.dense",
  },
  wrapper: /^vit\./,
  foreign: /^(classifier|pooler|decoder)\.|^embeddings\.mask_token$/,
  processor: { type: "ViTImageProcessor", published: {} },
} as const satisfies Family;

const siglip = {
  ...vit,
  cls: false,
  axes: { cls: 0, mask: 2, positions: 0 },
  defaults: { ...BASE, patch_size: 16, intermediate_size: 3072, hidden_act: "gelu_pytorch_tanh" },
  root: "vision_model.",
  names: {
    "embeddings.cls_token": "embeddings.class_embedding",
    "embeddings.position_embeddings": "embeddings.position_embedding.weight",
    "embeddings.patch_embeddings.projection": "embeddings.patch_embedding",
    "input_norm": "pre_layrnorm",
    "encoder.layer.N": "encoder.layers.N",
    "encoder.layer.N.norm1": "encoder.layers.N.layer_norm1",
    "encoder.layer.N.norm2": "encoder.layers.N.layer_norm2",
    "encoder.layer.N.attention.attention.query": "encoder.layers.N.self_attn.q_proj",
    "encoder.layer.N.attention.attention.key": "encoder.layers.N.self_attn.k_proj",
    "encoder.layer.N.attention.attention.value": "encoder.layers.N.self_attn.v_proj",
    "encoder.layer.N.attention.output.dense": "encoder.layers.N.self_attn.out_proj",
    "layernorm": "post_layernorm",
  },
  wrapper: /^vision_model\./,
  foreign:
    /^(text_model|classifier|text_projection|visual_projection|head)\.|^logit_(scale|bias)$|\.position_ids$/,
  processor: { type: "SiglipImageProcessor", published: {} },
} as const satisfies Family;

/** One row per model type. */
export const FAMILIES: Readonly<Record<ModelType, Family>> = {
  dinov2,
  dinov2_with_registers: {
    ...dinov2,
    defaults: { ...BASE, patch_size: 16, num_register_tokens: 4 },
    wrapper: /^dinov2_with_registers\./,
  },
  dinov3_vit: {
    ...dinov2,
    positions: "rotary",
    axes: { cls: 2, mask: 2, positions: 1 },
    defaults: {
      hidden_size: 384,
      intermediate_size: 1536,
      num_hidden_layers: 12,
      num_attention_heads: 6,
      patch_size: 16,
      layer_norm_eps: 1e-5,
      key_bias: false,
    },
    names: {
      "embeddings.patch_embeddings.projection": "embeddings.patch_embeddings",
      "encoder.layer.N": "layer.N",
      "encoder.layer.N.attention.attention.query": "layer.N.attention.q_proj",
      "encoder.layer.N.attention.attention.key": "layer.N.attention.k_proj",
      "encoder.layer.N.attention.attention.value": "layer.N.attention.v_proj",
      "encoder.layer.N.attention.output.dense": "layer.N.attention.o_proj",
      "encoder.layer.N.mlp.fc1": "layer.N.mlp.up_proj",
      "encoder.layer.N.mlp.fc2": "layer.N.mlp.down_proj",
      "layernorm": "norm",
    },
    wrapper: /^(dinov3_vit|dinov3)\./,
    spellings: [
      [/^(model|encoder)\.layer\./, "layer."],
      [/\.attention\.(attention\.)?query\./, ".attention.q_proj."],
      [/\.attention\.(attention\.)?key\./, ".attention.k_proj."],
      [/\.attention\.(attention\.)?value\./, ".attention.v_proj."],
      [/\.attention\.output\.dense\./, ".attention.o_proj."],
      [/\.mlp\.fc1\./, ".mlp.up_proj."],
      [/\.mlp\.fc2\./, ".mlp.down_proj."],
    ],
    processor: { type: "DINOv3ViTImageProcessor", published: {} },
  },
  siglip_vision_model: siglip,
  clip_vision_model: {
    ...siglip,
    cls: true,
    patchBias: false,
    inputNorm: true,
    normed: "cls",
    defaults: {
      ...BASE,
      patch_size: 32,
      intermediate_size: 3072,
      hidden_act: "quick_gelu",
      layer_norm_eps: 1e-5,
    },
    processor: { type: "CLIPImageProcessor", published: {} },
  },
  vit,
  vit_mae: { ...vit, positions: "fixed", processor: { type: "ViTImageProcessor", published: IMAGENET } },
};

/** Two-tower models and the type of their vision tower. */
const TOWERS: Readonly<Record<string, ModelType>> = {
  siglip: "siglip_vision_model",
  clip: "clip_vision_model",
};

const published = z.looseObject({ model_type: z.string(), vision_config: z.looseObject({}).default({}) });

/**
 * Parses a config.json.
 * @param path of the file, for messages
 * @throws UsageError for model types and settings that are not supported
 */
export function architectureOf(json: unknown, path: string): VitConfig {
  const fields = validated(published, json, path);
  const tower = TOWERS[fields.model_type];
  const type = tower ?? MODEL_TYPES.find((t) => t === fields.model_type);
  if (!type) {
    const supported = [...MODEL_TYPES, ...Object.keys(TOWERS)].join(", ");
    throw new UsageError(
      `Cannot use "${path}": encoders of type "${fields.model_type}" are not supported; supported: ${supported}`,
    );
  }
  const own = tower ? fields.vision_config : fields;
  return validated(vitConfig, { ...FAMILIES[type].defaults, ...own, model_type: type }, path);
}

/** The published name of the tensor at a path inside a Vit. */
export function publishedName(type: ModelType, path: string): string {
  const { root, names } = FAMILIES[type];
  const number = /\.layer\.(\d+)\./.exec(path)?.[1] ?? "";
  const general = path.replace(`.layer.${number}.`, ".layer.N.");
  const [key] = Object.keys(names).filter((k) => `${general}.`.startsWith(`${k}.`))
    .sort((a, b) => b.length - a.length);
  const name = key === undefined ? general : names[key] + general.slice(key.length);
  return root + name.replace(".N.", `.${number}.`);
}

/**
 * Locates an encoder in a checkpoint: published names to the file's keys, for any wrapping model and any of the known namings.
 * Heads and text towers are left out; unknown keys keep their names, so that strict loading reports them.
 */
export function publishedKeys(type: ModelType, keys: Iterable<string>): Map<string, string> {
  const { root, wrapper, spellings = [], foreign } = FAMILIES[type];
  const unwrap = (key: string) => wrapper ? key.replace(wrapper, "") : key;
  const found = new Map<string, string>(), all = [...keys];
  const anchor = publishedName(type, "embeddings.patch_embeddings.projection.weight").slice(root.length);
  const prefix = wrapperOf(all, (name) => unwrap(name) === anchor) ?? "";
  for (const key of all) {
    if (!key.startsWith(prefix)) continue;
    const bare = unwrap(key.slice(prefix.length));
    if (foreign.test(bare)) continue;
    const name = root + spellings.reduce((text, [from, to]) => text.replace(from, to), bare);
    found.set(found.has(name) ? key : name, key);
  }
  return found;
}
