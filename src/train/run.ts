// A training run of any recipes: locks the folder, resumes, logs, saves, stops, writes the report, or only plans. Recipes run
// in order, and checkpoints count the steps of all of them, so that a resumed run ends with the same bits.

import { join } from "@std/path";
import { writeJson } from "../formats/files.ts";
import type { Provenance } from "../formats/provenance.ts";
import { restore, snapshot } from "../nn/layers.ts";
import { openRun, type RunKind, saveCheckpoint } from "../run/checkpoint.ts";
import type { Log } from "../run/log.ts";
import type { Output } from "../run/output.ts";
import { progressOf } from "../run/progress.ts";
import { writeReport } from "../run/report.ts";
import { checkResumed, openResumed, resumeCommandOf, type Resumed } from "../run/resume.ts";
import { type LogRow, trainLoop } from "./loop.ts";
import { planTable } from "./plan_table.ts";
import type { AlignConfig } from "../cli/config.ts";
import type { Schema } from "../cli/flags.ts";
import type { Recipe } from "./recipe.ts";

/** The options that every training command has. */
type RunConfig = Pick<
  AlignConfig,
  "out" | "resume" | "logEvery" | "saveEvery" | "keep" | "dryRun" | "recompute"
>;

export interface RunOptions {
  command: string;
  /** Title of the report. */
  title: string;
  /** The sub-folder with the result. */
  result: RunKind;
  config: RunConfig & Record<string, unknown>;
  schema: Schema;
  /** Options that may change when a run is resumed, see {@link Training.checkSchedule}. */
  schedule: readonly string[];
  /** What makes a step smaller, for the message of a dry run. */
  remedies: readonly string[];
  context: {
    log: Log;
    /** The command line. */
    commandLine: string;
    /** Asked between steps; true saves and returns. */
    stopping(): boolean;
    /** The command line that resumes this run. */
    resumeCommand?: string;
  };
  /** Opens and locks the folder. */
  output(): Output;
}

/** What a command trains. */
export interface Training {
  recipes: readonly Recipe[];
  /** Number of parameters of each model. */
  parameters: Readonly<Record<string, number>>;
  madeFrom: Provenance;
  /** Fields of config.json and of checkpoints besides the options. */
  record?: Record<string, unknown>;
  /** Scores so far, saved with each checkpoint. */
  metrics?: Record<string, unknown>;
  /** Reports how another schedule than the checkpoint's changes the run. @throws UsageError where it cannot go on */
  checkSchedule(resumed: Resumed): void;
  /** Called before the first step. */
  begin?(resumed: Resumed | undefined): void;
  /** Called after recipe `index`. @param dataWait share of its time spent waiting for data */
  afterRecipe?(index: number, dataWait: number): Promise<void>;
  /** Writes the result. @returns fields of the last JSON line */
  finish(dataWaits: Readonly<Record<string, number>>): Promise<Record<string, unknown>>;
  /** Frees what the run has opened. */
  close?(): void;
}

/**
 * Runs (the rest of) a training, or prints its plan.
 * @param make opens models and data; gets the run's folder, undefined in a dry run
 * @returns fields of the last JSON line; `finished` is false for a run that was stopped
 */
export async function run(
  options: RunOptions,
  make: (out: string | undefined) => Promise<Training>,
): Promise<Record<string, unknown>> {
  const { command, config, context: { log } } = options;
  if (config.dryRun) {
    const { parameters, recipes } = await make(undefined);
    return planTable(parameters, recipes, log, { recompute: config.recompute, remedies: options.remedies });
  }
  using lock = openRun(options.output(), { resume: config.resume !== undefined });
  const out = lock.folder;
  options.context.resumeCommand = resumeCommandOf(
    options.context,
    config.out === undefined ? out : undefined,
    true,
  );
  const training = await make(out);
  try {
    const resumed = await openResumed(config.resume, { out, command, log });
    if (resumed) {
      const { madeFrom } = training;
      checkResumed(resumed, { config, schema: options.schema, madeFrom }, options.schedule, log);
      training.checkSchedule(resumed);
    }
    const step = resumed?.step ?? 0;
    log.line(`run: ${out}${resumed ? ` (resumed after step ${step})` : ""}`);
    log.openFile(out);
    writeJson(join(out, "config.json"), recordOf(options, training));
    log.event("start", { command, out, parameters: training.parameters, step });
    training.begin?.(resumed);
    const dataWaits = await train(out, training, options, resumed);
    if (!dataWaits) {
      log.line(`saved; go on with: ${options.context.resumeCommand}`);
      return { out, finished: false };
    }
    const results = await training.finish(dataWaits);
    await writeReport(out, { title: options.title, line: options.context.commandLine });
    log.line(`${options.result}: ${join(out, options.result)}, report: ${join(out, "report.html")}`);
    return { out, finished: true, ...results };
  } finally {
    training.close?.();
  }
}

/** Contents of config.json. */
function recordOf({ command, config }: RunOptions, { madeFrom, record }: Training): Record<string, unknown> {
  return { command, ...config, ...record, made_from: madeFrom };
}

/** @returns for each recipe the share of its time spent waiting for data; undefined when the run was stopped */
async function train(
  out: string,
  training: Training,
  options: RunOptions,
  resumed: Resumed | undefined,
): Promise<Record<string, number> | undefined> {
  const { recipes } = training, { config, context: { log, stopping } } = options;
  const progress = progressOf(log, recipes.map(({ name, steps }) => [name, steps]));
  const dataWaits: Record<string, number> = {};
  let resume = resumed, begin = 0; // steps of the recipes before
  for (const [index, recipe] of recipes.entries()) {
    const offset = begin, end = begin += recipe.steps;
    // A checkpoint at the very end of a recipe belongs to it: what follows the last step is done again.
    if (resume && resume.step > end) continue;
    const from = Math.max(0, (resume?.step ?? 0) - offset);
    if (resume && from > 0) await restore(recipe.state(), resume.file);
    resume?.file.close();
    resume = undefined;
    progress.begin(recipe.name);
    await recipe.prepare(from, progress.compile);
    const { done, dataWait } = await trainLoop(recipe, {
      from,
      logEvery: config.logEvery,
      saveEvery: config.saveEvery,
      onStep: progress.step,
      onLog: (row: LogRow) => {
        progress.row(row);
        log.event("step", { stage: recipe.name, ...row, step: offset + row.step });
      },
      onSkipped: (message) => log.warn(message),
      save: async (n) =>
        void await saveCheckpoint(
          out,
          offset + n,
          await snapshot(recipe.state()),
          { ...recordOf(options, training), ...training.metrics ? { metrics: training.metrics } : {} },
          { keep: config.keep },
        ),
      stopping,
    });
    progress.end();
    if (done < recipe.steps) {
      recipe.destroy();
      return undefined;
    }
    await recipe.finish();
    dataWaits[recipe.name] = dataWait;
    await training.afterRecipe?.(index, dataWait);
    recipe.destroy();
  }
  return dataWaits;
}
