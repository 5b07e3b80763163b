// A small convolutional classifier of the generated shapes, independent of the encoder: it does not accept blurred images
// that only the encoder recognises. Trained by tasks/dev/pretrain_toy_classifier.ts.

import { Conv2d, Linear } from "../nn/layers.ts";
import type { Initializer } from "../nn/init.ts";
import { relu } from "../ops/math.ts";
import { reshape } from "../ops/layout.ts";
import { mean } from "../ops/reduce.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** Side of its images, pixels. */
export const TOY_CLASSIFIER_SIZE = 32;

/** Features of an image. */
export const TOY_CLASSIFIER_WIDTH = 64;

export class ToyClassifier {
  readonly conv1 = new Conv2d(3, 24, 3, { stride: 2, padding: 1 });
  readonly conv2 = new Conv2d(24, 48, 3, { stride: 2, padding: 1 });
  readonly conv3 = new Conv2d(48, 64, 3, { stride: 2, padding: 1 });
  readonly head = new Linear(64 * 16, 10);

  init(init: Initializer): void {
    for (const layer of [this.conv1, this.conv2, this.conv3, this.head]) init.torchDefault(layer);
  }

  /** Pixels [B, 32, 32, 3] in -1..1 to logits [B, 10]. */
  forward(x: Tensor): Tensor {
    return this.layers(x).logits;
  }

  /** Features [B, 64], the mean over positions of the last convolution's, and logits [B, 10]. */
  layers(x: Tensor): { pooled: Tensor; logits: Tensor } {
    const y = [this.conv1, this.conv2, this.conv3].reduce((h, conv) => relu(conv.forward(h)), x); // [B, 4, 4, 64]
    const pooled = mean(reshape(y, [x.dim(0), -1, TOY_CLASSIFIER_WIDTH]), [1]);
    return { pooled, logits: this.head.forward(reshape(y, [x.dim(0), -1])) };
  }
}
