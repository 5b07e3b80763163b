// The part of tok eval that compares two sets of images: which networks that takes, and the scores by each of them. Every
// image goes into a network as that network's protocol says, by itself, whatever the size of the others.

import { noGrad } from "../src/tensor/autograd.ts";
import type { evalConfig } from "../src/cli/config.ts";
import { capture } from "../src/gpu/program.ts";
import { described, inputs, type InputSource, Sizes, type View } from "../src/data/network_input.ts";
import type { Log } from "../src/run/log.ts";
import { type Preprocessor, resized, sideOf } from "../src/data/preprocess.ts";
import { Shapes } from "../src/data/toy_shapes.ts";
import { drawnInputs, type Workers } from "../src/data/decode_pool.ts";
import { type Features, frechet, gaussian } from "../src/metrics/frechet.ts";
import { collect, type ImageProgram } from "../src/metrics/batched.ts";
import { loadToyClassifier, TOY_CLASSIFIER_SIZE } from "../src/metrics/toy_classifier.ts";
import { accuracy, predict, trainProbe } from "../src/metrics/linear_probe.ts";
import {
  compareSets,
  type ImageSet,
  obstacle,
  type SetFacts,
  type SetMetric,
} from "../src/metrics/set_metrics.ts";
import { neighbourAccuracy } from "../src/metrics/tokenizer.ts";
import { type Inception, openInception } from "../src/models/inception.ts";
import { fits, Vit, type VitConfig } from "../src/models/vit.ts";
import { mean } from "../src/ops/reduce.ts";
import { input, type Tensor } from "../src/tensor/tensor.ts";
import type { EncoderSource } from "../src/zoo/encoders.ts";
import { chosenEncoder, type Context, SEEDS } from "./command.ts";
import type { Chosen, Results } from "./eval_metrics.ts";

export type Config = typeof evalConfig._output;
/** What a command gets, what makes images, and where scores go. */
export type Means = Context & { workers: Workers; results: Results };

/** Generated images that probes learn from. */
export const PROBE_IMAGES = 2000;
const BY_INCEPTION = ["fid", "sfid", "is", "kid", "precision", "recall"] as const;
const BY_ENCODER = ["fd-encoder", "classes", "probe", "knn"] as const;

/** The networks that two sets are compared with. */
export interface Classifiers {
  inception: Inception | undefined;
  encoder: EncoderSource | undefined;
}

/** Leaves out what these sets do not allow, and opens the networks that the rest needs. */
export async function openClassifiers(
  c: Config,
  metrics: Chosen,
  real: SetFacts,
  fake: SetFacts,
  log: Log,
): Promise<Classifiers> {
  metrics.excludeEach(BY_INCEPTION, (metric) => obstacle(metric, real, fake));
  metrics.exclude(["fd-encoder"], obstacle("kid", real, fake));
  metrics.settle((line) => log.line(line));
  return {
    inception: metrics.any(...BY_INCEPTION) ? await openInception(c.inception ?? "") : undefined,
    encoder: metrics.any(...BY_ENCODER) ? await chosenEncoder(c, log) : undefined,
  };
}

/** Distances of the sets, and whether classes are recognised. @param judges.side of generated shapes */
export async function scoreSets(
  c: Config,
  metrics: Chosen,
  real: ImageSet,
  fake: ImageSet,
  { inception, encoder, side }: Classifiers & { side: number },
  means: Means,
): Promise<void> {
  const { log, results: { take, scores } } = means;
  if (encoder && real.images && fake.images) {
    const sets = { real: { ...real, images: real.images }, fake: { ...fake, images: fake.images } };
    await take(async () => {
      await scoreByEncoder(c, metrics, encoder, sets, side, means);
      return {};
    });
  }
  if (inception) {
    const asked = new Set<SetMetric>(BY_INCEPTION.filter((metric) => metrics.any(metric)));
    if (asked.has("fid")) {
      for (const { images, pooled } of [real, fake]) if (images && !pooled) warnFew(images.length, log);
    }
    if (real.spatial && c.inceptionInput !== "adm") {
      log.warn(
        `the statistics in "${real.name}" are ADM's: --inception-input adm scores as its evaluator does`,
      );
    }
    const options = {
      square: c.imageSize,
      batchSize: c.batchSize,
      input: c.inceptionInput,
      seed: c.seed,
      progress: log.progress.bind(log),
      seen: sayer(`Inception as ${c.inceptionInput} does`, log),
    };
    await take(async () => {
      await compareSets(inception, real, fake, asked, options, take);
      return {};
    });
  }
  if (fake.images && Object.keys(scores).length > 0) scores.n = fake.images.length;
}

