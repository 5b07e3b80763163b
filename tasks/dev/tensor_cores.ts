// One table of what each WebGPU implementation and precision reaches on this adapter, in ten minutes: the GEMM rates of each
// implementation, bench.ts in a process for each variant, then PyTorch where python3 has it. Either all variants use measured
// rates or none does. The table is written after every case, so that whoever ends the script early keeps what was measured. Run on
// a GPU: deno run -A tasks/dev/tensor_cores.ts

import { parseArgs } from "@std/cli/parse-args";
import { dirname, fromFileUrl } from "@std/path";
import { UsageError } from "../../src/errors.ts";
import { makeFolder } from "../../src/formats/files.ts";
import { kernelCases, titleOf } from "./bench/cases.ts";
import { findTorch, lines, type Measured, runTorch } from "./bench/peers.ts";
import { steps } from "./bench/steps.ts";

const HELP =
  `Measure tensor cores: Deno's WebGPU and Dawn, fp32, fp16 and fp16 by subgroup matrices, and PyTorch

Usage: deno run -A tasks/dev/tensor_cores.ts [options]

  --only TEXT       cases whose name contains TEXT; repeat for more [GEMMs, conv, attention and steps that fill a GPU]
  --parts TEXT      parts whose name contains TEXT; repeat for more [all]
  --minutes N       time for all parts [10]
  --out FILE        Markdown table, written anew after every case [runs/tensor_cores.md]
  --tiny            small cases, for a software adapter
  --help            this text
`;

interface Variant {
  gpu: "deno" | "dawn";
  precision: "f32" | "f16";
  profile: "gpu" | "matrix";
  /** Toggles of Dawn. */
  toggles?: string;
}

/** By name, those that the targets compare first. */
const VARIANTS: Readonly<Record<string, Variant>> = {
  "Dawn f32": { gpu: "dawn", precision: "f32", profile: "gpu" },
  "Dawn f16 matrices": { gpu: "dawn", precision: "f16", profile: "matrix" },
  "wgpu f32": { gpu: "deno", precision: "f32", profile: "gpu" },
  "wgpu f16": { gpu: "deno", precision: "f16", profile: "gpu" },
  "Dawn f16": { gpu: "dawn", precision: "f16", profile: "gpu" },
  "Dawn f32, unchecked": { gpu: "dawn", precision: "f32", profile: "gpu", toggles: "disable_robustness" },
  "Dawn f16 matrices, unchecked": {
    gpu: "dawn",
    precision: "f16",
    profile: "matrix",
    toggles: "disable_robustness",
  },
};
/** Parts that measure the GEMM rates of an implementation, by name. */
const TUNING: Readonly<Record<string, Variant["gpu"]>> = { "Dawn tuning": "dawn", "wgpu tuning": "deno" };
const PYTORCH = "PyTorch";
/** The share of a part in the time: tuning matrices compiles 60 kernels, PyTorch has four variants. */
const weight = (part: string) => TUNING[part] === "dawn" || part === PYTORCH ? 2 : 1;

/** The cases, which bench.ts runs in an order of its own: kernels, then steps. */
const CASES = [
  "GEMM NN 1024",
  "GEMM NN 2048",
  "GEMM NN 4096",
  "GEMM NT 4096",
  "GEMM TN 4096",
  "GEMM NN 8192",
  "16x64x64x128 -> 128",
  "attention 64x256",
  "attention 16x1024",
  "DINOv2-B, 32 images",
  "stage 2 with GAN, DINOv2-B",
  "DiT training step, B/1",
  "DiT training step, XL/1",
  "sampling step with guidance, B/1",
];
/** Without steps: kernels for GPUs compile for seconds on a software adapter. */
const TINY = ["GEMM TN 256", "conv 3x3 8x32x32x16 -> 16 (tiny)"];

/** A line of bench.ts. */
interface Line extends Partial<Measured> {
  case: string;
  precision?: string;
  gflops?: number;
  skipped?: string;
  /** Of the first line. */
  adapter?: string;
  driver?: string;
}

