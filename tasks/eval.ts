// tok eval: scores of reconstructions, of samples, or of any two sets of images.

import { join } from "@std/path";
import { noGrad } from "../src/autograd.ts";
import { evalConfig } from "../src/config.ts";
import { UsageError } from "../src/errors.ts";
import { capture } from "../src/gpu/program.ts";
import { Folder } from "../src/io/dataset.ts";
import { makeFolder, writeJson } from "../src/io/files.ts";
import { readImage } from "../src/io/image.ts";
import type { Log } from "../src/io/log.ts";
import { writeNpz } from "../src/io/npz.ts";
import { NpzImages, openNpzSet } from "../src/io/npz_images.ts";
import { drawnBy, type Workers } from "../src/io/workers.ts";
import { sideOf } from "../src/io/preprocess.ts";
import { Shapes } from "../src/io/shapes.ts";
import { halves, type ImageSource } from "../src/io/source.ts";
import { type Features, frechet, gaussian } from "../src/metrics/frechet.ts";
import { InceptionEye, ReconstructionFrechet } from "../src/metrics/inception.ts";
import { collect, type ImageProgram } from "../src/metrics/infer.ts";
import { JUDGE_SIZE, loadJudge } from "../src/metrics/judge.ts";
import { LpipsScore } from "../src/metrics/perceptual.ts";
import { accuracy, nearest, predict, trainProbe } from "../src/metrics/probe.ts";
import { compareSets, type ImageSet, obstacle, type SetMetric } from "../src/metrics/sets.ts";
import { scoreLatents, scoreReconstruction } from "../src/metrics/tokenizer.ts";
import { type Inception, INCEPTION_SIDE, openInception } from "../src/models/inception.ts";
import { openLpips } from "../src/models/lpips.ts";
import { Encoder } from "../src/models/tokenizer.ts";
import { Vit } from "../src/models/vit.ts";
import { mean } from "../src/ops/reduce.ts";
import { input, type Tensor } from "../src/tensor.ts";
import { openGenerator, openTokenizer } from "../src/train/artifacts.ts";
import type { EncoderSource } from "../src/train/encoders.ts";
import { generate } from "../src/train/generate.ts";
import {
  chosenEncoder,
  command,
  type Context,
  imageSource,
  inputRun,
  openAdapter,
  openWorkers,
  runFolder,
  SEEDS,
} from "./command.ts";
import { type Chosen, chosenMetrics } from "./metrics.ts";
import { samplingOf } from "./sample.ts";

type Config = typeof evalConfig._output;
type Scores = Record<string, number>;
/** What a command gets, and what makes images. */
type Means = Context & { workers: Workers };

export const evaluate = command({
  name: "eval",
  purpose: "Score a tokenizer, a diffusion model, or two sets of images",
  schema: evalConfig,
  examples: [
    "tok eval --tokenizer runs/photos --data photos --lpips vgg16-397923af.pth,vgg.pth",
    "tok eval --real imagenet.npz --fake samples.npz --inception pt_inception-2015-12-05-6726825d.pth",
  ],
  async run(c, context) {
    const { log } = context;
    if (c.fake !== undefined && (c.tokenizer ?? c.model) !== undefined) {
      throw new UsageError("Cannot score several things at once: give --fake, --tokenizer or --model");
    }
    const subject = c.fake !== undefined
      ? "sets"
      : c.tokenizer !== undefined && c.model === undefined
      ? "tokenizer"
      : "model";
    const metrics = chosenMetrics(c, subject);
    const model = subject === "model" ? inputRun(c.model, "model", log) : undefined;
    await openAdapter(c, log);
    using workers = openWorkers(c);
    const means = { ...context, workers };
    const out = runFolder(c.out, "eval");
    const scores = model !== undefined
      ? await scoreModel(c, metrics, model, out, means)
      : c.tokenizer !== undefined
      ? await scoreTokenizer(c, metrics, c.tokenizer, means)
      : await scoreFiles(c, metrics, means);
    for (const [name, value] of Object.entries(scores)) {
      log.line(`${name.padEnd(30)} ${Number(value.toPrecision(5))}`);
    }
    makeFolder(out);
    writeJson(join(out, "metrics.json"), scores);
    log.line(`scores: ${join(out, "metrics.json")}`);
    return { out, ...scores };
  },
});

