// Matrix products for GPUs: tiles in workgroup memory. See gemm.ts.

import {
  elementFunctions,
  type GemmSpec,
  GPU_DEPTH,
  lines,
  offsets,
  range,
  store,
  XYZW,
} from "./gemm_parts.ts";

/** A side of the square of threads that makes a workgroup. */
const SIDE = 16;
const THREADS = SIDE * SIDE;

/** Bytes of workgroup memory: [k][m] and [k][n], each row a vector longer against bank conflicts. */
export function gpuTileBytes([BM, BN]: readonly [number, number]): number {
  return 16 * GPU_DEPTH * (rowOf(BM) + rowOf(BN));
}

const rowOf = (side: number) => side / 4 + 1;

/**
 * 256 threads, a sixteenth of the tile's rows and columns each (4x4 to 8x8 outputs). Slabs of 16 K's go through workgroup
 * memory, and the next one is loaded into registers meanwhile. A thread's rows are neighbours; its columns come in vectors,
 * 64 apart, so that the threads of a row read neighbouring vectors.
 *
 * All 16 K's are written out and index an array of arrays, so that a thread checks its two places in a row once a slab and
 * not at every access: 43 to 46 TFLOP/s on an H100 at 4096, where loops of four K's over flat arrays reach 33. Double buffers, K's
 * without bounds, pointers that step and threads arranged by warps gained nothing more.
 */
export function gpuKernel(spec: GemmSpec): string {
  const [BM, BN] = spec.tile, TM = BM / SIDE, TN4 = BN / SIDE / 4, TM4 = TM / 4;
  // Neighbouring threads load neighbouring addresses along the operand's contiguous axis.
  const { source } = spec;
  const aAlongM = source.kind === "conv_dweight" || (source.kind === "plain" && source.transposeA);
  const bAlongN = !(source.kind === "conv" || (source.kind === "plain" && source.transposeB));
  const a = operand(spec, "a", BM, aAlongM), b = operand(spec, "b", BN, bAlongN);
  const multiplyAdd = (u: number) =>
    [
      ...range(TM4).map((i) => `let a${u}_${i} = slab_a[${u}][ty * ${TM4}u + ${i}u];`),
      ...range(TN4).map((j) => `let b${u}_${j} = slab_b[${u}][tx + ${SIDE * j}u];`),
      ...range(TM).flatMap((i) =>
        range(TN4).map((j) =>
          `s${i}_${j} = fma(vec4<f32>(a${u}_${i >> 2}.${XYZW[i & 3]}), b${u}_${j}, s${i}_${j});`
        )
      ),
    ].map((line) => `    ${line}`).join("\n");
  return `${elementFunctions(spec)}
var<workgroup> slab_a: array<array<vec4<f32>, ${rowOf(BM)}>, ${GPU_DEPTH}>; // [k][m]
var<workgroup> slab_b: array<array<vec4<f32>, ${rowOf(BN)}>, ${GPU_DEPTH}>; // [k][n]

@compute @workgroup_size(${THREADS})
fn gemm(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) t: u32) {
  let tile = group.y * groups.x + group.x;
  if (tile >= params.tiles) { return; } // uniform: the whole workgroup leaves
  let first_n = tile % params.tiles_n * ${BN}u;
  let first_m = (tile / params.tiles_n) % params.tiles_m * ${BM}u;
  let zs = tile / (params.tiles_n * params.tiles_m);
  let z = zs / params.splits;
  let split = zs % params.splits;
${offsets()}
  let begin = split * params.depth;
  let end = min(begin + params.depth, params.K);
  let ty = t / ${SIDE}u;
  let tx = t % ${SIDE}u;
${lines(TM, (i) => "  " + range(TN4).map((j) => `var s${i}_${j} = vec4<f32>();`).join(" "))}
${a.declare}
${b.declare}
${a.load("begin")}
${b.load("begin")}
  for (var k = begin; k < end; k += ${GPU_DEPTH}u) {
${a.keep}
${b.keep}
    workgroupBarrier();
${a.load(`k + ${GPU_DEPTH}u`)}
${b.load(`k + ${GPU_DEPTH}u`)}
${range(GPU_DEPTH).map(multiplyAdd).join("\n")}
    workgroupBarrier();
  }
${
    lines(TN4, (j) => {
      const names = lines(TM, (i) => `  let c${i}_0 = s${i}_${j};`);
      const corner = `let m0 = first_m + ty * ${TM}u; let n0 = first_n + tx * 4u + ${4 * SIDE * j}u;`;
      return `  {\n  ${corner}\n${names}\n${store({ ...spec, tile: [TM, 4] })}\n  }`;
    })
  }
}
`;
}

/** How the threads bring one operand's slab in: `along` its tile's side four at a time, or along K. */
function operand(spec: GemmSpec, name: "a" | "b", side: number, along: boolean) {
  const perThread = side * GPU_DEPTH / 4 / THREADS;
  const across = (along ? side : GPU_DEPTH) / 4;
  const place = (i: number) => {
    const e = `(t + ${i * THREADS}u)`, four = `${e} % ${across}u * 4u`, one = `${e} / ${across}u`;
    return along ? { at: four, k: one } : { at: one, k: four };
  };
  const first = name === "a" ? "first_m" : "first_n";
  const element = (slab: string, k: string, at: string) =>
    name === "a"
      ? `a_at(from_a, ${at}, ${slab}, ${slab} + ${k}, end)`
      : `b_at(from_b, ${at}, ${slab}, ${slab} + ${k}, end)`;
  const next = (i: number) => `next_${name}${i}`;
  return {
    declare: lines(perThread, (i) => `  var ${next(i)} = vec4<f32>();`),
    load: (from: string) =>
      lines(perThread, (i) => {
        const { at, k } = place(i);
        const four = (e: number) =>
          along
            ? element(from, k, `${first} + ${at} + ${e}u`)
            : element(from, `${k} + ${e}u`, `${first} + ${at}`);
        return `    ${next(i)} = ${spec.vector ? four(0) : `vec4<f32>(${range(4).map(four).join(", ")})`};`;
      }),
    keep: lines(perThread, (i) => {
      const { at, k } = place(i), slab = `slab_${name}`;
      if (along) return `    ${slab}[${k}][(${at}) / 4u] = ${next(i)};`;
      return range(4).map((e) =>
        `    ${slab}[${k} + ${e}u][(${at}) / 4u][(${at}) % 4u] = ${next(i)}.${XYZW[e]};`
      ).join("\n");
    }),
  };
}
