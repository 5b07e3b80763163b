// The sizes in which models are published: what tok builds for each name, so that its number of parameters can be compared
// with the published one. Building a model makes shapes only; memory comes with its first use.

import { countParameters } from "../nn.ts";
import { Autoencoder, AUTOENCODER_SIZES } from "./autoencoder.ts";
import { Decoder, decoderConfig } from "./decoder.ts";
import { Dit, DIT_SIZES, ditConfig } from "./dit.ts";
import { inceptionParameters } from "./inception.ts";
import { Lpips } from "./lpips.ts";
import { Vit, vitConfig } from "./vit.ts";

/** A published size. */
export interface PublishedSize {
  /** What it is, for people. */
  about: string;
  /** Numbers that its authors count as parameters: fixed position tables are among them where they are stored so. */
  parameters(): number;
}

const DINOV2 = {
  s: { hidden_size: 384, num_hidden_layers: 12, num_attention_heads: 6 },
  b: { hidden_size: 768, num_hidden_layers: 12, num_attention_heads: 12 },
  l: { hidden_size: 1024, num_hidden_layers: 24, num_attention_heads: 16 },
  g: { hidden_size: 1536, num_hidden_layers: 40, num_attention_heads: 24, use_swiglu_ffn: true },
};

function* dinov2(): Generator<[string, PublishedSize]> {
  for (const registers of [0, 4]) {
    for (const [size, config] of Object.entries(DINOV2)) {
      yield [`dinov2-${size}${registers ? "-reg" : ""}`, {
        about: `DINOv2 ViT-${size.toUpperCase()}/14${registers ? " with registers" : ""}`,
        parameters: () =>
          countParameters(
            new Vit(
              vitConfig.parse({ ...config, patch_size: 14, image_size: 518, num_register_tokens: registers }),
            ),
          ),
      }];
    }
  }
}

function* lightningDit(): Generator<[string, PublishedSize]> {
  for (const [size, config] of Object.entries(DIT_SIZES)) {
    yield [`lightningdit-${size.toLowerCase()}`, {
      about: `LightningDiT-${size}, latents [16, 16, 32], 1000 classes`,
      parameters: () => {
        const dit = new Dit(ditConfig.parse(config));
        return countParameters(dit) + dit.pos_embed.size;
      },
    }];
  }
}

/** All of them by name. */
export const PUBLISHED: ReadonlyMap<string, PublishedSize> = new Map([
  ...dinov2(),
  ["vavae-decoder", {
    about: "VA-VAE's decoder, f16d32",
    parameters: () => countParameters(new Decoder(decoderConfig.parse({}))),
  }],
  ["vavae", {
    about: "VA-VAE, f16d32: encoder and decoder",
    parameters: () => countParameters(new Autoencoder(AUTOENCODER_SIZES.vavae)),
  }],
  ["sd-vae", {
    about: "Stable Diffusion's autoencoder, f8d4: encoder and decoder",
    parameters: () => countParameters(new Autoencoder(AUTOENCODER_SIZES["sd-vae"])),
  }],
  ["lpips-vgg", {
    about: "LPIPS-VGG: VGG-16's convolutions and the linear layers",
    parameters: () => countParameters(new Lpips()),
  }],
  ["inception", {
    about: "Inception-v3 of the Frechet distance, 1008 classes",
    parameters: () => inceptionParameters(),
  }],
  ...lightningDit(),
]);
