// Runs the cells of an experiment, one row and seed each: commands of tok in processes of their own, in folders that an
// interrupted experiment goes on with. A cell is finished when it has scores.json; its commands are recorded in cell.json.

import { join } from "@std/path";
import { UsageError } from "../errors.ts";
import { exists, makeFolder, readJson, writeJson } from "../formats/files.ts";
import type { Scores } from "../metrics/metric.ts";

/** A command of a cell. */
export interface Step {
  name: string;
  /** Arguments of `deno run`: the program and its own. */
  args: readonly string[];
  /** Whether it takes --resume where it was interrupted. */
  resumes: boolean;
}

export interface Cell {
  row: string;
  seed: number;
  folder: string;
  steps: readonly Step[];
}

interface CellRecord {
  steps: Record<string, readonly string[]>;
  /** Seconds of each finished step, all its attempts together. */
  seconds: Record<string, number>;
  finished: string[];
}

/** Scores of a finished cell. */
export function scoresOf({ folder }: Cell): Scores | undefined {
  const file = join(folder, "scores.json");
  return exists(file) ? readJson(file) as Scores : undefined;
}

/** Seconds that the cell has taken so far. */
export function secondsOf({ folder }: Cell): number {
  const file = join(folder, "cell.json");
  if (!exists(file)) return 0;
  return Object.values((readJson(file) as CellRecord).seconds).reduce((sum, s) => sum + s, 0);
}

/**
 * Runs what is left of a cell; the last step writes scores.json.
 * @param say called with each command line
 * @param log file to which the commands' output is appended [the terminal]
 * @throws UsageError if the folder holds a cell of other commands, or a command fails
 */
export async function runCell(cell: Cell, say: (line: string) => void, log?: string): Promise<void> {
  const { folder, steps } = cell, file = join(folder, "cell.json");
  makeFolder(folder);
  const args = Object.fromEntries(steps.map((step) => [step.name, step.args]));
  const record: CellRecord = exists(file)
    ? readJson(file) as CellRecord
    : { steps: args, seconds: {}, finished: [] };
  if (JSON.stringify(record.steps) !== JSON.stringify(args)) {
    throw new UsageError(
      `Cannot go on with "${folder}": it was made by other commands; choose another --out, or remove the folder`,
    );
  }
  for (const { name, args, resumes } of steps) {
    if (record.finished.includes(name)) continue;
    const again = resumes && record.seconds[name] !== undefined;
    record.seconds[name] ??= 0;
    writeJson(file, record); // an interrupted step is known to have begun
    const began = performance.now(), line = [...args, ...again ? ["--resume"] : []];
    say(line.join(" "));
    const code = await runProgram(["run", "-A", ...line], log);
    record.seconds[name] += (performance.now() - began) / 1000;
    if (code === 0) record.finished.push(name);
    writeJson(file, record);
    if (code !== 0) {
      throw new UsageError(
        `Cannot finish "${folder}": "${name}" ended with ${code}; run the same command again to go on`,
      );
    }
  }
}

/** Runs Deno, with its output on the terminal or appended to a file. @returns the exit code */
async function runProgram(args: string[], log: string | undefined): Promise<number> {
  const output = log === undefined ? "inherit" : "piped";
  const child = new Deno.Command(Deno.execPath(), { args, stdin: "null", stdout: output, stderr: output })
    .spawn();
  if (log !== undefined) {
    const append = () => Deno.openSync(log, { create: true, append: true }).writable;
    await Promise.all([child.stdout.pipeTo(append()), child.stderr.pipeTo(append())]);
  }
  return (await child.status).code;
}
