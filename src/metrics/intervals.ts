// intervals.json of an evaluation: 95 % intervals of figures that are no means over images.csv, and what they are made of, which
// --compare pairs with that of other runs: scores without each group of the images (jackknife.ts), and which images a classifier
// is right about. The real images are not resampled: an interval says what other samples of the same model would change.

import { join } from "@std/path";
import { z } from "zod";
import { UsageError } from "../errors.ts";
import { exists, readJson, writeJson } from "../formats/files.ts";
import { fingerprintOf } from "../formats/provenance.ts";
import { throwIfStopped } from "../interruption.ts";
import type { Log } from "../run/log.ts";
import { GROUPS, intervalOf, type Replicates, resampledMeans } from "./bootstrap.ts";
import { INFINITY_POINTS } from "./frechet.ts";
import type { FeatureKind, InceptionView } from "./inception.ts";
import { MomentsWithout, rowsWithout } from "./jackknife.ts";
import type { LatentMetric, Metric, Scores, SetContext, SetMetric } from "./metric.ts";
import type { PairScore } from "./pairs.ts";
import type { LatentSummary } from "./representation.ts";
import type { Features } from "./moments.ts";

/** Name of the file in the folder of an evaluation. */
export const INTERVALS = "intervals.json";

const byKey = <T extends z.ZodType>(of: T) => z.record(z.string(), of);

const storedSchema = z.object({
  method: z.string(),
  /** Number of images. */
  images: byKey(z.int().positive()).default({}),
  /** The scores of all images. */
  value: byKey(z.number()),
  interval: byKey(z.tuple([z.number(), z.number()])),
  without_group: byKey(z.array(z.number()).length(GROUPS)),
  /** Images by their names, and which of them a classifier is right about, by the key of its accuracy. */
  right: z.array(
    z.object({
      names: z.array(z.string()),
      hits: byKey(z.array(z.union([z.literal(0), z.literal(1)]))),
    }).refine(({ names, hits }) => Object.values(hits).every(({ length }) => length === names.length)),
  )
    .default([]),
});
export type StoredIntervals = z.infer<typeof storedSchema>;

/** Scores of each image of a set. */
export interface ImageTable {
  names: readonly string[];
  columns: ReadonlyMap<string, readonly number[]>;
}

/**
 * What the folder of an evaluation holds for intervals: scores without each group by their key, and hits; nothing without the file.
 * @param figures of the evaluation: scores whose value differs are of another one, and are left out
 * @throws UsageError for a damaged file
 */
export function readIntervals(
  folder: string,
  figures: ReadonlyMap<string, number>,
): { groups: Record<string, Replicates>; tables: ImageTable[] } {
  const path = join(folder, INTERVALS);
  if (!exists(path)) return { groups: {}, tables: [] };
  const parsed = storedSchema.safeParse(readJson(path));
  if (!parsed.success) {
    throw new UsageError(
      `Cannot read "${path}": it does not hold the intervals of an evaluation; evaluate again with --intervals, ` +
        `or remove the file`,
    );
  }
  const { value, images, without_group: groups, right } = parsed.data;
  return {
    groups: Object.fromEntries(
      Object.entries(groups).filter(([key]) => value[key] === figures.get(key))
        .map(([key, values]) => [key, { of: "groups", values, images: images[key] }]),
    ),
    tables: right.map(({ names, hits }) => ({ names, columns: new Map(Object.entries(hits)) })),
  };
}

/** The random stream of the resamples of images: a function of their names, not of their order. */
export const streamOf = (names: readonly string[]): number =>
  parseInt(fingerprintOf(names.toSorted().join("\n")).slice(0, 8), 16);

/** What is kept of a set for scores without groups, where they need a kind of features. */
export function keptFor(view: InceptionView, kind: FeatureKind): { rows: number } | undefined {
  if (kind === "spatial") return view.spatialFeatures;
  return kind === "score" ? view.scoreWithout : view.features;
}

/**
 * A set without each group of its images.
 * @param kinds what is needed of it, and kept ({@link keptFor})
 * @param opened its pooled features, where they are open
 */
export async function* withoutGroups(
  view: InceptionView,
  kinds: readonly FeatureKind[],
  opened?: MomentsWithout,
): AsyncGenerator<InceptionView> {
  const open = (kind: FeatureKind, features: Features | undefined) =>
    kinds.includes(kind) && features ? MomentsWithout.open(features) : undefined;
  const pooled = opened ?? await open("moments", view.features);
  const spatial = await open("spatial", view.spatialFeatures);
  const features = kinds.includes("features") ? view.features : undefined;
  for (let g = 0; g < GROUPS; g++) {
    const score = view.scoreWithout?.scores[g];
    yield {
      ...pooled && { moments: await pooled.group(g) },
      ...spatial && { spatial: await spatial.group(g) },
      ...features && { features: rowsWithout(features, g) },
      ...score !== undefined && kinds.includes("score") && { score },
    };
  }
}

