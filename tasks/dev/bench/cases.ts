// The kernel cases of the benchmark as data (op, sizes, name), so that peers in other processes and languages run the same
// ones. kernels.ts builds tok's programs from them.

import type { GemmBackend } from "../../../src/ops/gemm_tiles.ts";
import type { Precision } from "../../../src/tensor/tensor.ts";

/** Forward only, or forward and backward for all inputs (one input for a convolution). */
type Pass = "forward" | "gradients";

export type Sizes =
  | { op: "gemm"; layout: "NN" | "NT" | "TN"; M: number; N: number; K: number }
  /** 3x3, padded by one, channels last. */
  | { op: "conv"; wrt: "y" | "x" | "weight"; B: number; H: number; W: number; C: number; Co: number }
  | { op: "attention"; pass: Pass; B: number; T: number; NH: number; HS: number }
  | { op: "layer norm" | "rms norm" | "softmax" | "add" | "silu"; pass: Pass; R: number; C: number }
  | { op: "group norm"; B: number; H: number; W: number; C: number; groups: number }
  /** With gradient clipping and EMA over n parameters. */
  | { op: "adamw"; n: number };

/** One case; `name` is unique within a precision. */
export type Case = Sizes & { name: string; precision: Precision };

/** The case's name with its precision. */
export const titleOf = (c: { name: string; precision: Precision }): string =>
  c.precision === "f16" ? `${c.name}, f16` : c.name;

const LAYOUTS = ["NN", "NT", "TN"] as const;

function* gemms(large: boolean): Generator<Sizes & { name: string }> {
  for (const S of [256, 512, 1024, 2048, ...large ? [4096] : []]) {
    for (const layout of LAYOUTS) yield { name: `GEMM ${layout} ${S}`, op: "gemm", layout, M: S, N: S, K: S };
  }
  if (large) yield { name: "GEMM NN 8192", op: "gemm", layout: "NN", M: 8192, N: 8192, K: 8192 };
  const layer = (of: string, layout: (typeof LAYOUTS)[number], M: number, N: number, K: number) => ({
    name: `GEMM ${layout} ${M}x${N}x${K} (${of})`,
    op: "gemm" as const,
    layout,
    M,
    N,
    K,
  });
  yield layer("DINOv2-L", "NT", 257, 1024, 1024);
  yield layer("DINOv2-L", "NT", 257, 4096, 1024);
  yield layer("DINOv2-L", "NT", 257, 1024, 4096);
  yield layer("DINOv2-L, dx", "NN", 257, 1024, 4096);
  yield layer("DINOv2-L, dweight", "TN", 4096, 1024, 257);
  for (const [size, C] of [["S", 384], ["B", 768], ["XL", 1152]] as const) {
    const hidden = 2 * Math.floor(8 * C / 3);
    yield layer(`DiT-${size}`, "NT", 256, 3 * C, C);
    yield layer(`DiT-${size}`, "NT", 256, hidden, C);
    yield layer(`DiT-${size}, dx`, "NN", 256, C, hidden);
    yield layer(`DiT-${size}, dweight`, "TN", hidden, C, 256);
  }
  yield layer("tiny DiT", "NT", 384, 432, 144);
  yield layer("tiny DiT", "NT", 384, 768, 144);
  yield layer("tiny DiT, dweight", "TN", 768, 144, 384);
  yield layer("tiny encoder", "NT", 136, 384, 96);
}

/** The baseline for GEMMs inside a step: square, and large enough to reach the adapter's best rate. */
export function largeGemm(precision: Precision, software: boolean, profile: GemmBackend): Case {
  const S = !software ? 4096 : profile === "cpu" ? 1024 : 256; // kernels for GPUs are a hundred times slower there
  return { name: "baseline GEMM", precision, op: "gemm", layout: "NN", M: S, N: S, K: S };
}

function* convolutions(large: boolean): Generator<Sizes & { name: string }> {
  const sizes: [of: string, B: number, S: number, C: number][] = [["", 1, 64, 64], ["", 1, 32, 128]];
  sizes.push([" (tiny)", 8, 32, 16]);
  if (large) sizes.push(["", 16, 64, 128]);
  for (const [of, B, S, C] of sizes) {
    for (const [wrt, what] of [["y", ""], ["x", " dx"], ["weight", " dweight"]] as const) {
      const batch = B > 1 ? `${B}x` : "";
      yield {
        name: `conv 3x3${what} ${batch}${S}x${S}x${C} -> ${C}${of}`,
        op: "conv",
        wrt,
        B,
        H: S,
        W: S,
        C,
        Co: C,
      };
    }
  }
}

function* attentions(large: boolean): Generator<Sizes & { name: string }> {
  const shapes: [B: number, T: number][] = [[16, 64], [4, 256], [1, 1024]];
  if (large) shapes.push([64, 256], [16, 1024]);
  for (const [B, T] of shapes) {
    const sizes = { op: "attention", B, T, NH: 6, HS: 64 } as const;
    yield { ...sizes, name: `attention ${B}x${T}x6x64`, pass: "forward" };
    yield { ...sizes, name: `attention ${B}x${T}x6x64 with gradients`, pass: "gradients" };
  }
}

/** @param large adds sizes beyond caches, within what every adapter binds (128 MiB) */
function* memoryBound(large: boolean): Generator<Sizes & { name: string }> {
  const groupNorm = (B: number, S: number, C: number, groups: number) => ({
    name: `group norm + SiLU ${B}x${S}x${S}x${C}`,
    op: "group norm" as const,
    B,
    H: S,
    W: S,
    C,
    groups,
  });
  const C = 768;
  for (const R of large ? [1024, 32768] : [1024]) {
    const rows = (op: "layer norm" | "rms norm" | "softmax" | "add" | "silu", pass: Pass) => {
      const title = op.replace("rms", "RMS").replace("silu", "SiLU");
      return { name: `${title} ${R}x${C}${pass === "forward" ? "" : " with gradients"}`, op, pass, R, C };
    };
    for (const op of ["layer norm", "rms norm", "softmax", "silu"] as const) {
      yield rows(op, "forward");
      yield rows(op, "gradients");
    }
    yield rows("add", "forward");
  }
  yield groupNorm(16, 32, 16, 4);
  yield groupNorm(1, 64, 128, 32);
  if (large) yield groupNorm(16, 128, 128, 32);
  yield { name: "AdamW, clip, EMA 8 M", op: "adamw", n: 8 << 20 };
  if (large) yield { name: "AdamW, clip, EMA 32 M", op: "adamw", n: 32 << 20 };
}

/** Cases that also run in fp16 when fp32 is measured. */
const ALSO_FP16 =
  /^(GEMM (NN|NT|TN) (512|1024)|layer norm 1024x768|softmax 1024x768|add 1024x768|SiLU 1024x768)$/;

/**
 * The kernel cases, in the order in which they run.
 * @param large adds cases that fill a GPU (seconds each on a CPU)
 */
export function kernelCases(precision: Precision, large: boolean): Case[] {
  const all = [...gemms(large), ...convolutions(large), ...attentions(large), ...memoryBound(large)];
  // The optimizer works on f32 whatever the activations are.
  const cases = all.map((c) => ({ ...c, precision: c.op === "adamw" ? "f32" as const : precision }));
  const fp16 = precision === "f16" ? [] : all.filter(({ name }) => ALSO_FP16.test(name));
  return [...cases, ...fp16.map((c) => ({ ...c, precision: "f16" as const }))];
}
