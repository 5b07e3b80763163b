// Two sets of images compared through Inception: FID, sFID and KID, precision and recall, and the Inception score of the
// second. A set may come as statistics instead of images, as far as a score needs no more.

import type { Progress } from "../io/log.ts";
import type { ImageSource } from "../io/source.ts";
import type { Inception, InceptionInput } from "../models/inception.ts";
import { kernelDistance } from "./fidelity.ts";
import { frechet, type Gaussian } from "./frechet.ts";
import { InceptionEye, type InceptionView, type Question } from "./inception.ts";
import { precisionRecall } from "./precision_recall.ts";

/** A set of images, or what is known of one: the moments of its pooled and of its spatial features. */
export interface ImageSet {
  name: string;
  images?: ImageSource;
  pooled?: Gaussian;
  spatial?: Gaussian;
}

export type SetMetric = "fid" | "sfid" | "is" | "kid" | "precision" | "recall";

export interface ComparisonOptions {
  /** Side of the images. */
  size: number;
  batchSize: number;
  input: InceptionInput;
  /** Of the subsets of KID. */
  seed: number;
  progress(label: string, total: number, unit: string): Progress;
}

/** What keeps a score from being taken of these sets, in words; undefined when nothing does. */
export function obstacle(metric: SetMetric, real: ImageSet, fake: ImageSet): string | undefined {
  const without = (has: (set: ImageSet) => unknown, what: string) => {
    const set = [real, fake].find((set) => !has(set));
    return set && `"${set.name}" holds ${what}`;
  };
  if (metric === "is") return fake.images ? undefined : `"${fake.name}" holds no images`;
  if (metric === "fid") {
    return without(({ images, pooled }) => images ?? pooled, "neither images nor statistics");
  }
  if (metric === "sfid") {
    return without(({ images, spatial }) => images ?? spatial, "neither images nor spatial statistics");
  }
  return without(({ images }) => images, "no images");
}

/** Takes the scores asked for; what stands as statistics in a set is not computed again. */
export async function compareSets(
  inception: Inception,
  real: ImageSet,
  fake: ImageSet,
  metrics: ReadonlySet<SetMetric>,
  options: ComparisonOptions,
): Promise<Partial<Record<SetMetric, number>>> {
  const pairs = ["kid", "precision", "recall"] as const;
  const look = async (set: ImageSet, generated: boolean): Promise<InceptionView> => {
    const questions: Question[] = [];
    if (metrics.has("fid") && !set.pooled) questions.push("moments");
    if (metrics.has("sfid") && !set.spatial) questions.push("spatial");
    if (pairs.some((metric) => metrics.has(metric))) questions.push("features");
    if (metrics.has("is") && generated) questions.push("score");
    const known = {
      ...set.pooled && { moments: set.pooled },
      ...set.spatial && { spatial: set.spatial },
    };
    if (questions.length === 0 || !set.images) return known;
    const batchSize = Math.min(options.batchSize, set.images.length);
    const eye = await InceptionEye.open(inception, { ...options, batchSize, questions });
    const progress = options.progress(`inception (${set.name})`, set.images.length, "images");
    try {
      return { ...known, ...await eye.look(set.images, set.images.length, (n) => progress.update(n)) };
    } finally {
      progress.end();
      eye.destroy();
    }
  };
  const a = await look(real, false), b = await look(fake, true);
  const scores: Partial<Record<SetMetric, number>> = {};
  if (metrics.has("fid") && a.moments && b.moments) scores.fid = await frechet(a.moments, b.moments);
  if (metrics.has("sfid") && a.spatial && b.spatial) scores.sfid = await frechet(a.spatial, b.spatial);
  if (b.score !== undefined) scores.is = b.score;
  if (!a.features || !b.features) return scores;
  if (metrics.has("kid")) {
    scores.kid = await kernelDistance(a.features, b.features, { seed: options.seed });
  }
  if (metrics.has("precision") || metrics.has("recall")) {
    const progress = options.progress("precision and recall", 1, "of all pairs");
    const { precision, recall } = await precisionRecall(
      a.features,
      b.features,
      (done, total) => progress.update(done / total),
    );
    progress.end();
    if (metrics.has("precision")) scores.precision = precision;
    if (metrics.has("recall")) scores.recall = recall;
  }
  return scores;
}
