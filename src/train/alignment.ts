// The models of an alignment: the tokenizer, the frozen encoder and adapter of the semantic loss, the discriminator.
// Source: arXiv 2509.25162.

import type { AlignConfig } from "../cli/config.ts";
import { Adapter } from "../models/adapter.ts";
import type { Discriminator } from "../models/discriminator.ts";
import type { Lpips } from "../models/lpips.ts";
import { Encoder, type Tokenizer } from "../models/tokenizer.ts";
import { Vit } from "../models/vit.ts";
import { state } from "../nn/layers.ts";
import { ParameterSet } from "../nn/parameter_set.ts";
import { type Precision, readTensor, type Tensor } from "../tensor/tensor.ts";
import { l2, lpipsLoss } from "./losses.ts";
import { copyTensors } from "./optimizer.ts";

export type Part = "encoder" | "adapter" | "decoder";

export type StageName = "latent" | "perceptual" | "refine";

export interface AlignmentOptions
  extends Pick<AlignConfig, "batchSize" | "accumulate" | "imageSize" | "semanticLoss" | "semanticAt"> {
  /** Images come as packed bytes instead of floats (false). */
  bytes?: boolean;
  /** Mirrors the images that a batch's `flips` names (false). */
  flip?: boolean;
  /** Recomputes blocks in the backward pass instead of keeping their activations (false). */
  recompute?: boolean;
}

/** The models of an alignment, each in its own parameter set. */
export class Alignment {
  /** The original encoder, frozen: features for the perceptual and the semantic loss. */
  readonly reference: Vit;
  /** The adapter at the end of stage 1, frozen: the semantic loss compares with its latents. */
  readonly anchor: Adapter;
  readonly discriminator: Discriminator | undefined;
  readonly sets: Record<Part | "anchor" | "reference", ParameterSet> & { discriminator?: ParameterSet };
  readonly #reference: Encoder;

  /** @param lpips the perceptual loss; by default the distance between features of the frozen encoder */
  constructor(
    readonly tokenizer: Tokenizer,
    discriminator: Discriminator | undefined,
    readonly lpips?: Lpips,
    /** Of the activations while training. */
    readonly precision: Precision = "f32",
  ) {
    const { config } = tokenizer;
    this.reference = new Vit(config.encoder);
    this.#reference = new Encoder(this.reference, config.image_mean, config.image_std);
    this.anchor = new Adapter(config.encoder.hidden_size, config.decoder.z_channels, config.adapter_hidden);
    this.discriminator = discriminator;
    const set = (name: string, module: object) => new ParameterSet(name, module, precision);
    this.sets = {
      encoder: set("encoder", tokenizer.encoder),
      adapter: set("adapter", tokenizer.adapter),
      decoder: set("decoder", { post_quant_conv: tokenizer.post_quant_conv, decoder: tokenizer.decoder }),
      anchor: set("anchor", this.anchor),
      reference: set("reference", this.reference),
      ...(discriminator ? { discriminator: set("discriminator", discriminator) } : {}),
    };
  }

  /** Copies the adapter into the anchor, at the end of stage 1. */
  async setAnchor(): Promise<void> {
    await this.#copySet("adapter", "anchor");
  }

  /** Copies the encoder into the frozen reference, before stage 1. */
  async setReference(): Promise<void> {
    await this.#copySet("encoder", "reference");
    const own = state(this.tokenizer.encoder);
    for (const [key, tensor] of state(this.reference)) {
      // A fixed table of positions is in no parameter set.
      if (tensor.storage.category !== "parameters") {
        tensor.storage.write(await readTensor(own.get(key) as Tensor));
      }
    }
  }

  /** Tensors of a checkpoint by name, without the optimizers'. */
  state(): Map<string, Tensor> {
    const parts = {
      tokenizer: this.tokenizer,
      anchor: this.anchor,
      reference: this.reference,
      discriminator: this.discriminator,
    };
    return new Map(
      Object.entries(parts).flatMap(([name, part]) =>
        part ? [...state(part)].map(([key, tensor]) => [`${name}.${key}`, tensor] as const) : []
      ),
    );
  }

  /** Perceptual loss of `y` against `x`. @param frozen the frozen encoder's patch tokens of `x` */
  perceptual(y: Tensor, x: Tensor, frozen: Tensor): Tensor {
    return this.lpips ? lpipsLoss(this.lpips, y, x) : l2(this.frozenFeatures(y), frozen);
  }

  /** Patch tokens of the frozen encoder on the latent's grid. */
  frozenFeatures(x: Tensor): Tensor {
    return this.#reference.patches(x, this.tokenizer.side(x.dim(1)));
  }

  async #copySet(from: Part, to: "anchor" | "reference"): Promise<void> {
    const { [from]: source, [to]: target } = this.sets;
    await source.materialise();
    await copyTensors(source.flats.map((flat, i) => [flat, target.flats[i] as Tensor]));
  }
}
