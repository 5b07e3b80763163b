// LPIPS with VGG-16 (Zhang et al. 2018, version 0.1), a perceptual distance of images. Features after relu1_2, 2_2, 3_3, 4_3 and
// 5_3 are normalised to unit length at each pixel; squared differences are weighted per channel, averaged over pixels and
// summed. Tensor names are those of torchvision's vgg16 and of the published linear layers.

import { UsageError } from "../errors.ts";
import { Conv2d } from "../nn/layers.ts";
import { recomputable } from "../nn/recompute.ts";
import { add, div, mul, relu, shift, sqrt, square, sub } from "../ops/math.ts";
import { maxPool } from "../ops/pool.ts";
import { mean, sum } from "../ops/reduce.ts";
import { reshape } from "../ops/layout.ts";
import { constant, type Tensor } from "../tensor/tensor.ts";
import { within } from "../gpu/scope.ts";

/** Where the weights are published, for messages. */
export const LPIPS_FILES = "vgg16-397923af.pth from https://download.pytorch.org/models and " +
  "lpips/weights/v0.1/vgg.pth from https://github.com/richzhang/PerceptualSimilarity, comma-separated";

/** Channels of the convolutions between poolings. */
const STAGES = [[64, 64], [128, 128], [256, 256, 256], [512, 512, 512], [512, 512, 512]] as const;

/** Normalisation of images in -1..1. */
const SHIFT = [-0.030, -0.088, -0.188], SCALE = [0.458, 0.448, 0.450];

const EPS = 1e-10;

/** A 1x1 convolution to one channel after a dropout, which is inactive. */
class Weighting {
  readonly model: readonly ["dropout", Conv2d];

  constructor(channels: number) {
    this.model = ["dropout", new Conv2d(channels, 1, 1, {}, false)];
  }

  /** The weights [C]. */
  get channels(): Tensor {
    return reshape(this.model[1].weight, [-1]);
  }
}

/** Minimum side of an image, pixels. */
export const LPIPS_SIDE = 16;

export class Lpips {
  /** Fingerprint of the weights; openLpips() sets it. */
  fingerprint?: string;
  /** Indices as in torchvision, activations and poolings included. */
  readonly features: readonly (Conv2d | "relu" | "pool")[];
  readonly lin0 = new Weighting(64);
  readonly lin1 = new Weighting(128);
  readonly lin2 = new Weighting(256);
  readonly lin3 = new Weighting(512);
  readonly lin4 = new Weighting(512);
  readonly #factor = constant(Float32Array.from(SCALE, (s) => 1 / s), [3], "image scale");
  readonly #offset = constant(
    Float32Array.from(SHIFT, (s, c) => -s / (SCALE[c] as number)),
    [3],
    "image shift",
  );

  constructor() {
    let C = 3;
    this.features = STAGES.flatMap((widths, stage) => [
      ...stage > 0 ? ["pool" as const] : [],
      ...widths.flatMap((width) => {
        const conv = new Conv2d(C, width, 3, { padding: 1 });
        C = width;
        return [conv, "relu" as const];
      }),
    ]);
  }

  /**
   * Images [B,H,W,3] in -1..1 to five maps of unit vectors, the inputs of `compare`.
   * @throws UsageError for sides below 16
   */
  describe(x: Tensor): Tensor[] {
    if (Math.min(x.dim(1), x.dim(2)) < LPIPS_SIDE) {
      throw new UsageError(
        `Cannot compute LPIPS of images of ${x.dim(1)} x ${x.dim(2)}: VGG-16 needs at least 16 x 16`,
      );
    }
    let y = add(mul(x, this.#factor), this.#offset);
    const maps: Tensor[] = [];
    for (let from = 0; from < this.features.length;) { // one stage: from a pooling to before the next
      const next = this.features.indexOf("pool", from + 1), to = next < 0 ? this.features.length : next;
      const layers = this.features.slice(from, to);
      const part = (x: Tensor) =>
        layers.reduce(
          (x, layer) =>
            layer === "pool" ? maxPool(x, { kernel: 2 }) : layer === "relu" ? relu(x) : layer.forward(x),
          x,
        );
      maps.push(y = recomputable(layers, part, y));
      from = to;
    }
    return maps.map(unit);
  }

  /** Distances between the images of two batches, from their maps: [B]. */
  compare(a: readonly Tensor[], b: readonly Tensor[]): Tensor {
    const { lin0, lin1, lin2, lin3, lin4 } = this;
    return [lin0, lin1, lin2, lin3, lin4].map((lin, i) => {
      const difference = square(sub(a[i] as Tensor, b[i] as Tensor)); // [B, H, W, C]
      return sum(mean(mul(difference, lin.channels), [1, 2]), [1]); // [B]
    }).reduce(add);
  }

  forward(x: Tensor, y: Tensor): Tensor {
    return this.compare(this.describe(x), this.describe(y));
  }
}

/**
 * x / (|x| + eps) along the channels. The argument of the root is never zero, where it has no gradient. Lengths are f32: the
 * square of a feature of 256 overflows fp16.
 */
function unit(x: Tensor): Tensor {
  const length = within(
    { precision: "f32" },
    () => sqrt(shift(sum(square(x), [-1], { keepDims: true }), EPS * EPS)),
  );
  return div(x, shift(length, EPS));
}
