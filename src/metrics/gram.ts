// Pairwise dot products (Gram matrix) of the rows of two sets on the device, block by block, for distances and kernels of all
// pairs: 50,000 x 50,000 images are 5e12 multiplications.

import { noGrad } from "../tensor/autograd.ts";
import { capture, type Program } from "../gpu/program.ts";
import { matmul } from "../ops/matmul.ts";
import { input, type Tensor } from "../tensor/tensor.ts";
import type { Features } from "./frechet.ts";

/** Rows per block. */
const BLOCK = 2048;

/** One block: dots[i * stride + j] of row `first[0] + i` of a and row `first[1] + j` of b. */
export interface Block {
  first: readonly [number, number];
  count: readonly [number, number];
  dots: Float32Array;
  stride: number;
}

/** Computes blocks of the Gram matrix of two sets with the same number of columns. */
export class GramBlocks {
  private constructor(
    private readonly program: Program<{ x: Tensor; y: Tensor }, { z: Tensor }>,
    private readonly block: number,
  ) {}

  /** @param rows of the larger set */
  static async open(rows: number, columns: number): Promise<GramBlocks> {
    const block = Math.min(BLOCK, rows), side = () => input([block, columns], "f32", "rows");
    const program = capture(
      "dot products of rows",
      { x: side(), y: side() },
      ({ x, y }) => noGrad(() => ({ z: matmul(x, y, { transposeB: true }) })),
    );
    return new GramBlocks(await program.prepare(), block);
  }

  /** All dot products of rows of `a` and `b` in f32, after `centre` is subtracted. */
  async *of(
    a: Features,
    b: Features,
    centre: ArrayLike<number> = new Float32Array(a.columns),
  ): AsyncGenerator<Block> {
    const { block, program } = this;
    const x = new Float32Array(block * a.columns), y = new Float32Array(block * a.columns);
    for (let i = 0; i < a.rows; i += block) {
      const rows = fill(x, a, i, centre);
      for (let j = 0; j < b.rows; j += block) {
        const columns = fill(y, b, j, centre);
        program.run(j === 0 ? { x, y } : { y });
        const dots = await program.read(program.outputs.z);
        yield { first: [i, j], count: [rows, columns], dots, stride: block };
      }
    }
  }

  destroy(): void {
    this.program.destroy();
  }
}

/** Copies centred rows from `first` on. @returns their number */
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

/** Squared lengths of the centred rows, rounded like the operands of GramBlocks. */
export function squaredLengths({ data, rows, columns }: Features, centre: ArrayLike<number>): Float64Array {
  return Float64Array.from({ length: rows }, (_, r) => {
    let sum = 0;
    for (let c = 0; c < columns; c++) {
      sum += Math.fround((data[r * columns + c] as number) - (centre[c] as number)) ** 2;
    }
    return sum;
  });
}

/** The rows with these indices. */
export function rowsOf({ data, columns }: Features, indices: ArrayLike<number>): Features {
  const picked = new Float32Array(indices.length * columns);
  for (let i = 0; i < indices.length; i++) {
    const r = indices[i] as number;
    picked.set(data.subarray(r * columns, (r + 1) * columns), i * columns);
  }
  return { data: picked, rows: indices.length, columns };
}
