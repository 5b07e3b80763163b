// Two sets of images compared through Inception: FID, sFID and KID, precision and recall, and the Inception score of the
// second. A set may come as statistics instead of images, as far as a score needs no more.

import { inputs, type InputSource, Sizes, type View } from "../data/network_input.ts";
import type { Progress } from "../run/log.ts";
import {
  type Inception,
  INCEPTION_SIDE,
  INCEPTION_WIDTHS,
  type InceptionInput,
  SAMPLING,
} from "../models/inception.ts";
import { kernelDistance } from "./fidelity.ts";
import { frechet, type Gaussian } from "./frechet.ts";
import { type FeatureKind, InceptionFeatures, type InceptionView } from "./inception.ts";
import { NEIGHBOURS, precisionRecall } from "./precision_recall.ts";

/** What decides which scores a set allows. */
export interface SetFacts {
  name: string;
  images?: { length: number };
  pooled?: Gaussian;
  spatial?: Gaussian;
}

/** A set of images, or what is known of one: the moments of its pooled and of its spatial features. */
export interface ImageSet extends SetFacts {
  images?: InputSource;
}

export type SetMetric = "fid" | "sfid" | "is" | "kid" | "precision" | "recall";

/** Takes one score or several that are computed together; a failure must not lose the others. */
export type Take = (score: () => Promise<Record<string, number>>) => Promise<void>;

export interface ComparisonOptions {
  /** Side of the squares to which all images are cropped first. */
  square?: number | undefined;
  batchSize: number;
  input: InceptionInput;
  /** Of the subsets of KID. */
  seed: number;
  progress(label: string, total: number, unit: string): Progress;
  /** Told the sizes of a set's images once they were seen. */
  seen(set: ImageSet, sizes: Sizes, view: View): void;
}

/** Fewest images of a set. */
const MIN_IMAGES = { is: 1, fid: 2, sfid: 2, kid: 2, precision: NEIGHBOURS + 1, recall: NEIGHBOURS + 1 };

/** What keeps a score from being taken of these sets, in words; undefined when nothing does. */
export function obstacle(metric: SetMetric, real: SetFacts, fake: SetFacts): string | undefined {
  const moments = metric === "fid" ? "pooled" : metric === "sfid" ? "spatial" : undefined;
  for (const set of metric === "is" ? [fake] : [real, fake]) {
    const { name, images } = set, least = MIN_IMAGES[metric];
    if (moments && set[moments]) continue;
    if (!images) {
      return `"${name}" holds ${
        moments ? `neither images nor ${moments === "spatial" ? "spatial " : ""}statistics` : "no images"
      }`;
    }
    if (images.length < least) {
      return `"${name}" holds ${images.length} image${images.length === 1 ? "" : "s"}, it takes ${least}`;
    }
  }
  if (!moments) return undefined;
  const [a, b] = [real, fake].map((set) => set[moments]?.mean.length ?? INCEPTION_WIDTHS[moments]);
  if (a === b) return undefined;
  return `"${real.name}" has ${a} features, "${fake.name}" ${b}: the statistics are of another network`;
}

/** Takes the scores asked for; what stands as statistics in a set is not computed again. */
export async function compareSets(
  inception: Inception,
  real: ImageSet,
  fake: ImageSet,
  metrics: ReadonlySet<SetMetric>,
  options: ComparisonOptions,
  take: Take,
): Promise<void> {
  const pairs = ["kid", "precision", "recall"] as const;
  const view: View = {
    square: options.square,
    network: { kind: "stretched", side: INCEPTION_SIDE, sampling: SAMPLING[options.input] },
  };
  const look = async (set: ImageSet, generated: boolean): Promise<InceptionView> => {
    const kinds: FeatureKind[] = [];
    if (metrics.has("fid") && !set.pooled) kinds.push("moments");
    if (metrics.has("sfid") && !set.spatial) kinds.push("spatial");
    if (pairs.some((metric) => metrics.has(metric))) kinds.push("features");
    if (metrics.has("is") && generated) kinds.push("score");
    const known = {
      ...set.pooled && { moments: set.pooled },
      ...set.spatial && { spatial: set.spatial },
    };
    if (kinds.length === 0 || !set.images) return known;
    const batchSize = Math.min(options.batchSize, set.images.length);
    const extractor = await InceptionFeatures.open(inception, {
      size: INCEPTION_SIDE,
      batchSize,
      input: options.input,
      kinds,
    });
    const progress = options.progress(`inception (${set.name})`, set.images.length, "images");
    const sizes = new Sizes(), source = inputs(set.images, view, sizes);
    const seen = await extractor.extract(source, source.length, (n) => progress.update(n)).finally(() => {
      progress.end();
      extractor.destroy();
    });
    options.seen(set, sizes, view);
    return { ...known, ...seen };
  };
  const a = await look(real, false), b = await look(fake, true);
  const { moments, spatial } = a;
  if (b.score !== undefined) await take(() => Promise.resolve({ is: b.score as number }));
  if (metrics.has("fid") && moments && b.moments) {
    await take(async () => ({ fid: await frechet(moments, b.moments as Gaussian) }));
  }
  if (metrics.has("sfid") && spatial && b.spatial) {
    await take(async () => ({ sfid: await frechet(spatial, b.spatial as Gaussian) }));
  }
  const [of, made] = [a.features, b.features];
  if (!of || !made) return;
  if (metrics.has("kid")) {
    await take(async () => ({ kid: await kernelDistance(of, made, { seed: options.seed }) }));
  }
  if (metrics.has("precision") || metrics.has("recall")) {
    await take(async () => {
      const progress = options.progress("precision and recall", 1, "of all pairs");
      const { precision, recall } = await precisionRecall(
        of,
        made,
        (done, total) => progress.update(done / total),
      ).finally(() => progress.end());
      return { ...metrics.has("precision") && { precision }, ...metrics.has("recall") && { recall } };
    });
  }
}
