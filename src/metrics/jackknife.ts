// Scores of two sets without each group of the generated images, for intervals: intervals.json of an evaluation. The real images
// are not resampled: an interval says what other samples of the same model would change, against the same reference.

import { join } from "@std/path";
import { z } from "zod";
import { UsageError } from "../errors.ts";
import { exists, readJson, writeJson } from "../formats/files.ts";
import type { Log } from "../run/log.ts";
import { GROUPS, groupsOf, intervalOf } from "./bootstrap.ts";
import type { InceptionView } from "./inception.ts";
import { type Features, type Gaussian, gaussian } from "./moments.ts";
import type { EncoderMetric, InceptionMetric, Scores, SetContext, SixMetric } from "./metric.ts";
import { isFigureOf, METRICS } from "./table.ts";

type SetMetric = InceptionMetric | EncoderMetric;

/** Name of the file in the folder of an evaluation. */
export const INTERVALS = "intervals.json";

/** Content of the file: 95 % intervals, and the scores that they are made of, which pair with those of other runs. */
const storedSchema = z.object({
  method: z.string(),
  /** Number of generated images. */
  n: z.int().positive(),
  /** The scores of all images. */
  value: z.record(z.string(), z.number()),
  interval: z.record(z.string(), z.tuple([z.number(), z.number()])),
  without_group: z.record(z.string(), z.array(z.number()).length(GROUPS)),
});
export type StoredIntervals = z.infer<typeof storedSchema>;

/**
 * Scores without each group, by their key, of the folder of an evaluation; empty without the file.
 * @param figures of the evaluation: scores whose value differs are of another one, and are left out
 * @throws UsageError for a damaged file
 */
export function readWithoutGroups(
  folder: string,
  figures: ReadonlyMap<string, number>,
): Record<string, number[]> {
  const path = join(folder, INTERVALS);
  if (!exists(path)) return {};
  const parsed = storedSchema.safeParse(readJson(path));
  if (!parsed.success) {
    throw new UsageError(
      `Cannot read "${path}": it does not hold the intervals of an evaluation; evaluate again with --intervals, ` +
        `or remove the file`,
    );
  }
  const { value, without_group: groups } = parsed.data;
  return Object.fromEntries(Object.entries(groups).filter(([key]) => value[key] === figures.get(key)));
}

/** Whether a metric is computed once more for each group: not what takes 15 distances, or keeps no features. */
const isRepeated = ({ fake, name }: SetMetric) =>
  (fake === "moments" || fake === "features") && !name.includes("infinity");

/** Metrics whose intervals --intervals does not compute. */
export const withoutIntervals = (metrics: readonly (SetMetric | SixMetric)[]): string[] =>
  metrics.filter((metric) => metric.from === "six" || !isRepeated(metric)).map(({ name }) => name);

/** Whether --intervals gives the interval of a figure. */
export const hasGroups = (key: string): boolean =>
  METRICS.some((metric) =>
    (metric.from === "inception" || metric.from === "encoder") && isRepeated(metric) &&
    isFigureOf(key, metric.name)
  );

/** Rows of features without those of one group, or only those. */
function rowsWhere({ data, columns }: Features, keep: (row: number) => boolean): Features {
  const rows = Array.from({ length: data.length / columns }, (_, i) => i).filter(keep);
  const out = new Float32Array(rows.length * columns);
  for (const [i, row] of rows.entries()) {
    out.set(data.subarray(row * columns, (row + 1) * columns), i * columns);
  }
  return { data: out, rows: rows.length, columns };
}

/** Mean and covariance of the union of sets of `rows` each (Chan et al. 1979). */
export function merged(parts: readonly { moments: Gaussian; rows: number }[]): Gaussian {
  const total = parts.reduce((sum, { rows }) => sum + rows, 0), n = parts[0]?.moments.mean.length ?? 0;
  const mean = new Float64Array(n), covariance = new Float64Array(n * n);
  for (const { moments, rows } of parts) {
    for (let i = 0; i < n; i++) {
      mean[i] = (mean[i] as number) + (moments.mean[i] as number) * (rows / total);
    }
  }
  for (const { moments, rows } of parts) {
    const shift = moments.mean.map((v, i) => v - (mean[i] as number));
    const within = (rows - 1) / (total - 1), between = rows / (total - 1);
    for (let i = 0; i < n; i++) {
      const factor = between * (shift[i] as number);
      for (let j = 0; j < n; j++) {
        covariance[i * n + j] = (covariance[i * n + j] as number) +
          within * (moments.covariance[i * n + j] as number) + factor * (shift[j] as number);
      }
    }
  }
  return { mean, covariance };
}

