// The Inception-v3 of FID: the network of 2015-12-05 with 1008 classes. It differs from torchvision's (Szegedy et al. 2015) in
// the pooling of the mixed blocks: averages exclude the padding, and the last block uses max pooling. Tensor names are
// pytorch-fid's; each batch norm is folded into its convolution at loading.

import { UsageError } from "../errors.ts";
import type { Identity } from "../formats/provenance.ts";
import { Conv2d, countParameters, Linear, state, type TensorSource } from "../nn/layers.ts";
import { clamp, relu, scale, shift } from "../ops/math.ts";
import { linear } from "../ops/matmul.ts";
import { averagePool, maxPool } from "../ops/pool.ts";
import { mean } from "../ops/reduce.ts";
import { resize } from "../ops/resize.ts";
import { concat, reshape, slice } from "../ops/layout.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** Where the weights are published, for messages. */
export const INCEPTION_FILE =
  "pt_inception-2015-12-05-6726825d.pth from https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights";

/** Side of the network's input, pixels. */
export const INCEPTION_SIDE = 299;

/** Forms of the network's input. */
export const INCEPTION_INPUTS = ["pytorch-fid", "adm", "clean", "fdr6"] as const;
/**
 * Preprocessing of bytes b:
 * - pytorch-fid: resized as PyTorch, b / 127.5 - 1
 * - adm: the TensorFlow graph of ADM's evaluator, pixels at integer positions, (b - 128) / 128; StyleGAN3's network, which EDM2
 *   uses, computes the same
 * - clean: clean-fid, Pillow's bicubic filter in floating point, clipped to 0..255, (b - 128) / 128
 * - fdr6: resized as `adm`, b / 127.5 - 1
 */
export type InceptionInput = typeof INCEPTION_INPUTS[number];

/** The interpolation of each. */
export const SAMPLING = {
  "pytorch-fid": "pytorch",
  adm: "tensorflow1",
  clean: "pillow",
  fdr6: "tensorflow1",
} as const;

/** Number of features per image. */
export const INCEPTION_WIDTHS = { pooled: 2048, spatial: 17 * 17 * 7, logits: 1008 };

/** Batch norm's epsilon. */
const EPS = 1e-3;

const chain = (x: Tensor, ...convs: readonly Conv2d[]) => convs.reduce((y, conv) => relu(conv.forward(y)), x);
const join = (...branches: readonly Tensor[]) => concat(branches, 3);
const around = { kernel: 3, stride: 1, padding: 1 };
const meanAround = (x: Tensor) => averagePool(x, { ...around, countPadding: false });
const halved = (x: Tensor) => maxPool(x, { kernel: 3, stride: 2 });

/** A KH x KW convolution with "same" padding. */
function same(from: number, to: number, KH: number, KW = KH): Conv2d {
  const [y, x] = [(KH - 1) / 2, (KW - 1) / 2];
  return new Conv2d(from, to, [KH, KW], { padding: [y, y, x, x] });
}

/** 1x1, 5x5, double 3x3 and pooling. */
const blockA = (C: number, pooled: number) => ({
  branch1x1: same(C, 64, 1),
  branch5x5_1: same(C, 48, 1),
  branch5x5_2: same(48, 64, 5),
  branch3x3dbl_1: same(C, 64, 1),
  branch3x3dbl_2: same(64, 96, 3),
  branch3x3dbl_3: same(96, 96, 3),
  branch_pool: same(C, pooled, 1),
  forward(x: Tensor): Tensor {
    return join(
      chain(x, this.branch1x1),
      chain(x, this.branch5x5_1, this.branch5x5_2),
      chain(x, this.branch3x3dbl_1, this.branch3x3dbl_2, this.branch3x3dbl_3),
      chain(meanAround(x), this.branch_pool),
    );
  },
});

/** Halves the side: 3x3, double 3x3 and max pooling. */
const blockB = (C: number) => ({
  branch3x3: new Conv2d(C, 384, 3, { stride: 2 }),
  branch3x3dbl_1: same(C, 64, 1),
  branch3x3dbl_2: same(64, 96, 3),
  branch3x3dbl_3: new Conv2d(96, 96, 3, { stride: 2 }),
  forward(x: Tensor): Tensor {
    return join(
      chain(x, this.branch3x3),
      chain(x, this.branch3x3dbl_1, this.branch3x3dbl_2, this.branch3x3dbl_3),
      halved(x),
    );
  },
});

