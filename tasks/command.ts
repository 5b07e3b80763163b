// A subcommand: name, purpose, schema of options, presets, examples and a function; how commands open the adapter and their
// output folder. inputs.ts opens what they read.

import type { z } from "zod";
import { UsageError } from "../src/errors.ts";
import { explain, explainTable } from "../src/cli/explain.ts";
import type { DependentDefaults, Origin, RecipeOptions, Schema } from "../src/cli/flags.ts";
import type { Evidence } from "../src/cli/grades.ts";
import { type Device, openDevice } from "../src/gpu/device.ts";
import { diagnose, noAdapter } from "../src/gpu/diagnose.ts";
import { openProvider, type ProviderName } from "../src/gpu/provider.ts";
import { chooseMatrices } from "../src/ops/gemm_matrices.ts";
import { type GemmBackend, kindsByMatrices } from "../src/ops/gemm_tiles.ts";
import { prepareSubgroups } from "../src/ops/subgroups.ts";
import type { Log } from "../src/run/log.ts";
import { Output } from "../src/run/output.ts";
import { prepareTiles } from "../src/bench/gemm_tuning.ts";

export const RUNS = "runs";

/** Context of a command, from run.ts. */
export interface Context {
  log: Log;
  /** The command line, for reports. */
  commandLine: string;
  /** Whether Ctrl-C or SIGTERM came: save and return. */
  stopping(): boolean;
  /** Where the options come from; those with their defaults are left out. */
  origins?: Readonly<Record<string, Origin>>;
  /** The command line that resumes after an interruption, once there is something to resume. */
  resumeCommand?: string;
}

export interface Command<S extends Schema = Schema> {
  name: string;
  purpose: string;
  schema: S;
  /** Defaults that depend on other options. */
  defaults?: DependentDefaults;
  /** Options by the name of --preset. */
  presets?: Readonly<Record<string, object>>;
  /** Methods by the name of --recipe; the first one is the default. */
  recipes?: Readonly<Record<string, RecipeOptions>>;
  /** Command lines for help; a test parses them. */
  examples: readonly string[];
  /** Field that the positional argument fills. */
  argument?: string;
  /** @returns results for the last JSON line */
  run(config: z.infer<S>, context: Context): Promise<Record<string, unknown>>;
}

/** Defines a command; infers the type of its config. */
export function command<S extends Schema>(definition: Command<S>): Command {
  return definition as unknown as Command;
}

/** `--explain`: prints the options that `grades` names, with their origin and grade. */
export function explained<C extends { preset: string }>(
  name: string,
  schema: Schema,
  config: C,
  grades: Readonly<Record<string, readonly Evidence<C>[]>>,
  { log, origins = {} }: Context,
): Record<string, unknown> {
  const rows = explain(schema, config, origins, grades);
  log.begin();
  log.line(log.bold(`tok ${name} --preset ${config.preset}`));
  explainTable(rows, log.columns).forEach((line) => log.line(line));
  const options = rows.map(({ name, value, from, grade, source }) => [name, { value, from, grade, source }]);
  return { preset: config.preset, options: Object.fromEntries(options) };
}

/**
 * Opens the adapter that the options select, warns about a software adapter, and loads the GEMM tuning of the adapter.
 * @param tune measure it first on an unknown GPU, for long runs
 */
export async function openAdapter(
  config: { cpu: boolean; gpu?: ProviderName | undefined; kernels: "auto" | GemmBackend; precision?: string },
  log: Log,
  { tune = false }: { tune?: boolean } = {},
): Promise<Device> {
  const requested = await openProvider(config.gpu), { kernels } = config;
  const opened = await openDevice({
    cpu: config.cpu,
    gpu: requested.name,
    ...(kernels === "auto" ? {} : { profile: kernels === "matrix" ? "gpu" : kernels }),
  }).catch((error) => {
    throw error instanceof UsageError && !config.cpu ? noAdapter(requested) : error;
  });
  const { facts: { description, software }, provider, profile } = opened;
  const failure = profile === "gpu" ? await prepareSubgroups() : undefined;
  if (failure) log.warn(`subgroups fail their self-test (${failure}); reductions use workgroup memory`);
  const unit = await chooseMatrices(config, (text) => log.warn(text));
  const matrices = unit ? `, fp16 GEMMs by subgroup matrices of ${unit.M}x${unit.N}x${unit.K}` : "";
  log.line(`adapter: ${description} (${profile} kernels${matrices})`);
  log.event("adapter", { description, software, kernels: profile, gpu: provider.name });
  if (software && !config.cpu) {
    for (const { problem, remedy } of diagnose(opened.facts)) log.warn(`${problem}; ${remedy}`);
  }
  // GPU kernels on a software adapter are for tests only: no tuning.
  await prepareTiles(tune && opened.profile === "gpu" && !software ? "once" : "never", {
    line: (text) => {
      log.begin(); // measuring takes a while
      log.line(text);
    },
    warn: (text) => log.warn(text),
  });
  const { ordinary = [] } = kindsByMatrices() ?? {};
  if (ordinary.length) {
    log.line(`fp16 GEMMs measured to be faster by ordinary kernels: ${ordinary.join(", ")}`);
  }
  return opened;
}

/**
 * The locked output folder: --out, or the first free number under ./runs. Opened before the work, so that an unwritable folder
 * is an error at once.
 */
export function openOutput(out: string | undefined, name: string): Output {
  return out === undefined ? Output.numbered(RUNS, name) : Output.folder(out);
}
