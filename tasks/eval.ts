// tok eval: scores of a tokenizer, of a diffusion model's samples, or of two sets of images.

import { join } from "@std/path";
import { refuseWithoutEffect } from "../src/cli/conditions.ts";
import { evalConditions, type EvalConfig, evalConfig } from "../src/cli/eval_config.ts";
import { guidanceText } from "../src/cli/guidance.ts";
import { SAMPLING } from "../src/cli/sampling_conditions.ts";
import type { Workers } from "../src/data/decode_pool.ts";
import { described, Sizes } from "../src/data/network_input.ts";
import { writeNpz } from "../src/formats/npz.ts";
import { SetEvaluation } from "../src/metrics/evaluate.ts";
import type { SetOptions } from "../src/metrics/evaluation_options.ts";
import { evaluateTokenizer } from "../src/metrics/evaluate_tokenizer.ts";
import { shorterSide } from "../src/metrics/image_set.ts";
import { PairedSets } from "../src/metrics/paired_sets.ts";
import { underProtocol } from "../src/metrics/protocols.ts";
import { Results, Selection, subjectOf } from "../src/metrics/selection.ts";
import { INCEPTION_SIDE } from "../src/models/inception.ts";
import { refuseOthers } from "../src/run/existing_output.ts";
import type { Log } from "../src/run/log.ts";
import { generate } from "../src/sampling/generate.ts";
import { decidingOptions } from "../src/sampling/job.ts";
import { classesOf, labelsOf, unguidedIfUnconditional } from "../src/sampling/labels.ts";
import { openGenerator } from "../src/zoo/generator.ts";
import { openInception, openLpips } from "../src/zoo/networks.ts";
import { recordedEncoder } from "../src/zoo/recorded_encoder.ts";
import { command, type Context, openAdapter, openOutput } from "./command.ts";
import { compareRuns } from "./compare.ts";
import { chosenEncoders, chosenFeatureEncoder } from "./encoders.ts";
import { inputRun, openTokenizerFor, openWorkers } from "./inputs.ts";
import { recordOfScores, reportScores } from "./output.ts";
import { lockSaved, makesShapes, openSet, originalEncoder, probeImages, tokenizerImages } from "./sets.ts";
import { planOf } from "../src/sampling/plan.ts";
import { samplingOptions } from "../src/sampling/sampler.ts";
import { checkSampling, Evaluations } from "../src/sampling/sampler_options.ts";

/** What the three kinds of evaluation share. */
interface Job {
  c: EvalConfig;
  options: SetOptions;
  selection: Selection;
  results: Results;
  workers: Workers;
  log: Log;
  record: ReturnType<typeof recordOfScores>;
}

export const evaluate = command({
  name: "eval",
  purpose: "Score a tokenizer, a diffusion model, or two sets of images",
  schema: evalConfig,
  examples: [
    "tok eval --tokenizer runs/photos --data photos --lpips vgg16-397923af.pth,vgg.pth",
    "tok eval --real imagenet.npz --fake samples.npz --inception pt_inception-2015-12-05-6726825d.pth",
    "tok eval --compare runs/eval-001 runs/eval-002 --out comparison",
  ],
  async run(given, context) {
    if (given.compare !== undefined) return await compareRuns({ ...given, compare: given.compare }, context);
    const { log, origins } = context, subject = subjectOf(given);
    refuseWithoutEffect(given, evalConditions(subject, given), origins);
    const c = underProtocol(given, subject);
    checkSampling(c, origins);
    const selection = new Selection(subject, c);
    const model = subject === "model" ? inputRun(c.model, "model", log) : undefined;
    using output = openOutput(c.out, "eval");
    const out = output.folder;
    refuseOthers(out, "eval");
    using _saves = lockSaved(c);
    await openAdapter(c, log);
    using workers = openWorkers(c);
    const options = {
      ...c,
      out,
      inception: () => openInception(c.inception ?? ""),
      lpips: () => openLpips(c.lpips ?? []),
      encoder: () => chosenFeatureEncoder(c, log),
      six: async () => ({ encoders: await chosenEncoders(c, log), inception: c.inception !== undefined }),
    };
    const results = new Results(), record = recordOfScores(out, c);
    const job = { c, options, selection, results, workers, log, record };
    try {
      if (model !== undefined) await scoreModel(job, model, out, origins);
      else if (c.tokenizer !== undefined) await scoreTokenizer(job, c.tokenizer);
      else await scoreFiles(job);
    } finally { // scores computed before a failure are written
      reportScores(results.scores, out, log);
    }
    results.rethrow();
    return { out, ...results.scores };
  },
});