/** Collects what intervals are made of while an evaluation computes its figures. */
export class Intervals {
  readonly #groups = new Map<string, { n: number; values: readonly number[] }>();
  readonly #right = new Map<string, { names: readonly string[]; hits: Map<string, ArrayLike<number>> }>();
  readonly #said = new Set<string>();

  constructor(private readonly log: Pick<Log, "line" | "progress">) {}

  /** The metrics that are computed again without each group of `n` images; says why others have no interval. */
  repeated<M extends Metric>(metrics: readonly M[], n: number): Set<M> {
    for (const { name, interval } of metrics) {
      if (typeof interval === "object") this.#say(`no interval of ${name}: ${interval.none}`);
    }
    return new Set(metrics.filter((metric) => metric.interval === "groups" && this.#allows(metric, n)));
  }

  /** Computes the metrics of one space without each group of `fake`, or of the images that a metric selects of it. */
  async repeatSets(
    metrics: readonly SetMetric[],
    real: InceptionView,
    fake: InceptionView,
    options: { seed: number; reported(scores: Scores): Scores },
  ): Promise<void> {
    const able = metrics.filter((metric) => this.#allows(metric, keptFor(fake, metric.fake)?.rows));
    for (const [subset, own] of Map.groupBy(able, ({ subset }) => subset)) {
      const view = subset ? { features: subset(real, fake, options.seed) } : fake;
      const repeated = own.filter((metric) => this.#allows(metric, keptFor(view, metric.fake)?.rows));
      if (repeated.length > 0) await this.#repeatSet(repeated, real, view, options);
    }
  }

  async #repeatSet(
    metrics: readonly SetMetric[],
    real: InceptionView,
    fake: InceptionView,
    { seed, reported }: { seed: number; reported(scores: Scores): Scores },
  ): Promise<void> {
    const { pooled, repeated } = await this.#ofFeatures(metrics, fake);
    if (repeated.length === 0) return;
    const names = repeated.map(({ name }) => name);
    const long = names.filter((name) => name.includes("infinity")), { features } = fake;
    if (long.length > 0 && features) {
      const count = GROUPS * INFINITY_POINTS, { columns } = features;
      this.#say(
        `the interval of ${long.join(" and ")} takes ${count} distances of ${columns} features; ` +
          `leave it out by --metrics if that is too many`,
      );
    }
    const progress = this.log.progress(`intervals (${names.join(", ")})`, GROUPS, "groups");
    const context: SetContext = {
      seed,
      progress: () => ({ update: () => {}, end: () => {} }),
      show: () => Promise.resolve(),
    };
    const computes = new Map(repeated.map(({ compute, fake }) => [compute, fake]));
    const found = new Map<FeatureKind, Record<string, number[]>>();
    let done = 0;
    for await (const view of withoutGroups(fake, repeated.map(({ fake }) => fake), pooled)) {
      throwIfStopped();
      const own = { ...context, ...features && { replicate: { of: features, without: done } } };
      for (const [compute, kind] of computes) {
        const scores = found.get(kind) ?? {};
        found.set(kind, scores);
        for (const [key, value] of Object.entries(reported(await compute(real, view, own)))) {
          (scores[key] ??= []).push(value);
        }
      }
      progress.update(++done);
    }
    progress.end();
    for (const [kind, scores] of found) this.addGroups(scores, keptFor(fake, kind)?.rows ?? 0);
  }

  /** The metrics without those of stored moments that are not of the features: no replicate would be of their images. */
  async #ofFeatures(
    metrics: readonly SetMetric[],
    { moments, features }: InceptionView,
  ): Promise<{ repeated: readonly SetMetric[]; pooled?: MomentsWithout }> {
    const ofMoments = metrics.filter(({ fake }) => fake === "moments");
    if (ofMoments.length === 0 || !features) return { repeated: metrics };
    const pooled = await MomentsWithout.open(features);
    if (!moments || pooled.areOf(moments)) return { repeated: metrics, pooled };
    const names = ofMoments.map(({ name }) => name).join(", ");
    this.#say(`no interval of ${names}: it is of stored statistics, and the features are of other images`);
    return { repeated: metrics.filter(({ fake }) => fake !== "moments") };
  }

  /** Whether a metric can be computed without groups of this number of images; says why not. @param n undefined: no features are kept */
  #allows({ name, minImages = 1 }: Pick<Metric, "name" | "minImages">, n: number | undefined): boolean {
    const least = Math.max(2 * GROUPS, 2 * minImages);
    if (n !== undefined && n >= least) return true;
    const why = n === undefined
      ? "it is of stored statistics, without features of their images"
      : `${n} images are fewer than ${least}`;
    this.#say(`no interval of ${name}: ${why}`);
    return false;
  }

