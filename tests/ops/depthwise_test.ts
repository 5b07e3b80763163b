// Depthwise convolution against f64 loops.

import { depthwiseConv2d } from "../../src/ops/depthwise.ts";
import { checkOp } from "../helpers/check.ts";
import { at, build } from "../helpers/reference.ts";

for (const [K, padding] of [[7, 3], [3, 1], [2, 0]] as const) {
  Deno.test(`depthwiseConv2d() of ${K}x${K} with padding ${padding} and its gradients match the reference`, async () => {
    await checkOp({
      op: (x, weight, bias) => depthwiseConv2d(x, weight, bias, padding),
      reference: (x, weight, bias) => {
        const [B, H, W, C] = x.shape as [number, number, number, number], grown = 2 * padding - K + 1;
        return build([B, H + grown, W + grown, C], (...index) => {
          const [b, i, j, c] = index as [number, number, number, number];
          let y = at(bias, c);
          for (let ky = 0; ky < K; ky++) {
            for (let kx = 0; kx < K; kx++) {
              const iy = i + ky - padding, ix = j + kx - padding;
              if (iy >= 0 && ix >= 0 && iy < H && ix < W) y += at(x, b, iy, ix, c) * at(weight, c, ky, kx, 0);
            }
          }
          return y;
        });
      },
      shapes: [
        [[2, 5, 4, 8], [8, K, K, 1], [8]],
        ...K === 7 ? [] : [[[1, 3, 6, 3], [3, K, K, 1], [3]]],
      ],
      wrong: [
        [[1, 8, 8, 4], [4, K, K, 2], [4]],
        [[1, 8, 8, 4], [3, K, K, 1], [3]],
        [[8, 8, 4], [4, K, K, 1], [4]],
      ],
    });
  });
}
