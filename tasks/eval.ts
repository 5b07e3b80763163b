// tok eval: scores of reconstructions, of samples, or of any two sets of images.

import { join } from "@std/path";
import { evalConfig } from "../src/cli/config.ts";
import { UsageError } from "../src/errors.ts";
import { refuseOthers } from "../src/run/existing_output.ts";
import { writeJson } from "../src/formats/files.ts";
import { described, inputs, Sizes } from "../src/data/network_input.ts";
import { writeNpz } from "../src/formats/npz.ts";
import { NpzImages, openNpzSet } from "../src/data/npz_images.ts";
import { Shapes } from "../src/data/toy_shapes.ts";
import { halves, type ImageSource } from "../src/data/image_source.ts";
import { drawnBy, drawnInputs } from "../src/data/decode_pool.ts";
import { InceptionFeatures, ReconstructionFrechet } from "../src/metrics/inception.ts";
import { LpipsScore } from "../src/metrics/lpips_score.ts";
import { SSIM_SIDE } from "../src/metrics/psnr_ssim.ts";
import type { ImageSet } from "../src/metrics/set_metrics.ts";
import {
  latentFeatures,
  neighbourAccuracy,
  probeAccuracy,
  scoreReconstruction,
} from "../src/metrics/tokenizer.ts";
import { INCEPTION_SIDE, openInception } from "../src/models/inception.ts";
import { LPIPS_SIDE, openLpips } from "../src/models/lpips.ts";
import { openTokenizer } from "../src/zoo/runs.ts";
import { generate } from "../src/sampling/generate.ts";
import { openGenerator } from "../src/zoo/generator.ts";
import { command, imageFolder, inputRun, openAdapter, openOutput, openWorkers, SEEDS } from "./command.ts";
import { openClassifiers, PROBE_IMAGES, scoreSets, warnFew } from "./eval_sets.ts";
import type { Config, Means } from "./eval_sets.ts";
import { type Chosen, chosenMetrics, Results } from "./eval_metrics.ts";
import { samplingOf } from "./sample.ts";

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
    if (subject === "tokenizer" && c.real !== undefined) {
      throw new UsageError(
        "Cannot score a tokenizer with --real: the images that it reconstructs are --data",
      );
    }
    if (subject !== "tokenizer" && c.data !== undefined) {
      throw new UsageError("Cannot use --data here: it is for a tokenizer; give the real images as --real");
    }
    const metrics = chosenMetrics(c, subject);
    const model = subject === "model" ? inputRun(c.model, "model", log) : undefined;
    using output = openOutput(c.out, "eval");
    const out = output.folder;
    refuseOthers(out, "eval");
    await openAdapter(c, log);
    using workers = openWorkers(c);
    const results = new Results(), means = { ...context, workers, results };
    try {
      if (model !== undefined) await scoreModel(c, metrics, model, out, means);
      else if (c.tokenizer !== undefined) await scoreTokenizer(c, metrics, c.tokenizer, means);
      else await scoreFiles(c, metrics, means);
    } finally { // a failure must not lose what was computed before it
      const { scores } = results;
      if (Object.keys(scores).length > 0) log.begin();
      for (const [name, value] of Object.entries(scores)) {
        log.line(`${name.padEnd(30)} ${Number(value.toPrecision(5))}`);
      }
      if (Object.keys(scores).length > 0) {
        writeJson(join(out, "metrics.json"), scores);
        log.line(`scores: ${join(out, "metrics.json")}`);
      }
    }
    results.rethrow();
    return { out, ...results.scores };
  },
});

async function scoreTokenizer(c: Config, metrics: Chosen, run: string, means: Means): Promise<void> {
  const { log, workers, results } = means, { take } = results;
  const tokenizer = await openTokenizer(run);
  const size = c.imageSize ?? tokenizer.config.image_size;
  const sizes = new Sizes(), view = { square: size };
  const source = c.data === undefined
    ? drawnBy(workers, generated(c.num, SEEDS.heldOut, log))
    : inputs(await imageFolder(c.data, c.badImage, workers, log), view, sizes);
  const [train, test] = c.data === undefined
    ? [drawnBy(workers, new Shapes(PROBE_IMAGES, SEEDS.probe)), source]
    : halves(source);
  metrics.excludeEach(["probe", "knn"], (metric) => nothingToLearn(metric, source, train, c.data));
  metrics.excludeEach(["ssim", "lpips"], (metric) => {
    const least = metric === "ssim" ? SSIM_SIDE : LPIPS_SIDE;
    return size < least && `images of ${size} x ${size} are too small, it takes ${least} x ${least}`;
  });
  metrics.exclude(["rfid"], source.length < 2 && "it takes two images or more");
  metrics.settle((line) => log.line(line));
  const batchSize = Math.min(c.batchSize, source.length);
  if (metrics.any("psnr", "ssim", "lpips", "rfid")) {
    const inception = metrics.any("rfid")
      ? await InceptionFeatures.open(await openInception(c.inception ?? ""), {
        size,
        batchSize,
        input: c.inceptionInput,
        kinds: ["moments"],
      })
      : undefined;
    const lpips = metrics.any("lpips")
      ? await LpipsScore.open(await openLpips(c.lpips ?? []), { size, batchSize })
      : undefined;
    if (inception) warnFew(source.length, log);
    const pairs = [...lpips ? [lpips] : [], ...inception ? [new ReconstructionFrechet(inception)] : []];
    await take(async () => {
      const all = await scoreReconstruction(tokenizer, source, {
        size,
        batchSize,
        ssim: metrics.any("ssim"),
        pairs: pairs.map((pair) => results.guarded(pair)),
      });
      const unasked = (["psnr", "ssim"] as const).filter((name) => !metrics.any(name));
      return Object.fromEntries(Object.entries(all).filter(([name]) => !unasked.some((n) => n === name)));
    });
    inception?.destroy();
    lpips?.destroy();
  }
  if (metrics.any("probe", "knn")) {
    await take(async () => {
      const latents = await latentFeatures(tokenizer, train, test, { size, batchSize });
      if (metrics.any("probe")) await take(async () => ({ probe: probeAccuracy(latents) }));
      if (metrics.any("knn")) await take(async () => ({ knn: neighbourAccuracy(latents) }));
      return {};
    });
  }
  if (sizes.differ(size)) log.line(`"${c.data}": ${sizes}; each has ${described(view)}`);
}

