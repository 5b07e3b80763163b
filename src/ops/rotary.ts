// Rotary position embeddings: on interleaved pairs with the 2-D axial tables of LightningDiT, or by rotate-half with the tables
// of DINOv3, whose coordinates run from -1 to 1 for any grid.

import source from "../../kernels/rotary.wgsl" with { type: "text" };
import { differentiable } from "../tensor/autograd.ts";
import { launch } from "../gpu/bind.ts";
import { fold, kernel } from "../gpu/kernel.ts";
import { check, emptyActivation, type Tensor } from "../tensor/tensor.ts";

/** The channel pairs of a head that rotate together: (2i, 2i + 1), or (i, i + HS / 2). */
export type Pairs = "interleaved" | "half";

/** Rotates the channel pairs of x [B, T, NH, HS] by the angles of tables cos, sin [T, HS]. */
export function rotary(x: Tensor, cos: Tensor, sin: Tensor, pairs: Pairs = "interleaved"): Tensor {
  const [, T, NH, HS] = x.shape as [number, number, number, number];
  check(
    x.rank === 4 && HS % 4 === 0 && cos.shape.join() === `${T},${HS}` &&
      sin.shape.join() === cos.shape.join(),
    "rotate",
    "x must be [B,T,NH,HS] with HS a multiple of 4, the tables [T,HS]",
    x,
    cos,
    sin,
  );
  const count = x.size / 4, half = pairs === "half";
  const run = (from: Tensor, BACK: number): Tensor => {
    const y = emptyActivation(from.shape);
    const text = `alias E = ${half ? "vec2<f32>" : "vec4<f32>"};\n${source}`;
    launch(
      kernel(text, half ? "rotary_half" : "rotary", { BACK }),
      { x: from, cos_table: cos, sin_table: sin, y },
      { count, tokens: T, heads: NH, size: HS / 4 },
      fold(Math.ceil(count / 64)),
      { flops: 3 * x.size, fusion: { loads: ["x"], stores: ["y"] } },
    );
    return y;
  };
  return differentiable(run(x, 0), [x], (dy) => [run(dy, 1)]);
}

/** Tables for a grid: half of a head rotates with the row, half with the column; frequencies theta^(-2i / (HS / 2)). */
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

/**
 * DINOv3's tables for `prefix` tokens that do not rotate, followed by a grid of patches, [prefix + rows * columns, HS]:
 * patch centres at -1..1 along each axis, frequencies 2 pi theta^(-4i / HS); each half of a head holds HS / 4 of them for
 * the row, then HS / 4 for the column.
 */
export function rotaryTablesCentred(prefix: number, rows: number, columns: number, HS: number, theta = 100) {
  const T = prefix + rows * columns, quarter = HS / 4;
  const cos = new Float32Array(T * HS).fill(1), sin = new Float32Array(T * HS);
  for (let t = 0; t < rows * columns; t++) {
    const position = [
      2 * (Math.floor(t / columns) + 0.5) / rows - 1,
      2 * (t % columns + 0.5) / columns - 1,
    ] as const;
    for (let d = 0; d < HS; d++) {
      const angle = 2 * Math.PI * position[d % (2 * quarter) < quarter ? 0 : 1] *
        theta ** (-(d % quarter) / quarter);
      cos[(prefix + t) * HS + d] = Math.cos(angle);
      sin[(prefix + t) * HS + d] = Math.sin(angle);
    }
  }
  return { cos, sin };
}
