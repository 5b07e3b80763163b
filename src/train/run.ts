// A training run of any recipes: locks the folder, resumes, logs, saves, stops, writes the report, or only plans. Recipes run
// in order, and checkpoints count the steps of all of them, so that a resumed run ends with the same bits.

import { join } from "@std/path";
import { exists, writeJson } from "../formats/files.ts";
import type { Provenance } from "../formats/provenance.ts";
import { restore, snapshot } from "../nn/layers.ts";
import { type GemmKind, kindsByMatrices, resumeKinds } from "../ops/gemm_tiles.ts";
import type { Image } from "../image/rows.ts";
import { checkpointPath, openRun, type RunKind, saveCheckpoint, textOfBest } from "../run/checkpoint.ts";
import type { Log } from "../run/log.ts";
import type { Output } from "../run/output.ts";
import { progressOf } from "../run/progress.ts";
import { writeReport } from "../run/report.ts";
import {
  checkResumedOptions,
  checkResumedSources,
  openResumed,
  resumeCommandOf,
  type Resumed,
} from "../run/resume.ts";
import { EventFile } from "../run/tensorboard.ts";
import { type LogRow, trainLoop } from "./loop.ts";
import { planTable } from "./plan_table.ts";
import type { AlignConfig } from "../cli/config.ts";
import type { Schema } from "../cli/flags.ts";
import type { Recipe } from "./recipe.ts";
import { TuningAdvice } from "./tuning_advice.ts";
import { metricOf, type Scores, type Validation, Validator } from "./validation.ts";

/** The options that every training command has. */
type RunConfig = Pick<
  AlignConfig,
  | "out"
  | "resume"
  | "logEvery"
  | "saveEvery"
  | "keep"
  | "keepEvery"
  | "tensorboard"
  | "dryRun"
  | "recompute"
  | "memory"
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
  /** Fields of checkpoints alone. */
  checkpoint?: Record<string, unknown>;
  /** Reports how another schedule than the checkpoint's changes the run. @throws UsageError where it cannot go on */
  checkSchedule(resumed: Resumed): void;
  /** Called before the first step, after all checks; may write to the run's folder. */
  begin?(resumed: Resumed | undefined): void | Promise<void>;
  /** How the weights are scored during the run. */
  validation?: Validation | undefined;
  /**
   * Called after recipe `index`.
   * @param step steps of the run until its end
   * @param dataWait share of its time spent waiting for data
   * @returns scores of the weights, which count as a validation
   */
  afterRecipe?(index: number, step: number, dataWait: number): Promise<{ scores: Scores; picture?: Image }>;
  /** Writes the result. @returns fields of the last JSON line */
  finish(dataWaits: Readonly<Record<string, number>>): Promise<Record<string, unknown>>;
  /** Frees what the run has opened. */
  close?(): void;
}

/**
 * Runs (the rest of) a training, or prints its plan.
 * @param make opens models and data; gets the run's folder, undefined in a dry run, and the checkpoint that it resumes from, whose
 * options are those of the run
 * @returns fields of the last JSON line; `finished` is false for a run that was stopped
 */
