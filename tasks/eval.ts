// tok eval: scores of reconstructions, of samples, or of any two sets of images.

import { join } from "@std/path";
import { noGrad } from "../src/autograd.ts";
import { evalConfig } from "../src/config.ts";
import { UsageError } from "../src/errors.ts";
import { capture, type Program } from "../src/gpu/program.ts";
import { makeFolder, writeJson } from "../src/io/files.ts";
import { openNpz } from "../src/io/npz.ts";
import { toFloat } from "../src/io/image.ts";
import { sideOf } from "../src/io/preprocess.ts";
import { Shapes } from "../src/io/shapes.ts";
import type { ImageSource } from "../src/io/source.ts";
import { type Features, frechet, gaussian } from "../src/metrics/frechet.ts";
import { collect } from "../src/metrics/infer.ts";
import { JUDGE_SIZE, loadJudge } from "../src/metrics/judge.ts";
import { accuracy, nearest, predict, trainProbe } from "../src/metrics/probe.ts";
import { scoreLatents, scoreReconstruction } from "../src/metrics/tokenizer.ts";
import { Encoder } from "../src/models/tokenizer.ts";
import { Vit } from "../src/models/vit.ts";
import { mean } from "../src/ops/reduce.ts";
import { input, type Tensor } from "../src/tensor.ts";
import { openDit, openTokenizer } from "../src/train/artifacts.ts";
import { generate } from "../src/train/generate.ts";
import {
  chosenEncoder,
  command,
  type Context,
  imageSource,
  inputRun,
  openAdapter,
  runFolder,
  SEEDS,
} from "./command.ts";
import { samplingOf } from "./sample.ts";

type Config = typeof evalConfig._output;
type Scores = Record<string, number>;

export const evaluate = command({
  name: "eval",
  purpose: "Score a tokenizer, a diffusion model, or two sets of images",
  schema: evalConfig,
  examples: ["tok eval", "tok eval --tokenizer runs/photos --data photos"],
  async run(c, context) {
    const { log } = context;
    if ([c.fake, c.tokenizer, c.model].filter((v) => v !== undefined).length > 1) {
      throw new UsageError("Cannot score several things at once: give one of --fake, --tokenizer, --model");
    }
    const model = c.fake === undefined && c.tokenizer === undefined
      ? inputRun(c.model, "model", log)
      : undefined;
    await openAdapter(c, log);
    const out = runFolder(c.out, "eval");
    makeFolder(out);
    const scores = c.tokenizer !== undefined
      ? await scoreTokenizer(c, c.tokenizer, context)
      : model !== undefined
      ? await scoreModel(c, model, context)
      : await scoreSets(c, await setOf(c.real, c, context), await setOf(c.fake, c, context), {}, context);
    for (const [name, value] of Object.entries(scores)) {
      log.line(`${name.padEnd(30)} ${Number(value.toPrecision(5))}`);
    }
    writeJson(join(out, "metrics.json"), scores);
    log.line(`scores: ${join(out, "metrics.json")}`);
    return { out, ...scores };
  },
});

async function scoreTokenizer(c: Config, run: string, { log }: Context): Promise<Scores> {
  const tokenizer = await openTokenizer(run);
  const size = tokenizer.config.image_size;
  const source = await imageSource(c.data, { length: c.num, seed: SEEDS.heldOut }, c.badImage, log);
  const scores: Scores = {};
  const batchSize = Math.min(c.batchSize, source.length);
  if (wants(c, "psnr", "ssim")) {
    Object.assign(scores, await scoreReconstruction(tokenizer, source, { size, batchSize }));
  }
  if (wants(c, "probe", "knn") && source.classes.length > 1) {
    const [train, test] = c.data === undefined ? [new Shapes(2000, SEEDS.probe), source] : halves(source);
    Object.assign(scores, await scoreLatents(tokenizer, train, test, { size, batchSize }));
  }
  return scores;
}

/** Samples from a model, at the guidance asked for, against held-out images. */
async function scoreModel(c: Config, run: string, context: Context): Promise<Scores> {
  const { log } = context;
  const model = await openDit(run);
  const tokenizer = await openTokenizer(model.config.tokenizer);
  const size = tokenizer.config.image_size, count = model.config.classes.length;
  const labels = Array.from({ length: c.num }, (_, i) => i % count);
  const progress = log.progress(`sampling (guidance ${c.cfg})`, c.num, "images");
  const pixels: Float32Array[] = [];
  for await (
    const s of generate(model, tokenizer, {
      ...samplingOf(c),
      labels,
      onProgress: (n) => progress.update(n),
    })
  ) pixels.push(s.pixels);
  progress.end();
  const fake: ImageSource = {
    length: pixels.length,
    classes: model.config.classes,
    label: (i) => labels[i] as number,
    name: String,
    image: (i) => toFloat(quantised(pixels[i] as Float32Array)),
  };
  const real = await setOf(c.real, c, context);
  return await scoreSets(c, real, fake, { size, labelled: true }, context);
}