/** 1x1, factorised 7x7 and double 7x7, and pooling. */
const blockC = (C: number, inner: number) => ({
  branch1x1: same(C, 192, 1),
  branch7x7_1: same(C, inner, 1),
  branch7x7_2: same(inner, inner, 1, 7),
  branch7x7_3: same(inner, 192, 7, 1),
  branch7x7dbl_1: same(C, inner, 1),
  branch7x7dbl_2: same(inner, inner, 7, 1),
  branch7x7dbl_3: same(inner, inner, 1, 7),
  branch7x7dbl_4: same(inner, inner, 7, 1),
  branch7x7dbl_5: same(inner, 192, 1, 7),
  branch_pool: same(C, 192, 1),
  forward(x: Tensor): Tensor {
    return join(
      chain(x, this.branch1x1),
      chain(x, this.branch7x7_1, this.branch7x7_2, this.branch7x7_3),
      chain(
        x,
        this.branch7x7dbl_1,
        this.branch7x7dbl_2,
        this.branch7x7dbl_3,
        this.branch7x7dbl_4,
        this.branch7x7dbl_5,
      ),
      chain(meanAround(x), this.branch_pool),
    );
  },
});

/** Halves the side: 3x3, 7x7 and max pooling. */
const blockD = (C: number) => ({
  branch3x3_1: same(C, 192, 1),
  branch3x3_2: new Conv2d(192, 320, 3, { stride: 2 }),
  branch7x7x3_1: same(C, 192, 1),
  branch7x7x3_2: same(192, 192, 1, 7),
  branch7x7x3_3: same(192, 192, 7, 1),
  branch7x7x3_4: new Conv2d(192, 192, 3, { stride: 2 }),
  forward(x: Tensor): Tensor {
    return join(
      chain(x, this.branch3x3_1, this.branch3x3_2),
      chain(x, this.branch7x7x3_1, this.branch7x7x3_2, this.branch7x7x3_3, this.branch7x7x3_4),
      halved(x),
    );
  },
});

/** 1x1, 3x3 and double 3x3 whose last layer is a 1x3 and a 3x1 in parallel, and pooling. */
const blockE = (C: number, pool: (x: Tensor) => Tensor) => ({
  branch1x1: same(C, 320, 1),
  branch3x3_1: same(C, 384, 1),
  branch3x3_2a: same(384, 384, 1, 3),
  branch3x3_2b: same(384, 384, 3, 1),
  branch3x3dbl_1: same(C, 448, 1),
  branch3x3dbl_2: same(448, 384, 3),
  branch3x3dbl_3a: same(384, 384, 1, 3),
  branch3x3dbl_3b: same(384, 384, 3, 1),
  branch_pool: same(C, 192, 1),
  forward(x: Tensor): Tensor {
    const single = chain(x, this.branch3x3_1);
    const double = chain(x, this.branch3x3dbl_1, this.branch3x3dbl_2);
    return join(
      chain(x, this.branch1x1),
      chain(single, this.branch3x3_2a),
      chain(single, this.branch3x3_2b),
      chain(double, this.branch3x3dbl_3a),
      chain(double, this.branch3x3dbl_3b),
      chain(pool(x), this.branch_pool),
    );
  },
});

export class Inception {
  /** Of the weights, if they were read from a file. */
  identity?: Identity;
  readonly Conv2d_1a_3x3 = new Conv2d(3, 32, 3, { stride: 2 });
  readonly Conv2d_2a_3x3 = new Conv2d(32, 32, 3);
  readonly Conv2d_2b_3x3 = same(32, 64, 3);
  readonly Conv2d_3b_1x1 = same(64, 80, 1);
  readonly Conv2d_4a_3x3 = new Conv2d(80, 192, 3);
  readonly Mixed_5b = blockA(192, 32);
  readonly Mixed_5c = blockA(256, 64);
  readonly Mixed_5d = blockA(288, 64);
  readonly Mixed_6a = blockB(288);
  readonly Mixed_6b = blockC(768, 128);
  readonly Mixed_6c = blockC(768, 160);
  readonly Mixed_6d = blockC(768, 160);
  readonly Mixed_6e = blockC(768, 192);
  readonly Mixed_7a = blockD(768);
  readonly Mixed_7b = blockE(1280, meanAround);
  readonly Mixed_7c = blockE(2048, (x) => maxPool(x, around));
  readonly fc = new Linear(2048, 1008);

