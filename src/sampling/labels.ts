// Numbers and classes of generated images. The class of image i is a function of i, the classes and, with random labels, the
// seed: not of how many images are made. Machines that make parts of one job therefore agree about every image.

import { UsageError } from "../errors.ts";
import type { SampleConfig } from "../cli/config.ts";
import { type Conditions, idleOptions, type Origins } from "../cli/conditions.ts";
import { hint, kebab } from "../cli/flags.ts";
import { keyOf, philox } from "../philox.ts";
import type { ModelConfig } from "../zoo/runs.ts";
import { STREAMS } from "./noise.ts";

/** How images get their classes: in rounds of all classes, or independently at random. */
export type Labeling = SampleConfig["labels"];

/** Classes up to this number keep their order; the grid then has a column for each. */
export const MAX_COLUMNS = 20;

/**
 * Classes in the order of a round: as they are given if they are few. More are taken in steps of about K / golden ratio modulo
 * K, so that the first N of a round are spread over all K (a lattice of rank 1; its gaps have at most three lengths).
 */
function roundOf(classes: readonly number[]): readonly number[] {
  const K = classes.length, step = K <= MAX_COLUMNS ? 1 : stepOf(K);
  return classes.map((_, i) => classes[i * step % K] as number);
}

/**
 * The step near K / golden ratio without a common divisor with K whose continued fraction has the smallest largest quotient, and
 * thus the most even gaps (Zaremba, 1966).
 */
function stepOf(K: number): number {
  const golden = Math.round(K * (Math.sqrt(5) - 1) / 2);
  let best = 1, smallest = K;
  for (let d = 0; d <= 50; d++) {
    for (const step of [golden + d, golden - d]) {
      const quotient = step > 0 && step < K ? largestQuotient(K, step) : K;
      if (quotient < smallest) [best, smallest] = [step, quotient];
    }
  }
  return best;
}

/** The largest quotient in Euclid's algorithm, and thus of the continued fraction of a / b; a if they have a common divisor. */
function largestQuotient(a: number, b: number): number {
  let largest = 0;
  for (let [x, y] = [a, b]; y > 0; [x, y] = [y, x % y]) {
    if (x % y === 0 && y > 1) return a;
    largest = Math.max(largest, Math.floor(x / y));
  }
  return largest;
}

/**
 * The classes of `count` images from number `first` (u32) on.
 *
 * Equal labels come in rounds, each class once in a round: the counts of any first N images differ by at most 1.
 */
export function labelsOf(
  { first = 0, count, classes, labeling = "equal", seed = 0 }: {
    first?: number;
    count: number;
    classes: readonly number[];
    labeling?: Labeling;
    seed?: number;
  },
): number[] {
  const K = classes.length, round = roundOf(classes), key = keyOf(seed);
  const labelOf = (i: number) => {
    if (labeling === "equal") return round[i % K] as number;
    return classes[Math.floor(philox([i, STREAMS.labels, 0, 0], key)[0] / 2 ** 32 * K)] as number;
  };
  return Array.from({ length: count }, (_, i) => labelOf(first + i));
}

/** Says how many images each class gets, for the log. */
export function labelSummary(
  labels: readonly number[],
  classes: readonly number[],
  labeling: Labeling,
): string {
  const counts = new Map(classes.map((k) => [k, 0]));
  for (const k of labels) counts.set(k, (counts.get(k) ?? 0) + 1);
  let min = Infinity, max = 0;
  for (const n of counts.values()) [min, max] = [Math.min(min, n), Math.max(max, n)];
  const each = min === max ? `${min}` : `${min} ${max - min === 1 ? "or" : "to"} ${max}`;
  return `labels: ${labeling}, ${each} ${max === 1 ? "image" : "images"} per class ` +
    `(${counts.size} ${counts.size === 1 ? "class" : "classes"})`;
}

/**
 * Class numbers from numbers, names, or "all".
 * @param names of the model's classes
 * @throws UsageError for a number out of range and an unknown name; the nearest name is suggested
 */
export function classesOf(words: readonly string[], names: readonly string[]): number[] {
  if (names.length === 0) return [0]; // of an unconditional model: "no class"
  if (words.join() === "all") return names.map((_, i) => i);
  return words.map((word) => {
    const isNumber = /^\d+$/.test(word);
    const i = names.includes(word) ? names.indexOf(word) : isNumber ? Number(word) : -1;
    if (i >= 0 && i < names.length) return i;
    const range = `the model's classes are 0 to ${names.length - 1}`;
    const known = names.length <= MAX_COLUMNS ? ` (${names.join(", ")})` : "";
    const nearest = isNumber ? "" : hint(word, names, "");
    throw new UsageError(
      `Cannot sample the class "${word}": ${range}${known}${nearest || "; choose among them"}`,
    );
  });
}

/** Options about classes. */
const OF_CLASSES = ["classes", "labels", "class", "to"];

/**
 * The options of a command for a model. An unconditional model has no guidance by classes.
 * @param c options, with --cfg as a weight or a list
 * @param conditions of the options: those that need guidance have no effect either
 * @throws UsageError if classes or guidance are asked of an unconditional model
 */
export function unguidedIfUnconditional<C extends { cfg?: number | readonly number[] | undefined }>(
  path: string,
  { dit }: Pick<ModelConfig, "dit">,
  c: C,
  origins: Origins = {},
  conditions?: Conditions<C>,
): C {
  if (dit.num_classes > 0) return c;
  const guided = [c.cfg ?? 1].flat().some((weight) => weight !== 1);
  const unguided = { ...c, cfg: Array.isArray(c.cfg) ? [1] : 1 } as C;
  const idle = [...guided ? ["cfg"] : [], ...conditions ? idleOptions(unguided, conditions) : []];
  const asked = [...OF_CLASSES, ...idle].find((name) => origins[name] === "command line");
  if (asked === undefined) return unguided;
  throw new UsageError(
    `Cannot use --${kebab(asked)} with "${path}": it is an unconditional model, without classes${
      OF_CLASSES.includes(asked) ? "" : " to guide to"
    }; leave --${kebab(asked)} out`,
  );
}
