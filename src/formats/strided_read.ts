// Strided views of a storage, as in PyTorch: offset, shape and strides. A non-contiguous view is gathered in one pass over its
// range of the storage, block by block, so that a transposed matrix of gigabytes is read once and in order.

import type { ByteSource } from "./bytes.ts";

/** Element i, j, ... is at offset + i * stride[0] + j * stride[1] + ... of the storage. */
export interface Layout {
  readonly offset: number;
  readonly shape: readonly number[];
  /** Elements, non-negative. */
  readonly stride: readonly number[];
}

/** Whether the view is contiguous, the last axis fastest. */
export function isContiguous({ shape, stride }: Layout): boolean {
  let expected = 1;
  for (let k = shape.length - 1; k >= 0; k--) {
    const n = shape[k] as number;
    if (n === 0) return true;
    if (n !== 1 && stride[k] !== expected) return false;
    expected *= n;
  }
  return true;
}

/** Storage elements that a view needs, from the start to its last one. Infinite or inexact if sizes overflow. */
export function extentOf({ offset, shape, stride }: Layout): number {
  if (shape.includes(0)) return offset;
  return shape.reduce((last, n, k) => last + (n - 1) * (stride[k] as number), offset) + 1;
}

/** Bytes read at a time. */
const BLOCK = 1 << 20;

type Words = Uint8Array | Uint16Array | Uint32Array | BigUint64Array;

/** The bytes of a buffer as elements of `width` bytes. */
function words(bytes: Uint8Array<ArrayBuffer>, width: number): Words {
  const Kind = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array, 8: BigUint64Array }[width as 1 | 2 | 4 | 8];
  return new Kind(bytes.buffer, bytes.byteOffset, bytes.length / width);
}

/** Fills `target` with the elements of a view, `width` bytes each, row-major. */
export function gather(
  row: ByteSource,
  width: number,
  layout: Layout,
  target: Uint8Array<ArrayBuffer>,
): void {
  // Largest stride first, so that a block contains few of the outer indices.
  const axes = layout.shape.map((n, k) => ({
    n,
    from: layout.stride[k] as number,
    to: layout.shape.slice(k + 1).reduce((a, b) => a * b, 1),
  })).filter(({ n }) => n > 1).sort((a, b) => b.from - a.from);
  /** Extent of the axes from k on, elements of the storage. */
  const reach = axes.map((_, k) => axes.slice(k).reduce((sum, { n, from }) => sum + (n - 1) * from, 0));
  const out = words(target, width), end = extentOf(layout);
  const buffer = new Uint8Array(Math.min(BLOCK, (end - layout.offset) * width));
  for (let begin = layout.offset; begin < end;) {
    const block = buffer.subarray(0, (end - begin) * width), first = begin;
    row.readInto(begin * width, block);
    const elements = words(block, width), length = elements.length;
    const visit = (k: number, at: number, to: number) => {
      const axis = axes[k];
      if (!axis) return void (out[to] = elements[at - first] as never);
      const rest = reach[k + 1] ?? 0;
      // Indices i for which at + i * from + (0..rest) overlaps this block.
      let low = 0, high = axis.n - 1;
      if (axis.from) {
        low = Math.max(low, Math.ceil((first - rest - at) / axis.from));
        high = Math.min(high, Math.floor((first + length - 1 - at) / axis.from));
      }
      if (k === axes.length - 1 && axis.from) {
        for (let i = low; i <= high; i++) {
          out[to + i * axis.to] = elements[at + i * axis.from - first] as never;
        }
      } else for (let i = low; i <= high; i++) visit(k + 1, at + i * axis.from, to + i * axis.to);
    };
    visit(0, layout.offset, 0);
    begin += length;
  }
}