/** Says what became of the images of each set, and whether the sets differ in size. */
function sayer(network: string, log: Log): (set: { name: string }, sizes: Sizes, view: View) => void {
  let first: Sizes | undefined;
  return ({ name }, sizes, view) => {
    log.line(`"${name}": ${sizes}; for ${network}, each has ${described(view)}`);
    if (first && view.square === undefined && !first.equals(sizes)) {
      log.line("note: the images are not all of one size; --image-size N makes squares of that side first");
    }
    first ??= sizes;
  };
}

/** The Frechet distance of an encoder's features, and what a probe on them says about classes. */
async function scoreByEncoder(
  c: Config,
  metrics: Chosen,
  encoder: EncoderSource,
  { real, fake }: Record<"real" | "fake", { name: string; images: InputSource }>,
  side: number,
  { log, workers, results: { take } }: Means,
): Promise<void> {
  const vit = new Vit(encoder.config);
  await encoder.load(vit);
  const preprocessor = squares(encoder.preprocessor, encoder.config);
  const size = sideOf(preprocessor) as number;
  const images = real.images.length + fake.images.length + PROBE_IMAGES;
  const program = await imageProgram(c, size, images, (x) => mean(vit.forward(x).patches, [1]));
  const say = sayer("the encoder", log);
  const view: View = { square: c.imageSize, network: { kind: "encoder", preprocessor } };
  const look = async (name: string | undefined, source: InputSource) => {
    const sizes = new Sizes(), seen = await collect(program, "y", inputs(source, view, sizes));
    if (name !== undefined) say({ name }, sizes, view);
    return seen;
  };
  try {
    const a = await look(real.name, real.images), b = await look(fake.name, fake.images);
    if (metrics.any("fd-encoder")) {
      await take(async () => ({ fd_encoder: await frechet(gaussian(a.features), gaussian(b.features)) }));
    }
    if (!metrics.any("classes", "probe", "knn")) return;
    const shapes = new Shapes(PROBE_IMAGES, SEEDS.probe), classes = shapes.classes.length;
    const train = await look(undefined, drawnInputs(workers, shapes, side));
    if (metrics.any("classes", "probe")) {
      await take(async () => {
        const probe = trainProbe(train.features, train.labels, classes);
        return {
          ...metrics.any("classes") && { class_agreement: accuracy(predict(probe, b.features), b.labels) },
          ...metrics.any("probe") && { probe: accuracy(predict(probe, a.features), a.labels) },
        };
      });
    }
    if (metrics.any("knn")) await take(async () => ({ knn: neighbourAccuracy({ train, test: a, classes }) }));
    if (metrics.any("classes") && side === TOY_CLASSIFIER_SIZE) {
      await take(async () => {
        const classifier = await loadToyClassifier();
        const judging = await imageProgram(
          c,
          TOY_CLASSIFIER_SIZE,
          fake.images.length,
          (x) => classifier.forward(x),
        );
        const opinion = await collect(judging, "y", inputs(fake.images, { square: TOY_CLASSIFIER_SIZE }));
        judging.destroy();
        return { class_agreement_independent: accuracy(largest(opinion.features), b.labels) };
      });
    }
  } finally {
    program.destroy();
  }
}

/** The encoder's own preprocessing where it makes squares that patches fit; else squares of the nearest side that they fit. */
function squares(preprocessor: Preprocessor, config: VitConfig): Preprocessor {
  const side = sideOf(preprocessor);
  if (side !== undefined && fits(side, config)) return preprocessor;
  const P = config.patch_size;
  return resized(preprocessor, P * Math.max(1, Math.round((side ?? config.image_size) / P)));
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
  return capture("features", { x }, ({ x }) => noGrad(() => ({ y: fn(x) })), { runs, batchInvariant: true })
    .prepare();
}

export function warnFew(images: number, log: Log): void {
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
