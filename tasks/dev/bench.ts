// Measures kernels and whole steps as shares of the adapter's peak (multiply-adds, copies), which is measured in the same
// run. Run: deno task bench [options]; bench/README.md has the results. Peers run in the same run on the same machine (see
// peers/); their packages are installed in a temporary folder.

import { parseArgs } from "@std/cli/parse-args";
import { GpuError, UsageError } from "../../src/errors.ts";
import { device, openDevice } from "../../src/gpu/device.ts";
import { driverOf } from "../../src/gpu/driver.ts";
import { PROVIDERS } from "../../src/gpu/provider.ts";
import { hint } from "../../src/cli/flags.ts";
import { chooseMatrices } from "../../src/ops/gemm_matrices.ts";
import { prepareSubgroups } from "../../src/ops/subgroups.ts";
import type { GemmBackend } from "../../src/ops/gemm_tiles.ts";
import type { Precision } from "../../src/tensor/tensor.ts";
import { prepareTiles } from "../../src/bench/gemm_tuning.ts";
import { measurePeaks } from "../../src/bench/peak.ts";
import { kernelCases, largeGemm, titleOf } from "./bench/cases.ts";
import { kernelOf } from "./bench/kernels.ts";
import { divide, measure } from "./bench/measure.ts";
import { findTorch, type Measured, type PeerCase, PEERS, runPeer, runTorch } from "./bench/peers.ts";
import { Report } from "./bench/report.ts";
import { steps } from "./bench/steps.ts";

const HELP = `Measure kernels and whole steps as shares of the adapter's peak

Usage: deno task bench [options]

  --only TEXT          cases whose name contains TEXT; repeat for more
  --precision f32|f16  storage of activations [f32, plus some cases in f16]
  --profile cpu|gpu|matrix  kernel backend; matrix: gpu with subgroup matrices [chosen by the adapter]
  --gpu deno|dawn      WebGPU implementation [TOK_GPU, else deno]
  --tuned              use the GEMM rates that "tok doctor --tune" measured on this adapter, from tiles.json in
                       tok's cache folder: they choose tiles and, in fp16, the kinds of GEMMs that use subgroup
                       matrices [built-in rates]
  --all                include cases that fill a GPU (seconds to minutes on a CPU)
  --peers              TensorFlow.js, jax-js and onnxruntime-web on the same adapter
  --torch              PyTorch on the same machine: python3, or what TORCH_PYTHON names
  --json               one JSON object a line
  --markdown           a table
  --help               this text
`;

const BOOLEANS = ["tuned", "all", "peers", "torch", "json", "markdown", "help"];
const STRINGS = ["only", "precision", "profile", "gpu"];

/** @throws UsageError for an unknown option or value */
function optionsOf(args: string[]) {
  const parsed = parseArgs(args, {
    boolean: BOOLEANS,
    string: STRINGS,
    collect: ["only"],
    unknown: (arg) => {
      const known = [...BOOLEANS, ...STRINGS];
      const near = hint(arg.replace(/^--/, ""), known, "--");
      throw new UsageError(`Cannot use "${arg}": the benchmark has no such option${near || "; see --help"}`);
    },
  });
  if (parsed.help) return undefined;
  const choice = <T extends string>(name: string, values: readonly T[]): T | undefined => {
    const value: unknown = parsed[name];
    if (value === undefined || values.some((v) => v === value)) return value as T | undefined;
    throw new UsageError(`Cannot use --${name} "${value}": it is one of ${values.join(", ")}`);
  };
  if (parsed.json && parsed.markdown) throw new UsageError("Cannot print --json and --markdown at once");
  return {
    only: ((parsed.only ?? []) as unknown[]).map(String),
    precision: choice<Precision>("precision", ["f32", "f16"]) ?? "f32",
    profile: choice<GemmBackend>("profile", ["cpu", "gpu", "matrix"]),
    gpu: choice("gpu", PROVIDERS),
    tuned: Boolean(parsed.tuned),
    all: Boolean(parsed.all),
    peers: Boolean(parsed.peers),
    torch: Boolean(parsed.torch),
    format: parsed.json ? "json" as const : parsed.markdown ? "markdown" as const : "text" as const,
  };
}

