// Finished evaluations side by side: the figures of their metrics.json, the best of each, 95 % intervals, and whether a difference
// is inside its own. Figures that differ in what makes them comparable are refused; how samples were made may differ.

import { basename, dirname, join } from "@std/path";
import { UsageError } from "../errors.ts";
import { exists, readJson } from "../formats/files.ts";
import { difference, type Interval, intervalOf, type Replicates, resampledMeans } from "./bootstrap.ts";
import { readImageScores } from "./image_scores.ts";
import { type Ingredients, metricsSchema } from "./ingredients.ts";
import { type ImageTable, orderOf, readIntervals, streamOf } from "./intervals.ts";
import type { IntervalKind } from "./metric.ts";
import { betterOf, intervalKindOf, isFigureOf } from "./table.ts";

/** A finished evaluation. */
export interface EvaluatedRun {
  /** Name of its folder, or the path where several have that name. */
  name: string;
  path: string;
  figures: Map<string, number>;
  ingredients: Readonly<Record<string, Ingredients>>;
  /** Scores of each image by their key: of images.csv, and of intervals.json. */
  tables: readonly ImageTable[];
  /** Scores without each group of the images. */
  groups: Readonly<Record<string, Replicates>>;
}

/** A row: a figure of each run. */
export interface Figure {
  key: string;
  better: "higher" | "lower" | undefined;
  values: (number | undefined)[];
  intervals: (Interval | undefined)[];
  /** Number of the best run. */
  best: number | undefined;
  /** Each value minus the best one, with the interval of this difference. */
  differences: ({ value: number; interval: Interval | undefined } | undefined)[];
}

export interface Comparison {
  runs: { name: string; path: string }[];
  /** How the samples were made, and of how many images: what may differ. */
  facts: { name: string; values: (string | undefined)[] }[];
  figures: Figure[];
  notes: string[];
}

/** Opens a folder of `tok eval`, or its metrics.json. @throws UsageError if it is none, or does not say what it was computed from */
function openRun(path: string): Omit<EvaluatedRun, "name"> {
  const folder = path.endsWith(".json") ? dirname(path) : path;
  const file = path.endsWith(".json") ? path : join(path, "metrics.json");
  const parsed = metricsSchema.safeParse(readJson(file));
  if (!parsed.success || parsed.data.ingredients === undefined) {
    throw new UsageError(
      `Cannot compare "${path}": "${file}" does not say what its figures were computed from; evaluate it again`,
    );
  }
  const { ingredients, ...values } = parsed.data;
  const figures = new Map(
    Object.entries(values).filter((entry): entry is [string, number] =>
      typeof entry[1] === "number" && Object.hasOwn(ingredients, entry[0])
    ),
  );
  const csv = join(folder, "images.csv");
  const { groups, tables } = readIntervals(folder, figures);
  return {
    ...{ path, figures, ingredients, groups },
    tables: exists(csv) ? [readImageScores(csv), ...tables] : tables,
  };
}

/** Opens evaluations. @throws UsageError for fewer than two, and for what is no evaluation */
export function openRuns(paths: readonly string[]): EvaluatedRun[] {
  if (paths.length < 2) {
    throw new UsageError(`Cannot compare "${paths[0]}" alone; name two or more folders of "tok eval"`);
  }
  const short = paths.map((path) => basename(path.endsWith(".json") ? dirname(path) : path));
  const unique = new Set(short).size === short.length;
  return paths.map((path, i) => ({ ...openRun(path), name: unique ? short[i] as string : path }));
}

/**
 * What figures must have in common: how it is called, its value, and what to do. Only what statistics and stored features cannot
 * say is optional: a figure without a split or a probe is one of a version of tok that trained another probe.
 */
const COMMON: readonly [
  name: string,
  remedy: string,
  of: (i: Ingredients) => { value: unknown; shown?: string | undefined; missing?: string; optional?: true },
][] = [
  ["protocol", "--protocol", (i) => ({ value: i.protocol })],
  ["space", "--metrics", (i) => ({ value: i.space })],
  ["network", "--inception, --encoder or --lpips", ({ network: n }) => ({
    value: n?.fingerprint,
    shown: n && `"${n.name}" (${n.fingerprint})`,
  })],
  ["input", "--image-size and --inception-input", (i) => ({ value: i.input, optional: true })],
  ["precision", "version of tok", (i) => ({ value: i.precision })],
  ["reference", "--real or --data", ({ real }) => ({
    value: real?.fingerprint,
    shown: real && `"${real.name}" (${real.fingerprint ?? "without a hash"})`,
  })],
  ["number of real images", "--real or --data", (i) => ({ value: i.real?.count, optional: true })],
  ["number of images", "--num", (i) => ({ value: i.fake?.count, optional: true })],
  ["split", "--data and version of tok", ({ split: s }) => ({
    value: s && `${s.train} training${s.test === undefined ? "" : ` and ${s.test} test`} images, ${s.by}` +
        (s.seed === undefined ? "" : `, seed ${s.seed}`),
    missing: "not recorded",
  })],
  ["probe", "version of tok", ({ probe: p }) => ({
    value: p && `${p.objective}, penalty ${p.penalty}, ${p.features}, ${p.optimizer}`,
    missing: "not recorded",
  })],
  ["noise on latents", "--latent-noise", (i) => ({ value: i.latentNoise })],
];

