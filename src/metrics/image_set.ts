// A set to compare: images, or what is stored of their features; which metrics it allows, and how features are stored.

import { join } from "@std/path";
import type { InputSource } from "../data/network_input.ts";
import { type StoredFeatures, writeFeatures } from "../data/npz_features.ts";
import { NpzImages } from "../data/npz_images.ts";
import type { Provenance } from "../formats/provenance.ts";
import { INCEPTION_SIDE, INCEPTION_WIDTHS } from "../models/inception.ts";
import { pairGrid, writePng } from "../image/image.ts";
import type { Log } from "../run/log.ts";
import { SIX_SPACES, type SixSpace } from "./six_networks.ts";
import { type Features, type Gaussian, gaussian } from "./moments.ts";
import type { FeatureKind, InceptionView } from "./inception.ts";
import type { EncoderMetric, InceptionMetric, Metric, SixMetric } from "./metric.ts";

/** What decides which metrics a set allows. */
export interface SetFacts {
  name: string;
  images?: { length: number };
  /** Whether the images are generated for want of others. */
  generated?: boolean;
  /** Moments of pooled and of spatial Inception features. */
  pooled?: Gaussian;
  spatial?: Gaussian;
  /** Pooled Inception features. */
  features?: Features;
  /** Moments and features in an encoder's spaces, and those of FDr6. */
  spaces?: Partial<Record<string, { moments?: Gaussian; features?: Features }>>;
  /** What the stored features were computed with, where it is known. */
  about?: Provenance;
}

/** A set of images, or what is stored of one. */
export interface ImageSet extends SetFacts {
  images?: InputSource;
}

/** Shorter side of the first image of a set; Inception's side if it has no images. */
export async function shorterSide({ images }: ImageSet): Promise<number> {
  if (images instanceof NpzImages) return Math.min(images.width, images.height);
  if (!images) return INCEPTION_SIDE;
  const { width, height } = await images.input(0, {});
  return Math.min(width, height);
}

/**
 * Writes a picture of images of the fake set above others of the real one, by their numbers.
 * @returns where it is, for people; undefined without a folder or images
 */
export async function writePairs(
  [real, fake]: [ImageSet, ImageSet],
  { out, imageSize }: { out?: string | undefined; imageSize?: number | undefined },
  file: string,
  what: string,
  pairs: readonly (readonly [fake: number, real: number])[],
): Promise<string | undefined> {
  const shown: [Uint8Array, Uint8Array][] = [];
  if (out === undefined || !real.images || !fake.images) return undefined;
  const size = imageSize ?? await shorterSide(fake);
  for (const [i, j] of pairs) {
    shown.push([await fake.images.bytes(i, size), await real.images.bytes(j, size)]);
  }
  await writePng(join(out, file), pairGrid(shown, size, shown.length));
  return `${what}: ${join(out, file)}`;
}

/** What is stored of a set in the space of a metric. */
export function stored(set: SetFacts, metric: Pick<InceptionMetric, "from"> | EncoderMetric): InceptionView {
  if (metric.from === "encoder") return set.spaces?.[metric.space] ?? {};
  const { pooled, spatial, features } = set;
  return { ...pooled && { moments: pooled }, ...spatial && { spatial }, ...features && { features } };
}

/** Whether a view serves where a kind of features is needed. */
export function serves(view: InceptionView, kind: FeatureKind | undefined): boolean {
  if (kind === undefined) return true;
  return (kind === "moments" ? view.moments ?? view.features : view[kind]) !== undefined;
}

const LACKING: Record<FeatureKind, string> = {
  moments: "neither images nor statistics",
  spatial: "neither images nor spatial statistics",
  features: "neither images nor features",
  score: "no images",
};

