// Table lookup by class number, and the sinusoidal features of a time.

import source from "../../kernels/embedding.wgsl" with { type: "text" };
import { differentiable, noGrad } from "../tensor/autograd.ts";
import { partsOf } from "../gpu/iterations.ts";
import { launch } from "../gpu/bind.ts";
import { fold, kernel } from "../gpu/kernel.ts";
import { check, constant, empty, type Tensor, viewAs } from "../tensor/tensor.ts";
import { pointwise } from "./pointwise.ts";
import { sumChunks } from "./reduce.ts";
import { concat } from "./layout.ts";

/** Rows of table [V, C] by ids u32 [B] -> [B, C]. */
export function embedding(table: Tensor, ids: Tensor): Tensor {
  check(
    table.rank === 2 && ids.rank === 1 && ids.dtype === "u32",
    "look up an embedding",
    "the table must be [V,C] and ids u32 [B]",
    table,
    ids,
  );
  const [V, C] = table.shape as [number, number], B = ids.size;
  const y = empty([B, C]);
  const chunks = partsOf(B);
  const params = { count: B, rows: V, size: C, chunks, chunk: Math.ceil(B / chunks) };
  launch(kernel(source, "embedding"), { table, ids, y }, params, fold(Math.ceil(B * C / 64)));
  return differentiable(y, [table], (dy) => {
    const y = empty([chunks, V * C]);
    launch(
      kernel(source, "embedding_backward"),
      { ids, dy, y },
      params,
      fold(Math.ceil(chunks * V * C / 64)),
      { iterations: params.chunk },
    );
    return [viewAs(sumChunks(y, 1), table.shape)];
  });
}

/** Features of times t [B] -> [B, size]: cos(t f_i) then sin(t f_i), f_i = 10000^(-i / (size / 2)). Not differentiable. */
export function timestepEmbedding(t: Tensor, size: number): Tensor {
  check(t.rank === 1 && size % 2 === 0, "embed a time", "t must be [B] and the size even", t);
  const half = size / 2;
  const table = Float32Array.from({ length: half }, (_, i) => 10000 ** (-i / half));
  const frequencies = constant(table, [1, half], "frequencies");
  return noGrad(() => {
    const column = viewAs(t, [t.size, 1]);
    return concat([
      pointwise(["cos(x0 * x1)"], [column, frequencies]),
      pointwise(["sin(x0 * x1)"], [column, frequencies]),
    ], 1);
  });
}