const args = parseArgs(Deno.args, {
  boolean: ["tiny", "help"],
  string: ["only", "parts", "minutes", "out"],
  collect: ["only", "parts"],
  default: { minutes: "10", out: "runs/tensor_cores.md" },
  unknown: (arg) => fail(`Cannot use "${arg}": there is no such option; see --help`),
});
if (args.help) {
  console.log(HELP.trimEnd());
  Deno.exit(0);
}
const minutes = Number(args.minutes), out = String(args.out);
if (!(minutes > 0)) fail(`Cannot use --minutes "${args.minutes}": give a number above 0`);
const chosen = args.parts as string[], only = args.only as string[];
const all = [...Object.keys(TUNING), ...Object.keys(VARIANTS), PYTORCH];
const parts = all.filter((name) => !chosen.length || chosen.some((text) => name.includes(text)));
if (!parts.length) fail(`Cannot measure: no part has "${chosen.join('" or "')}" in its name`);
const cases = only.length ? only : args.tiny ? TINY : CASES;

/** Milliseconds and GFLOP/s by case, then by variant. */
const table = new Map<string, Map<string, { ms: number; gflops?: number | undefined }>>();
const notes: string[] = [], began = performance.now();
/** The implementations whose GEMM rates were measured. */
const tuned = new Set<Variant["gpu"]>();
const compared = new Set(parts.flatMap((name) => VARIANTS[name]?.gpu ?? []));
/** Whether the variants use measured rates: all of them, or none. */
const isTuned = () => compared.size > 0 && [...compared].every((gpu) => tuned.has(gpu));
let heading = "";

for (const [i, name] of parts.entries()) {
  // What earlier parts left over is divided among the rest.
  const left = minutes * 60_000 - (performance.now() - began);
  const share = left * weight(name) / parts.slice(i).reduce((sum, part) => sum + weight(part), 0);
  const signal = AbortSignal.timeout(Math.max(1, share)), from = performance.now();
  console.error(`${name}: at most ${(share / 1000).toFixed(0)} s`);
  const variant = VARIANTS[name], tuning = TUNING[name];
  try {
    if (variant) await measureVariant(name, variant, signal);
    else if (tuning) await tune(name, tuning, signal);
    else await measureTorch(signal);
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    notes.push(`${name}: ${error.message}`);
  }
  if (signal.aborted) notes.push(`${name}: its time ended before its cases`);
  console.error(`  ${((performance.now() - from) / 1000).toFixed(0)} s`);
  save();
}
console.log(report());
Deno.exit(0); // timers of parts that ended early would keep the process

async function measureVariant(name: string, v: Variant, signal: AbortSignal): Promise<void> {
  const script = fromFileUrl(import.meta.resolve("./bench.ts"));
  const options = ["--precision", v.precision, "--profile", v.profile, "--gpu", v.gpu, "--json"];
  if (isTuned()) options.push("--tuned");
  const own = cases.filter((text) => v.precision === "f32" || !text.startsWith("sampling")); // that is always fp32
  if (!own.length) return void notes.push(`${name}: no case is in fp16`);
  const command = ["run", "-A", script, ...options, ...own.flatMap((text) => ["--only", text])];
  const env = v.toggles === undefined ? {} : { TOK_DAWN_TOGGLES: v.toggles };
  let count = 0;
  for await (const line of lines<Line>(Deno.execPath(), command, { env, signal })) {
    count++;
    if (line.adapter !== undefined) {
      heading ||= `${line.adapter}${line.driver ? `, driver ${line.driver}` : ""}`;
    }
    if (line.skipped !== undefined) notes.push(`${name}, ${line.case}: ${line.skipped}`);
    // In fp32 the benchmark measures some cases in fp16 too.
    if (line.ms !== undefined && line.precision === v.precision) enter(line.case, name, line.ms, line.gflops);
  }
  if (!count && !signal.aborted) notes.push(`${name}: bench.ts failed; its error stream has the reason`);
}

