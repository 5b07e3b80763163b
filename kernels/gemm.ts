// Prints the WGSL of matrix products: C[M,N] = alpha * A[M,K] B[K,N] + bias[N], plain, transposed, batched, or with one
// operand gathered from a feature map (convolution as implicit GEMM). A generator because register tiles must be
// written out: loop and index checks cannot be switched off, so only straight-line code runs at speed.
//
// cpu profile: a lane owns TMxTN outputs and walks K in steps of four or eight with vec4 loads, from textures where they
// fit (see gpu/staging.ts), and no workgroup memory; the lanes of a workgroup (one SIMD vector) take consecutive
// tiles, whatever matrix of the batch those belong to.
// gpu profile: a workgroup of 16x16 threads owns 64x64 to 128x128 outputs and stages 16-deep slabs in workgroup memory.

import { cpuKernel } from "./gemm_cpu.ts";
import { gpuKernel } from "./gemm_gpu.ts";
import type { GemmSpec } from "./gemm_parts.ts";

export { SUM_BLOCK } from "./gemm_cpu.ts";
export { gpuTileBytes } from "./gemm_gpu.ts";
export { type ConvSizes, type GemmSource, type GemmSpec, GPU_DEPTH } from "./gemm_parts.ts";

/** The WGSL text; entry point `gemm`; buffers a, b, c and, where asked for, bias and sums. */
export function gemmWgsl(spec: GemmSpec): string {
  const wide = spec.vector ? "vec4<f32>" : "f32";
  const operand = (name: string) =>
    spec.texels
      ? `var ${name}: texture_storage_2d<rgba32float, read>`
      : `var<storage, read> ${name}: array<${wide}>`;
  return `struct Params {
  M: u32, N: u32, K: u32,
  lda: u32, ldb: u32, ldc: u32, // elements between rows
  heads: u32, head_a: u32, head_b: u32, head_c: u32, // a batch is of heads matrices, and elements between those
  batch_a: u32, batch_b: u32, batch_c: u32, // elements between batches
  tiles_m: u32, tiles_n: u32, tiles: u32,
  splits: u32, depth: u32, c_split: u32, // K is cut into splits of depth; each writes its own C
  alpha: f32,
  H: u32, W: u32, C: u32, Ho: u32, Wo: u32, Co: u32, KH: u32, KW: u32, stride: u32, top: u32, left: u32,
}
@group(0) @binding(0) ${operand("a")};
@group(0) @binding(1) ${operand("b")};
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> c: array<${spec.vectorStore ? "vec4<f32>" : "f32"}>;
@group(0) @binding(4) var<uniform> params: Params;
@group(0) @binding(5) var<storage, read_write> sums: array<vec4<f32>>; // [M] of each split of each matrix

${spec.profile === "gpu" ? gpuKernel(spec) : cpuKernel(spec)}`;
}
