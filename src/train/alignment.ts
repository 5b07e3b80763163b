// The models of an alignment: the tokenizer, the frozen encoder and adapter of the semantic loss, the discriminator.
// Source: arXiv 2509.25162.

import type { AlignConfig } from "../cli/config.ts";
import type { Adapter } from "../models/adapter.ts";
import type { Discriminator } from "../models/discriminator.ts";
import type { Lpips } from "../models/lpips.ts";
import type { Encoder, Part, TrainableTokenizer } from "../models/tokenizer.ts";
import type { Linear } from "../nn/layers.ts";
import { state } from "../nn/layers.ts";
import { Lora } from "../nn/lora.ts";
import { copy } from "../gpu/memory.ts";
import { Vit } from "../models/vit.ts";
import { ParameterSet } from "../nn/parameter_set.ts";
import { check, type Precision, readTensor, type Tensor } from "../tensor/tensor.ts";
import { reshape } from "../ops/layout.ts";
import type { Augmentation } from "../ops/diffaug.ts";
import { type GanLoss, l2, lpipsLoss } from "./losses.ts";
import { copyTensors } from "./optimizer.ts";

export interface AlignmentOptions
  extends
    Pick<AlignConfig, "batchSize" | "accumulate" | "imageSize" | "semanticLoss" | "semanticAt">,
    Partial<Pick<AlignConfig, "vfMargins">> {
  /** Loss of the discriminator (hinge). */
  ganLoss?: GanLoss;
  /** Augmentations of the images that the discriminator sees (none). */
  augmentations?: readonly Augmentation[];
  /** Mirrors the images that a batch's `flips` names (false). */
  flip?: boolean;
  /** Recomputes blocks in the backward pass instead of keeping their activations (false). */
  recompute?: boolean;
}

/** The models of an alignment, each in its own parameter set. */
export class Alignment {
  /**
   * A frozen vision encoder, for the losses that compare features: a copy of the tokenizer's original encoder if it makes one,
   * else the one that was passed.
   */
  readonly reference: Encoder | undefined;
  /** The adapter at the end of stage 1, frozen: the semantic loss compares with its latents. Only if `reference` is a copy. */
  readonly anchor: Adapter | undefined;
  readonly sets:
    & Record<Part, ParameterSet>
    & Partial<
      Record<
        "anchor" | "reference" | "projection" | "discriminator" | "discriminatorEncoder" | "lora",
        ParameterSet
      >
    >;
  readonly discriminator: Discriminator | undefined;
  #lora: Lora | undefined;

  /**
   * @param discriminator or a function that makes it, given `reference`
   * @param lpips the perceptual loss; by default the distance between features of the frozen encoder
   * @param reference for a tokenizer that makes no copy of its encoder; the caller loads its weights
   * @param projection from the latent's channels to those of the reference, for the vision foundation loss
   */
  constructor(
    readonly tokenizer: TrainableTokenizer,
    discriminator: Discriminator | undefined | ((reference: Encoder | undefined) => Discriminator),
    readonly lpips?: Lpips,
    /** Of the activations while training. */
    readonly precision: Precision = "f32",
    reference?: Encoder,
    readonly projection?: Linear,
  ) {
    const copies = tokenizer.copies?.(), { encoder, adapter, decoder } = tokenizer.parts;
    this.reference = copies?.reference ?? reference;
    this.anchor = copies?.anchor;
    this.discriminator = typeof discriminator === "function" ? discriminator(this.reference) : discriminator;
    const frozen = this.discriminator?.encoder;
    const set = (name: string, module: object) => new ParameterSet(name, module, precision);
    this.sets = {
      encoder: set("encoder", encoder),
      adapter: set("adapter", adapter),
      decoder: set("decoder", decoder),
      ...this.anchor ? { anchor: set("anchor", this.anchor) } : {},
      ...this.reference ? { reference: set("reference", this.reference.vit) } : {},
      ...projection ? { projection: set("projection", projection) } : {},
      ...this.discriminator ? { discriminator: set("discriminator", this.discriminator) } : {},
      ...frozen && frozen !== this.reference
        ? { discriminatorEncoder: set("discriminator encoder", frozen.vit) }
        : {},
    };
  }

  /** The low-rank updates that are trained instead of the encoder's weights, if any; the frozen reference holds their W0. */
  get lora(): Lora | undefined {
    return this.#lora;
  }

  /** Adds low-rank updates; the tokenizer must have a vision encoder. */
  addLora(config: { rank: number; alpha: number }): Lora {
    const { encoder } = this.tokenizer.parts, base = this.reference?.vit.linears();
    check(this.anchor && base && encoder instanceof Vit, "add LoRA", "there is no vision encoder");
    const weights = [...encoder.linears()].map(([name, { weight }]) => ({
      name,
      weight,
      base: (base.get(name) as Linear).weight,
    }));
    this.#lora = new Lora(weights, config);
    this.sets.lora = new ParameterSet("lora", this.#lora.updates, this.precision);
    return this.#lora;
  }

  /** The parameters that training a part trains. */
  trained(part: Part): ParameterSet {
    return (part === "encoder" ? this.sets.lora : undefined) ?? this.sets[part];
  }

  /** Records that the encoder's weights follow the low-rank updates. */
  mergeLora(): void {
    this.#lora?.merge();
    const { flats, working } = this.sets.encoder;
    working?.forEach((to, i) => copy(flats[i] as Tensor, to));
  }

  /** Copies the adapter into the anchor, at the end of stage 1. */
  async setAnchor(): Promise<void> {
    await this.#copySet("adapter", this.sets.anchor);
  }

  /** Copies the encoder into the frozen reference, before stage 1, unless that was passed. */
  async setReference(): Promise<void> {
    if (!this.anchor || !this.reference) return;
    await this.#copySet("encoder", this.sets.reference);
    const own = state(this.tokenizer.parts.encoder);
    for (const [key, tensor] of state(this.reference.vit)) {
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
      reference: this.reference?.vit,
      projection: this.projection,
      discriminator: this.discriminator,
      lora: this.#lora?.updates,
    };
    return new Map(
      Object.entries(parts).flatMap(([name, part]) =>
        part ? [...state(part)].map(([key, tensor]) => [`${name}.${key}`, tensor] as const) : []
      ),
    );
  }

  /** Perceptual loss of `y` against `x`. @param frozen the frozen encoder's patch tokens of `x` */
  perceptual(y: Tensor, x: Tensor, frozen: Tensor | undefined): Tensor {
    if (this.lpips) return lpipsLoss(this.lpips, y, x);
    check(frozen !== undefined, "compare features", "the alignment has no frozen encoder");
    return l2(this.frozenFeatures(y), frozen);
  }

  /** Patch tokens of the frozen encoder on the latent's grid. @throws ShapeError if there is none */
  frozenFeatures(x: Tensor): Tensor {
    check(this.reference !== undefined, "compare features", "the alignment has no frozen encoder");
    return this.reference.patches(x, this.tokenizer.side(x.dim(1)));
  }

  /** Latents [B,side,side,C] as tokens with the channels of the reference [B,T,features]. */
  projected(z: Tensor): Tensor {
    check(
      this.projection !== undefined,
      "compare latents with features",
      "the alignment has no projection",
      z,
    );
    return this.projection.forward(reshape(z, [z.dim(0), -1, z.dim(-1)]));
  }

  async #copySet(from: Part, target: ParameterSet | undefined): Promise<void> {
    if (!target) return;
    const source = this.sets[from];
    await source.materialise();
    await copyTensors(source.flats.map((flat, i) => [flat, target.flats[i] as Tensor]));
  }
}
