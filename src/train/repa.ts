// Representation alignment (REPA; Yu et al., arXiv 2410.06940): an MLP projects the tokens of an inner block of the diffusion
// network, and training raises their cosine similarity with the patch tokens of a frozen encoder for the clean image. The
// encoder runs in the training step on images that are read anew: features of a data set would take more disk than its images.

import { type CropName, cropsAt } from "../data/crops.ts";
import type { ImageSource } from "../data/image_source.ts";
import { batchIndices, flipsAt, gather } from "../data/image_source.ts";
import { ahead, depthOf } from "../data/prefetch.ts";
import { Encoder } from "../models/tokenizer.ts";
import { Vit } from "../models/vit.ts";
import type { Initializer } from "../nn/init.ts";
import { Linear, state } from "../nn/layers.ts";
import { ParameterSet } from "../nn/parameter_set.ts";
import { imageInput, pixels, wordsOf } from "../ops/pixels.ts";
import { noGrad } from "../tensor/autograd.ts";
import { check, input, type Precision, type Tensor } from "../tensor/tensor.ts";
import type { EncoderSource } from "../zoo/encoders.ts";

export interface RepaOptions {
  /** Block, from 1, whose tokens are aligned. */
  block: number;
  /** Hidden width of the projector. */
  hidden: number;
  /** Side of the images, pixels. */
  imageSize: number;
  precision: Precision;
  /** The images of the latents, in their order; undefined for a dry run. */
  images?: ImageSource | undefined;
  seed: number;
  /** Whether latents of mirrored images are used, too. */
  flip: boolean;
  /** The crop of the latents' images; "random" where the latents' source gives the images. */
  crop?: CropName;
}

/** Three linear layers with SiLU between them. */
class Projector {
  readonly mlp: [Linear, "silu", Linear, "silu", Linear];

  constructor(width: number, hidden: number, features: number) {
    this.mlp = [
      new Linear(width, hidden),
      "silu",
      new Linear(hidden, hidden),
      "silu",
      new Linear(hidden, features),
    ];
  }

  forward(x: Tensor): Tensor {
    const [first, , second, , last] = this.mlp, activation = "silu";
    return last.forward(second.forward(first.forward(x, { activation }), { activation }));
  }
}

/** Images of a step, of all micro-batches one after another. */
export type RepaBatch = {
  images: Uint32Array<ArrayBuffer>;
  /** 1 for each mirrored image. */
  flips: Float32Array<ArrayBuffer>;
};

export class Repa {
  /** Trained with the network; not part of the result. */
  readonly projector: Projector;
  readonly set: ParameterSet;
  readonly encoder: Encoder;
  readonly frozen: ParameterSet;

  /** @param width channels of the network's tokens */
  constructor(
    { config, preprocessor: { mean, std } }: Pick<EncoderSource, "config" | "preprocessor">,
    width: number,
    readonly options: RepaOptions,
  ) {
    const { hidden, precision } = options;
    this.encoder = new Encoder(new Vit(config), mean, std);
    this.projector = new Projector(width, hidden, config.hidden_size);
    this.set = new ParameterSet("projector", this.projector, precision);
    this.frozen = new ParameterSet("encoder", this.encoder.vit, precision);
  }

  /** REPA's: Glorot linears with zero bias. */
  init(init: Initializer): void {
    for (const layer of this.projector.mlp) {
      if (layer === "silu") continue;
      init.xavier(layer.weight);
      init.constant(layer.bias, 0);
    }
  }

  /** Inputs of a program for micro-batches of `B` images. */
  inputs(B: number): { images: Tensor; flips: Tensor } {
    return { images: imageInput(B, this.options.imageSize), flips: input([B], "f32", "flips") };
  }

  /**
   * What the loss compares.
   * @param features tokens of the block [B,T,width]; T is a square
   * @param batch as {@link inputs}
   * @returns projected tokens, and the encoder's on the same grid [B,T,features]
   */
  compared(features: Tensor, { images, flips }: { images: Tensor; flips: Tensor }): [Tensor, Tensor] {
    const tokens = noGrad(() => this.encoder.patches(pixels(images, flips), Math.sqrt(features.dim(1))));
    return [this.projector.forward(features), tokens];
  }

  /** Bytes that are uploaded for an image. */
  get imageBytes(): number {
    const { imageSize: S } = this.options;
    return 4 * S * wordsOf(S) + 4;
  }

  /** Images of the steps `from` to `to` - 1: those of the latents that (seed, step) chooses. */
  batches(batchSize: number, from: number, to: number): AsyncGenerator<RepaBatch, void> {
    const { imageSize, images: source, seed, flip, crop = "center" } = this.options;
    check(source !== undefined, "align tokens", "there are no images");
    const make = async (step: number) => {
      const indices = batchIndices(source.length, batchSize, seed, step);
      const { images } = await gather(
        source,
        indices,
        imageSize,
        cropsAt(crop, imageSize, batchSize, seed, step),
      );
      const flips = flip ? flipsAt(batchSize, seed, step) : [];
      return { images, flips: Float32Array.from({ length: batchSize }, (_, i) => flips[i] ? 1 : 0) };
    };
    return ahead(make, { from, to, depth: depthOf(source, batchSize * this.imageBytes) });
  }

  /** Tensors of a checkpoint: the encoder is read again. */
  state(): Map<string, Tensor> {
    return new Map([...state(this.projector)].map(([key, tensor]) => [`projector.${key}`, tensor]));
  }

  destroy(): void {
    this.set.destroy();
    this.frozen.destroy();
    for (const { storage } of state(this.encoder.vit).values()) storage.destroy();
  }
}
