// A sweep: scores of a diffusion model over all combinations of sampling options. Image i has the same noise and class in every
// cell, and is compared with the same reference. A finished cell is a record in a file, named by its options, and a picture.

import { join } from "@std/path";
import { sampleConfig } from "../cli/config.ts";
import { idleOptions } from "../cli/conditions.ts";
import { SAMPLING } from "../cli/sampling_conditions.ts";
import { type SweepConfig, SWEPT, type Swept, written } from "../cli/sweep_config.ts";
import type { Workers } from "../data/decode_pool.ts";
import { openNpzSet } from "../data/npz_images.ts";
import { exists, readJson, writeJson } from "../formats/files.ts";
import { writeNpz } from "../formats/npz.ts";
import { fingerprintOf } from "../formats/provenance.ts";
import { openModel } from "../formats/shards.ts";
import { grid, writePng } from "../image/image.ts";
import type { SetEvaluation } from "../metrics/evaluate.ts";
import type { ImageSet } from "../metrics/image_set.ts";
import { Results } from "../metrics/selection.ts";
import type { Scores } from "../metrics/metric.ts";
import { loadState } from "../nn/layers.ts";
import type { DiffusionModel, KnownTokenizer } from "../zoo/runs.ts";
import { generate } from "../sampling/generate.ts";
import { flagsOf } from "../sampling/job.ts";
import { expectedEvaluations } from "../sampling/plan.ts";
import { type SamplingOptions, samplingOptions } from "../sampling/sampler.ts";
import { roundedNfe } from "../sampling/sampler_options.ts";
import { duration, type Log } from "../run/log.ts";
import { rebuiltEma } from "../run/power_ema.ts";

/** A combination of options. */
export interface Cell {
  options: Swept;
  /** Identifies the images: combinations that differ in options without effect have the same key. */
  key: string;
}

export interface CellResult extends Cell {
  /** Network evaluations of an image. */
  nfe: number;
  /** Seconds of sampling, without compilation. */
  seconds: number;
  scores: Scores;
}

/**
 * All combinations of the lists of a config; the last option varies fastest.
 * @param guides the models of --guide by their path, whose weights identify a cell
 */
export function cellsOf(
  lists: { [K in keyof Swept]: Swept[K][] },
  guides: ReadonlyMap<string, Pick<DiffusionModel, "identity">> = new Map(),
): Cell[] {
  let all: Record<string, unknown>[] = [{}];
  for (const name of SWEPT) {
    all = all.flatMap((options) => lists[name].map((value) => ({ ...options, [name]: value })));
  }
  return all.map((options) => {
    const used = withEffect(options as unknown as Swept);
    const effective = { ...used, guide: guides.get(used.guide ?? "")?.identity.fingerprint ?? used.guide };
    const texts = SWEPT.map((name) => `${name} ${written(effective[name])}`);
    return { options: options as unknown as Swept, key: fingerprintOf(...texts) };
  });
}

/** The options with the defaults in place of those without effect. */
function withEffect(all: Swept): Swept {
  const options = all.guideWeight === 1 ? { ...all, guide: undefined } : all; // at weight 1 a guide does nothing
  const idle = idleOptions(options, SAMPLING), defaults = sampleConfig.parse({});
  return Object.fromEntries(
    SWEPT.map((name) => [name, (idle.has(name) ? defaults as Partial<Swept> : options)[name]]),
  ) as unknown as Swept;
}

/** The cells with different images. */
export const distinct = (cells: readonly Cell[]): Cell[] =>
  [
    ...new Map(cells.toReversed().map((cell) => [cell.key, cell])).values(),
  ].toReversed();

/** The options with values that differ between cells. */
export const variedIn = (cells: readonly Cell[]): (keyof Swept)[] =>
  SWEPT.filter((name) => new Set(cells.map(({ options }) => written(options[name]))).size > 1);

/** Images in the picture of a cell: two rows of at most this number of classes. */
const COLUMNS = 10;

export interface SweepContext {
  model: DiffusionModel;
  /** The run or file of the model. */
  path: string;
  tokenizer: KnownTokenizer;
  /** The models of --guide, by their path. */
  guides: ReadonlyMap<string, Pick<DiffusionModel, "dit">>;
  /** Class of each image of a cell. */
  labels: readonly number[];
  config: Pick<SweepConfig, "seed" | "batchSize">;
  /** Folder of the records and pictures of cells. */
  folder: string;
  /** The open networks, the real images and those that a probe learns from. */
  evaluation: SetEvaluation;
  real: ImageSet;
  train: Parameters<SetEvaluation["score"]>[2];
  workers: Workers;
  log: Log;
}

const recordOf = (folder: string, { key }: Cell) => join(folder, `${key}.json`);
/** The picture of a cell. */
export const pictureOf = (folder: string, { key }: Cell) => join(folder, `${key}.png`);

/** The result of a cell that is finished. */
export function finished(folder: string, cell: Cell): CellResult | undefined {
  const path = recordOf(folder, cell);
  if (!exists(path) || !exists(pictureOf(folder, cell))) return undefined;
  return { ...readJson(path) as CellResult, ...cell };
}

/** The options of a cell for the sampler. */
export const optionsOf = (
  { options }: Cell,
  { config: { seed, batchSize }, guides }: Pick<SweepContext, "config" | "guides">,
): SamplingOptions => {
  const used = withEffect(options);
  return samplingOptions({ ...used, seed, batchSize }, guides.get(used.guide ?? "")?.dit);
};

/**
 * The results of all cells; those that are missing are computed.
 * @param describe names a cell and its scores in a line
 * @throws UsageError for options that the model does not have, and for images or scores that are not finite
 */
