// The convolutional autoencoder of LDM, SD-VAE and VA-VAE with LDM's tensor names: the encoder mirrors the decoder (levels of
// residual blocks with strided convolutions between them, then residual block, attention, residual block). Rombach et al.
// (2022), arXiv 2112.10752; VA-VAE: Yao et al. (2025). The posterior is Gaussian; tok uses its mode, the first half of the
// moments, instead of sampling.

import { z } from "zod";
import { count } from "../bounds.ts";
import type { Initializer } from "../nn/init.ts";
import { Conv2d, GroupNorm } from "../nn/layers.ts";
import { slice } from "../ops/layout.ts";
import type { Tensor } from "../tensor/tensor.ts";
import {
  AttnBlock,
  Decoder,
  decoderConfig,
  initBlocks,
  type Level,
  Middle,
  ResBlock,
  throughLevel,
  widthsOf,
} from "./decoder.ts";
import { type Posterior, posteriorOf } from "./posterior.ts";
import {
  cellsAlong,
  type ImageTokenizer,
  type LatentStatistics,
  readStatistics,
  statisticsVariables,
  type TokenizerIdentity,
  type TrainableTokenizer,
  writeStatistics,
} from "./tokenizer.ts";

export const convEncoderConfig = decoderConfig.omit({ out_ch: true }).extend({
  in_channels: z.literal(3).default(3),
  /** Whether it outputs mean and log-variance (2 x z_channels) or z_channels only. */
  double_z: z.boolean().default(true),
});
export type ConvEncoderConfig = z.infer<typeof convEncoderConfig>;

export const autoencoderConfig = z.object({
  /** Side of the images that it was trained on, pixels. */
  image_size: count("pixels"),
  /** Channels of the latent, between the quant convs; encoder and decoder have z_channels. */
  embed_dim: count("channels"),
  encoder: convEncoderConfig,
  decoder: decoderConfig,
  quant_conv: z.boolean().default(true),
  post_quant_conv: z.boolean().default(true),
});
export type AutoencoderConfig = z.infer<typeof autoencoderConfig>;

const published = (z_channels: number, ch_mult: number[], attn_resolutions: number[]): AutoencoderConfig => {
  const half = { z_channels, ch_mult, attn_resolutions };
  return autoencoderConfig.parse({ image_size: 256, embed_dim: z_channels, encoder: half, decoder: half });
};

/** The published sizes. */
export const AUTOENCODER_SIZES = {
  "vavae": published(32, [1, 1, 2, 2, 4], [16]),
  "sd-vae": published(4, [1, 2, 4, 4], []),
} as const;

export class ConvEncoder {
  readonly conv_in: Conv2d;
  /** Highest resolution first. */
  readonly down: (Level & { downsample?: { conv: Conv2d } })[] = [];
  readonly mid: Middle;
  readonly norm_out: GroupNorm;
  readonly conv_out: Conv2d;

  constructor(readonly config: ConvEncoderConfig) {
    const { groups, num_res_blocks, attn_resolutions } = config;
    const widths = widthsOf(config, "an encoder");
    let C = config.ch, side = config.resolution;
    this.conv_in = new Conv2d(config.in_channels, C, 3, { padding: 1 });
    for (const [level, width] of widths.entries()) {
      const made: ConvEncoder["down"][number] = { block: [], attn: [] };
      for (let i = 0; i < num_res_blocks; i++, C = width) {
        made.block.push(new ResBlock(C, width, groups));
        if (attn_resolutions.includes(side)) made.attn.push(new AttnBlock(width, groups));
      }
      if (level < widths.length - 1) {
        // Zero padding at the bottom and right only.
        made.downsample = { conv: new Conv2d(C, C, 3, { stride: 2, padding: [0, 1, 0, 1] }) };
        side /= 2;
      }
      this.down.push(made);
    }
    this.mid = new Middle(C, groups, config.mid_attention);
    this.norm_out = new GroupNorm(groups, C);
    this.conv_out = new Conv2d(C, (config.double_z ? 2 : 1) * config.z_channels, 3, { padding: 1 });
  }

