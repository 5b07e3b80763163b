// Row kernels: the prelude for their width, and the number of threads and rows of a workgroup in each profile.

import preludeScalar from "../../kernels/prelude_scalar.wgsl" with { type: "text" };
import preludeRows from "../../kernels/prelude_rows.wgsl" with { type: "text" };
import preludeSubgroups from "../../kernels/prelude_subgroups.wgsl" with { type: "text" };
import preludeVec4 from "../../kernels/prelude_vec4.wgsl" with { type: "text" };
import { launch, type LaunchOptions } from "../gpu/bind.ts";
import { device } from "../gpu/device.ts";
import { partsOf } from "../gpu/iterations.ts";
import { fold, kernel } from "../gpu/kernel.ts";

/** A kernel text behind the prelude for rows of `columns` elements; `width` elements make a vector. */
export function byWidth(source: string, columns: number): { source: string; width: number } {
  const width = columns % 4 === 0 ? 4 : 1;
  return { source: (width === 4 ? preludeVec4 : preludeScalar) + source, width };
}

/** In place of prelude_subgroups.wgsl: each thread is a subgroup of its own. */
const WITHOUT_SUBGROUPS = `fn sum_subgroup(own: vec2<f32>) -> vec2<f32> { return own; }
fn max_subgroup(own: f32) -> f32 { return own; }
`;

/** The prelude of kernels in which threads share a row; its constants are those of {@link rowThreads}. */
export function rowsPrelude(): string {
  return preludeRows + (subgroupThreads() > 1 ? preludeSubgroups : WITHOUT_SUBGROUPS);
}

/** Consecutive threads that reduce over a row by subgroup operations; 1 for none. */
function subgroupThreads(): number {
  const { profile, subgroups } = device();
  return profile === "gpu" ? Math.max(1, subgroups) : 1;
}

/** THREADS that share a row and ROWS of a workgroup, as the constants of a kernel behind {@link rowsPrelude}. */
export function rowThreads(THREADS: number, ROWS: number): { THREADS: number; ROWS: number } {
  const SUBGROUP = subgroupThreads();
  return { THREADS, ROWS, ...SUBGROUP > 1 ? { SUBGROUP } : {} };
}

/**
 * The row kernel `entry` for `count` rows of `columns` elements.
 * @param loops of a thread over its part of the row
 * @returns its text with the preludes, the vectors of a row, and a function that launches it
 */
export function rowKernel(
  source: string,
  entry: string,
  count: number,
  columns: number,
  loops: number,
  constants: Record<string, number> = {},
) {
  const text = byWidth(rowsPrelude() + source, columns);
  const size = columns / text.width, shared = sharing(size, loops);
  const made = kernel(text.source, entry, { ...constants, ...shared });
  const grid = fold(Math.ceil(count / shared.ROWS)), iterations = loops * Math.ceil(size / shared.THREADS);
  return {
    source: text.source,
    size,
    launch: (
      operands: Parameters<typeof launch>[1],
      params: Record<string, number>,
      options: Omit<LaunchOptions, "iterations">,
    ) => launch(made, operands, params, grid, { ...options, iterations }),
  };
}

/** Threads of a workgroup of kernels without workgroup memory. */
export function groupSize(): number {
  return device().profile === "cpu" ? 16 : 64;
}

/** Threads of a workgroup of row kernels, at most: the array of prelude_rows.wgsl. */
const MAX_THREADS = 256;

/** Threads that share a row of `loads`, over which each loops `loops` times, and rows of a workgroup. */
export function sharing(loads: number, loops: number): { THREADS: number; ROWS: number } {
  const { profile, simdWidth: simd } = device();
  const least = Math.min(MAX_THREADS, 2 ** Math.ceil(Math.log2(partsOf(loads, loops))));
  if (profile === "cpu") return rowThreads(least, Math.max(1, Math.floor(simd / least)));
  const THREADS = Math.max(least, loads >= 64 ? 64 : loads >= 16 ? 16 : 4);
  return rowThreads(THREADS, Math.max(1, 64 / THREADS));
}