  /**
   * Images [B,S,S,3] in -1..1 to `pooled` features [B, 2048], `spatial` features [B, 17 * 17 * 7] (the first 7 channels of
   * mixed_6/conv in TensorFlow's graph) and `logits` [B, 1008] without bias, as in ADM's evaluator.
   */
  forward(x: Tensor, input: InceptionInput = "pytorch-fid"): Record<InceptionOutput, Tensor> {
    const B = x.dim(0);
    let y = chain(asInput(x, input), this.Conv2d_1a_3x3, this.Conv2d_2a_3x3, this.Conv2d_2b_3x3); // [B, 147, 147, 64]
    y = chain(halved(y), this.Conv2d_3b_1x1, this.Conv2d_4a_3x3); // [B, 71, 71, 192]
    y = [this.Mixed_5b, this.Mixed_5c, this.Mixed_5d].reduce((h, block) => block.forward(h), halved(y));
    y = [this.Mixed_6a, this.Mixed_6b, this.Mixed_6c].reduce((h, block) => block.forward(h), y); // [B, 17, 17, 768]
    const spatial = slice(chain(y, this.Mixed_6d.branch1x1), 3, 0, 7);
    y = [this.Mixed_6d, this.Mixed_6e, this.Mixed_7a].reduce((h, block) => block.forward(h), y); // [B, 8, 8, 1280]
    const pooled = mean(this.Mixed_7c.forward(this.Mixed_7b.forward(y)), [1, 2]); // [B, 2048]
    return { pooled, spatial: reshape(spatial, [B, -1]), logits: linear(pooled, this.fc.weight) };
  }
}

export type InceptionOutput = "pooled" | "spatial" | "logits";

function asInput(x: Tensor, input: InceptionInput): Tensor {
  const side = INCEPTION_SIDE, sampling = SAMPLING[input];
  const y = sampling === "pillow"
    ? clamp(resize(x, side, side, { filter: "bicubic", antialias: true }), -1, 1)
    : resize(x, side, side, { filter: "bilinear", corners: sampling === "tensorflow1" });
  // b = 127.5 (x + 1), so (b - 128) / 128 = x 127.5 / 128 - 1 / 256
  return input === "adm" || input === "clean" ? shift(scale(y, 127.5 / 128), -1 / 256) : y;
}

/** Number of trainable parameters in the published form, with separate batch norms. */
export function inceptionParameters(): number {
  const inception = new Inception();
  const folded = [...state(inception)].filter(([key]) => key.endsWith(".bias") && key !== "fc.bias");
  return countParameters(inception) + folded.reduce((n, [, bias]) => n + bias.size, 0);
}

/**
 * Convolutions with their batch norms folded in, in f64: weight * g, bias - mean * g with g = gamma / sqrt(variance + eps).
 * @throws UsageError for incomplete batch norms, and for torchvision's network
 */
export function folded(source: TensorSource): TensorSource {
  const { name, shapes } = source;
  const classes = shapes.get("fc.weight")?.[0];
  if (classes === 1000 || shapes.has("AuxLogits.fc.weight")) {
    throw new UsageError(
      `Cannot load "${name}": it is torchvision's Inception, whose features give other distances; use ${INCEPTION_FILE}`,
    );
  }
  const parts = ["weight", "bias", "running_mean", "running_var"] as const;
  const own = new Map<string, readonly number[]>();
  for (const [key, shape] of shapes) {
    const conv = /^(.+)\.conv\.weight$/.exec(key)?.[1];
    if (conv !== undefined) {
      for (const part of parts) {
        const found = shapes.get(`${conv}.bn.${part}`);
        if (found?.join() !== `${shape[0]}`) {
          throw new UsageError(
            `Cannot load "${name}": "${conv}.bn.${part}" ` +
              `${found ? `is [${found.join(", ")}] instead of [${shape[0]}]` : "is missing"}; ` +
              `use ${INCEPTION_FILE}`,
          );
        }
      }
      own.set(`${conv}.weight`, shape).set(`${conv}.bias`, [shape[0] as number]);
    } else if (!/\.bn\.(weight|bias|running_mean|running_var)$/.test(key)) own.set(key, shape);
  }
  return {
    name,
    shapes: own,
    async read(key) {
      const [, conv, part] = /^(.+)\.(weight|bias)$/.exec(key) ?? [];
      if (conv === undefined || !shapes.has(`${conv}.conv.weight`)) return await source.read(key);
      const [gamma, beta, average, variance] = await Promise.all(
        parts.map((p) => source.read(`${conv}.bn.${p}`)),
      ) as [Float32Array, Float32Array, Float32Array, Float32Array];
      const gain = Float64Array.from(gamma, (g, c) => g / Math.sqrt((variance[c] as number) + EPS));
      if (part === "bias") {
        return Float32Array.from(gain, (g, c) => (beta[c] as number) - g * (average[c] as number));
      }
      const weight = await source.read(`${conv}.conv.weight`), each = weight.length / gain.length;
      return weight.map((w, i) => w * (gain[Math.floor(i / each)] as number));
    },
  };
}