/** @throws UsageError if two runs have a figure that does not compare */
function refuseIncomparable(key: string, runs: readonly EvaluatedRun[]): void {
  const having = runs.flatMap((run) => {
    const own = run.figures.has(key) ? run.ingredients[key] : undefined;
    return own ? [{ run, own }] : [];
  });
  // All pairs: what one run does not say may differ between two others.
  for (const [i, a] of having.entries()) {
    for (const b of having.slice(i + 1)) {
      for (const [name, remedy, of] of COMMON) {
        const x = of(a.own), y = of(b.own), unknown = x.value === undefined || y.value === undefined;
        if (x.value === y.value || x.optional && unknown) continue;
        const text = ({ value, shown, missing = "none" }: typeof x) =>
          shown ?? (typeof value === "string" ? `"${value}"` : value ?? missing);
        throw new UsageError(
          `Cannot compare "${key}" of "${a.run.name}" and "${b.run.name}": the ${name} is ${
            text(x)
          } in one and ` +
            `${
              text(y)
            } in the other; evaluate both with the same ${remedy}, or leave "${key}" out by --metrics`,
        );
      }
    }
  }
}

/** The replicates of each figure of each run. Runs on the same images share their resamples. */
function replicatesOf(runs: readonly EvaluatedRun[], seed: number): Map<string, Replicates>[] {
  const found = runs.map(({ groups }) => new Map(Object.entries(groups)));
  // The resamples follow from the names of the images, whatever other runs there are.
  const tables = runs.flatMap(({ tables, figures }, r) =>
    tables.map((table) => ({ ...table, figures, r, stream: streamOf(table.names) }))
  );
  for (const [stream, alike] of Map.groupBy(tables, ({ stream }) => stream)) {
    const places: [run: number, key: string][] = [], columns: number[][] = [];
    for (const { r, names, columns: own, figures } of alike) {
      const order = orderOf(names);
      for (const [key, values] of own) {
        const figure = figures.get(key), mean = values.reduce((sum, v) => sum + v, 0) / values.length;
        // A file of another evaluation has other means.
        if (figure === undefined || !(Math.abs(mean - figure) <= 1e-6 * Math.abs(figure))) continue;
        places.push([r, key]);
        columns.push(order.map((i) => values[i] as number));
      }
    }
    for (const [k, replicates] of resampledMeans(columns, { stream, seed }).entries()) {
      const [r, key] = places[k] as [number, string];
      found[r]?.set(key, replicates);
    }
  }
  return found;
}

/**
 * Sets runs side by side.
 * @param options.metrics those whose figures are compared [all]
 * @param options.seed of the resamples
 * @throws UsageError for figures that do not compare, and where no two runs have a figure in common
 */
export function compare(
  runs: readonly EvaluatedRun[],
  { metrics, seed }: { metrics?: readonly string[] | undefined; seed: number },
): Comparison {
  const keys = [...new Set(runs.flatMap(({ figures }) => [...figures.keys()]))].filter((key) =>
    !metrics || metrics.some((name) => isFigureOf(key, name))
  );
  if (!keys.some((key) => runs.filter(({ figures }) => figures.has(key)).length > 1)) {
    throw new UsageError(
      `Cannot compare ${
        runs.map(({ name }) => `"${name}"`).join(" and ")
      }: no two of them have a figure in common; ` +
        `evaluate them with the same --metrics`,
    );
  }
  for (const key of keys) refuseIncomparable(key, runs);
  const replicates = replicatesOf(runs, seed);
  const figures = keys.map((key) => figureOf(key, runs, replicates));
  return {
    runs: runs.map(({ name, path }) => ({ name, path })),
    facts: factsOf(runs),
    figures,
    notes: notesOf(figures, runs),
  };
}

