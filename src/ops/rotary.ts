// Rotary position embeddings on interleaved pairs, with the 2-D axial tables of LightningDiT.

import source from "../../kernels/rotary.wgsl" with { type: "text" };
import { differentiable } from "../autograd.ts";
import { fold, kernel } from "../gpu/kernel.ts";
import { check, empty, type Tensor } from "../tensor.ts";

/** Rotates the channel pairs of x [B, T, NH, HS] by the angles of tables cos, sin [T, HS]. */
export function rotary(x: Tensor, cos: Tensor, sin: Tensor): Tensor {
  const [, T, NH, HS] = x.shape as [number, number, number, number];
  check(
    x.rank === 4 && HS % 2 === 0 && cos.shape.join() === `${T},${HS}` &&
      sin.shape.join() === cos.shape.join(),
    "rotate",
    "x must be [B,T,NH,HS] with an even HS, the tables [T,HS]",
    x,
    cos,
    sin,
  );
  const run = (from: Tensor, BACK: number): Tensor => {
    const y = empty(from.shape);
    kernel(source, "rotary", { BACK }).launch(
      { x: from, cos_table: cos, sin_table: sin, y },
      { count: x.size / 2, tokens: T, heads: NH, size: HS / 2 },
      fold(Math.ceil(x.size / 128)),
      { flops: 3 * x.size },
    );
    return y;
  };
  return differentiable(run(x, 0), [x], (dy) => [run(dy, 1)]);
}

/**
 * Tables for a grid: the first half of a head's channels turns with the row, the second with the column; frequencies
 * theta^(-2i / (HS / 2)), each for one pair.
 */
export function rotaryTables2d(rows: number, columns: number, HS: number, theta = 10000) {
  const T = rows * columns, half = HS / 2;
  const cos = new Float32Array(T * HS), sin = new Float32Array(T * HS);
  for (let t = 0; t < T; t++) {
    const position = [Math.floor(t / columns), t % columns] as const;
    for (let d = 0; d < HS; d++) {
      const pair = Math.floor((d % half) / 2);
      const angle = position[d < half ? 0 : 1] * theta ** (-2 * pair / half);
      cos[t * HS + d] = Math.cos(angle);
      sin[t * HS + d] = Math.sin(angle);
    }
  }
  return { cos, sin };
}
