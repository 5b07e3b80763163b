// GEMM for GPUs: K-tiles in workgroup memory. See gemm.ts.

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
  XYZW,
} from "./gemm_parts.ts";

export interface GpuSpec extends CommonSpec {
  readonly backend: "gpu";
  /** Sizes of a convolution as literals, since every load divides by them. */
  readonly sizes: ConvSizes | undefined;
}

export function gpuSpec({ source, tile, vector, vectorStore, bias, conv }: GemmProblem): GpuSpec {
  return { backend: "gpu", source, tile, vector, vectorStore, bias, sizes: conv };
}

/** Loop iterations of a thread. */
export const gpuIterations = ({ splitK }: GemmProblem): number => Math.ceil(splitK / GPU_TILE_K);

/** Side of a workgroup's square of threads. */
const SIDE = 16;
const THREADS = SIDE * SIDE;

/** Bytes of workgroup memory: [k][m] and [k][n], rows padded by one vec4 against bank conflicts. */
export function gpuTileBytes([BM, BN]: readonly [number, number]): number {
  return 16 * GPU_TILE_K * (paddedRow(BM) + paddedRow(BN));
}

const paddedRow = (side: number) => side / 4 + 1;

/**
 * 256 threads, each with a sixteenth of the tile's rows and columns (4x4 to 8x8 outputs). K-tiles of 16 go through workgroup
 * memory; the next one is prefetched into registers meanwhile. A thread's rows are adjacent; its columns are vec4s with a stride of 64,
 * so that adjacent threads read adjacent vec4s.
 *
 * The loop over a K-tile is unrolled and indexes an array of arrays, so that bounds are checked twice per K-tile and not at
 * every access: 43 to 46 TFLOP/s on an H100 at 4096, against 33 for loops of four k over flat arrays. Double buffering,
 * unchecked k, incremented pointers and warp tiling gained nothing more.
 */
export function gpuKernel(spec: GpuSpec): string {
  const [BM, BN] = spec.tile, TM = BM / SIDE, TN4 = BN / SIDE / 4, TM4 = TM / 4;
  const { source, vector, sizes } = spec, along = alongSide(source);
  const a = operand(spec, "a", BM, along.a), b = operand(spec, "b", BN, along.b);
  const multiplyAdd = (u: number) =>
    [
      ...range(TM4).map((i) => `let a${u}_${i} = tile_a[${u}][ty * ${TM4}u + ${i}u];`),
      ...range(TN4).map((j) => `let b${u}_${j} = tile_b[${u}][tx + ${SIDE * j}u];`),
      ...range(TM).flatMap((i) =>
        range(TN4).map((j) =>
          `s${i}_${j} = fma(vec4<f32>(a${u}_${i >> 2}.${XYZW[i & 3]}), b${u}_${j}, s${i}_${j});`
        )
      ),
    ].map((line) => `    ${line}`).join("\n");
  return `${elementFunctions(source, vector, sizes)}
var<workgroup> tile_a: array<array<vec4<f32>, ${paddedRow(BM)}>, ${GPU_TILE_K}>; // [k][m]
var<workgroup> tile_b: array<array<vec4<f32>, ${paddedRow(BN)}>, ${GPU_TILE_K}>; // [k][n]

@compute @workgroup_size(${THREADS})
fn gemm(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) t: u32) {
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
  let ty = t / ${SIDE}u;
  let tx = t % ${SIDE}u;
${lines(TM, (i) => "  " + range(TN4).map((j) => `var s${i}_${j} = vec4<f32>();`).join(" "))}
${a.declare}
${b.declare}
${a.load("begin")}
${b.load("begin")}
  for (var k = begin; k < end; k += ${GPU_TILE_K}u) {
${a.store}
${b.store}
    workgroupBarrier();
${a.load(`k + ${GPU_TILE_K}u`)}
${b.load(`k + ${GPU_TILE_K}u`)}
${range(GPU_TILE_K).map(multiplyAdd).join("\n")}
    workgroupBarrier();
  }
${
    lines(TN4, (j) => {
      const names = lines(TM, (i) => `  let c${i}_0 = s${i}_${j};`);
      const corner = `let m0 = first_m + ty * ${TM}u; let n0 = first_n + tx * 4u + ${4 * SIDE * j}u;`;
      return `  {\n  ${corner}\n${names}\n${epilogue({ ...spec, tile: [TM, 4] })}\n  }`;
    })
  }
}
`;
}

/** How the threads load one operand's K-tile, and store it with the side of the tile contiguous. */
function operand({ vector }: GpuSpec, name: "a" | "b", side: number, along: boolean) {
  const load = tileLoad({ name, side, along, tileK: GPU_TILE_K, threads: THREADS, vector, type: "f32" });
  return {
    ...load,
    store: lines(load.count, (i) => {
      const { at, k } = load.place(i), tile = `tile_${name}`, next = load.next(i);
      if (along) return `    ${tile}[${k}][(${at}) / 4u] = ${next};`;
      return range(4).map((e) =>
        `    ${tile}[${k} + ${e}u][(${at}) / 4u][(${at}) % 4u] = ${next}.${XYZW[e]};`
      )
        .join("\n");
    }),
  };
}