export async function runCells(
  cells: readonly Cell[],
  context: SweepContext,
  describe: (result: CellResult) => string,
): Promise<CellResult[]> {
  const { folder, log, labels: { length: n }, model } = context;
  const missing = cells.filter((cell) => !finished(folder, cell));
  const passes = missing.reduce(
    (sum, cell) => sum + expectedEvaluations(model.dit.config, optionsOf(cell, context)),
    0,
  );
  log.begin();
  const known = cells.length - missing.length;
  if (known > 0) log.line(`${known} of ${cells.length} cells are there already`);
  log.line(
    `${missing.length} ${missing.length === 1 ? "cell" : "cells"} of ${n} images: ${
      missing.length * n
    } images, ${Math.round(passes * n)} network evaluations`,
  );
  const results: CellResult[] = [];
  // Seconds of sampling and of scoring a cell; the first cell is scored together with the reference.
  let ema: number | undefined;
  let sampling = 0, scoring = Infinity, evaluations = 0, computed = 0;
  for (const [i, cell] of cells.entries()) {
    let result = finished(folder, cell);
    if (!result) {
      const progress = log.progress(`cell ${i + 1} of ${cells.length}`, n, "images"),
        began = performance.now();
      if (cell.options.ema !== ema) await loadAverage(context, ema = cell.options.ema);
      result = await runCell(cell, context, progress.update);
      progress.end();
      sampling += result.seconds;
      scoring = Math.min(scoring, (performance.now() - began) / 1000 - result.seconds);
      evaluations += result.nfe;
      const { options, nfe, seconds, scores } = result;
      log.event("cell", { options, nfe, seconds, ...scores });
      const left = sampling * (passes / evaluations - 1) + scoring * (missing.length - ++computed);
      const rest = computed < missing.length ? `; about ${duration(left)} left` : "";
      log.line(`${describe(result)} (${nfe} NFE, ${seconds.toFixed(1)} s${rest})`);
    }
    results.push(result);
  }
  return results;
}

/** Loads an average of the weights, or with undefined the model's own, into the model. */
async function loadAverage({ model, path, log }: SweepContext, width: number | undefined): Promise<void> {
  const source = width === undefined ? await openModel(model.path) : await rebuiltEma(path, width);
  try {
    if ("about" in source) log.line(`weights: ${source.about}`);
    await loadState(model.network, source);
  } finally {
    source.close();
  }
}

/** Samples and scores a cell. */
async function runCell(
  cell: Cell,
  context: SweepContext,
  onProgress: (images: number) => void,
): Promise<CellResult> {
  const { model, tokenizer, labels, folder, evaluation, real, train, workers } = context;
  const options = optionsOf(cell, context), size = model.config.dit.input_size * tokenizer.factor;
  const columns = Math.min(COLUMNS, model.config.classes.length || COLUMNS), shown: Uint8Array[] = [];
  let began = performance.now(), total = 0;
  async function* samples() {
    const all = generate(model, tokenizer, {
      ...options,
      labels,
      onProgress,
      onStart: () => began = performance.now(),
    });
    for await (const { image, evaluations } of all) {
      total += evaluations;
      if (shown.length < 2 * columns) shown.push(image);
      yield image;
    }
  }
  const path = join(folder, `${cell.key}.npz`);
  await writeNpz(path, [
    { name: "arr_0", shape: [labels.length, size, size, 3], data: samples() },
    { name: "arr_1", shape: [labels.length], data: BigInt64Array.from(labels, BigInt) },
  ]);
  const seconds = (performance.now() - began) / 1000, results = new Results();
  try {
    const fake = { name: "samples", ...await openNpzSet(path, workers) };
    await evaluation.score(real, fake, train, results);
  } finally {
    Deno.removeSync(path);
  }
  results.rethrow();
  await writePng(pictureOf(folder, cell), grid(shown, size, columns));
  const result = { ...cell, nfe: roundedNfe(total / labels.length), seconds, scores: results.scores };
  writeJson(recordOf(folder, cell), result);
  return result;
}

/** Scores that are distances, the first of which decides; without one, the first of the others does. */
const DISTANCES = [
  ...[
    "fid",
    "fd_encoder",
    "fd_cls",
    "fd_pooled",
    "fd_dinov2",
    "sfid",
    "kid",
    "kid_encoder",
    "mind",
    "mind_encoder",
    "cmmd",
  ],
  ...["fid_infinity", "fd_infinity_encoder"],
];

export const isDistance = (score: string): boolean => DISTANCES.includes(score);

/** Names of the scores of cells, in their order in a table. */
export function scoresOf(results: readonly CellResult[]): string[] {
  const names = new Set(results.flatMap(({ scores }) => Object.keys(scores)).filter((name) => name !== "n"));
  return [...DISTANCES.filter((name) => names.delete(name)), ...names];
}

/** The best cell, the first one among equals. */
export function bestOf(results: readonly CellResult[]): CellResult | undefined {
  const [score] = scoresOf(results);
  if (score === undefined) return results[0];
  const sign = isDistance(score) ? 1 : -1,
    value = (cell: CellResult) => sign * (cell.scores[score] ?? Infinity * sign);
  return results.reduce<CellResult | undefined>(
    (best, cell) => best && value(best) <= value(cell) ? best : cell,
    undefined,
  );
}

/** The command that samples with the options of a cell. @param given options that every cell has */
export const sampleCommand = ({ options }: Cell, given: Readonly<Record<string, unknown>>): string =>
  ["tok sample", ...flagsOf({ ...given, ...withEffect(options) })].join(" ");