/** Why a metric cannot be computed of these sets; undefined if it can. */
export function obstacle(
  metric: Metric,
  real: SetFacts,
  fake: SetFacts,
): string | undefined {
  if (metric.from === "six") return obstacleOfSix(metric, real) ?? obstacleOfSix(metric, fake);
  if (metric.from !== "inception" && metric.from !== "encoder") return undefined;
  const { from, minImages: least = 1 } = metric, widths: number[] = [];
  for (const [set, kind] of [[real, metric.real], [fake, metric.fake]] as const) {
    if (kind === undefined) continue;
    const { name, images } = set, known = stored(set, metric), served = serves(known, kind);
    if (!images && !served) {
      return `"${name}" holds ${LACKING[kind]}${
        from === "encoder" ? ` in the space "${metric.space}" of an encoder` : ""
      }`;
    }
    const moments = kind === "spatial" ? known.spatial : kind === "moments" ? known.moments : undefined;
    const count = moments ? undefined : served ? known.features?.rows : images?.length;
    if (count !== undefined && count < least) {
      return `"${name}" holds ${count} image${count === 1 ? "" : "s"}, it takes ${least}`;
    }
    const own = from === "inception"
      ? INCEPTION_WIDTHS[kind === "spatial" ? "spatial" : "pooled"]
      : undefined;
    const width = served ? moments?.mean.length ?? known.features?.columns : own;
    if (width !== undefined) widths.push(width);
  }
  const [a, b] = widths;
  if (a === undefined || b === undefined || a === b) return undefined;
  return `"${real.name}" has ${a} features, "${fake.name}" ${b}: the statistics are of another network`;
}

/** The spaces in which something is to be computed. */
export const sixNeeded = (metrics: readonly SixMetric[], ...sets: readonly SetFacts[]): SixSpace[] =>
  SIX_SPACES.filter(({ space }) =>
    metrics.some(({ fake: kind }) => sets.some(({ spaces }) => !serves(spaces?.[space] ?? {}, kind)))
  );

/** Why a set has not what a metric of six spaces needs. */
function obstacleOfSix(
  { fake: kind, minImages: least = 1 }: SixMetric,
  { name, images, spaces }: SetFacts,
): string | undefined {
  const lacking = SIX_SPACES.find(({ space }) => !serves(spaces?.[space] ?? {}, kind));
  if (!lacking || images && images.length >= least) return undefined;
  return images
    ? `"${name}" holds ${images.length} image${images.length === 1 ? "" : "s"}, it takes ${least}`
    : `"${name}" holds ${LACKING[kind]} in the space "${lacking.space}"`;
}

/** Files for what is computed of the real images, .npz. */
export interface Saves {
  /** Means and covariances. */
  saveStats?: string | undefined;
  /** The features, their means and covariances. */
  saveFeatures?: string | undefined;
}

/** Writes what was computed of a set, for openNpzSet(). @returns no scores */
export async function saveComputed(
  { inception, spaces, about }: {
    inception: InceptionView;
    spaces: ReadonlyMap<string, { features?: Features; moments?: Gaussian }>;
    about: Provenance;
  },
  { saveStats, saveFeatures }: Saves,
  log: Log,
): Promise<Record<string, number>> {
  const momentsOf = async (x: Features | undefined) => x && x.rows > 1 ? { moments: await gaussian(x) } : {};
  const pooled = inception.moments ?? (await momentsOf(inception.features)).moments;
  const encoded: { space: string; features?: Features; moments?: Gaussian }[] = [];
  for (const [space, known] of spaces) encoded.push({ space, ...await momentsOf(known.features), ...known });
  const contents = (withFeatures: boolean): StoredFeatures => ({
    ...pooled && { pooled },
    ...inception.spatial && { spatial: inception.spatial },
    ...withFeatures && inception.features && { features: inception.features },
    spaces: Object.fromEntries(
      encoded.map(({ space, features, moments }) => [space, {
        ...moments && { moments },
        ...withFeatures && features && { features },
      }]),
    ),
    about,
  });
  for (const [path, withFeatures] of [[saveStats, false], [saveFeatures, true]] as const) {
    if (path === undefined) continue;
    await writeFeatures(path, contents(withFeatures));
    log.line(`${withFeatures ? "features" : "statistics"} of the real images: ${path}`);
  }
  return {};
}