async function scoreTokenizer(c: Config, metrics: Chosen, run: string, means: Means): Promise<Scores> {
  const { log, workers } = means;
  const tokenizer = await openTokenizer(run);
  const size = c.imageSize ?? tokenizer.config.image_size;
  const source = await imageSource(
    c.data,
    { length: c.num, seed: SEEDS.heldOut },
    c.badImage,
    workers,
    log,
  );
  const labelled = source.classes.length > 1;
  metrics.exclude(["probe", "knn"], !labelled && `the images in "${c.data}" have no classes`);
  const scores: Scores = {};
  const batchSize = Math.min(c.batchSize, source.length);
  if (metrics.any("psnr", "ssim", "lpips", "rfid")) {
    const eye = metrics.any("rfid")
      ? await InceptionEye.open(await openInception(c.inception ?? ""), {
        size,
        batchSize,
        input: c.inceptionInput,
        questions: ["moments"],
      })
      : undefined;
    const lpips = metrics.any("lpips")
      ? await LpipsScore.open(await openLpips(c.lpips ?? []), { size, batchSize })
      : undefined;
    if (eye) warnFew(source.length, log);
    const all = await scoreReconstruction(tokenizer, source, {
      size,
      batchSize,
      pairs: [...lpips ? [lpips] : [], ...eye ? [new ReconstructionFrechet(eye)] : []],
    });
    eye?.destroy();
    lpips?.destroy();
    const unasked = (["psnr", "ssim"] as const).filter((name) => !metrics.any(name));
    Object.assign(scores, all);
    for (const name of unasked) delete scores[name];
  }
  if (metrics.any("probe", "knn")) {
    const [train, test] = c.data === undefined
      ? [drawnBy(workers, new Shapes(PROBE_IMAGES, SEEDS.probe)), source]
      : halves(source);
    const all = await scoreLatents(tokenizer, train, test, { size, batchSize });
    for (const name of ["probe", "knn"] as const) if (metrics.any(name)) scores[name] = all[name];
  }
  return scores;
}

/** Two sets that are there already. */
async function scoreFiles(c: Config, metrics: Chosen, means: Means): Promise<Scores> {
  const real = await setOf(c.real, c, means), fake = await setOf(c.fake, c, means);
  const judges = await openJudges(c, metrics, real, fake, means.log);
  return await scoreSets(c, metrics, real, fake, judges, means);
}

/** Samples from a model, at the guidance asked for, against held-out images. The samples stay in the run. */
async function scoreModel(
  c: Config,
  metrics: Chosen,
  run: string,
  out: string,
  means: Means,
): Promise<Scores> {
  const { log } = means;
  const { model, tokenizer } = await openGenerator(run, c);
  const size = model.config.dit.input_size * tokenizer.factor, { classes } = model.config;
  const known = c.real === undefined && classes.join() === new Shapes(1, 0).classes.join();
  metrics.exclude(
    ["classes", "probe", "knn"],
    !known && "they need a model of the generated shapes, and no --real",
  );
  const real = await setOf(c.real, c, means);
  // Before the samples, which take long: whatever is wrong with the real images or with the networks.
  const judges = await openJudges(c, metrics, real, { name: "samples", images: new Shapes(1, 0) }, log);
  const labels = Array.from({ length: c.num }, (_, i) => i % classes.length);
  const progress = log.progress(`sampling (guidance ${c.cfg})`, c.num, "images");
  async function* samples() {
    const options = { ...samplingOf(c), labels, onProgress: (n: number) => progress.update(n) };
    for await (const { image } of generate(model, tokenizer, options)) yield image;
  }
  makeFolder(out);
  const path = join(out, "samples.npz");
  await writeNpz(path, [
    { name: "arr_0", shape: [c.num, size, size, 3], data: samples() },
    { name: "arr_1", shape: [c.num], data: BigInt64Array.from(labels, BigInt) },
  ]);
  progress.end();
  log.line(`samples: ${path}`);
  return await scoreSets(c, metrics, real, await setOf(path, c, means), judges, means);
}

/** Generated images that probes learn from. */
const PROBE_IMAGES = 2000;
const BY_INCEPTION = ["fid", "sfid", "is", "kid", "precision", "recall"] as const;
const BY_ENCODER = ["fd-encoder", "classes", "probe", "knn"] as const;

/** The networks that two sets are compared with. */
interface Judges {
  inception: Inception | undefined;
  encoder: EncoderSource | undefined;
}

/** Leaves out what these sets do not allow, and opens the networks that the rest needs. */
async function openJudges(
  c: Config,
  metrics: Chosen,
  real: ImageSet,
  fake: ImageSet,
  log: Log,
): Promise<Judges> {
  for (const metric of BY_INCEPTION) metrics.exclude([metric], obstacle(metric, real, fake));
  metrics.exclude(["fd-encoder"], obstacle("kid", real, fake));
  metrics.needSome();
  return {
    inception: metrics.any(...BY_INCEPTION) ? await openInception(c.inception ?? "") : undefined,
    encoder: metrics.any(...BY_ENCODER) ? await chosenEncoder(c, log) : undefined,
  };
}

