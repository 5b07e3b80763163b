// Prints the WGSL of GEMM: C[M,N] = alpha * A[M,K] B[K,N] + bias[N], plain, transposed, batched, or with one operand gathered
// from a feature map (convolution as implicit GEMM). A generator because register tiles must be unrolled: loop and bounds
// checks cannot be switched off, so only unrolled code runs at full speed. Three backends:
//   gemm_cpu.ts: a thread owns a TMxTN tile and loops over K in steps of 4 or 8 with vec4 loads, from textures where they fit
//     (gpu/software/staging.ts), without workgroup memory; a workgroup is one SIMD vector of tiles.
//   gemm_gpu.ts: a workgroup of 16x16 threads owns a tile of 64x64 to 128x128, with K-tiles of 16 in workgroup memory.
//   gemm_matrix.ts: the same by subgroup matrices (tensor cores), where both operands are fp16 and the device has them.

import { cpuKernel, type CpuSpec } from "./gemm_cpu.ts";
import { gpuKernel, type GpuSpec } from "./gemm_gpu.ts";
import { matrixKernel, type MatrixSpec } from "./gemm_matrix.ts";

export { canSplitK, cpuIterations, cpuSpec, usesKxInner } from "./gemm_cpu.ts";
export { cpuGroups } from "./gemm_cpu_grid.ts";
export { gpuIterations, gpuSpec, gpuTileBytes } from "./gemm_gpu.ts";
export {
  matrixIterations,
  matrixSpec,
  matrixSplitUnit,
  matrixTileBytes,
  type MatrixUnit,
} from "./gemm_matrix.ts";
export { CONV_SIZES, type ConvSizes, type GemmProblem, type GemmSource, GPU_TILE_K } from "./gemm_parts.ts";

export type GemmSpec = CpuSpec | GpuSpec | MatrixSpec;

/** The WGSL text; entry point `gemm`; buffers a, b, c and, where asked for, bias and row_sums. */
export function gemmWgsl(spec: GemmSpec): string {
  const space = (name: "a" | "b") => spec.backend === "cpu" && spec.textures[name] ? "texture" : "storage";
  const type = spec.backend === "matrix" ? "f16" : "f32";
  const operand = spec.vector ? `vec4<${type}>` : type;
  return `struct Params {
  M: u32, N: u32, K: u32,
  lda: u32, ldb: u32, ldc: u32, // elements between rows
  heads: u32, head_a: u32, head_b: u32, head_c: u32, // matrices of a batch element, and elements between them
  batch_a: u32, batch_b: u32, batch_c: u32, // elements between batch elements
  tiles_m: u32, tiles_n: u32, tiles: u32,
  splits: u32, split_k: u32, c_split: u32, // split-K: splits of split_k, each with a C of its own; elements between those
  alpha: f32,
  H: u32, W: u32, C: u32, Ho: u32, Wo: u32, Co: u32, KH: u32, KW: u32, stride: u32, top: u32, left: u32,
}
var<${space("a")}> a: array<${operand}>;
var<${space("b")}> b: array<${operand}>;
var<storage> bias: array<f32>;
var<storage> c: array<${spec.vectorStore ? "vec4<f32>" : "f32"}>;
var<storage> row_sums: array<vec4<f32>>; // of op(A) over K: [batch, splits, M]

${spec.backend === "cpu" ? cpuKernel(spec) : spec.backend === "gpu" ? gpuKernel(spec) : matrixKernel(spec)}`;
}
