// What row kernels share: the prelude for their width, and how many lanes and rows a workgroup has in each profile.

import narrow from "../../kernels/narrow.wgsl" with { type: "text" };
import rows from "../../kernels/rows.wgsl" with { type: "text" };
import wide from "../../kernels/wide.wgsl" with { type: "text" };
import { device } from "../gpu/device.ts";
import { fold, type Kernel, kernel } from "../gpu/kernel.ts";

/** A kernel text behind the prelude for rows of `columns` elements; `width` elements make a vector. */
export function byWidth(source: string, columns: number): { source: string; width: number } {
  const width = columns % 4 === 0 ? 4 : 1;
  return { source: (width === 4 ? wide : narrow) + source, width };
}

/** The row kernel `entry` for rows of `columns` elements, its grid for `count` rows, and the vectors of a row. */
export function rowKernel(
  source: string,
  entry: string,
  count: number,
  columns: number,
  constants: Record<string, number> = {},
): { kernel: Kernel; grid: [number, number]; size: number } {
  const text = byWidth(rows + source, columns);
  const size = columns / text.width, shared = sharing(size);
  return {
    kernel: kernel(text.source, entry, { ...constants, ...shared }),
    grid: fold(Math.ceil(count / shared.ROWS)),
    size,
  };
}

/** Lanes of a workgroup in which each works for itself. */
export function groupSize(): number {
  return device().profile === "cpu" ? 16 : 64;
}

/** How many lanes share a row of so many loads, and how many rows make a workgroup. */
export function sharing(loads: number): { LANES: number; ROWS: number } {
  const { profile, lanes } = device();
  if (profile === "cpu") return { LANES: 1, ROWS: lanes };
  const LANES = loads >= 64 ? 64 : loads >= 16 ? 16 : 4;
  return { LANES, ROWS: 64 / LANES };
}