function figureOf(
  key: string,
  runs: readonly EvaluatedRun[],
  replicates: readonly ReadonlyMap<string, Replicates>[],
): Figure {
  const better = betterOf(key), values = runs.map(({ figures }) => figures.get(key));
  const of = (r: number) => replicates[r]?.get(key);
  const intervals = values.map((value, r) => {
    const own = of(r);
    return value === undefined || !own ? undefined : intervalOf(value, own);
  });
  const known = [...values.entries()].flatMap(([r, value]) => value === undefined ? [] : [{ r, value }]);
  const sign = better === "higher" ? -1 : 1;
  const best = better && known.length > 1
    ? known.reduce((a, b) => sign * b.value < sign * a.value ? b : a)
    : undefined;
  const differences = values.map((value, r) => {
    if (!best || value === undefined || r === best.r) return undefined;
    const [a, b] = [of(r), of(best.r)], both = a && b && difference(a, b), own = value - best.value;
    return { value: own, interval: both && intervalOf(own, both) };
  });
  return { key, better, values, intervals, best: best?.r, differences };
}

/** Whether a difference may be none: zero is inside its interval. */
export const isInside = (difference: Figure["differences"][number]): boolean => {
  const { interval } = difference ?? {};
  return interval !== undefined && interval.low <= 0 && interval.high >= 0;
};

/** What may differ between runs, where one has it. */
function factsOf(runs: readonly EvaluatedRun[]): Comparison["facts"] {
  const first = runs.map(({ ingredients }) => {
    const all = Object.values(ingredients), sampled = all.find(({ sampling }) => sampling !== undefined);
    return { any: sampled ?? all[0], sampling: sampled?.sampling };
  });
  const rows: [string, (run: typeof first[number]) => unknown][] = [
    ["model", ({ any }) => any?.model?.name],
    ["tokenizer", ({ any }) => any?.tokenizer?.name],
    ["images", ({ any }) => any?.fake?.count ?? any?.real?.count],
    ["sampler", ({ sampling }) => sampling?.sampler],
    ["steps", ({ sampling }) => sampling?.steps],
    ["NFE", ({ sampling }) => sampling?.nfe],
    ["guidance", ({ sampling }) => sampling?.guidance],
    ["labels", ({ sampling }) => sampling?.labels],
    ["EMA", ({ sampling }) => sampling?.ema],
    ["seed", ({ sampling }) => sampling?.seed],
    ["tok", ({ any }) => any?.tok],
  ];
  return rows.map(([name, of]) => ({
    name,
    values: first.map((run) => {
      const value = of(run);
      return value === undefined ? undefined : String(value);
    }),
  })).filter(({ values }) => values.some((value) => value !== undefined));
}

/** Which differences are inside their intervals, and which option gives the intervals that are missing. */
function notesOf(figures: readonly Figure[], runs: readonly EvaluatedRun[]): string[] {
  const inside = figures.flatMap(({ key, best, differences }) => {
    const names = differences.flatMap((d, r) => isInside(d) ? [runs[r]?.name] : []);
    return names.length && best !== undefined
      ? [
        `${key}: zero is inside the 95 % interval of the difference of ${names.join(", ")} from ${
          runs[best]?.name
        }`,
      ]
      : [];
  });
  const bare = figures.flatMap(({ key, values, intervals }) => {
    const known = [...values.keys()].filter((r) => values[r] !== undefined);
    const without = known.filter((r) => !intervals[r]).map((r) => runs[r]?.name);
    if (without.length === 0) return [];
    return [{ key, text: without.length === known.length ? key : `${key} of ${without.join(", ")}` }];
  });
  const of = (includes: (kind: IntervalKind | undefined) => boolean) =>
    bare.filter(({ key }) => includes(intervalKindOf(key))).map(({ text }) => text).join(", ");
  const repeated = of((kind) => kind === "groups" || kind === "hits");
  const byImage = of((kind) => kind === "images"), others = of((kind) => kind === undefined);
  const none = bare.flatMap(({ key, text }) => {
    const kind = intervalKindOf(key);
    return typeof kind === "object" ? [{ text, why: kind.none }] : [];
  });
  return [
    ...inside,
    ...repeated
      ? [`no interval of ${repeated}: evaluate with --intervals, whose log says where there can be none`]
      : [],
    ...byImage ? [`no interval of ${byImage}: images.csv has no such scores of this evaluation`] : [],
    ...[...Map.groupBy(none, ({ why }) => why)].map(([why, all]) =>
      `no interval of ${all.map(({ text }) => text).join(", ")}: ${why}`
    ),
    ...others ? [`no interval of ${others}: an evaluation keeps nothing to compute it from`] : [],
  ];
}