/** Distances of the sets, and whether classes are recognised. */
async function scoreSets(
  c: Config,
  metrics: Chosen,
  real: ImageSet,
  fake: ImageSet,
  { inception, encoder }: Judges,
  { log, workers }: Means,
): Promise<Scores> {
  const size = await sideOfSets(c, real, fake);
  const scores: Scores = fake.images ? { n: fake.images.length } : {};
  if (encoder && real.images && fake.images) {
    Object.assign(scores, await scoreByEncoder(c, metrics, encoder, real.images, fake.images, size, workers));
  }
  if (!inception) return scores;
  const asked = new Set<SetMetric>(BY_INCEPTION.filter((metric) => metrics.any(metric)));
  if (asked.has("fid")) {
    for (const { images, pooled } of [real, fake]) if (images && !pooled) warnFew(images.length, log);
  }
  if (real.spatial && c.inceptionInput !== "adm") {
    log.warn(
      `the statistics in "${real.name}" are ADM's: --inception-input adm scores as its evaluator does`,
    );
  }
  const found = await compareSets(inception, real, fake, asked, {
    size: size ?? INCEPTION_SIDE,
    batchSize: c.batchSize,
    input: c.inceptionInput,
    seed: c.seed,
    progress: (label, total, unit) => log.progress(label, total, unit),
  });
  return { ...scores, ...found };
}

/** The Frechet distance of an encoder's features, and what a probe on them says about classes. */
async function scoreByEncoder(
  c: Config,
  metrics: Chosen,
  encoder: EncoderSource,
  real: ImageSource,
  fake: ImageSource,
  given: number | undefined,
  workers: Workers,
): Promise<Scores> {
  const { config, preprocessor } = encoder;
  const own = sideOf(preprocessor) ?? config.image_size, size = given ?? own;
  const vit = new Vit(config);
  await encoder.load(vit);
  const seen = new Encoder(vit, preprocessor.mean, preprocessor.std);
  const side = Math.max(1, Math.round(own / config.patch_size));
  const images = real.length + fake.length + PROBE_IMAGES;
  const program = await imageProgram(c, size, images, (x) => mean(seen.patches(x, side), [1]));
  const scores: Scores = {};
  try {
    const a = await collect(program, "y", real), b = await collect(program, "y", fake);
    if (metrics.any("fd-encoder")) {
      scores.fd_encoder = await frechet(gaussian(a.features), gaussian(b.features));
    }
    if (!metrics.any("classes", "probe", "knn")) return scores;
    const train = await collect(program, "y", drawnBy(workers, new Shapes(PROBE_IMAGES, SEEDS.probe)));
    if (metrics.any("classes", "probe")) {
      const probe = trainProbe(train.features, train.labels, fake.classes.length);
      if (metrics.any("classes")) scores.class_agreement = accuracy(predict(probe, b.features), b.labels);
      if (metrics.any("probe")) scores.probe = accuracy(predict(probe, a.features), a.labels);
    }
    if (metrics.any("knn")) {
      scores.knn = accuracy(nearest(train.features, train.labels, a.features), a.labels);
    }
    if (metrics.any("classes") && size === JUDGE_SIZE) {
      const judge = await loadJudge();
      const judging = await imageProgram(c, size, fake.length, (x) => judge.forward(x));
      const opinion = await collect(judging, "y", fake);
      scores.class_agreement_independent = accuracy(largest(opinion.features), b.labels);
      judging.destroy();
    }
    return scores;
  } finally {
    program.destroy();
  }
}

/** @param n images in all */
function imageProgram(
  c: Config,
  size: number,
  n: number,
  fn: (x: Tensor) => Tensor,
): Promise<ImageProgram<"y">> {
  const runs = Math.ceil(n / c.batchSize);
  const x = input([c.batchSize, size, size, 3], "f32", "images");
  return capture("features", { x }, ({ x }) => noGrad(() => ({ y: fn(x) })), { runs }).prepare();
}

async function setOf(path: string | undefined, c: Config, { log, workers }: Means): Promise<ImageSet> {
  if (path?.endsWith(".npz")) return { name: path, ...await openNpzSet(path) };
  const generated = { length: Math.max(c.num, 500), seed: SEEDS.heldOut };
  return {
    name: path ?? "generated shapes",
    images: await imageSource(path, generated, c.badImage, workers, log),
  };
}

/** The side at which images are compared; undefined where any will do. */
async function sideOfSets(c: Config, real: ImageSet, fake: ImageSet): Promise<number | undefined> {
  if (c.imageSize !== undefined) return c.imageSize;
  for (const { images } of [fake, real]) if (images instanceof NpzImages) return images.side;
  for (const { images } of [fake, real]) {
    if (!(images instanceof Folder)) continue;
    const { width, height } = await readImage(images.path(0));
    return Math.min(width, height);
  }
  return undefined;
}

function warnFew(images: number, log: Log): void {
  if (images <= 2048) {
    log.warn(
      `${images} images are few for 2048 features: such Frechet distances compare only at equal numbers`,
    );
  }
}

function largest({ data, rows, columns }: Features): Int32Array {
  return Int32Array.from({ length: rows }, (_, r) => {
    const row = data.subarray(r * columns, (r + 1) * columns);
    return row.indexOf(Math.max(...row));
  });
}
