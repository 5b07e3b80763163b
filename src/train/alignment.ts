// The models of an alignment: the tokenizer, the frozen encoder and adapter that it is held to, the discriminator. Source:
// arXiv 2509.25162.

import { copy } from "../gpu/memory.ts";
import { capture } from "../gpu/program.ts";
import { Adapter } from "../models/adapter.ts";
import type { Discriminator } from "../models/discriminator.ts";
import type { Lpips } from "../models/lpips.ts";
import { Encoder, type Tokenizer } from "../models/tokenizer.ts";
import { Vit } from "../models/vit.ts";
import { state } from "../nn/layers.ts";
import { ParameterSet } from "../nn/parameter_set.ts";
import { type Precision, readTensor, type Tensor } from "../tensor/tensor.ts";
import { l2, lpipsLoss } from "./losses.ts";

export type Part = "encoder" | "adapter" | "decoder";

export type StageName = "latent" | "perceptual" | "refine";

export interface AlignmentOptions {
  batchSize: number;
  accumulate: number;
  imageSize: number;
  semanticLoss: "l2" | "cosine";
  semanticAt: "after" | "before";
  /** Images come as packed bytes instead of floats (false). */
  bytes?: boolean;
  /** Mirrors the images that a batch's `flips` names (false). */
  flip?: boolean;
  /** Recomputes blocks in the backward pass instead of keeping their activations (false). */
  recompute?: boolean;
}

/** The models of an alignment, each in its own parameter set. */
export class Alignment {
  /** The encoder as it was given, frozen: perceptual features, and half of the semantic anchor. */
  readonly reference: Vit;
  /** The adapter as stage 1 left it. */
  readonly anchor: Adapter;
  readonly discriminator: Discriminator | undefined;
  readonly sets: Record<Part | "anchor" | "reference", ParameterSet> & { discriminator?: ParameterSet };
  readonly #reference: Encoder;

  /** @param lpips the perceptual loss; the distance of the reference's features where there is none */
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
      decoder: set("decoder", {
        post_quant_conv: tokenizer.post_quant_conv,
        decoder: tokenizer.decoder,
      }),
      anchor: set("anchor", this.anchor),
      reference: set("reference", this.reference),
      ...(discriminator ? { discriminator: set("discriminator", discriminator) } : {}),
    };
  }

  /** Freezes what stage 1 made: the anchor of the semantic loss. */
  async setAnchor(): Promise<void> {
    await this.#copySet("adapter", "anchor");
  }

  /** Makes the frozen reference equal to the encoder as it is now. */
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

  /** Names and tensors of all that a checkpoint holds, but the optimizers'. */
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

  /** How different `y` looks from `x`, whose patch tokens of the frozen encoder are `frozen`. */
  perceptual(y: Tensor, x: Tensor, frozen: Tensor): Tensor {
    return this.lpips ? lpipsLoss(this.lpips, y, x) : l2(this.frozenFeatures(y), frozen);
  }

  /** Patch tokens of the frozen encoder on the latent's grid. */
  frozenFeatures(x: Tensor): Tensor {
    return this.#reference.patches(x, this.tokenizer.side(x.dim(1)));
  }

  async #copySet(from: Part, to: "anchor" | "reference"): Promise<void> {
    await this.sets[from].materialise();
    const program = await capture("copy", {}, () => {
      this.sets[from].flats.forEach((flat, i) => copy(flat, this.sets[to].flats[i] as Tensor));
      return {};
    }).prepare();
    program.run();
    program.destroy();
  }
}
