// What the parts of an evaluation share, and the part that samples from a diffusion model and compares with real images.

import { join } from "@std/path";
import type { EvalConfig } from "../src/cli/eval_config.ts";
import { guidanceText } from "../src/cli/guidance.ts";
import { SAMPLING } from "../src/cli/sampling_conditions.ts";
import type { Workers } from "../src/data/decode_pool.ts";
import { writeNpz } from "../src/formats/npz.ts";
import type { Provenance } from "../src/formats/provenance.ts";
import { grid, writePng } from "../src/image/image.ts";
import { SetEvaluation } from "../src/metrics/evaluate.ts";
import type { SetOptions } from "../src/metrics/evaluation_options.ts";
import type { Findings } from "../src/metrics/evaluation_page.ts";
import { type SamplingIngredients, setIngredients } from "../src/metrics/ingredients.ts";
import type { Results, Selection } from "../src/metrics/selection.ts";
import type { Log } from "../src/run/log.ts";
import { generate } from "../src/sampling/generate.ts";
import { decidingOptions, optionsIdentity } from "../src/sampling/job.ts";
import { classesOf, labelsOf, unguidedIfUnconditional } from "../src/sampling/labels.ts";
import { planOf } from "../src/sampling/plan.ts";
import { samplingOptions } from "../src/sampling/sampler.ts";
import { Evaluations } from "../src/sampling/sampler_options.ts";
import { openGenerator } from "../src/zoo/generator.ts";
import { recordedEncoder } from "../src/zoo/recorded_encoder.ts";
import type { Context } from "./command.ts";
import type { recordOfScores } from "./output.ts";
import { makesShapes, openSet, probeImages } from "./sets.ts";

/** What the parts share. */
export interface Job {
  c: EvalConfig;
  options: SetOptions & { out: string };
  results: Results;
  workers: Workers;
  log: Log;
  record: ReturnType<typeof recordOfScores>;
}

/** A part whose inputs are open: errors in those come before any score. */
export interface Prepared extends Disposable {
  sources: Provenance;
  options?: Readonly<Record<string, unknown>>;
  score(): Promise<Findings>;
}

/** With what follows from the options. */
export interface Shared extends Job {
  size: number;
  /** The real images of the samples or of --fake. @param side of generated images */
  given(side: number): ReturnType<typeof openSet>;
}

export type Generator = Awaited<ReturnType<typeof openModel>>;

/** Opens a model with its tokenizer. @throws UsageError for options that it cannot be sampled with */
export async function openModel(config: EvalConfig, run: string, origins: Context["origins"], log: Log) {
  const opened = await openGenerator(run, { ...config, say: (text) => log.line(text) });
  const { model: { config: { dit, classes } }, tokenizer, guide } = opened;
  const c = unguidedIfUnconditional(run, opened.model.config, config, origins, SAMPLING);
  const sampling = samplingOptions(c, guide?.dit);
  planOf(dit, sampling); // refuses what the model cannot do
  return {
    ...opened,
    c,
    sampling,
    classes,
    size: dit.input_size * tokenizer.factor,
    path: tokenizer.identity.name,
  };
}

/** Samples from a model, kept in `out`, against held-out images. */
export async function prepareModel(
  job: Shared,
  selection: Selection,
  generator: Generator,
): Promise<Prepared> {
  const { log, results, workers } = job,
    { model, tokenizer, c, sampling, classes, size, madeFrom } = generator;
  const toy = c.real === undefined && c.data === undefined && makesShapes(classes);
  selection.exclude(({ from }) =>
    from === "labels" && !toy && "they need a model of the generated shapes, and no --real"
  );
  const { out } = job.options, side = c.imageSize ?? size, real = await job.given(side);
  const labels = labelsOf({ count: c.num, classes: classesOf(["all"], classes) });
  const fake = { name: "samples", images: labels }, path = join(out, "samples.npz");
  const options = { ...job.options, ownEncoder: recordedEncoder(tokenizer.identity.name)?.fingerprint };
  const evaluation = await SetEvaluation.open(selection, options, real, fake, log);
  const deciding = decidingOptions(c, generator.guide?.identity.fingerprint);
  return {
    sources: { ...madeFrom, "real set": real.identity, ...await evaluation.networks() },
    options: deciding,
    async score() {
      results.begin(); // samples.png is written before the first score
      const progress = log.progress(`sampling (${guidanceText(c)})`, c.num, "images");
      const evaluations = new Evaluations(), shown: Uint8Array[] = [];
      async function* samples() {
        const options = { ...sampling, labels, onProgress: progress.update };
        for await (const { image } of evaluations.of(generate(model, tokenizer, options))) {
          if (shown.length < SHOWN) shown.push(image);
          yield image;
        }
      }
      await writeNpz(path, [
        { name: "arr_0", shape: [c.num, size, size, 3], data: samples() },
        { name: "arr_1", shape: [c.num], data: BigInt64Array.from(labels, BigInt) },
      ]);
      progress.end();
      log.line(`samples: ${path}${evaluations}`);
      await writePng(join(out, "samples.png"), grid(shown, size, columnsOf(classes.length)));
      await results.add(() => evaluations.result);
      results.describe({
        real: setIngredients(real),
        fake: { name: "samples", count: c.num },
        model: madeFrom.model,
        tokenizer: madeFrom.tokenizer,
        sampling: samplingIngredients(c, { deciding, nfe: evaluations.result.nfe ?? 0 }),
      }, options);
      const set = await openSet(path, side, job);
      await evaluation.score(real, set, probeImages(workers, side), results);
      return {};
    },
    [Symbol.dispose]: () => evaluation[Symbol.dispose](),
  };
}

/** Samples in the picture, and images in a row of it: a column for each class where they are few. */
const SHOWN = 40;
const columnsOf = (classes: number) => classes >= 4 && classes <= 10 ? classes : 10;

/** @param made the options that decide about each sample, and the mean number of network evaluations */
function samplingIngredients(
  c: EvalConfig,
  { deciding, nfe }: { deciding: Readonly<Record<string, unknown>>; nfe: number },
): SamplingIngredients {
  const { sampler, steps, ema, seed, num } = c;
  return {
    sampler,
    ...sampler !== "dopri5" && { steps },
    nfe,
    guidance: guidanceText(c),
    labels: "equal",
    ema: ema ?? "the model's own",
    seed,
    images: [0, num - 1],
    options: optionsIdentity(deciding).name,
  };
}