async function main(o: NonNullable<ReturnType<typeof optionsOf>>): Promise<void> {
  const torch = o.torch ? await findTorch() : undefined; // before minutes are spent on the rest
  const kernels = o.profile ?? "auto";
  await openDevice({
    ...kernels === "auto" ? {} : { profile: kernels === "matrix" ? "gpu" : kernels },
    gpu: o.gpu,
  });
  const { facts, provider } = device();
  const failure = device().profile === "gpu" ? await prepareSubgroups() : undefined;
  if (failure) console.error(`subgroups fail their self-test: ${failure}`);
  const matrices = kernels !== "gpu" && await chooseMatrices({ kernels, precision: "f16" }, console.error);
  if (o.tuned && !await prepareTiles("never", { line: console.error, warn: console.error })) {
    throw new UsageError(
      'Cannot use --tuned: no tiles were measured on this adapter; run "tok doctor --tune"',
    );
  }
  const profile = matrices ? "matrix" : device().profile;
  const wanted = ({ name }: { name: string }) =>
    o.only.length === 0 || o.only.some((text) => name.includes(text));
  const large = o.all || !facts.software;
  const ops = kernelCases(o.precision, large).filter(wanted);
  const whole = (await steps(o.precision, large)).filter(wanted);
  if (ops.length + whole.length === 0) {
    throw new UsageError(
      `Cannot measure: no case has ${o.only.map((t) => `"${t}"`).join(" or ")} in its name`,
    );
  }
  const report = new Report(o.format), own = new Map<string, number>();
  const peaks = await measurePeaks();
  report.begin(facts.description, driverOf(facts, provider), profile, peaks);

  // A case that does not fit the adapter is reported and skipped.
  const unlessTooLarge = async (title: string, fn: () => Promise<void>) => {
    try {
      await fn();
    } catch (error) {
      if (!(error instanceof GpuError) || device().lost !== undefined) throw error;
      report.skipped(title, error.message);
    }
  };
  for (const c of ops) {
    await unlessTooLarge(titleOf(c), async () => {
      const { row, made } = await measure(c.name, c.precision, () => kernelOf(c), peaks);
      made.destroy();
      own.set(titleOf(c), row.ms);
      report.row(row);
    });
  }
  const baseline = kernelOf(largeGemm(o.precision, facts.software, profile));
  if (whole.length) await baseline.program.prepare();
  for (const step of whole) {
    await unlessTooLarge(titleOf(step), async () => {
      const { row, made } = await measure(step.name, step.precision, step.make, peaks);
      const division = await divide(made.program, baseline.program).finally(() => made.destroy());
      own.set(titleOf(step), row.ms);
      report.row(division ? { ...row, division } : row);
    });
  }
  baseline.destroy();

  const measured = [...ops, ...whole].filter((c) => own.has(titleOf(c)));
  const cases: PeerCase[] = measured.map((c) => ({ ...c, title: titleOf(c) }));
  const compare = async (peer: string, times: AsyncIterable<Measured>) => {
    for await (const { case: title, ms, variant } of times) {
      const name = variant === undefined ? peer : `${peer} ${variant}`;
      report.peerTime({ case: title, peer: name, ms, ratio: ms / (own.get(title) ?? NaN) });
    }
  };
  for (const [peer, packages] of o.peers ? Object.entries(PEERS) : []) {
    report.peer(peer, packages);
    await compare(peer, runPeer(peer, cases));
  }
  if (torch) {
    report.peer("PyTorch", [`PyTorch ${torch.version} (${torch.device})`]);
    await compare("PyTorch", runTorch(torch.python, cases));
  }
  report.end();
}

try {
  const options = optionsOf(Deno.args);
  if (options) await main(options);
  else console.log(HELP.trimEnd());
  Deno.exit(0); // the driver's threads would keep the process
} catch (error) {
  console.error(`bench: ${error instanceof Error ? error.message : error}`);
  Deno.exit(error instanceof UsageError ? 2 : 1);
}