/** Fréchet distance of features, and whether classes are recognised. */
async function scoreSets(
  c: Config,
  real: ImageSource,
  fake: ImageSource,
  options: { size?: number; labelled?: boolean },
  { log }: Context,
): Promise<Scores> {
  const encoder = await chosenEncoder(c, log);
  const { config, preprocessor } = encoder;
  const size = options.size ?? sideOf(preprocessor) ?? config.image_size;
  const vit = new Vit(config);
  await encoder.load(vit);
  const seen = new Encoder(vit, preprocessor.mean, preprocessor.std);
  const side = Math.max(1, Math.round(size / config.patch_size));
  const program = await imageProgram(c, size, (x) => mean(seen.patches(x, side), [1]));
  const scores: Scores = { n: fake.length };
  const a = await collect(program, "y", real), b = await collect(program, "y", fake);
  if (wants(c, "fd-encoder")) scores.fd_encoder = frechet(gaussian(a.features), gaussian(b.features));
  if (wants(c, "classes") && options.labelled && c.real === undefined) {
    const train = await collect(program, "y", new Shapes(2000, SEEDS.probe));
    const probe = trainProbe(train.features, train.labels, fake.classes.length);
    scores.class_agreement = accuracy(predict(probe, b.features), b.labels);
    scores.probe = accuracy(predict(probe, a.features), a.labels);
    if (wants(c, "knn")) scores.knn = accuracy(nearest(train.features, train.labels, a.features), a.labels);
    if (size === JUDGE_SIZE) {
      const judge = await loadJudge();
      const judging = await imageProgram(c, size, (x) => judge.forward(x));
      const opinion = await collect(judging, "y", fake);
      scores.class_agreement_independent = accuracy(largest(opinion.features), b.labels);
      judging.destroy();
    }
  }
  program.destroy();
  return scores;
}

function imageProgram(
  c: Config,
  size: number,
  fn: (x: Tensor) => Tensor,
): Promise<Program<{ x: Tensor }, { y: Tensor }>> {
  const x = input([c.batchSize, size, size, 3], "f32", "images");
  return capture("features", { x }, ({ x }) => noGrad(() => ({ y: fn(x) }))).prepare();
}

async function setOf(path: string | undefined, c: Config, { log }: Context): Promise<ImageSource> {
  if (path === undefined || !path.endsWith(".npz")) {
    return await imageSource(path, { length: Math.max(c.num, 500), seed: SEEDS.heldOut }, c.badImage, log);
  }
  const npz = await openNpz(path);
  const images: Uint8Array[] = [];
  for await (const row of npz.rows("arr_0")) images.push(row.slice());
  const labels = npz.arrays.has("arr_1") ? await npz.read("arr_1") : new Float64Array(images.length);
  return {
    length: images.length,
    classes: [...new Set(labels)].sort((a, b) => a - b).map(String),
    label: (i) => labels[i] ?? 0,
    name: String,
    image(i, size) {
      const image = images[i] as Uint8Array<ArrayBuffer>;
      if (image.length !== size * size * 3) {
        throw new UsageError(
          `Cannot score "${path}": its images have ${image.length} bytes, ${size} x ${size} x 3 are needed`,
        );
      }
      return toFloat(image);
    },
  };
}

const wants = (c: Config, ...names: Config["metrics"]) => names.some((name) => c.metrics.includes(name));

/** Every second image to learn from, the others to test on. */
function halves(source: ImageSource): [ImageSource, ImageSource] {
  const half = (odd: number): ImageSource => ({
    length: Math.floor((source.length + 1 - odd) / 2),
    classes: source.classes,
    label: (i) => source.label(2 * i + odd),
    name: (i) => source.name(2 * i + odd),
    image: (i, size) => source.image(2 * i + odd, size),
  });
  return [half(0), half(1)];
}

function quantised(pixels: Float32Array): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(pixels, (v) => Math.min(255, Math.max(0, Math.round((v + 1) * 127.5))));
}

function largest({ data, rows, columns }: Features): Int32Array {
  return Int32Array.from({ length: rows }, (_, r) => {
    const row = data.subarray(r * columns, (r + 1) * columns);
    return row.indexOf(Math.max(...row));
  });
}