export async function run(
  options: RunOptions,
  make: (out: string | undefined, resumed?: Resumed) => Promise<Training>,
): Promise<Record<string, unknown>> {
  const { command, config, context: { log } } = options;
  if (config.dryRun) {
    const { parameters, recipes } = await make(undefined);
    const { remedies } = options, target = config.memory !== undefined;
    return planTable(parameters, recipes, log, { recompute: config.recompute, remedies, target });
  }
  using lock = openRun(options.output(), { resume: config.resume !== undefined });
  const out = lock.folder;
  options.context.resumeCommand = resumeCommandOf(
    options.context,
    config.out === undefined ? out : undefined,
    true,
  );
  const resumed = await openResumed(config.resume, { out, command, log });
  if (resumed) {
    checkResumedOptions(resumed, options, options.schedule, log); // before anything is written
    const { matrix_gemms } = resumed.config as { matrix_gemms?: GemmKind[] };
    const change = resumed.elsewhere ? undefined : resumeKinds(matrix_gemms);
    if (change !== undefined) log.warn(`from step ${resumed.step} on: ${change}`);
  }
  const training = await make(out, resumed);
  try {
    if (training.validation) metricOf(training.validation);
    if (resumed) {
      checkResumedSources(resumed, training.madeFrom, log);
      training.checkSchedule(resumed);
    }
    const step = resumed?.step ?? 0;
    log.line(`run: ${out}${resumed ? ` (resumed after step ${step})` : ""}`);
    log.openFile(out);
    writeJson(join(out, "config.json"), recordOf(options, training));
    log.event("start", { command, out, parameters: training.parameters, step });
    await training.begin?.(resumed);
    const dataWaits = await train(out, training, options, resumed);
    if (!dataWaits) {
      log.line(`saved; go on with: ${options.context.resumeCommand}`);
      return { out, finished: false };
    }
    const results = await training.finish(dataWaits);
    await report(out, options);
    log.line(`${options.result}: ${join(out, options.result)}, report: ${join(out, "report.html")}`);
    return { out, finished: true, ...results };
  } finally {
    training.close?.();
  }
}

const report = (out: string, { title, context }: RunOptions) =>
  writeReport(out, { title, line: context.commandLine });

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
  const { recipes, validation } = training, { config, context: { log, stopping } } = options;
  const progress = progressOf(log, recipes.map(({ name, steps }) => [name, steps]));
  const first = resumed?.step ?? 0;
  using events = config.tensorboard ? new EventFile(out, first, (text) => log.warn(text)) : undefined;
  const validator = validation && new Validator(out, validation, {
    log,
    show: progress.validation,
    record: async (step, scores, picture) => {
      await events?.validation(step, scores, picture, validation.shows);
      await report(out, options);
    },
  });
  if (resumed) validator?.resume(resumed);
  const advice = new TuningAdvice((text) => log.warn(text));
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
    const save = async (n: number) => {
      const record = {
        ...recordOf(options, training),
        ...training.checkpoint,
        validated: validator?.latest,
        matrix_gemms: kindsByMatrices()?.matrix,
      };
      await saveCheckpoint(out, offset + n, await snapshot(recipe.state()), record, config);
    };
    const validate = async (n: number) => {
      if (!validator?.isDue(offset + n)) return false;
      const best = await recipe.withResult(() => validator.run(index, recipe.name, offset + n));
      if (!best) return false;
      await save(n);
      validator.keep();
      return true;
    };
    // A validation that was due when the run was stopped.
    if (from > 0 && from < recipe.steps) await validate(from);
    const { done, dataWait } = await trainLoop(recipe, {
      from,
      logEvery: config.logEvery,
      saveEvery: config.saveEvery,
      keeps: (n) => config.keepEvery > 0 && (offset + n) % config.keepEvery === 0,
      onStep: progress.step,
      onLog: (row: LogRow) => {
        progress.row(row);
        const step = offset + row.step;
        log.event("step", { stage: recipe.name, ...row, step });
        events?.training(step, row);
        return advice.row(recipe, row);
      },
      onSkipped: (message) => log.warn(message),
      save,
      validate,
      stopping,
    });
    progress.end();
    if (done < recipe.steps) {
      recipe.destroy();
      return undefined;
    }
    if (validator && !exists(checkpointPath(out, end))) await save(recipe.steps); // resumed elsewhere, at its end
    await recipe.finish();
    dataWaits[recipe.name] = dataWait;
    const found = await training.afterRecipe?.(index, end, dataWait);
    if (found && await validator?.add(recipe.name, end, found.scores, found.picture)) validator?.keep();
    recipe.destroy();
  }
  if (validator?.best) log.line(`best: ${textOfBest(validator.best)}, kept in ${join(out, "best")}`);
  return dataWaits;
}
