// One table of what each WebGPU implementation and precision reaches on this adapter, in ten minutes: bench.ts in a process for
// each variant, with PyTorch in the first where it is installed. Run on a GPU: deno run -A tasks/dev/tensor_cores.ts

import { parseArgs } from "@std/cli/parse-args";
import { fromFileUrl } from "@std/path";
import { lines } from "./bench/peers.ts";

const HELP =
  `Measure tensor cores: Deno's WebGPU and Dawn, fp32, fp16 and fp16 by subgroup matrices, and PyTorch

Usage: deno run -A tasks/dev/tensor_cores.ts [options]

  --only TEXT       cases whose name contains TEXT; repeat for more [GEMMs, conv, attention and steps that fill a GPU]
  --variants TEXT   variants whose name contains TEXT; repeat for more [all]
  --minutes N       time for all variants [10]
  --tiny            small cases, for a software adapter
  --torch           PyTorch too: python3, or what TORCH_PYTHON names
  --help            this text
`;

interface Variant {
  name: string;
  gpu: "deno" | "dawn";
  precision: "f32" | "f16";
  profile: "gpu" | "matrix";
  /** Toggles of Dawn. */
  toggles?: string;
}

const VARIANTS: readonly Variant[] = [
  { name: "wgpu f32", gpu: "deno", precision: "f32", profile: "gpu" },
  { name: "wgpu f16", gpu: "deno", precision: "f16", profile: "gpu" },
  { name: "Dawn f32", gpu: "dawn", precision: "f32", profile: "gpu" },
  { name: "Dawn f16", gpu: "dawn", precision: "f16", profile: "gpu" },
  { name: "Dawn f16 matrices", gpu: "dawn", precision: "f16", profile: "matrix" },
  {
    name: "Dawn f16 matrices, unchecked",
    gpu: "dawn",
    precision: "f16",
    profile: "matrix",
    toggles: "disable_robustness",
  },
];

/** The cases, which bench.ts runs in an order of its own: kernels, then steps. */
const CASES = [
  "GEMM NN 4096",
  "GEMM NN 1024",
  "GEMM NN 2048",
  "GEMM NN 8192",
  "GEMM NT 4096",
  "GEMM TN 4096",
  "->",
  "attention 64x256",
  "attention 16x1024",
  "DINOv2-B, 32 images",
  "stage 2 with GAN, DINOv2-B",
  "DiT training step, B/1",
  "DiT training step, XL/1",
  "sampling step with guidance, B/1",
];
const TINY = ["GEMM TN 256", "8x32x32x16 -> 16 (tiny)"];

interface Line {
  case: string;
  ms?: number;
  gflops?: number;
  peer?: string;
  skipped?: string;
}

const args = parseArgs(Deno.args, {
  boolean: ["tiny", "torch", "help"],
  string: ["only", "variants", "minutes"],
  collect: ["only", "variants"],
  default: { minutes: "10" },
  unknown: (arg) => fail(`Cannot use "${arg}": there is no such option; see --help`),
});
if (args.help) {
  console.log(HELP.trimEnd());
  Deno.exit(0);
}
const minutes = Number(args.minutes);
if (!(minutes > 0)) fail(`Cannot use --minutes "${args.minutes}": give a number above 0`);
const chosen = args.variants as string[], only = args.only as string[];
const variants = VARIANTS.filter(({ name }) => !chosen.length || chosen.some((text) => name.includes(text)));
if (!variants.length) fail(`Cannot measure: no variant has "${chosen.join('" or "')}" in its name`);

/** Milliseconds and GFLOP/s by case, then by variant. */
const table = new Map<string, Map<string, { ms: number; gflops?: number | undefined }>>();
const notes: string[] = [], began = performance.now();
for (const [i, v] of variants.entries()) {
  // What earlier variants left over is divided among the rest.
  const left = minutes * 60_000 - (performance.now() - began);
  const signal = AbortSignal.timeout(Math.max(1, left / (variants.length - i)));
  console.error(`${v.name}: at most ${(left / (variants.length - i) / 1000).toFixed(0)} s`);
  const cases = (only.length ? only : args.tiny ? TINY : CASES).flatMap((text) => ["--only", text]);
  const bench = ["run", "-A", fromFileUrl(import.meta.resolve("./bench.ts")), "--json", ...cases];
  const torch = args.torch && i === 0 ? ["--torch"] : [];
  const options = ["--precision", v.precision, "--profile", v.profile, "--gpu", v.gpu, ...torch];
  const env = v.toggles === undefined ? {} : { TOK_DAWN_TOGGLES: v.toggles };
  for await (const line of lines<Line>(Deno.execPath(), [...bench, ...options], { env, signal })) {
    const title = line.case.replace(/, f16$/, "");
    if (line.skipped !== undefined) notes.push(`${v.name}, ${title}: ${line.skipped}`);
    if (line.ms === undefined) continue;
    const row = table.get(title) ?? new Map();
    table.set(title, row.set(line.peer ?? v.name, { ms: line.ms, gflops: line.gflops }));
    console.error(`  ${title}, ${line.peer ?? v.name}: ${line.ms.toFixed(3)} ms`);
  }
  if (signal.aborted) notes.push(`${v.name}: its time ended before its cases`);
}

const names = [...new Set([...table.values()].flatMap((row) => [...row.keys()]))];
const cell = (entry?: { ms: number; gflops?: number | undefined }) =>
  !entry
    ? ""
    : `${entry.ms.toFixed(3)} ms${entry.gflops ? `, ${(entry.gflops / 1000).toPrecision(3)} TFLOP/s` : ""}`;
console.log(`| case | ${names.join(" | ")} |\n|${" --- |".repeat(names.length + 1)}`);
for (const [title, row] of table) {
  console.log(`| ${title} | ${names.map((n) => cell(row.get(n))).join(" | ")} |`);
}
for (const note of notes) console.log(`- ${note}`);
const matrices = "Dawn f16 matrices", step = "DiT training step, B/1, batch 32";
const gemm = table.get("GEMM NN 4096")?.get(matrices)?.gflops, row = table.get(step);
const ratio = (row?.get("Dawn f32")?.ms ?? NaN) / (row?.get(matrices)?.ms ?? NaN);
const verdict = (value: number, least: number) =>
  Number.isNaN(value) ? "not measured" : `${value.toPrecision(3)}, ${value >= least ? "reached" : "missed"}`;
console.log(`- GEMM 4096 by matrices, target 100 TFLOP/s: ${verdict((gemm ?? NaN) / 1000, 100)}`);
console.log(`- DiT-B/1 step by matrices, target 2.2 times as fast as Dawn f32: ${verdict(ratio, 2.2)}`);

function fail(message: string): never {
  console.error(`tensor_cores: ${message}`);
  Deno.exit(2);
}
