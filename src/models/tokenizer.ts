// Interface of image tokenizers, and the tokenizer built from a vision encoder: encoder -> adapter -> latent -> convolutional
// decoder (AlignTok, arXiv 2509.25162). The latent is a point, or the mean of a Gaussian posterior. The tokenizer stores its
// per-channel mean and standard deviation, since diffusion works on (z - mean) / std.

import { z } from "zod";
import { count } from "../bounds.ts";
import { UsageError } from "../errors.ts";
import type { Identity, WeightsFingerprint } from "../formats/provenance.ts";
import { Conv2d } from "../nn/layers.ts";
import type { Initializer } from "../nn/init.ts";
import { add, mul } from "../ops/math.ts";
import { resize } from "../ops/resize.ts";
import { reshape } from "../ops/layout.ts";
import { check, constant, readTensor, type Tensor, variable } from "../tensor/tensor.ts";
import { Adapter } from "./adapter.ts";
import { Decoder, decoderConfig } from "./decoder.ts";
import type { Posterior } from "./posterior.ts";
import { Vit, vitConfig } from "./vit.ts";

/** Identity of a tokenizer's weights. Tokenizers that differ only in the decoder make the same latents. */
export interface TokenizerIdentity extends Identity {
  /** Fingerprint of the encoding weights. */
  latents: string;
}

/** The identity from weights as they were read. @param name where they were read from */
export function tokenizerIdentity(name: string, weights: WeightsFingerprint): TokenizerIdentity {
  const decodes = /^(decoder|post_quant_conv)\.|^latent_(mean|std)$/;
  return { name, fingerprint: weights.value(), latents: weights.value((key) => !decodes.test(key)) };
}

/** Images to latents and back: an AlignTok tokenizer, or a published autoencoder. */
export interface ImageTokenizer {
  /** Identity; openTokenizer() sets it. */
  identity?: TokenizerIdentity;
  /** `image_size`: side of the images that it was trained on, pixels. */
  readonly config: { readonly image_size: number };
  /** Channels of a latent. */
  readonly channels: number;
  /** Downsampling factor: pixels per latent cell along a side. */
  readonly factor: number;
  /** Side of the latent of an image of side `size`. @throws UsageError if `factor` does not divide it */
  side(size: number): number;
  /** Images [B,S,S,3] in -1..1 to latents [B,side,side,channels]. */
  encode(x: Tensor): Tensor;
  /** Latents to pixels, about -1..1, not clamped. */
  decode(latents: Tensor): Tensor;
  /** Statistics that diffusion normalises latents with; undefined if unknown. Waits for the device. */
  statistics(): Promise<LatentStatistics | undefined>;
}

/** The parts of a tokenizer; a stage of a training chooses among them. */
export type Part = "encoder" | "adapter" | "decoder";

/**
 * A tokenizer that Alignment and StageRun train: images -> features -> posterior -> latent -> images. `encode` is `features`,
 * then the mean of `posterior`.
 */
export interface TrainableTokenizer extends ImageTokenizer {
  /** The module of each part, which becomes a parameter set; an empty object if the part has no parameters. */
  readonly parts: Readonly<Record<Part, object>>;
  /** Whether the posterior is Gaussian: training then samples it. */
  readonly gaussian: boolean;
  /** Weight of the decoder's last layer: the adaptive weight of the adversarial loss compares gradients there. */
  readonly lastLayer: Tensor;
  /** Weight of the last trainable layer before the latent: the adaptive weight of the vision foundation loss compares gradients there. */
  readonly lastEncodingLayer: Tensor;
  /** The encoder: [B,S,S,3] in -1..1 to what the adapter reads, such as patch tokens [B, side * side, features]. */
  features(x: Tensor): Tensor;
  /** The adapter: features to the posterior of the latent. */
  posterior(features: Tensor): Posterior;
  /**
   * New modules like its vision encoder and adapter, for the frozen copies that the semantic loss compares with. Absent where the
   * encoder is no vision encoder; Alignment then has no anchor.
   */
  copies?(): { reference: Encoder; anchor: Adapter } | undefined;
  /** Initialises all but a pretrained encoder. */
  init(init: Initializer): void;
  /** Sets what {@link statistics} returns. */
  setStatistics(mean: ArrayLike<number>, std: ArrayLike<number>): Promise<void>;
}