  init(init: Initializer): void {
    initBlocks({ ...this, config: undefined }, init);
  }

  /** Images [B, H, W, 3] in -1..1 to moments [B, h, w, 2 x z_channels] (or z_channels). */
  forward(x: Tensor): Tensor {
    let y = this.conv_in.forward(x);
    for (const level of this.down) {
      y = throughLevel(level, y);
      if (level.downsample) y = level.downsample.conv.forward(y);
    }
    y = this.mid.forward(y); // [B, h, w, C]
    return this.conv_out.forward(this.norm_out.forward(y, { silu: true }));
  }
}

export class Autoencoder implements ImageTokenizer {
  readonly encoder: ConvEncoder;
  readonly quant_conv?: Conv2d;
  readonly post_quant_conv?: Conv2d;
  readonly decoder: Decoder;
  identity?: TokenizerIdentity;
  readonly #statistics: LatentStatistics | undefined;

  /** @param statistics of its latents, if known */
  constructor(readonly config: AutoencoderConfig, statistics?: LatentStatistics) {
    const { embed_dim: E, encoder, decoder } = config;
    this.encoder = new ConvEncoder(encoder);
    const moments = encoder.double_z ? 2 : 1;
    if (config.quant_conv) this.quant_conv = new Conv2d(moments * encoder.z_channels, moments * E, 1);
    if (config.post_quant_conv) this.post_quant_conv = new Conv2d(E, decoder.z_channels, 1);
    this.decoder = new Decoder(decoder);
    this.#statistics = statistics;
  }

  get channels(): number {
    return this.config.embed_dim;
  }

  get factor(): number {
    return 2 ** (this.config.decoder.ch_mult.length - 1);
  }

  side(size: number): number {
    return cellsAlong(size, this.factor);
  }

  /** Mean and (if there is one) log-variance of the posterior: [B,S,S,3] -> [B, side, side, 2 x channels]. */
  moments(x: Tensor): Tensor {
    const y = this.encoder.forward(x);
    return this.quant_conv?.forward(y) ?? y;
  }

  encode(x: Tensor): Tensor {
    return slice(this.moments(x), 3, 0, this.channels);
  }

  decode(latents: Tensor): Tensor {
    return this.decoder.forward(this.post_quant_conv?.forward(latents) ?? latents);
  }

  statistics(): Promise<LatentStatistics | undefined> {
    return Promise.resolve(this.#statistics);
  }
}

/** An autoencoder that tok trains from scratch: the same tensor names, and the statistics of its latents. */
export class TrainableAutoencoder extends Autoencoder implements TrainableTokenizer {
  readonly latent_mean: Tensor;
  readonly latent_std: Tensor;

  constructor(config: AutoencoderConfig) {
    super(config);
    ({ latent_mean: this.latent_mean, latent_std: this.latent_std } = statisticsVariables(config.embed_dim));
  }

  init(init: Initializer): void {
    this.encoder.init(init);
    for (const conv of [this.quant_conv, this.post_quant_conv]) if (conv) init.preserving(conv);
    this.decoder.init(init);
  }

  get parts() {
    const { encoder, quant_conv, post_quant_conv, decoder } = this;
    return { encoder, adapter: { quant_conv }, decoder: { post_quant_conv, decoder } };
  }

  get gaussian(): boolean {
    return this.config.encoder.double_z;
  }

  get lastLayer(): Tensor {
    return this.decoder.lastLayer;
  }

  /** VA-VAE's choice: before the quant conv. */
  get lastEncodingLayer(): Tensor {
    return this.encoder.conv_out.weight;
  }

  /** Outputs of the encoder [B, side, side, 2 x z_channels]. */
  features(x: Tensor): Tensor {
    return this.encoder.forward(x);
  }

  posterior(features: Tensor): Posterior {
    return posteriorOf(this.quant_conv?.forward(features) ?? features, this.channels);
  }

  override statistics(): Promise<LatentStatistics> {
    return readStatistics(this);
  }

  setStatistics(mean: ArrayLike<number>, std: ArrayLike<number>): Promise<void> {
    return writeStatistics(this, mean, std);
  }
}