  /** Computes scores of `n` pairs of images without each group of these. @param rename of the keys */
  async repeatPairs(
    scores: readonly PairScore[],
    n: number,
    rename: (scores: Record<string, number[]>) => Record<string, number[]> = (scores) => scores,
  ): Promise<void> {
    for (const score of scores) {
      if (!score.withoutGroups) continue;
      let progress: ReturnType<Log["progress"]> | undefined; // of a score that keeps nothing there is none
      const found = await score.withoutGroups((done) => {
        progress ??= this.log.progress("intervals (rfid)", GROUPS, "groups");
        progress.update(done);
      }).finally(() => progress?.end());
      this.addGroups(rename(found), n);
    }
  }

  /** Computes a metric of latents without each group of the images. @param features of the original encoder */
  async repeatLatents(
    { name, compute }: LatentMetric,
    latents: LatentSummary,
    features: () => Promise<Features>,
  ): Promise<void> {
    const found: Record<string, number[]> = {};
    const progress = this.log.progress(`intervals (${name})`, GROUPS, "groups");
    for (let g = 0; g < GROUPS; g++) {
      throwIfStopped();
      const scores = await compute(latents.without(g), async () => rowsWithout(await features(), g));
      for (const [key, value] of Object.entries(scores)) (found[key] ??= []).push(value);
      progress.update(g + 1);
    }
    progress.end();
    this.addGroups(found, latents.images);
  }

  /** Adds scores without each group of `n` images. */
  addGroups(scores: Readonly<Record<string, readonly number[]>>, n: number): void {
    for (const [key, values] of Object.entries(scores)) this.#groups.set(key, { n, values });
  }

  /** Adds the mean of figures without each group, where all of them are there. */
  combine(key: string, keys: readonly string[], mean: (values: readonly number[]) => number): void {
    const all = keys.map((part) => this.#groups.get(part)), [first] = all;
    if (!first || all.some((part) => part?.n !== first.n)) {
      if (all.some((part) => part)) {
        this.#say(`no interval of ${key}: its parts have none, or are of other images`);
      }
      return;
    }
    const values = first.values.map((_, g) => mean(all.map((part) => part?.values[g] as number)));
    this.#groups.set(key, { n: first.n, values });
  }

  /** Adds which images a classifier is right about. @param key of its accuracy */
  addHits(key: string, names: readonly string[], hits: ArrayLike<number>): void {
    const id = fingerprintOf(names.join("\n")), table = this.#right.get(id) ?? { names, hits: new Map() };
    this.#right.set(id, table);
    table.hits.set(key, hits);
  }

  /** Writes the file, where there is something to write. @param scores of all images */
  write(folder: string, scores: Scores): void {
    const images: Record<string, number> = {}, value: Scores = {};
    const interval: StoredIntervals["interval"] = {}, withoutGroup: Record<string, number[]> = {};
    const add = (key: string, n: number, replicates: Replicates): boolean => {
      const own = scores[key], found = own === undefined ? undefined : intervalOf(own, replicates);
      if (own !== undefined && !found) this.#say(`no interval of ${key}: one of its scores is not finite`);
      if (own === undefined || !found) return false;
      images[key] = n;
      value[key] = own;
      interval[key] = [found.low, found.high];
      return true;
    };
    for (const [key, { n, values }] of this.#groups) {
      if (values.length === GROUPS && add(key, n, { of: "groups", values, images: n })) {
        withoutGroup[key] = [...values];
      }
    }
    const right = [...this.#right.values()].map(({ names, hits }) => {
      const order = orderOf(names), all = [...hits];
      const columns = all.map(([, column]) => order.map((i) => column[i] as number));
      const means = resampledMeans(columns, { stream: streamOf(names) });
      for (const [k, [key]] of all.entries()) add(key, names.length, means[k] as Replicates);
      const entries = all.map(([key, column]) => [key, Array.from(column) as (0 | 1)[]] as const);
      return { names: [...names], hits: Object.fromEntries(entries) };
    });
    if (Object.keys(value).length === 0) return;
    const path = join(folder, INTERVALS);
    writeJson(
      path,
      {
        method: `95 %, jackknife without each of ${GROUPS} groups of the images; of accuracies bootstrap`,
        ...{ images, value, interval, without_group: withoutGroup, right },
      } satisfies StoredIntervals,
    );
    this.log.line(`intervals: ${path}`);
  }

  #say(line: string): void {
    if (!this.#said.has(line)) this.log.line(line);
    this.#said.add(line);
  }
}

/** The images in the order of their names. */
export const orderOf = (names: readonly string[]): number[] =>
  names.map((_, i) => i).sort((i, j) => (names[i] as string) < (names[j] as string) ? -1 : 1);
