// Matrix products for GPUs: tiles in workgroup memory. See gemm.ts.

import { elementFunctions, type GemmSpec, GPU_DEPTH, GPU_TILE, lines, store } from "./gemm_parts.ts";

/** 256 threads, 64x64 outputs, 4x4 each; slabs of 16 K's in workgroup memory, the next one loaded into registers meanwhile. */
export function gpuKernel(spec: GemmSpec): string {
  const perThread = GPU_TILE * GPU_DEPTH / 256;
  // Neighbouring threads load neighbouring addresses along the operand's contiguous axis.
  const aAlongM = spec.source.kind === "conv_dweight" ||
    (spec.source.kind === "plain" && spec.source.transposeA);
  const bAlongK = spec.source.kind === "conv" || (spec.source.kind === "plain" && spec.source.transposeB);
  const place = (i: number, alongTile: boolean) =>
    alongTile
      ? [`(t + ${i * 256}u) % ${GPU_TILE}u`, `(t + ${i * 256}u) / ${GPU_TILE}u`]
      : [`(t + ${i * 256}u) / ${GPU_DEPTH}u`, `(t + ${i * 256}u) % ${GPU_DEPTH}u`];
  const load = (k: string) =>
    lines(perThread, (i) => {
      const [am, ak] = place(i, aAlongM), [bn, bk] = place(i, !bAlongK);
      return `    na${i} = a_at(from_a, m0 + ${am}, ${k} + ${ak}, end); nb${i} = b_at(from_b, ${k} + ${bk}, n0 + ${bn}, end);`;
    });
  return `${elementFunctions(spec)}
var<workgroup> slab_a: array<f32, ${GPU_DEPTH * (GPU_TILE + 4)}>; // [k][m], padded against bank conflicts
var<workgroup> slab_b: array<f32, ${GPU_DEPTH * (GPU_TILE + 4)}>; // [k][n]

@compute @workgroup_size(256)
fn gemm(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) t: u32) {
  let tile = group.y * groups.x + group.x;
  if (tile >= params.tiles) { return; } // uniform: the whole workgroup leaves
  let n0 = tile % params.tiles_n * ${GPU_TILE}u;
  let m0 = (tile / params.tiles_n) % params.tiles_m * ${GPU_TILE}u;
  let zs = tile / (params.tiles_n * params.tiles_m);
  let z = zs / params.splits;
  let split = zs % params.splits;
  let from_a = z * params.batch_a;
  let from_b = z * params.batch_b;
  let from_c = z * params.batch_c + split * params.c_split;
  let begin = split * params.depth;
  let end = min(begin + params.depth, params.K);
  let tm = t / 16u * 4u;
  let tn = t % 16u * 4u;
${lines(4, (i) => `  var c${i}_0 = vec4<f32>();`)}
${lines(perThread, (i) => `  var na${i} = 0.0; var nb${i} = 0.0;`)}
${load("begin")}
  for (var k = begin; k < end; k += ${GPU_DEPTH}u) {
${
    lines(perThread, (i) => {
      const [am, ak] = place(i, aAlongM), [bn, bk] = place(i, !bAlongK);
      return `    slab_a[(${ak}) * ${GPU_TILE + 4}u + ${am}] = na${i}; slab_b[(${bk}) * ${
        GPU_TILE + 4
      }u + ${bn}] = nb${i};`;
    })
  }
    workgroupBarrier();
${load(`k + ${GPU_DEPTH}u`)}
    for (var q = 0u; q < ${GPU_DEPTH}u; q++) {
      let at_a = q * ${GPU_TILE + 4}u + tm;
      let at_b = q * ${GPU_TILE + 4}u + tn;
      let vb = vec4<f32>(slab_b[at_b], slab_b[at_b + 1u], slab_b[at_b + 2u], slab_b[at_b + 3u]);
${lines(4, (i) => `      c${i}_0 = fma(vec4<f32>(slab_a[at_a + ${i}u]), vb, c${i}_0);`)}
    }
    workgroupBarrier();
  }
${
    store({ ...spec, tile: [4, 4] }).replaceAll("m0 +", "m0 + tm +").replaceAll("n0 +", "n0 + tn +")
      .replaceAll("+ n0)", "+ n0 + tn)")
  }
}
`;
}
