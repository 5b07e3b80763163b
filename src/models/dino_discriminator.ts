// The discriminator of StyleGAN-T (Sauer et al., 2023, arXiv 2301.09515) and RAE (arXiv 2510.11690): small trained heads on the
// patch tokens of several layers of a frozen encoder. Statistics of norms are of one image and channel, so nothing depends on
// the batch; weights are divided by their spectral norm. There is no bias before a norm, which would subtract it.

import { conv2d } from "../ops/conv.ts";
import { concat, reshape, slice } from "../ops/layout.ts";
import { add, leakyRelu, scale } from "../ops/math.ts";
import { spectralNorm } from "../ops/spectral_norm.ts";
import { Conv2d, GroupNorm, type StatisticsMode } from "../nn/layers.ts";
import type { Initializer } from "../nn/init.ts";
import { check, type Tensor, variable } from "../tensor/tensor.ts";
import type { Discriminator } from "./discriminator.ts";
import type { Encoder } from "./tokenizer.ts";

/** Number of layers with a head, tokens that a head's convolution sees, and the epsilon of its norms: RAE's. */
const LAYERS = 4, KERNEL = 9, EPS = 1e-6;

/** Numbers of blocks, from 1, whose tokens have a head: evenly spaced, the last included. Of 12: 3, 6, 9, 12. */
export function discriminatorLayers(depth: number): number[] {
  const count = Math.min(LAYERS, depth);
  return Array.from({ length: count }, (_, i) => Math.round((i + 1) * depth / count));
}

/** A convolution over tokens [B, 1, T, Cin], circular, by a weight of spectral norm 1. */
class SpectralConv {
  readonly conv: Conv2d;
  /** Left singular vector of the weight, estimated [Cout]. */
  readonly u: Tensor;

  constructor(inChannels: number, outChannels: number, kernel: number, bias: boolean) {
    this.conv = new Conv2d(inChannels, outChannels, [1, kernel], {}, bias);
    this.u = variable([outChannels], { label: "singular vector" });
  }

  init(init: Initializer): void {
    init.torchDefault(this.conv);
    init.normal(this.u, 1);
  }

  forward(x: Tensor, mode: StatisticsMode): Tensor {
    const { conv: { weight, bias }, u } = this;
    const T = x.dim(2), half = (weight.dim(2) - 1) / 2;
    check(T >= half, "convolve tokens", `a kernel of ${2 * half + 1} tokens does not fit`, x);
    const around = half ? concat([slice(x, 2, T - half, T), x, slice(x, 2, 0, half)], 2) : x;
    return conv2d(around, spectralNorm(weight, u, { update: mode === "train" }), bias);
  }
}

/** Convolution, norm, leaky ReLU; then the same over 9 tokens as a residual; then a convolution to a logit for each token. */
class Head {
  readonly conv1: SpectralConv;
  readonly norm1: GroupNorm;
  readonly conv2: SpectralConv;
  readonly norm2: GroupNorm;
  readonly logit: SpectralConv;

  constructor(C: number) {
    this.conv1 = new SpectralConv(C, C, 1, false);
    this.norm1 = new GroupNorm(C, C, EPS);
    this.conv2 = new SpectralConv(C, C, KERNEL, false);
    this.norm2 = new GroupNorm(C, C, EPS);
    this.logit = new SpectralConv(C, 1, 1, true);
  }

  init(init: Initializer): void {
    for (const layer of [this.conv1, this.conv2, this.logit]) layer.init(init);
    for (const norm of [this.norm1, this.norm2]) init.norm(norm);
  }

  /** [B, T, C] to [B, T] */
  forward(tokens: Tensor, mode: StatisticsMode): Tensor {
    const [B, T, C] = tokens.shape as [number, number, number];
    const x = leakyRelu(this.norm1.forward(this.conv1.forward(reshape(tokens, [B, 1, T, C]), mode)), 0.2);
    const y = leakyRelu(this.norm2.forward(this.conv2.forward(x, mode)), 0.2);
    return reshape(this.logit.forward(scale(add(x, y), Math.SQRT1_2), mode), [B, T]);
  }
}

export class DinoDiscriminator implements Discriminator {
  readonly heads: Head[];
  readonly #encoder: Encoder;
  readonly #layers: readonly number[];

  /**
   * @param encoder frozen: its tensors are not the discriminator's
   * @param side patches along a side of its input: images are resized to it
   */
  constructor(encoder: Encoder, readonly side: number) {
    const { hidden_size, num_hidden_layers } = encoder.vit.config;
    this.#encoder = encoder;
    this.#layers = discriminatorLayers(num_hidden_layers);
    this.heads = this.#layers.map(() => new Head(hidden_size));
  }

  get encoder(): Encoder {
    return this.#encoder;
  }

  /** PyTorch's default of convolutions, norms 1 and 0. */
  init(init: Initializer): void {
    for (const head of this.heads) head.init(init);
  }

  /** Images [B, H, W, 3] in -1..1 to logits [B, layers * side * side]. */
  forward(x: Tensor, mode: StatisticsMode): Tensor {
    const tokens = this.#encoder.hidden(x, this.side, this.#layers);
    return concat(tokens.map((t, i) => (this.heads[i] as Head).forward(t, mode)), 1);
  }
}
