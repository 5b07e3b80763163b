// Scores of one cell of an ablation on generated shapes. Frechet distances are of features of the independent classifier, a
// space in which no tokenizer was trained. The linear probe predicts shape and size together from latents: the ten shapes
// alone are too easy to tell tokenizers apart.

import type { ImageSource } from "../data/image_source.ts";
import { scaleOf, Shapes } from "../data/toy_shapes.ts";
import { collect, type ImageProgram, imageProgram, inferImages } from "../metrics/batched.ts";
import { frechet } from "../metrics/frechet.ts";
import { Moments } from "../metrics/moments.ts";
import { accuracy, cautionOfProbe, predict, trainProbe } from "../metrics/linear_probe.ts";
import { imageMeans, type PairScore } from "../metrics/pairs.ts";
import type { Scores } from "../metrics/metric.ts";
import { latentFeatures, scoreReconstruction } from "../metrics/tokenizer.ts";
import { TOY_CLASSIFIER_SIZE, TOY_CLASSIFIER_WIDTH } from "../models/toy_classifier.ts";
import { generate } from "../sampling/generate.ts";
import { openGenerator } from "../zoo/generator.ts";
import { openToyClassifier } from "../zoo/networks.ts";
import { openTokenizer } from "../zoo/runs.ts";

const SIZE = TOY_CLASSIFIER_SIZE, BATCH = 50;
/** Seeds of images that no tokenizer, model or classifier was trained on. */
const SEEDS = { test: 9901, probe: 9902 };
const IMAGES = { reconstructed: 500, probe: 2000, real: 2000, generated: 400 };

export interface ScoreOptions {
  /** Weights; 1 is unguided. */
  guidance: readonly number[];
  seed: number;
  /** Says that the probe did not converge. */
  warn?(text: string): void;
}

/**
 * Scores a tokenizer and a diffusion model on its latents.
 * @returns `psnr`, `ssim`, `mse`, `rfd`, `probe`; for weight 1 `gfd` and `agreement_unguided`; of the other weights, the best
 *   Frechet distance `gfd_guided`, its weight `guidance` and its `agreement`
 */
export async function scoreCell(
  tokenizerRun: string,
  modelRun: string,
  { guidance, seed, warn }: ScoreOptions,
): Promise<Scores> {
  const classifier = await openToyClassifier();
  const program = await imageProgram("classifier", (x) => classifier.layers(x), {
    batchSize: BATCH,
    size: SIZE,
  });
  const tokenizer = await openTokenizer(tokenizerRun);
  const test = new Shapes(IMAGES.reconstructed, SEEDS.test), probe = new Shapes(IMAGES.probe, SEEDS.probe);
  const scores: Scores = {
    ...await scoreReconstruction(tokenizer, test, {
      size: SIZE,
      batchSize: BATCH,
      scores: [...imageMeans(test.length, SIZE), new ClassifierFrechet(program)],
    }),
  };
  const latents = await latentFeatures(tokenizer, fine(probe), fine(test), { size: SIZE, batchSize: BATCH });
  const { train } = latents, classes = fine(probe).classes.length;
  const trained = await trainProbe(train.features, train.labels, classes);
  const caution = cautionOfProbe(trained);
  if (caution) warn?.(caution);
  scores.probe = accuracy(await predict(trained, latents.test.features), latents.test.labels);

  const real = new Moments(TOY_CLASSIFIER_WIDTH);
  const { features } = await collect(program, "pooled", new Shapes(IMAGES.real, SEEDS.test));
  await real.add(features.data);
  const { model } = await openGenerator(modelRun),
    labels = Array.from(
      { length: IMAGES.generated },
      (_, i) => i % test.classes.length,
    );
  const options = { batchSize: BATCH, steps: 20, sampler: "euler", shift: 1, cfgInterval: [0.1, 1] } as const;
  for (const cfg of guidance) {
    const fake = new Moments(TOY_CLASSIFIER_WIDTH);
    let hits = 0;
    const waiting: Uint8Array[] = [];
    for await (const { index, image } of generate(model, tokenizer, { ...options, cfg, seed, labels })) {
      waiting.push(image);
      if (waiting.length < BATCH) continue;
      const all = new Uint8Array(BATCH * image.length);
      waiting.splice(0).forEach((bytes, k) => all.set(bytes, k * image.length));
      for await (const { pooled, logits } of inferImages(program, all)) {
        await fake.add(pooled);
        const classes = logits.length / BATCH;
        for (let k = 0; k < BATCH; k++) {
          const row = logits.subarray(k * classes, (k + 1) * classes);
          if (row.indexOf(Math.max(...row)) === labels[index - BATCH + 1 + k]) hits++;
        }
      }
    }
    const distance = await frechet(await real.gaussian(), await fake.gaussian()),
      agreement = hits / labels.length;
    if (cfg === 1) Object.assign(scores, { gfd: distance, agreement_unguided: agreement });
    else if (distance < (scores.gfd_guided ?? Infinity)) {
      Object.assign(scores, { gfd_guided: distance, guidance: cfg, agreement });
    }
  }
  return scores;
}

/** The shapes with a class for each shape and half of the sizes. */
function fine(shapes: Shapes): ImageSource {
  return {
    length: shapes.length,
    classes: shapes.classes.flatMap((name) => [`small ${name}`, `large ${name}`]),
    label: (i) => 2 * shapes.label(i) + (scaleOf(shapes.seed, i) < 0.5 ? 0 : 1),
    name: (i) => shapes.name(i),
    bytes: (i, size) => shapes.bytes(i, size),
  };
}

/** `rfd`: Frechet distance between images and their reconstructions in the classifier's features. */
class ClassifierFrechet implements PairScore {
  readonly #moments = [new Moments(TOY_CLASSIFIER_WIDTH), new Moments(TOY_CLASSIFIER_WIDTH)] as const;

  constructor(readonly program: ImageProgram<"pooled" | "logits">) {}

  async add(originals: Uint8Array, reconstructions: Uint8Array): Promise<void> {
    for (const [i, images] of [originals, reconstructions].entries()) {
      for await (const { pooled } of inferImages(this.program, images)) await this.#moments[i]?.add(pooled);
    }
  }

  async scores(): Promise<Scores> {
    const [a, b] = this.#moments;
    return { rfd: await frechet(await a.gaussian(), await b.gaussian()) };
  }
}
