// tok eval: scores of a tokenizer, of a diffusion model's samples, or of two sets of images.

import { join } from "@std/path";
import { type Conditions, refuseWithoutEffect } from "../src/cli/conditions.ts";
import { type EvalConfig, evalConfig } from "../src/cli/config.ts";
import { guidanceText } from "../src/cli/guidance.ts";
import { sampling } from "../src/cli/options.ts";
import { SAMPLING } from "../src/cli/sampling_conditions.ts";
import { generatedImages, type Workers } from "../src/data/decode_pool.ts";
import { splitInHalf } from "../src/data/image_source.ts";
import { described, Sizes } from "../src/data/network_input.ts";
import { Shapes } from "../src/data/toy_shapes.ts";
import { writeNpz } from "../src/formats/npz.ts";
import { evaluateTokenizer, SetEvaluation, type SetOptions } from "../src/metrics/evaluate.ts";
import { shorterSide } from "../src/metrics/image_set.ts";
import { Results, Selection, subjectOf, SUBJECTS } from "../src/metrics/selection.ts";
import type { Subject } from "../src/metrics/table.ts";
import { INCEPTION_SIDE } from "../src/models/inception.ts";
import { refuseOthers } from "../src/run/existing_output.ts";
import type { Log } from "../src/run/log.ts";
import { generate } from "../src/sampling/generate.ts";
import { decidingOptions } from "../src/sampling/job.ts";
import { classesOf, labelsOf, unguidedIfUnconditional } from "../src/sampling/labels.ts";
import { openGenerator } from "../src/zoo/generator.ts";
import { openInception, openLpips } from "../src/zoo/networks.ts";
import { command, type Context, openAdapter, openOutput } from "./command.ts";
import { chosenEncoder, imageFiles, inputRun, openTokenizerFor, openWorkers, SEEDS } from "./inputs.ts";
import { recordOfScores, reportScores } from "./output.ts";
import { generatedShapes, makesShapes, openSet, PROBE_IMAGES, probeImages } from "./sets.ts";
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

/** Options about samples, which only a model has. */
function sampledBy(subject: Subject): Conditions<EvalConfig> {
  const reason = `it is for the samples of a model, and this scores ${SUBJECTS[subject]}`;
  const condition = [() => subject === "model", reason, "score a --model"] as const;
  return Object.fromEntries(["latents", "ema", ...Object.keys(sampling)].map((name) => [name, [condition]]));
}

export const evaluate = command({
  name: "eval",
  purpose: "Score a tokenizer, a diffusion model, or two sets of images",
  schema: evalConfig,
  examples: [
    "tok eval --tokenizer runs/photos --data photos --lpips vgg16-397923af.pth,vgg.pth",
    "tok eval --real imagenet.npz --fake samples.npz --inception pt_inception-2015-12-05-6726825d.pth",
  ],
  async run(c, { log, origins }) {
    const subject = subjectOf(c);
    refuseWithoutEffect(c, sampledBy(subject), origins);
    checkSampling(c, origins);
    const selection = new Selection(subject, c);
    const model = subject === "model" ? inputRun(c.model, "model", log) : undefined;
    using output = openOutput(c.out, "eval");
    const out = output.folder;
    refuseOthers(out, "eval");
    await openAdapter(c, log);
    using workers = openWorkers(c);
    const options = {
      ...c,
      inception: () => openInception(c.inception ?? ""),
      lpips: () => openLpips(c.lpips ?? []),
      encoder: () => chosenEncoder(c, log),
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
  const { c, selection, results, workers, log } = job;
  const { tokenizer, size } = await openTokenizerFor(c, run);
  job.record({ tokenizer: tokenizer.identity });
  const sizes = new Sizes();
  const all = c.data === undefined
    ? generatedImages(workers, generatedShapes(c.num, log))
    : await imageFiles(c.data, c, workers, log, sizes);
  const [train, test] = c.data === undefined
    ? [generatedImages(workers, new Shapes(PROBE_IMAGES, SEEDS.probe)), all]
    : splitInHalf(all);
  const images = { all, train, test, folder: c.data };
  await evaluateTokenizer(tokenizer, images, size, selection, job.options, results, log);
  if (sizes.differ(size)) log.line(`"${c.data}": ${sizes}; each has ${described({ square: size })}`);
}

async function scoreFiles(job: Job): Promise<void> {
  const fake = await openSet(job.c.fake, INCEPTION_SIDE, job);
  const side = job.c.imageSize ?? await shorterSide(fake);
  const real = await openSet(job.c.real, side, job);
  using evaluation = await SetEvaluation.open(job.selection, job.options, real, fake, job.log);
  const sets = { "real set": real.identity, "fake set": fake.identity };
  job.record({ ...sets, ...await evaluation.networks() });
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
  using evaluation = await SetEvaluation.open(selection, job.options, real, fake, log);
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
