// Products of the rows of two sets on the device, block by block: what distances and kernels of all pairs are made of.
// 50,000 images against as many are 5e12 multiplications; only blocks of sums come back.

import { noGrad } from "../autograd.ts";
import { capture } from "../gpu/program.ts";
import { matmul } from "../ops/matmul.ts";
import { input } from "../tensor.ts";
import type { Features } from "./frechet.ts";

/** Rows of a block. */
const BLOCK = 2048;

/** What one block gave: products[i * stride + j] of row `first[0] + i` of a and row `first[1] + j` of b. */
export interface Block {
  first: readonly [number, number];
  count: readonly [number, number];
  products: Float32Array;
  stride: number;
}

/**
 * All products of rows of `a` and `b` in f32, after `centre` has been taken off.
 * @param a and b have equally many columns
 */
export async function* rowProducts(
  a: Features,
  b: Features,
  centre: ArrayLike<number> = new Float32Array(a.columns),
): AsyncGenerator<Block> {
  const K = a.columns, M = Math.min(BLOCK, a.rows), N = Math.min(BLOCK, b.rows);
  const program = await capture(
    "products of rows",
    { x: input([M, K], "f32", "rows"), y: input([N, K], "f32", "rows") },
    ({ x, y }) => noGrad(() => ({ z: matmul(x, y, { transposeB: true }) })),
  ).prepare();
  try {
    const x = new Float32Array(M * K), y = new Float32Array(N * K);
    for (let i = 0; i < a.rows; i += M) {
      const rows = fill(x, a, i, centre);
      for (let j = 0; j < b.rows; j += N) {
        const columns = fill(y, b, j, centre);
        program.run(j === 0 ? { x, y } : { y });
        const products = await program.read(program.outputs.z);
        yield { first: [i, j], count: [rows, columns], products, stride: N };
      }
    }
  } finally {
    program.destroy();
  }
}

/** Rows from `first` on, centred. @returns how many there were */
function fill(
  into: Float32Array,
  { data, rows, columns }: Features,
  first: number,
  centre: ArrayLike<number>,
): number {
  const from = data.subarray(first * columns, first * columns + into.length);
  for (let i = 0; i < from.length; i += columns) {
    for (let c = 0; c < columns; c++) into[i + c] = (from[i + c] as number) - (centre[c] as number);
  }
  return Math.min(into.length / columns, rows - first);
}

/** Squared lengths of the rows after `centre` has been taken off, as rowProducts() sees them. */
export function squaredLengths({ data, rows, columns }: Features, centre: ArrayLike<number>): Float64Array {
  return Float64Array.from({ length: rows }, (_, r) => {
    let sum = 0;
    for (let c = 0; c < columns; c++) {
      sum += Math.fround((data[r * columns + c] as number) - (centre[c] as number)) ** 2;
    }
    return sum;
  });
}

/** Rows of these numbers, as a set of their own. */
export function rowsOf({ data, columns }: Features, indices: ArrayLike<number>): Features {
  const picked = new Float32Array(indices.length * columns);
  for (let i = 0; i < indices.length; i++) {
    const r = indices[i] as number;
    picked.set(data.subarray(r * columns, (r + 1) * columns), i * columns);
  }
  return { data: picked, rows: indices.length, columns };
}
