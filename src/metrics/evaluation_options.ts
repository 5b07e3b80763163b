// What an evaluation is asked for: its networks, opened on demand, and where its files go; and what probes learn from.

import type { InputSource } from "../data/network_input.ts";
import type { Inception, InceptionInput } from "../models/inception.ts";
import type { Lpips } from "../models/lpips.ts";
import type { Log } from "../run/log.ts";
import type { EncoderConfig, EncoderSource } from "../zoo/encoders.ts";
import type { LabelledFeatures } from "./batched.ts";
import type { EncoderSpace } from "./encoder_features.ts";
import type { Intervals } from "./intervals.ts";
import type { Saves } from "./image_set.ts";
import type { OwnIngredients } from "./ingredients.ts";
import { cautionOfProbe, type Probe, probeIngredients, trainProbe } from "./linear_probe.ts";
import type { ProtocolName } from "./protocols.ts";
import type { Hits, LabelContext, LabelMetric, Scores } from "./metric.ts";

/** Features by images and space. */
export type ComputedFeatures = Map<InputSource, Map<EncoderSpace, LabelledFeatures>>;

/** The value of `key`, computed the first time. */
export async function kept<K, V>(values: Map<K, V>, key: K, compute: () => Promise<V>): Promise<V> {
  const value = values.get(key) ?? await compute();
  values.set(key, value);
  return value;
}

export interface EvaluationOptions {
  /** Whose figures are computed [none]. */
  protocol?: ProtocolName | undefined;
  /** Folder that keeps features of images [none]. */
  featureCache?: string | undefined;
  batchSize: number;
  seed: number;
  inceptionInput: InceptionInput;
  /** Open the networks; called for those that the selected metrics need. */
  inception(): Promise<Inception>;
  lpips(): Promise<Lpips>;
  encoder(): Promise<EncoderSource<EncoderConfig>>;
  /** Those of FDr6's spaces that are given, and whether Inception is. [none] */
  six?(): Promise<{ encoders: EncoderSource<EncoderConfig>[]; inception: boolean }>;
  /** Fingerprint of the encoder that the tokenizer behind the samples was made from [unknown]. */
  ownEncoder?: string | undefined;
  /** The encoder that a tokenizer was made from, or why it cannot be opened [unknown]. */
  original?: EncoderSource | string | undefined;
  /** Of a tokenizer: also reconstruct from latents with noise of these standard deviations, in units of theirs [none]. */
  latentNoise?: readonly number[] | undefined;
  /** Whether there are levels of noise by default, if PSNR or rFID are computed (false). */
  perturb?: boolean;
  /** Features of real images by the encoder that `encoder` opens, which parts of an evaluation share [none]. */
  computed?: ComputedFeatures;
  /** Folder for the scores of each image, and for pictures [none]. */
  out?: string | undefined;
  /** Collects what intervals are made of [none]. */
  intervals?: Intervals | undefined;
}

/** Generated images that probes learn from, their side and their seed. */
export interface ProbeImages {
  images: InputSource;
  side: number;
  seed?: number;
}

/** What label metrics are computed from, and what they record of it. */
export interface Learning extends LabelContext {
  /** Ingredients of a figure by its key, once it is computed. */
  ingredients(key: string): Pick<OwnIngredients, "split" | "probe">;
}

/**
 * Features and labels for the metrics, with a probe that is trained once.
 * @param options.split images of even index train, or generated ones of a seed
 * @param options.warn says that the probe did not converge
 * @param options.progress shows its training [nothing does]
 */
export function learning(
  features: { train: LabelledFeatures; test: LabelledFeatures },
  { classes, batchSize, split, warn, progress, maxIterations }: {
    classes: number;
    batchSize: number;
    split: "by index" | { seed?: number | undefined };
    warn(text: string): void;
    progress?: Log["progress"];
    maxIterations?: number;
  },
): Learning {
  const { train, test } = features;
  let training: Promise<Probe> | undefined, probe: Probe | undefined;
  const trained = async () => {
    probe = await trainProbe(train.features, train.labels, classes, { maxIterations, progress });
    const caution = cautionOfProbe(probe);
    if (caution) warn(caution);
    return probe;
  };
  return {
    ...{ ...features, batchSize, probe: () => training ??= trained() },
    ingredients: (key) => ({
      split: {
        train: train.labels.length,
        ...key !== "class_agreement" && { test: test.labels.length },
        ...split === "by index"
          ? { by: "images of even index train, those of odd index test" }
          : { by: "generated shapes train, other images test", seed: split.seed },
      },
      ...key !== "knn" && probe && { probe: probeIngredients(probe) },
    }),
  };
}

/** Accuracies by their key. @param nameOf names of the images that are classified */
export async function accuraciesOf(
  { compute }: LabelMetric,
  context: LabelContext,
  nameOf: Readonly<Record<Hits["of"], (i: number) => string>>,
  intervals: Intervals | undefined,
): Promise<Scores> {
  const scores: Scores = {};
  for (const [key, { of, hits }] of Object.entries(await compute(context))) {
    scores[key] = hits.reduce((sum, hit) => sum + hit, 0) / hits.length;
    intervals?.addHits(key, Array.from(hits, (_, i) => nameOf[of](i)), hits);
  }
  return scores;
}

export interface SetOptions extends EvaluationOptions, Saves {
  /** Key of the number of generated images among the scores ["n"]. */
  countKey?: string;
  /** Side of the squares to which all images are resized and cropped first. */
  imageSize?: number | undefined;
}
