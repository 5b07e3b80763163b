// Which tile of a GEMM each thread of the cpu backend owns. See gemm.ts.

export interface CpuGrid {
  /** Threads of a workgroup: one SIMD vector of the processor. */
  readonly threads: number;
  /** All threads of a workgroup read A at the same addresses, which is fast where such loads are scalar. */
  readonly uniformA: boolean;
}

/** Number of workgroups. @param matrices in the batch, times the splits of K */
export function cpuGroups(
  { threads, uniformA }: CpuGrid,
  tilesM: number,
  tilesN: number,
  matrices: number,
): number {
  return uniformA
    ? Math.ceil(tilesN / threads) * tilesM * matrices
    : Math.ceil(tilesN * tilesM * matrices / threads);
}

/**
 * The matrix zs and the tile (m0, n0) of a thread: consecutive ones of the batch or, where A is uniform, of a row of tiles. What
 * is past the end of that row is computed and never stored.
 */
export function tileOfThread({ threads, uniformA }: CpuGrid, [TM, TN]: readonly [number, number]): string {
  const group = "(group.y * groups.x + group.x)";
  return uniformA
    ? `  let groups_n = (params.tiles_n + ${threads - 1}u) / ${threads}u;
  let row = ${group} / groups_n;
  let n0 = (${group} % groups_n * ${threads}u + thread) * ${TN}u;
  let m0 = row % params.tiles_m * ${TM}u;
  let zs = row / params.tiles_m;
  if (zs * params.tiles_m * params.tiles_n >= params.tiles) { return; }`
    : `  let tile = ${group} * ${threads}u + thread;
  if (tile >= params.tiles) { return; }
  let n0 = tile % params.tiles_n * ${TN}u;
  let m0 = (tile / params.tiles_n) % params.tiles_m * ${TM}u;
  let zs = tile / (params.tiles_n * params.tiles_m);`;
}