/** Per-channel mean and standard deviation: diffusion works on (z - mean) / std. */
export interface LatentStatistics {
  mean: Float32Array;
  std: Float32Array;
  /** Where they come from, for people. */
  origin: string;
}

/** Latent cells along a side. @throws UsageError if `factor` does not divide `size` */
export function cellsAlong(size: number, factor: number): number {
  if (size % factor !== 0) {
    throw new UsageError(`Cannot tokenize images of side ${size}: it must be a multiple of ${factor}`);
  }
  return size / factor;
}

const three = z.array(z.number()).length(3);

export const tokenizerConfig = z.object({
  /** Side of the images that it was trained on, pixels. */
  image_size: count("pixels"),
  encoder: vitConfig,
  /** The encoder's normalisation of pixels in 0..1. */
  image_mean: three,
  image_std: three,
  /** Numbers of the encoder's blocks, from 1, whose patch tokens are summed; absent: the last one. */
  encoder_layers: z.array(count("layers")).min(1).optional(),
  /** Absent: no adapter; the latent is the encoder's features, as in RAE. */
  adapter_hidden: count("channels").optional(),
  /** Whether the adapter outputs mean and log-variance of a Gaussian posterior; absent: no. */
  double_z: z.boolean().optional(),
  decoder: decoderConfig,
});
export type TokenizerConfig = z.infer<typeof tokenizerConfig>;

/** A vision encoder with normalisation and resizing of its input. */
export class Encoder {
  readonly #scale: Tensor;
  readonly #shift: Tensor;

