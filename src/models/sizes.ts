// Sizes of published models by name, so that parameter counts can be compared with the published ones. Building a model
// allocates nothing; memory is allocated on first use.

import { hint } from "../cli/flags.ts";
import { UsageError } from "../errors.ts";
import { countParameters } from "../nn/layers.ts";
import { Autoencoder, AUTOENCODER_SIZES } from "./autoencoder.ts";
import { Decoder, decoderConfig } from "./decoder.ts";
import { countDit, Dit, DIT_SIZES, ditConfig } from "./dit.ts";
import { inceptionParameters } from "./inception.ts";
import { Lpips } from "./lpips.ts";
import { Vit, type VitConfig } from "./vit.ts";
import { architectureOf } from "./vit_families.ts";

/** A published size. */
export interface PublishedSize {
  /** Description, for people. */
  about: string;
  /** Number of parameters as its authors count them: fixed position tables are included if they are stored. */
  parameters(): number;
}

/** Sizes of vision transformers. */
const SMALL = { hidden_size: 384, intermediate_size: 1536, num_hidden_layers: 12, num_attention_heads: 6 };
const BASE = { hidden_size: 768, intermediate_size: 3072, num_hidden_layers: 12, num_attention_heads: 12 };
const LARGE = { hidden_size: 1024, intermediate_size: 4096, num_hidden_layers: 24, num_attention_heads: 16 };
const HUGE = { hidden_size: 1280, intermediate_size: 5120, num_hidden_layers: 32, num_attention_heads: 20 };
const GIANT = { hidden_size: 1536, intermediate_size: 6144, num_hidden_layers: 40, num_attention_heads: 24 };
const B7 = { hidden_size: 4096, intermediate_size: 8192, num_hidden_layers: 40, num_attention_heads: 32 };
const SO400M = { hidden_size: 1152, intermediate_size: 4304, num_hidden_layers: 27, num_attention_heads: 16 };

const gated = { use_gated_mlp: true, hidden_act: "silu" };
const dinov2 = { model_type: "dinov2", patch_size: 14, image_size: 518 };
const registers = { ...dinov2, model_type: "dinov2_with_registers" };
const dinov3 = { model_type: "dinov3_vit", num_register_tokens: 4 };
const siglip = { model_type: "siglip_vision_model" };

const ENCODERS: Readonly<Record<string, [about: string, config: Record<string, unknown>]>> = {
  "dinov2-s": ["DINOv2 ViT-S/14", { ...dinov2, ...SMALL }],
  "dinov2-b": ["DINOv2 ViT-B/14", { ...dinov2, ...BASE }],
  "dinov2-l": ["DINOv2 ViT-L/14", { ...dinov2, ...LARGE }],
  "dinov2-g": ["DINOv2 ViT-g/14", { ...dinov2, ...GIANT, use_swiglu_ffn: true }],
  "dinov2-s-reg": ["DINOv2 ViT-S/14 with registers", { ...registers, ...SMALL }],
  "dinov2-b-reg": ["DINOv2 ViT-B/14 with registers", { ...registers, ...BASE }],
  "dinov2-l-reg": ["DINOv2 ViT-L/14 with registers", { ...registers, ...LARGE }],
  "dinov2-g-reg": ["DINOv2 ViT-g/14 with registers", { ...registers, ...GIANT, use_swiglu_ffn: true }],
  "dinov3-s": ["DINOv3 ViT-S/16", { ...dinov3, ...SMALL }],
  "dinov3-s-plus": ["DINOv3 ViT-S+/16", { ...dinov3, ...SMALL, ...gated }],
  "dinov3-b": ["DINOv3 ViT-B/16", { ...dinov3, ...BASE }],
  "dinov3-l": ["DINOv3 ViT-L/16", { ...dinov3, ...LARGE }],
  "dinov3-h-plus": ["DINOv3 ViT-H+/16", { ...dinov3, ...HUGE, ...gated }],
  "dinov3-7b": ["DINOv3 ViT-7B/16", { ...dinov3, ...B7, ...gated, query_bias: false, value_bias: false }],
  "siglip-b16-224": ["SigLIP ViT-B/16, vision tower without its pooling head", siglip],
  "siglip2-b16-256": [
    "SigLIP 2 ViT-B/16 at 256, vision tower without its pooling head",
    { ...siglip, image_size: 256 },
  ],
  "siglip2-l16-256": [
    "SigLIP 2 ViT-L/16 at 256, vision tower without its pooling head",
    { ...siglip, ...LARGE, image_size: 256 },
  ],
  "siglip2-l16-512": [
    "SigLIP 2 ViT-L/16 at 512, vision tower without its pooling head",
    { ...siglip, ...LARGE, image_size: 512 },
  ],
  "siglip-so400m-14-384": [
    "SigLIP ViT-So400m/14, vision tower without its pooling head",
    { ...siglip, ...SO400M, patch_size: 14, image_size: 384 },
  ],
  "clip-l14": ["CLIP ViT-L/14, vision tower", { model_type: "clip_vision_model", ...LARGE, patch_size: 14 }],
  "vit-b16": ["ViT-B/16 without its pooler", { model_type: "vit" }],
  "mae-b16": ["MAE ViT-B/16, without its fixed positions", { model_type: "vit_mae" }],
  "mae-l16": ["MAE ViT-L/16, without its fixed positions", { model_type: "vit_mae", ...LARGE }],
};