/** The views of features without each group. @param kinds what is needed of them */
export async function* withoutGroups(
  features: Features,
  kinds: readonly string[],
): AsyncGenerator<InceptionView> {
  const groups = groupsOf(features.rows), parts: { moments: Gaussian; rows: number }[] = [];
  if (kinds.includes("moments")) {
    for (let g = 0; g < GROUPS; g++) {
      const part = rowsWhere(features, (row) => groups[row] === g);
      parts.push({ moments: await gaussian(part), rows: part.rows });
    }
  }
  for (let g = 0; g < GROUPS; g++) {
    yield {
      ...parts.length > 0 && { moments: merged(parts.filter((_, part) => part !== g)) },
      ...kinds.includes("features") && { features: rowsWhere(features, (row) => groups[row] !== g) },
    };
  }
}

/** Collects the scores without each group. */
export class Jackknife {
  readonly #scores: Record<string, number[]> = {};
  /** Number of generated images. */
  #n = 0;

  constructor(private readonly log: Log) {}

  /** Computes the metrics of one space without each group of `fake`. */
  async add(
    metrics: readonly SetMetric[],
    real: InceptionView,
    fake: InceptionView,
    { seed, reported }: { seed: number; reported(scores: Scores): Scores },
  ): Promise<void> {
    const repeated = metrics.filter(isRepeated),
      { features } = fake,
      names = repeated.map(({ name }) => name);
    if (repeated.length === 0) return;
    const least = Math.max(2 * GROUPS, ...repeated.map(({ minImages = 1 }) => 2 * minImages));
    if (!features || features.rows < least) {
      this.log.line(
        `no intervals of ${names.join(", ")}: ${
          features ? `${features.rows} images are fewer than ${least}` : "the file holds no features"
        }`,
      );
      return;
    }
    this.#n = features.rows;
    const progress = this.log.progress(`intervals (${names.join(", ")})`, GROUPS, "groups");
    const context: SetContext = {
      seed,
      progress: () => ({ update: () => {}, end: () => {} }),
      show: () => Promise.resolve(),
    };
    const computes = new Set(repeated.map(({ compute }) => compute));
    let done = 0;
    for await (const view of withoutGroups(features, repeated.map(({ fake }) => fake))) {
      for (const compute of computes) this.merge(reported(await compute(real, view, context)));
      progress.update(++done);
    }
    progress.end();
  }

  /** Adds the scores without one more group. */
  merge(scores: Scores): void {
    for (const [key, value] of Object.entries(scores)) (this.#scores[key] ??= []).push(value);
  }

  /** Writes the file, where there is something to write. @param scores of all images */
  write(folder: string, scores: Scores): void {
    const found = Object.entries(this.#scores).flatMap(([key, values]) => {
      const value = scores[key],
        interval = value === undefined || values.length !== GROUPS
          ? undefined
          : intervalOf(value, { of: "groups", values });
      return interval ? [{ key, values, interval }] : [];
    });
    if (found.length === 0) return;
    const path = join(folder, INTERVALS);
    writeJson(
      path,
      {
        method: `95 %, jackknife without each of ${GROUPS} groups of the generated images`,
        n: this.#n,
        value: Object.fromEntries(found.map(({ key }) => [key, scores[key] as number])),
        interval: Object.fromEntries(found.map(({ key, interval: { low, high } }) => [key, [low, high]])),
        without_group: Object.fromEntries(found.map(({ key, values }) => [key, values])),
      } satisfies StoredIntervals,
    );
    this.log.line(`intervals: ${path}`);
  }
}