/** What keeps a tokenizer's latents from being asked for classes, in words; undefined when nothing does. */
function nothingToLearn(
  metric: "probe" | "knn",
  source: ImageSource,
  train: ImageSource,
  folder: string | undefined,
): string | undefined {
  if (folder === undefined) return undefined;
  const { classes } = source;
  if (classes.length < 2) return `the images in "${folder}" have no classes`;
  const counts = new Uint32Array(classes.length);
  for (let i = 0; i < source.length; i++) counts[source.label(i)]!++;
  const few = classes.filter((_, k) => (counts[k] as number) < 2);
  if (few.length > 0) {
    return `classes with fewer than two images, one to learn from and one to test on: ${
      few.slice(0, 3).map((name) => `"${name}"`).join(", ")
    }${few.length > 3 ? ` and ${few.length - 3} more` : ""}`;
  }
  if (metric === "probe" && train.length < 2 * classes.length) {
    return `${train.length} images to learn from are fewer than two for each of ${classes.length} classes`;
  }
  return undefined;
}

/** Two sets that are there already. */
async function scoreFiles(c: Config, metrics: Chosen, means: Means): Promise<void> {
  const fake = await setOf(c.fake, c, INCEPTION_SIDE, means);
  const side = c.imageSize ?? await sideOf(fake);
  const real = await setOf(c.real, c, side, means);
  const classifiers = await openClassifiers(c, metrics, real, fake, means.log);
  await scoreSets(c, metrics, real, fake, { ...classifiers, side }, means);
}

/** Samples from a model, at the guidance asked for, against held-out images. The samples stay in the run. */
async function scoreModel(
  c: Config,
  metrics: Chosen,
  run: string,
  out: string,
  means: Means,
): Promise<void> {
  const { log } = means;
  const { model, tokenizer } = await openGenerator(run, {
    tokenizer: c.tokenizer,
    say: (text) => log.line(text),
  });
  const size = model.config.dit.input_size * tokenizer.factor, { classes } = model.config;
  const known = c.real === undefined && classes.join() === new Shapes(1, 0).classes.join();
  metrics.exclude(
    ["classes", "probe", "knn"],
    !known && "they need a model of the generated shapes, and no --real",
  );
  const side = c.imageSize ?? size;
  const real = await setOf(c.real, c, side, means);
  const labels = Array.from({ length: c.num }, (_, i) => i % classes.length);
  // Before the samples, which take long: whatever is wrong with the real images or with the networks.
  const classifiers = await openClassifiers(c, metrics, real, { name: "samples", images: labels }, log);
  const progress = log.progress(`sampling (guidance ${c.cfg})`, c.num, "images");
  async function* samples() {
    const options = { ...samplingOf(c), labels, onProgress: (n: number) => progress.update(n) };
    for await (const { image } of generate(model, tokenizer, options)) yield image;
  }
  const path = join(out, "samples.npz");
  await writeNpz(path, [
    { name: "arr_0", shape: [c.num, size, size, 3], data: samples() },
    { name: "arr_1", shape: [c.num], data: BigInt64Array.from(labels, BigInt) },
  ]);
  progress.end();
  log.line(`samples: ${path}`);
  const fake = await setOf(path, c, side, means);
  await scoreSets(c, metrics, real, fake, { ...classifiers, side }, means);
}

/** @param side of generated shapes, where there is no path */
async function setOf(
  path: string | undefined,
  c: Config,
  side: number,
  { log, workers }: Means,
): Promise<ImageSet> {
  if (path === undefined) {
    const shapes = generated(Math.max(c.num, 500), SEEDS.heldOut, log);
    return { name: "generated shapes", images: drawnInputs(workers, shapes, side) };
  }
  if (/\.npz$/i.test(path)) return { name: path, ...await openNpzSet(path, workers) };
  if (/\.npy$/i.test(path)) {
    throw new UsageError(
      `Cannot score "${path}": it is a single NumPy array; store it as .npz: np.savez("set.npz", np.load(path))`,
    );
  }
  return { name: path, images: await imageFolder(path, c.badImage, workers, log) };
}

function generated(length: number, seed: number, log: Means["log"]): Shapes {
  log.line("data: generated shapes");
  return new Shapes(length, seed);
}

/** Shorter side of the first image of a set. */
async function sideOf({ images }: ImageSet): Promise<number> {
  if (images instanceof NpzImages) return Math.min(images.width, images.height);
  if (!images) return INCEPTION_SIDE;
  const { width, height } = await images.input(0, {});
  return Math.min(width, height);
}