  /**
   * @param layers numbers of the blocks whose patch tokens are summed, from 1; undefined: the last one
   * @throws UsageError if there is no such block
   */
  constructor(
    readonly vit: Vit,
    mean: readonly number[],
    std: readonly number[],
    private readonly layers?: readonly number[],
  ) {
    const depth = vit.config.num_hidden_layers;
    if (layers?.some((n) => n > depth)) {
      throw new UsageError(
        `Cannot sum the layers ${layers}: the encoder has ${depth} blocks; choose from 1 to ${depth}`,
      );
    }
    // ((x + 1) / 2 - mean) / std for x in -1..1
    this.#scale = constant(Float32Array.from(std, (s) => 0.5 / s), [3], "image scale");
    this.#shift = constant(
      Float32Array.from(mean, (m, c) => (0.5 - m) / (std[c] as number)),
      [3],
      "image shift",
    );
  }

  /**
   * Patch tokens after the final norm [B, side * side, C] of images [B, S, S, 3] in -1..1, resized to side x side patches; see
   * {@link Vit.patches} for several layers.
   */
  patches(x: Tensor, side: number): Tensor {
    return this.vit.patches(this.#input(x, side), this.layers);
  }

  /** Patch tokens after each of the blocks `after` (numbers from 1), before the final norm; otherwise as {@link patches}. */
  hidden(x: Tensor, side: number, after: readonly number[]): Tensor[] {
    return this.vit.forward(this.#input(x, side), { after }).hidden;
  }

  #input(x: Tensor, side: number): Tensor {
    const pixels = side * this.vit.config.patch_size;
    const resized = x.dim(1) === pixels
      ? x
      : resize(x, pixels, pixels, { filter: "bicubic", antialias: true });
    return add(mul(resized, this.#scale), this.#shift);
  }
}

export class Tokenizer implements TrainableTokenizer {
  readonly encoder: Vit;
  readonly adapter?: Adapter;
  readonly post_quant_conv: Conv2d;
  readonly decoder: Decoder;
  /** Per-channel statistics of latents [C]. */
  readonly latent_mean: Tensor;
  readonly latent_std: Tensor;
  identity?: TokenizerIdentity;
  readonly #input: Encoder;

  constructor(readonly config: TokenizerConfig) {
    const C = config.decoder.z_channels;
    this.encoder = new Vit(config.encoder);
    const adapter = adapterOf(config);
    if (adapter) this.adapter = adapter;
    check(
      adapter !== undefined || C === config.encoder.hidden_size,
      "build a tokenizer",
      `without an adapter the decoder must have the encoder's ${config.encoder.hidden_size} channels, not ${C}`,
    );
    this.post_quant_conv = new Conv2d(C, C, 1);
    this.decoder = new Decoder(config.decoder);
    ({ latent_mean: this.latent_mean, latent_std: this.latent_std } = statisticsVariables(C));
    this.#input = new Encoder(this.encoder, config.image_mean, config.image_std, config.encoder_layers);
  }

  /** Initialises all but the pretrained encoder. */
  init(init: Initializer): void {
    this.adapter?.init(init);
    init.preserving(this.post_quant_conv);
    this.decoder.init(init);
  }

  get parts() {
    const { encoder, adapter, post_quant_conv, decoder } = this;
    return { encoder, adapter: adapter ?? {}, decoder: { post_quant_conv, decoder } };
  }

  get gaussian(): boolean {
    return this.config.double_z === true;
  }

  get lastLayer(): Tensor {
    return this.decoder.lastLayer;
  }

  get lastEncodingLayer(): Tensor {
    return (this.adapter?.fc2 ?? this.encoder.layernorm).weight;
  }

  get channels(): number {
    return this.config.decoder.z_channels;
  }

  get factor(): number {
    return 2 ** (this.config.decoder.ch_mult.length - 1);
  }

  side(size: number): number {
    return cellsAlong(size, this.factor);
  }

  /** Features of the encoder on the latent's grid: [B,S,S,3] -> [B, side * side, features]. */
  features(x: Tensor): Tensor {
    return this.#input.patches(x, this.side(x.dim(1)));
  }

  /** Features [B, side * side, features] to the posterior of the latent [B, side, side, C]. */
  posterior(features: Tensor): Posterior {
    if (this.adapter) return this.adapter.forward(features);
    const side = Math.sqrt(features.dim(1));
    return { mean: reshape(features, [features.dim(0), side, side, -1]) };
  }

  copies() {
    const { encoder, image_mean, image_std, encoder_layers } = this.config, anchor = adapterOf(this.config);
    return anchor &&
      { reference: new Encoder(new Vit(encoder), image_mean, image_std, encoder_layers), anchor };
  }

  /** Images [B,S,S,3] in -1..1 to latents [B,side,side,C]: the mean of the posterior. */
  encode(x: Tensor): Tensor {
    return this.posterior(this.features(x)).mean;
  }

  /** Latents to pixels, about -1..1, not clamped. */
  decode(latents: Tensor): Tensor {
    return this.decoder.forward(this.post_quant_conv.forward(latents));
  }

  statistics(): Promise<LatentStatistics> {
    return readStatistics(this);
  }

  setStatistics(mean: ArrayLike<number>, std: ArrayLike<number>): Promise<void> {
    return writeStatistics(this, mean, std);
  }
}

const adapterOf = ({ encoder, decoder, adapter_hidden, double_z }: TokenizerConfig) =>
  adapter_hidden === undefined
    ? undefined
    : new Adapter(encoder.hidden_size, decoder.z_channels, adapter_hidden, double_z);

/** Tensors [C] of a tokenizer that stores the statistics of its latents. */
interface StoredStatistics {
  readonly latent_mean: Tensor;
  readonly latent_std: Tensor;
}

/** Variables for the statistics of `C` channels: mean 0, deviation 1 until they are known. */
export function statisticsVariables(C: number): StoredStatistics {
  return {
    latent_mean: variable([C], { label: "latent_mean" }),
    latent_std: variable([C], { label: "latent_std", init: () => new Float32Array(C).fill(1) }),
  };
}

export async function readStatistics(
  { latent_mean, latent_std }: StoredStatistics,
): Promise<LatentStatistics> {
  const [mean, std] = [await readTensor(latent_mean), await readTensor(latent_std)];
  return { mean, std, origin: "the tokenizer's own" };
}

export async function writeStatistics(
  { latent_mean, latent_std }: StoredStatistics,
  mean: ArrayLike<number>,
  std: ArrayLike<number>,
): Promise<void> {
  for (const [tensor, values] of [[latent_mean, mean], [latent_std, std]] as const) {
    await tensor.storage.materialise();
    tensor.storage.write(Float32Array.from(values));
  }
}