async function scoreTokenizer(job: Job, run: string): Promise<void> {
  const { c, selection, results, log } = job;
  const { tokenizer, size } = await openTokenizerFor(c, run);
  job.record({ tokenizer: tokenizer.identity });
  const sizes = new Sizes();
  const images = await tokenizerImages(c.data, size, sizes, job);
  const options = { ...job.options, original: await originalEncoder(c, run, log) };
  await evaluateTokenizer(tokenizer, images, size, selection, options, results, log);
  if (sizes.differ(size)) log.line(`"${c.data}": ${sizes}; each has ${described({ square: size })}`);
}

async function scoreFiles(job: Job): Promise<void> {
  const fake = await openSet(job.c.fake, INCEPTION_SIDE, job);
  const side = job.c.imageSize ?? await shorterSide(fake);
  const real = await openSet(job.c.real, side, job);
  const pairs = await PairedSets.open(job.selection, job.options, real, fake, job.log);
  using evaluation = await SetEvaluation.open(job.selection, job.options, real, fake, job.log);
  const sets = { "real set": real.identity, "fake set": fake.identity };
  job.record({ ...sets, ...await evaluation.networks() });
  await pairs?.score(job.results);
  await evaluation.score(real, fake, probeImages(job.workers, side), job.results);
}

/** Samples from a model, kept in `out`, against held-out images. Errors in those or in the networks come before sampling. */
async function scoreModel(job: Job, run: string, out: string, origins: Context["origins"]): Promise<void> {
  const { selection, log } = job;
  const opened = await openGenerator(run, { ...job.c, say: (text) => log.line(text) });
  const { model, tokenizer, guide, madeFrom } = opened;
  const c = unguidedIfUnconditional(run, model.config, job.c, origins, SAMPLING);
  const sampling = samplingOptions(c, guide?.dit);
  planOf(model.config.dit, sampling); // refuses what the model cannot do
  const size = model.config.dit.input_size * tokenizer.factor, { classes } = model.config;
  const toy = c.real === undefined && makesShapes(classes);
  selection.exclude(({ from }) =>
    from === "labels" && !toy && "they need a model of the generated shapes, and no --real"
  );
  const side = c.imageSize ?? size, real = await openSet(c.real, side, job);
  const labels = labelsOf({ count: c.num, classes: classesOf(["all"], classes) });
  const fake = { name: "samples", images: labels }, path = join(out, "samples.npz");
  const options = { ...job.options, ownEncoder: recordedEncoder(tokenizer.identity.name)?.fingerprint };
  using evaluation = await SetEvaluation.open(selection, options, real, fake, log);
  const sources = { ...madeFrom, "real set": real.identity, ...await evaluation.networks() };
  job.record(sources, decidingOptions(c, guide?.identity.fingerprint));
  const progress = log.progress(`sampling (${guidanceText(c)})`, c.num, "images");
  const evaluations = new Evaluations();
  async function* samples() {
    const options = { ...sampling, labels, onProgress: progress.update };
    for await (const { image } of evaluations.of(generate(model, tokenizer, options))) yield image;
  }
  await writeNpz(path, [
    { name: "arr_0", shape: [c.num, size, size, 3], data: samples() },
    { name: "arr_1", shape: [c.num], data: BigInt64Array.from(labels, BigInt) },
  ]);
  progress.end();
  log.line(`samples: ${path}${evaluations}`);
  await job.results.add(() => evaluations.result);
  await evaluation.score(real, await openSet(path, side, job), probeImages(job.workers, side), job.results);
}
