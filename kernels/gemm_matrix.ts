// GEMM by subgroup matrices (tensor cores): operands fp16, accumulators fp32. See gemm.ts. WGSL's extension
// chromium_experimental_subgroup_matrix, gpuweb #4195; the sizes of a matrix are the adapter's.

import {
  alongSide,
  type CommonSpec,
  type ConvSizes,
  elementFunctions,
  epilogue,
  type GemmProblem,
  GPU_TILE_K,
  lines,
  offsets,
  range,
  tileLoad,
} from "./gemm_parts.ts";

/** One multiply-accumulate of a subgroup, C[M,N] += A[M,K] B[K,N], as the adapter offers it. */
export interface MatrixUnit {
  readonly M: number;
  readonly N: number;
  readonly K: number;
  /** Smallest and largest subgroup size. */
  readonly subgroup: readonly [min: number, max: number];
}

export interface MatrixSpec extends CommonSpec {
  readonly backend: "matrix";
  readonly unit: MatrixUnit;
  /** Sizes of a convolution as literals, since every load divides by them. */
  readonly sizes: ConvSizes | undefined;
}

export function matrixSpec(problem: GemmProblem, unit: MatrixUnit): MatrixSpec {
  const { source, tile, vector, vectorStore, bias, conv } = problem;
  return { backend: "matrix", source, tile, vector, vectorStore, bias, sizes: conv, unit };
}

/** Length of a K-tile: two matrices, in a loop: drivers compile a multiply-accumulate for longer than other code. */
const tileK = ({ K }: MatrixUnit) => 2 * K;

/** What splits of K are multiples of: K-tiles, so that none straddles two taps of a convolution (see tapOf in gemm_parts.ts). */
export const matrixSplitUnit = (unit: MatrixUnit): number => Math.max(GPU_TILE_K, tileK(unit));

/** Loop iterations of a thread. */
export function matrixIterations({ splitK, tile: [BM, BN], vector }: GemmProblem, unit: MatrixUnit): number {
  const loads = vector ? 0 : (BM + BN) * tileK(unit) / 4 / (SUBGROUPS * unit.subgroup[1]);
  return Math.ceil(splitK / tileK(unit)) * (1 + tileK(unit) / unit.K + loads);
}

/** A workgroup is 2 x 2 subgroups, each with a quarter of the tile. */
const GRID = 2;
const SUBGROUPS = GRID * GRID;

/** Elements by which rows in workgroup memory are padded against bank conflicts: 16 bytes of fp16, so that rows stay aligned. */
const PAD = 8;

/** Columns of a subgroup's results that leave through workgroup memory at a time, where its matrices are narrower. */
const RESULT_COLUMNS = 32;

/** The sizes that a tile and the adapter's matrices imply. */
function layout({ tile: [BM, BN], unit }: Pick<MatrixSpec, "tile" | "unit">) {
  const rows = BM / GRID / unit.M, columns = BN / GRID / unit.N; // matrices of a subgroup
  const together = Math.max(1, Math.min(columns, RESULT_COLUMNS / unit.N)); // matrices whose results leave together
  const wide = columns % together === 0 ? together : 1;
  return { rows, columns, wide, threads: SUBGROUPS * unit.subgroup[1] };
}

/** Bytes of workgroup memory; Infinity where the tile is no multiple of the adapter's matrices. */
export function matrixTileBytes(tile: readonly [number, number], unit: MatrixUnit): number {
  const { rows, columns, wide, threads } = layout({ tile, unit }), K = tileK(unit);
  const loads = tile.map((side) => side * K / 4 / threads);
  if (![rows, columns, ...loads].every((n) => Number.isInteger(n) && n > 0)) return Infinity;
  // Either orientation of an operand, so that every transpose has the same tiles.
  const operand = (side: number) => 2 * Math.max(K * (side + PAD), side * (K + PAD));
  return operand(tile[0]) + operand(tile[1]) + 4 * SUBGROUPS * unit.M * unit.N * wide;
}

/**
 * K-tiles go through workgroup memory as they lie in their operand: gathers, transposes and edges are handled there, so that no
 * load of a matrix leaves its array. The next K-tile is prefetched into registers meanwhile. A subgroup owns a quarter of the tile
 * as matrices in registers. Results leave through workgroup memory, where edges, bias and epilogues are handled.
 *
 * Subgroups may be smaller than the largest size; those beyond the four that are needed only help to load and store.
 */
