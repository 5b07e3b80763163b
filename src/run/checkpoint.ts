// The folder of a run: its checkpoints, its lock, and which run is the newest. checkpoints/step_00000500.safetensors has the
// complete state after a step, and the run's configuration in its metadata; best.safetensors is the best one of these.

import { join } from "@std/path";
import { UsageError } from "../errors.ts";
import { exists, explained, readJson, removeLeftovers, writeJson } from "../formats/files.ts";
import { Output } from "./output.ts";
import {
  openSafetensors,
  type SafetensorsFile,
  type TensorData,
  writeSafetensors,
} from "../formats/safetensors.ts";

/** An undamaged checkpoint. Close its `file` after reading. */
export interface Checkpoint {
  path: string;
  /** Steps that had been done. */
  step: number;
  /** The run's configuration, as it was saved. */
  config: unknown;
  file: SafetensorsFile;
}

const NAME = /^step_(\d+)\.safetensors$/;

export function checkpointPath(run: string, step: number): string {
  return join(run, "checkpoints", `step_${String(step).padStart(8, "0")}.safetensors`);
}

/**
 * Saves the state after `step` steps, then removes all but the newest `keep` checkpoints (2: one to fall back to).
 * @param options.keepEvery checkpoints of multiples of this step stay, too; 0: none
 * @returns the path
 * @throws UsageError when the file system refuses; older checkpoints are then still there
 */
export async function saveCheckpoint(
  run: string,
  step: number,
  tensors: Iterable<TensorData>,
  config: unknown,
  { keep = 2, keepEvery = 0 }: { keep?: number; keepEvery?: number } = {},
): Promise<string> {
  const path = checkpointPath(run, step);
  await writeSafetensors(path, tensors, {
    config: JSON.stringify(config),
    format: "tok-checkpoint-1",
    step: String(step),
  });
  const others = listCheckpoints(run).filter((n) => n !== step);
  // Checkpoints of later steps are of before the run was resumed from an earlier one.
  const kept = others.filter((n) => n < step)
    .filter((n, i) => i < keep - 1 || (keepEvery > 0 && n % keepEvery === 0));
  for (const n of others) if (!kept.includes(n)) Deno.removeSync(checkpointPath(run, n));
  return path;
}

/** The best checkpoint of a run. */
export interface Best {
  step: number;
  /** The metric that chose it, and its value. */
  metric: string;
  value: number;
}

export const textOfBest = ({ step, metric, value }: Best): string =>
  `step ${step}, ${metric} ${Number(value.toPrecision(5))}`;

const bestFile = (run: string, extension: string) => join(run, "checkpoints", `best.${extension}`);

/**
 * Keeps the checkpoint of `best.step` as checkpoints/best.safetensors, which is never removed; no copy where the file system
 * has hard links. best.json describes it.
 */
export function keepBest(run: string, best: Best): void {
  const from = checkpointPath(run, best.step), to = bestFile(run, "safetensors");
  const temporary = `${to}.tok-${Deno.pid}-0.tmp`;
  try {
    if (exists(bestFile(run, "json"))) Deno.removeSync(bestFile(run, "json"));
    try {
      Deno.linkSync(from, temporary);
    } catch {
      Deno.copyFileSync(from, temporary);
    }
    Deno.renameSync(temporary, to);
    if (exists(temporary)) Deno.removeSync(temporary); // both were the same file already
  } catch (error) {
    throw explained(error, "write", to);
  }
  writeJson(bestFile(run, "json"), best);
}

/** The best checkpoint so far; undefined if there is none. */
export function readBest(run: string): Best | undefined {
  const path = bestFile(run, "json");
  return exists(path) ? readJson(path) as Best : undefined;
}

/** Steps of a run's checkpoints, newest first; the files may be damaged. */
export function listCheckpoints(run: string): number[] {
  const folder = join(run, "checkpoints");
  if (!exists(folder)) return [];
  const steps = [...Deno.readDirSync(folder)].flatMap(({ name }) => {
    const step = Number(NAME.exec(name)?.[1] ?? NaN);
    return checkpointPath(run, step) === join(folder, name) ? [step] : [];
  });
  return steps.sort((a, b) => b - a);
}

/** Opens one checkpoint. @throws UsageError when it is damaged or no checkpoint */
export async function openCheckpoint(path: string): Promise<Checkpoint> {
  const file = await openSafetensors(path);
  const step = Number(file.metadata.get("step") ?? NaN), text = file.metadata.get("config");
  try {
    if (!Number.isSafeInteger(step) || step < 0 || text === undefined) {
      throw new Error("no step or configuration");
    }
    return { path, step, config: JSON.parse(text), file };
  } catch (error) {
    file.close();
    throw new UsageError(
      `Cannot resume from "${path}": it is not a checkpoint of a run (${(error as Error).message}); ` +
        `choose a file in its "checkpoints" folder`,
    );
  }
}

/** The newest undamaged checkpoint, if there is one. Damaged ones are skipped with a warning. */
export async function newestCheckpoint(
  run: string,
  warn: (message: string) => void,
): Promise<Checkpoint | undefined> {
  for (const step of listCheckpoints(run)) {
    try {
      return await openCheckpoint(checkpointPath(run, step));
    } catch (error) {
      if (!(error instanceof UsageError)) throw error;
      warn(`${error.message}; going on with the checkpoint before it`);
    }
  }
  return undefined;
}

/** The sub-folder with a run's result. */
export type RunKind = "tokenizer" | "model";

/** The run in `runs` whose tokenizer or model was finished last; undefined if there is none. */
export function newestRun(runs: string, kind: RunKind): string | undefined {
  if (!exists(runs)) return undefined;
  let newest: { run: string; time: number } | undefined;
  for (const { name } of [...Deno.readDirSync(runs)].sort((a, b) => a.name < b.name ? -1 : 1)) {
    const run = join(runs, name), weights = join(run, kind, "model.safetensors");
    if (!exists(weights) || !exists(join(run, kind, "config.json"))) continue;
    const time = Deno.statSync(weights).mtime?.getTime() ?? 0;
    if (!newest || time >= newest.time) newest = { run, time };
  }
  return newest?.run;
}

/** Files that only a folder of a run has. */
const TRACES = ["config.json", "log.jsonl", "checkpoints", "tokenizer", "model"];

/** Folders of a run that files are written to. */
const WRITTEN = [
  "checkpoints",
  "ema",
  "images",
  "images/validation",
  "images/samples",
  "tokenizer",
  "model",
  "best/tokenizer",
  "best/model",
];

/**
 * Creates and locks a run's folder, and removes temporary files of interrupted writes.
 * @param run the folder, or an output that is already open
 * @param resume whether the folder may hold a run already
 * @throws UsageError if another process writes to it, or it holds a run and `resume` is false
 */
export function openRun(run: string | Output, { resume = false }: { resume?: boolean } = {}): Output {
  const output = typeof run === "string" ? Output.folder(run) : run, { folder } = output;
  try {
    const trace = TRACES.find((name) => exists(join(folder, name)));
    if (trace !== undefined && !resume) {
      const [step] = listCheckpoints(folder);
      throw new UsageError(
        `Cannot start a run in "${folder}": it holds another run already${
          step === undefined ? "" : `, at step ${step}`
        }; ` +
          `continue that one with --resume or choose another --out`,
      );
    }
    for (const name of WRITTEN) removeLeftovers(join(folder, name));
    return output;
  } catch (error) {
    output.release();
    throw error;
  }
}