/** PyTorch on the cases: eager, then compiled, in f32 and bf16. */
async function measureTorch(signal: AbortSignal): Promise<void> {
  const { python, version, device } = await findTorch();
  notes.push(`PyTorch ${version} (${device})`);
  const known = [...kernelCases("f32", !args.tiny), ...await steps("f32", !args.tiny)];
  const wanted = known.filter((c) => c.precision === "f32" && cases.some((text) => c.name.includes(text)));
  const given = wanted.map((c) => ({ ...c, title: titleOf(c) }));
  for await (const { case: title, ms, variant } of runTorch(python, given, signal)) {
    enter(title, `${PYTORCH} ${variant}`, ms);
  }
}

/** `tok doctor --tune`. A software adapter, which has kernels of its own, measures those of GPUs when they are asked for. */
async function tune(name: string, gpu: Variant["gpu"], signal: AbortSignal): Promise<void> {
  const main = fromFileUrl(import.meta.resolve("../../main.ts"));
  const kernels = gpu === "deno" ? "gpu" : args.tiny ? "matrix" : "auto";
  const command = ["run", "-A", main, "doctor", "--gpu", gpu, "--kernels", kernels, "--tune"];
  const { success, stderr } = await new Deno.Command(Deno.execPath(), { args: command, signal }).output(); // facts are log lines
  const log = new TextDecoder().decode(stderr);
  console.error(log);
  if (!success && !signal.aborted) notes.push(`${name}: tok doctor failed: ${log.trim().split("\n").at(-1)}`);
  for (const line of log.split("\n")) {
    const [, rates] = /^(?:tiles +measured on this adapter: |fp16 +)(.*)/.exec(line) ?? [];
    if (rates === undefined) continue;
    notes.push(`${name}: ${rates}`);
    tuned.add(gpu);
  }
}

function enter(title: string, column: string, ms: number, gflops?: number): void {
  const row = table.get(title) ?? new Map();
  table.set(title, row.set(column, { ms, gflops }));
  console.error(`  ${title}, ${column}: ${ms.toFixed(3)} ms`);
  save();
}

function save(): void {
  makeFolder(dirname(out));
  Deno.writeTextFileSync(out, `${report()}\n`);
}

/** The table, the notes and the targets. */
function report(): string {
  const names = [...new Set([...table.values()].flatMap((row) => [...row.keys()]))];
  const cell = (entry?: { ms: number; gflops?: number | undefined }) =>
    !entry ? "" : `${entry.ms.toFixed(3)} ms${entry.gflops ? `, ${rate(entry.gflops)}` : ""}`;
  const rate = (gflops: number) =>
    gflops < 1000 ? `${gflops.toPrecision(3)} GFLOP/s` : `${(gflops / 1000).toPrecision(3)} TFLOP/s`;
  const rows = [...table].map(([title, row]) =>
    `| ${title} | ${names.map((name) => cell(row.get(name))).join(" | ")} |`
  );
  const matrices = "Dawn f16 matrices", step = table.get("DiT training step, B/1, batch 32");
  const gemm = (table.get("GEMM NN 4096")?.get(matrices)?.gflops ?? NaN) / 1000;
  const ratio = (step?.get("Dawn f32")?.ms ?? NaN) / (step?.get(matrices)?.ms ?? NaN);
  const verdict = (value: number, least: number) =>
    Number.isNaN(value)
      ? "not measured"
      : `${value.toPrecision(3)}, ${value >= least ? "reached" : "missed"}`;
  return [
    ...heading ? [`${heading}, ${((performance.now() - began) / 60_000).toFixed(1)} minutes\n`] : [],
    ...rows.length
      ? [`| case | ${names.join(" | ")} |\n|${" --- |".repeat(names.length + 1)}`, ...rows, ""]
      : [],
    `- GEMM rates that choose tiles, of all variants: ${isTuned() ? "measured" : "the built-in ones"}`,
    ...notes.map((note) => `- ${note}`),
    `- GEMM 4096 by matrices, target 100 TFLOP/s: ${verdict(gemm, 100)}`,
    `- DiT-B/1 step by matrices, target 2.2 times as fast as Dawn f32: ${verdict(ratio, 2.2)}`,
  ].join("\n");
}

function fail(message: string): never {
  console.error(`tensor_cores: ${message}`);
  Deno.exit(2);
}