export function matrixKernel(spec: MatrixSpec): string {
  const { source, vector, sizes, unit, tile: [BM, BN] } = spec, { M, N, K, subgroup: [min, max] } = unit;
  const { rows, columns, wide, threads } = layout(spec), along = alongSide(source);
  const a = operand(spec, "a", BM, along.a), b = operand(spec, "b", BN, along.b);
  const mine = (body: string) => min === max ? body : `    if (subgroup < ${SUBGROUPS}u) {\n${body}\n    }`;
  const sum = (i: number, j: number) => `s${i}_${j}`;
  const multiplyAdds = [
    ...range(rows).map((i) => `let a${i} = ${a.matrix(`row + ${i * M}u`, "u")};`),
    ...range(columns).flatMap((j) => [
      `let b${j} = ${b.matrix(`column + ${j * N}u`, "u")};`,
      ...range(rows).map((i) =>
        `${sum(i, j)} = subgroupMatrixMultiplyAccumulate(a${i}, b${j}, ${sum(i, j)});`
      ),
    ]),
  ].map((line) => `      ${line}`).join("\n");
  const width = N * wide, part = M * width / 4; // of a subgroup's results in workgroup memory, the latter in vec4s
  const leave = (i: number, j: number) =>
    mine(
      lines(wide, (w) =>
        `    subgroupMatrixStore<row_major>(&results, subgroup * ${part}u + ${w * N / 4}u, ${
          sum(i, j + w)
        }, ${width / 4}u);`),
    );
  return `enable f16;
enable subgroups;
enable chromium_experimental_subgroup_matrix;
${elementFunctions(source, vector, sizes, { type: "f16", tileK: tileK(unit) })}
var<workgroup> tile_a: array<vec4<f16>, ${a.size}>;
var<workgroup> tile_b: array<vec4<f16>, ${b.size}>;
var<workgroup> results: array<vec4<f32>, ${SUBGROUPS * part}>; // of the subgroups, one after another

@compute @workgroup_size(${threads})
fn gemm(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) t: u32, @builtin(subgroup_id) subgroup: u32) {
  let tile = group.y * groups.x + group.x;
  if (tile >= params.tiles) { return; } // uniform over the workgroup
  let first_n = tile % params.tiles_n * ${BN}u;
  let first_m = (tile / params.tiles_n) % params.tiles_m * ${BM}u;
  let zs = tile / (params.tiles_n * params.tiles_m);
  let z = zs / params.splits;
  let split = zs % params.splits;
${offsets()}
  let begin = split * params.split_k;
  let end = min(begin + params.split_k, params.K);
  let row = subgroup / ${GRID}u * ${BM / GRID}u;
  let column = subgroup % ${GRID}u * ${BN / GRID}u;
${
    lines(rows, (i) =>
      "  " + range(columns).map((j) =>
        `var ${sum(i, j)} = subgroup_matrix_result<f32, ${N}, ${M}>();`
      ).join(" "))
  }
${a.declare}
${b.declare}
${a.load("begin")}
${b.load("begin")}
  for (var k = begin; k < end; k += ${tileK(unit)}u) {
${a.store}
${b.store}
    workgroupBarrier();
${a.load(`k + ${tileK(unit)}u`)}
${b.load(`k + ${tileK(unit)}u`)}
${mine(`    for (var u = 0u; u < ${tileK(unit)}u; u += ${K}u) {\n${multiplyAdds}\n    }`)}
    workgroupBarrier();
  }
${
    range(rows).flatMap((i) =>
      range(columns / wide).map((j) =>
        `${leave(i, j * wide)}
  workgroupBarrier();
  store_results(t, offset_c, first_m + ${i * M}u, first_n + ${j * width}u);
  workgroupBarrier();`
      )
    ).join("\n")
  }
}

// Stores what each subgroup left in results; m and n are the first row and column of the first subgroup's.
fn store_results(t: u32, offset_c: u32, m: u32, n: u32) {
${
    lines(Math.ceil(SUBGROUPS * part / threads), (i) => {
      const e = `(t + ${i * threads}u)`,
        guard = SUBGROUPS * part % threads ? `if (${e} < ${SUBGROUPS * part}u) ` : "";
      return `  ${guard}{
  let s = ${e} / ${part}u;
  let m0 = m + s / ${GRID}u * ${BM / GRID}u + ${e} % ${part}u / ${width / 4}u;
  let n0 = n + s % ${GRID}u * ${BN / GRID}u + ${e} % ${width / 4}u * 4u;
  let c0_0 = results[${e}];
${epilogue({ ...spec, tile: [1, 4] })}
  }`;
    })
  }
}
`;
}

/** How the threads load one operand's K-tile, keep it in workgroup memory, and load matrices from there. */
function operand({ vector, unit }: MatrixSpec, name: "a" | "b", side: number, along: boolean) {
  const { M, N, K } = unit, depth = tileK(unit), threads = SUBGROUPS * unit.subgroup[1];
  const load = tileLoad({ name, side, along, tileK: depth, threads, vector, type: "f16" });
  const stride = ((along ? side : depth) + PAD) / 4; // of a row, in vec4s
  const type = name === "a"
    ? `subgroup_matrix_left<f16, ${K}, ${M}>`
    : `subgroup_matrix_right<f16, ${N}, ${K}>`;
  const order = along === (name === "b") ? "row_major" : "col_major";
  const stage = ({ at, k }: { at: string; k: string }, value: string) => {
    const [outer, inner] = along ? [k, at] : [at, k];
    return `    tile_${name}[${outer} * ${stride}u + (${inner}) / 4u] = ${value};`;
  };
  // Scalar loads are four times as many: a loop without prefetching keeps the text short.
  const scalars = `    for (var i = 0u; i < ${load.count}u; i += 1u) {
      let e = t + i * ${threads}u;
  ${stage(load.placeOf("e"), load.value("k", "e"))}
    }`;
  return {
    size: stride * (along ? depth : side),
    declare: vector ? load.declare : "",
    load: (from: string) => vector ? load.load(from) : "",
    store: vector ? lines(load.count, (i) => stage(load.place(i), load.next(i))) : scalars,
    /** The matrix that begins at `at` on the side and at k in the K-tile. */
    matrix: (at: string, k: string) => {
      const offset = along ? `${k} * ${stride}u + (${at}) / 4u` : `(${at}) * ${stride}u + ${k} / 4u`;
      return `subgroupMatrixLoad<${type}, ${order}>(&tile_${name}, ${offset}, ${stride}u)`;
    },
  };
}