/** Names on the Hugging Face hub of encoders whose sizes are known. */
const HUB_NAMES: Readonly<Record<string, string>> = {
  "facebook/dinov2-small": "dinov2-s",
  "facebook/dinov2-base": "dinov2-b",
  "facebook/dinov2-large": "dinov2-l",
  "facebook/dinov2-giant": "dinov2-g",
  "google/siglip2-base-patch16-256": "siglip2-b16-256",
  "google/siglip2-large-patch16-256": "siglip2-l16-256",
  "google/siglip2-large-patch16-512": "siglip2-l16-512",
  "facebook/vit-mae-base": "mae-b16",
  "facebook/vit-mae-large": "mae-l16",
};

/** The architecture of a published encoder by its name on the Hugging Face hub; undefined if it is not known. */
export function publishedEncoder(name: string): VitConfig | undefined {
  const [, config] = ENCODERS[HUB_NAMES[name] ?? ""] ?? [];
  return config && architectureOf(config, name);
}

const size = (about: string, make: () => object): PublishedSize => ({
  about,
  parameters: () => countParameters(make()),
});

/** All published sizes by name. */
export const PUBLISHED: ReadonlyMap<string, PublishedSize> = new Map([
  ...Object.entries(ENCODERS).map(([name, [about, config]]) =>
    [name, size(about, () => new Vit(architectureOf(config, name)))] as const
  ),
  ["vavae-decoder", size("VA-VAE's decoder, f16d32", () => new Decoder(decoderConfig.parse({})))],
  ["vavae", size("VA-VAE, f16d32: encoder and decoder", () => new Autoencoder(AUTOENCODER_SIZES.vavae))],
  [
    "sd-vae",
    size(
      "Stable Diffusion's autoencoder, f8d4: encoder and decoder",
      () => new Autoencoder(AUTOENCODER_SIZES["sd-vae"]),
    ),
  ],
  ["lpips-vgg", size("LPIPS-VGG: VGG-16's convolutions and the linear layers", () => new Lpips())],
  ["inception", {
    about: "Inception-v3 of the Frechet distance, 1008 classes",
    parameters: inceptionParameters,
  }],
  ...Object.entries(DIT_SIZES).map(([name, config]) => {
    const about = `LightningDiT-${name}, latents [16, 16, 32], 1000 classes`;
    const parameters = () => countDit(new Dit(ditConfig.parse(config)));
    return [`lightningdit-${name.toLowerCase()}`, { about, parameters }] as const;
  }),
]);

/** A size by its name. @throws UsageError with a hint for an unknown one */
export function publishedSize(name: string): PublishedSize {
  const size = PUBLISHED.get(name), known = [...PUBLISHED.keys()];
  if (size) return size;
  throw new UsageError(
    `Cannot inspect --preset ${name}: there is no such size` +
      `${hint(name, known, "") || `; there are ${known.join(", ")} and all`}`,
  );
}
