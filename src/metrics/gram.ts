// Pairwise dot products (Gram matrix) of the rows of two sets on the device, block by block, for distances and kernels of all
// pairs: 50,000 x 50,000 images are 5e12 multiplications.

import { UsageError } from "../errors.ts";
import { permutation } from "../philox.ts";
import { noGrad } from "../tensor/autograd.ts";
import { capture, type Program } from "../gpu/program.ts";
import { matmul } from "../ops/matmul.ts";
import { input, type Tensor } from "../tensor/tensor.ts";
import type { Features } from "./moments.ts";

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

  /** All dot products of rows of `a` and `b` in f32, after `centre` is subtracted from a, and `centreOfB` from b. */
  async *of(
    a: Features,
    b: Features,
    centre: ArrayLike<number> = new Float32Array(a.columns),
    centreOfB: ArrayLike<number> = centre,
  ): AsyncGenerator<Block> {
    const { block, program } = this;
    const x = new Float32Array(block * a.columns), y = new Float32Array(block * a.columns);
    for (let i = 0; i < a.rows; i += block) {
      const rows = fill(x, a, i, centre);
      for (let j = 0; j < b.rows; j += block) {
        const columns = fill(y, b, j, centreOfB);
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

/** Squared Euclidean distances of all pairs of rows of two sets. */
export class PairDistances {
  #done = 0;

  private constructor(
    private readonly program: GramBlocks,
    private readonly centre: Float64Array,
    readonly a: Measured,
    readonly b: Measured,
    private readonly onPairs: (done: number) => void,
  ) {}

  /**
   * @param onPairs called with the number of finished pairs
   * @throws UsageError for different numbers of features
   */
  static async open(
    a: Features,
    b: Features,
    onPairs: (done: number) => void = () => {},
  ): Promise<PairDistances> {
    if (a.columns !== b.columns) {
      throw new UsageError(`Cannot compare features: ${a.columns} against ${b.columns} of them`);
    }
    const centre = meanOf(a); // Cancels in distances, but improves rounding.
    const program = await GramBlocks.open(Math.max(a.rows, b.rows), a.columns);
    const measured = (x: Features) => ({ ...x, lengths: squaredLengths(x, centre) });
    return new PairDistances(program, centre, measured(a), measured(b), onPairs);
  }

  /** Calls `visit` with the indices and the squared distance of each pair. */
  async each(x: Measured, y: Measured, visit: (i: number, j: number, d2: number) => void): Promise<void> {
    const blocks = this.program.of(x, y, this.centre);
    for await (const { first: [i0, j0], count: [rows, columns], dots, stride } of blocks) {
      for (let i = 0; i < rows; i++) {
        const length = x.lengths[i0 + i] as number;
        for (let j = 0; j < columns; j++) {
          const d2 = length + (y.lengths[j0 + j] as number) - 2 * (dots[i * stride + j] as number);
          visit(i0 + i, j0 + j, Math.max(0, d2));
        }
      }
      this.onPairs(this.#done += rows * columns);
    }
  }

  destroy(): void {
    this.program.destroy();
  }
}

/** Features with the squared lengths of their centred rows. */
export interface Measured extends Features {
  lengths: Float64Array;
}

/** Mean of the rows, rounded to f32: the order of the rows changes the f64 sum, and with it the rounding of centred features. */
export function meanOf({ data, rows, columns }: Features): Float64Array {
  const mean = new Float64Array(columns);
  for (let at = 0; at < data.length; at += columns) {
    for (let c = 0; c < columns; c++) mean[c] = (mean[c] as number) + (data[at + c] as number) / rows;
  }
  return mean.map(Math.fround);
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

/**
 * The indices of all rows, sorted by the first feature, among equal ones by the next: subsets that are selected from it do not
 * depend on the order of the files. Features that differ by rounding, as those of other kernels, exchange neighbours at most.
 */
export function orderByContent({ data, rows, columns }: Features): Uint32Array {
  const compare = (i: number, j: number) => {
    for (let c = 0; c < columns; c++) {
      const difference = (data[i * columns + c] as number) - (data[j * columns + c] as number);
      if (difference !== 0) return difference;
    }
    return i - j;
  };
  return Uint32Array.from({ length: rows }, (_, i) => i).sort(compare);
}

/** A random order of the rows, a function of seed, stream and what the rows hold. */
export function randomOrder(x: Features, seed: number, stream = 0, content = orderByContent(x)): Uint32Array {
  return permutation(seed, stream, x.rows).map((i) => content[i] as number);
}

/** `count` rows in such an order. */
export function randomRows(
  x: Features,
  count: number,
  seed: number,
  stream: number,
  content = orderByContent(x),
): Features {
  return rowsOf(x, randomOrder(x, seed, stream, content).subarray(0, count));
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
