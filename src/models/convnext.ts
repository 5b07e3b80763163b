// ConvNeXt V2 (Woo et al., 2023): a stem of patches, then stages of blocks: depthwise 7x7 convolution, norm over channels, MLP
// with global response normalisation. For features only: it has no tokens of constant size that a tokenizer could decode.
// Field paths are Hugging Face's names.

import { z } from "zod";
import { count } from "../bounds.ts";
import { Conv2d, DepthwiseConv2d, LayerNorm, Linear } from "../nn/layers.ts";
import { reshape } from "../ops/layout.ts";
import { add, div, mul, shift, sqrt, square } from "../ops/math.ts";
import { mean, sum } from "../ops/reduce.ts";
import { check, parameter, type Tensor } from "../tensor/tensor.ts";
import type { VitOutput } from "./vit.ts";
import { wrapperOf } from "./wrappers.ts";

/** The fields of config.json that decide the architecture. Here `patch_size` is the side of the pixels behind a token. */
export const convNextConfig = z.object({
  model_type: z.literal("convnextv2"),
  num_channels: z.literal(3).default(3),
  patch_size: count("pixels").default(4),
  image_size: count("pixels").default(224),
  hidden_sizes: z.array(count("channels")).min(1).default([96, 192, 384, 768]),
  depths: z.array(count("layers")).min(1).default([3, 3, 9, 3]),
  hidden_act: z.literal("gelu").default("gelu"),
  layer_norm_eps: z.number().positive().default(1e-12),
}).refine(({ hidden_sizes, depths }) => hidden_sizes.length === depths.length, {
  error: "gives another number of stages than hidden_sizes",
  path: ["depths"],
}).transform((c) => ({
  ...c,
  stem_size: c.patch_size,
  patch_size: c.patch_size * 2 ** (c.depths.length - 1),
  hidden_size: c.hidden_sizes.at(-1) as number,
}));
export type ConvNextConfig = z.infer<typeof convNextConfig>;

/** Global response normalisation of maps: x (1 + w n) + b, n = |x| / mean |x| with the norm over the pixels of a channel. */
class ResponseNorm {
  readonly weight: Tensor;
  readonly bias: Tensor;

  constructor(C: number) {
    this.weight = parameter([1, 1, 1, C], () => new Float32Array(C), "grn.weight");
    this.bias = parameter([1, 1, 1, C], () => new Float32Array(C), "grn.bias");
  }

  forward(x: Tensor): Tensor {
    const norms = sqrt(sum(square(x), [1, 2], { keepDims: true })); // [B, 1, 1, C]
    const relative = div(norms, shift(mean(norms, [3], { keepDims: true }), 1e-6));
    return add(mul(x, shift(mul(this.weight, relative), 1)), this.bias);
  }
}

class Block {
  readonly dwconv: DepthwiseConv2d;
  readonly layernorm: LayerNorm;
  readonly pwconv1: Linear;
  readonly grn: ResponseNorm;
  readonly pwconv2: Linear;

  constructor(C: number) {
    this.dwconv = new DepthwiseConv2d(C, 7, 3);
    this.layernorm = new LayerNorm(C);
    this.pwconv1 = new Linear(C, 4 * C);
    this.grn = new ResponseNorm(4 * C);
    this.pwconv2 = new Linear(4 * C, C);
  }

  forward(x: Tensor): Tensor {
    const y = this.pwconv1.forward(this.layernorm.forward(this.dwconv.forward(x)), { activation: "gelu" });
    return add(x, this.pwconv2.forward(this.grn.forward(y)));
  }
}

class Stage {
  readonly downsampling_layer?: readonly [LayerNorm, Conv2d];
  readonly layers: Block[];

  constructor(Cin: number | undefined, C: number, depth: number) {
    if (Cin !== undefined) {
      this.downsampling_layer = [new LayerNorm(Cin), new Conv2d(Cin, C, 2, { stride: 2 })];
    }
    this.layers = Array.from({ length: depth }, () => new Block(C));
  }

  forward(x: Tensor): Tensor {
    const [norm, conv] = this.downsampling_layer ?? [];
    return this.layers.reduce(
      (y, block) => block.forward(y),
      norm && conv ? conv.forward(norm.forward(x)) : x,
    );
  }
}

export class ConvNext {
  readonly embeddings: { patch_embeddings: Conv2d; layernorm: LayerNorm };
  readonly encoder: { stages: Stage[] };

  constructor(readonly config: ConvNextConfig) {
    const { hidden_sizes: sizes, depths, stem_size: P } = config, first = sizes[0] as number;
    this.embeddings = {
      patch_embeddings: new Conv2d(3, first, P, { stride: P }),
      layernorm: new LayerNorm(first),
    };
    this.encoder = { stages: sizes.map((C, i) => new Stage(sizes[i - 1], C, depths[i] as number)) };
  }

  /** @param x normalised pixels [B, H, W, 3]; sides are multiples of `patch_size` */
  forward(x: Tensor): VitOutput {
    const [B, H, W] = x.shape as [number, number, number], { patch_size: P, hidden_size: C } = this.config;
    check(H % P === 0 && W % P === 0, "encode an image", `sides must be multiples of ${P}`, x);
    const { patch_embeddings, layernorm } = this.embeddings;
    const stem = layernorm.forward(patch_embeddings.forward(x));
    const y = this.encoder.stages.reduce((y, stage) => stage.forward(y), stem);
    return { patches: reshape(y, [B, (H / P) * (W / P), C]), hidden: [] };
  }
}

/** Locates the network in a checkpoint: its names to the file's keys. The classifier and its norm are left out. */
export function convNextKeys(keys: Iterable<string>): Map<string, string> {
  const all = [...keys], unwrap = (key: string) => key.replace(/^convnextv2\./, "");
  const prefix = wrapperOf(all, (name) => unwrap(name) === "embeddings.patch_embeddings.weight") ?? "";
  const own = all.filter((key) => key.startsWith(prefix));
  return new Map(
    own.map((key) => [unwrap(key.slice(prefix.length)), key] as const)
      .filter(([name]) => !/^(classifier|layernorm)\./.test(name)),
  );
}
