// Which metrics `tok eval` computes: the requested ones, or all that apply. A requested metric that does not apply is an error
// before anything is computed; one that was not requested is left out with a note. Also the scores as they are computed: one
// that fails does not lose the others.

import { ShapeError, UsageError } from "../errors.ts";
import { INCEPTION_FILE } from "../models/inception.ts";
import { LPIPS_FILES } from "../models/lpips.ts";
import type { EncoderSpace } from "./encoder_features.ts";
import { notDinov2L } from "./encoder_spaces.ts";
import type { CommonIngredients, Ingredients, OwnIngredients, PartIngredients } from "./ingredients.ts";
import { type ProtocolName, protocolOf, type ProtocolOptions, PROTOCOLS } from "./protocols.ts";
import type { EncoderMetric, Metric, Scores, Subject } from "./metric.ts";
import { METRICS } from "./table.ts";
import type { PairScore } from "./pairs.ts";

/** What is scored, in messages. */
export const SUBJECTS: Record<Subject, string> = {
  tokenizer: "a tokenizer",
  model: "a diffusion model",
  sets: "two sets of images",
};

const FILES = {
  inception: `it needs --inception FILE: ${INCEPTION_FILE}`,
  lpips: `it needs --lpips FILES: ${LPIPS_FILES}`,
};

/** The options that decide which metrics are computed. */
export interface SelectionOptions {
  /** Whose spaces take the place of the metrics' own [none]. */
  protocol?: ProtocolName | undefined;
  metrics?: readonly string[] | undefined;
  /** Metrics that are computed where they apply, without `metrics` [all]. */
  standard?: readonly string[];
  /** Whether those that are otherwise computed on request only are, too, without `metrics` (false). */
  every?: boolean;
  inception?: string | undefined;
  lpips?: readonly string[] | undefined;
}

/**
 * What the options say is scored: a tokenizer, a model's samples, two sets, or with --data a tokenizer and one of the others.
 * @throws UsageError for options that exclude each other
 */
export function partsOf(
  { real, fake, tokenizer, model, data }: Partial<
    Record<"real" | "fake" | "tokenizer" | "model" | "data", string | undefined>
  >,
): readonly Subject[] {
  if (fake !== undefined && model !== undefined) {
    throw new UsageError("Cannot score --fake and --model at once: both are generated images; leave one out");
  }
  if (fake !== undefined && data === undefined && tokenizer !== undefined) {
    throw new UsageError(
      "Cannot score a tokenizer and --fake at once without images: add --data, or leave --tokenizer out",
    );
  }
  if (fake !== undefined && data !== undefined && tokenizer === undefined) {
    throw new UsageError("Cannot use --data here: it is for a tokenizer; give the real images as --real");
  }
  const alone = tokenizer !== undefined && fake === undefined && model === undefined;
  if (alone && real !== undefined) {
    throw new UsageError("Cannot score a tokenizer with --real: the images that it reconstructs are --data");
  }
  const generated = fake !== undefined ? "sets" : "model";
  return alone ? ["tokenizer"] : data === undefined ? [generated] : ["tokenizer", generated];
}

/** One part of an evaluation with its metrics. */
export interface Part {
  subject: Subject;
  selection: Selection;
}

/**
 * The parts with a metric to compute. Of several parts, each gets all metrics that it allows, or the requested ones that no part
 * before it has.
 * @throws UsageError as Selection
 */
export function selectParts(parts: readonly Subject[], options: SelectionOptions): Part[] {
  const [first] = parts as [Subject];
  if (parts.length === 1) return [{ subject: first, selection: new Selection(first, options) }];
  const { metrics, standard } = options;
  if (!metrics && standard) { // of a protocol
    const defined = parts.filter((part) =>
      METRICS.some(({ name, of }) => standard.includes(name) && of.includes(part))
    );
    return defined.map((subject) => ({ subject, selection: new Selection(subject, options) }));
  }
  if (!metrics) {
    return parts.map((subject) => ({
      subject,
      selection: new Selection(subject, { ...options, every: true }),
    }));
  }
  const partOf = (name: string) =>
    parts.find((part) => METRICS.some((metric) => metric.name === name && metric.of.includes(part))) ?? first;
  return parts.flatMap((subject) => {
    const own = metrics.filter((name) => partOf(name) === subject);
    return own.length ? [{ subject, selection: new Selection(subject, { ...options, metrics: own }) }] : [];
  });
}

/** Metrics that no part computes, with what would supply them. @param requested those of --metrics */
export function missingFigures(
  parts: readonly Part[],
  requested: readonly string[] | undefined,
): Map<string, string> {
  const missing = new Map<string, string>();
  const subjects = parts.map(({ subject }) => subject);
  for (const { name, of, onRequest } of METRICS) {
    if (parts.some(({ selection }) => selection.includes(name))) continue;
    const left = parts.map(({ selection }) => selection.leftOut.get(name)).find((reason) => reason);
    const absent = of.includes("tokenizer")
      ? "it needs --data DIR with --tokenizer RUN or --model RUN"
      : "it needs --model RUN, or --real and --fake";
    const unnamed = requested ?? onRequest ? "add it to --metrics" : undefined;
    missing.set(name, left ?? (of.some((one) => subjects.includes(one)) ? unnamed : absent) ?? absent);
  }
  return missing;
}

/** The metric in another space, which not all encoders have. */
const inSpace = (metric: EncoderMetric, space: EncoderSpace): EncoderMetric => ({
  ...metric,
  space,
  ...space === "dinov2" && { excludes: notDinov2L },
});

export class Selection {
  #metrics: readonly Metric[] = METRICS;
  readonly #requested: boolean;
  readonly #notes: string[] = [];
  /** Metrics that are left out, with the reason. */
  readonly leftOut = new Map<string, string>();

  /** @throws UsageError for a requested metric that does not score the subject, or whose weights are not given */
  constructor(subject: Subject, options: SelectionOptions) {
    const { metrics, standard, every } = options;
    this.#requested = metrics !== undefined;
    if (!metrics && !every) this.#metrics = METRICS.filter(({ onRequest }) => !onRequest);
    if (standard && !metrics) this.#metrics = METRICS.filter(({ name }) => standard.includes(name));
    if (metrics) {
      const requested = METRICS.filter(({ name }) => metrics.includes(name));
      const implied = (m: Metric) => "always" in m && requested.some(({ from }) => from === m.from);
      this.#metrics = METRICS.filter((metric) => requested.includes(metric) || implied(metric));
    }
    const other = this.#metrics.find(({ name, of }) => metrics?.includes(name) && !of.includes(subject));
    if (other) {
      throw new UsageError(
        `Cannot score "${other.name}": it is a score of ` +
          `${other.of.map((s) => SUBJECTS[s]).join(" or ")}, and this is ${SUBJECTS[subject]}`,
      );
    }
    // Two sets are pairs only where the caller says so.
    this.#metrics = this.#metrics.filter(({ of, from }) =>
      of.includes(subject) && (metrics || subject !== "sets" || from !== "reconstructions")
    );
    const { spaces = {} } = options.protocol ? PROTOCOLS[options.protocol] : {};
    this.#metrics = this.#metrics.map((metric) =>
      metric.from === "encoder" ? inSpace(metric, spaces[metric.space] ?? metric.space) : metric
    );
    this.exclude(({ weights }) => weights && options[weights] === undefined && FILES[weights]);
  }

  includes(name: string): boolean {
    return this.#metrics.some((metric) => metric.name === name);
  }

  /** The selected metrics that are computed from one kind of input. */
  from<F extends Metric["from"]>(...kinds: readonly F[]): (Metric & { from: F })[] {
    return this.#metrics.filter((metric): metric is Metric & { from: F } =>
      (kinds as readonly string[]).includes(metric.from)
    );
  }

  /**
   * The protocol of a figure of samples by its key, as {@link Results} records it.
   * @param images number of samples
   * @param statistics whether the reference holds stored statistics
   */
  protocolOf(
    key: string,
    options: ProtocolOptions,
    images: number,
    statistics: boolean,
  ): ProtocolName | "tok" {
    const name = key.replaceAll("_", "-"), metric = this.#metrics.find((metric) => metric.name === name);
    return metric ? protocolOf(metric, options, images, statistics) : "tok";
  }

  /** Leaves out the metrics for which there is a reason. @throws UsageError if they were requested */
  exclude(reasonOf: (metric: Metric) => string | false | undefined): void {
    const reasons = new Map<string, Set<string>>();
    this.#metrics = this.#metrics.filter((metric) => {
      const reason = reasonOf(metric);
      if (!reason) return true;
      if (this.#requested) throw new UsageError(`Cannot score "${metric.name}": ${reason}`);
      this.leftOut.set(metric.name, reason);
      reasons.set(reason, (reasons.get(reason) ?? new Set()).add(metric.name));
      return false;
    });
    for (const [reason, names] of reasons) this.#notes.push(`${[...names].join(", ")} (${reason})`);
  }

  /** Says what is left out, once. @throws UsageError if no metric is left */
  settle(note: (line: string) => void): void {
    if (this.#metrics.length === 0) {
      throw new UsageError(`Cannot score this: no metric applies: ${this.#notes.join("; ")}`);
    }
    for (const text of this.#notes.splice(0)) note(`left out: ${text}`);
  }

  /** The scores that may be reported: those of metrics that are left out are removed. */
  reported(scores: Scores): Scores {
    const names = new Set(this.#metrics.map(({ name }) => name));
    const left = new Set(METRICS.map(({ name }) => name).filter((name) => !names.has(name)));
    return Object.fromEntries(Object.entries(scores).filter(([key]) => !left.has(key.replaceAll("_", "-"))));
  }
}

const OVERFLOW =
  "features or statistics overflow; use other weights, or look at the numbers in the given file";

/** Scores as they are computed. The first failure is kept for the end. */
export class Results {
  readonly scores: Scores = {};
  /** What each figure was computed from, by its key. */
  readonly ingredients: Record<string, Ingredients> = {};
  #part: PartIngredients = {};
  #options: ProtocolOptions | undefined;
  readonly #own = new Map<string, OwnIngredients>();
  #failure: Error | undefined;
  /** Runs once, before the first score is computed: nothing is refused any more. */
  beforeFirst: (() => void) | undefined;

  /** The protocol of each figure. */
  get protocols(): Record<string, string> {
    return Object.fromEntries(Object.entries(this.ingredients).map(([key, { protocol }]) => [key, protocol]));
  }

  /** @param common ingredients of all figures [none are recorded] */
  constructor(private readonly common?: CommonIngredients) {}

  /** Says what the figures that are added from now on have in common, and what decides their protocol. */
  describe(part: PartIngredients, options: ProtocolOptions): void {
    this.#part = part;
    this.#options = options;
  }

  /** Ingredients of a {@link guarded} score, by its key. */
  readonly ofPairs = (key: string): OwnIngredients | undefined => this.#own.get(key);

  /**
   * Adds the scores that `compute` returns; one that is not a number is a failure.
   * @param own ingredients of these figures; undefined: those of {@link guarded} scores, and none of others
   * @throws errors other than UsageError and ShapeError, such as a lost device
   */
  readonly add = async (
    compute: () => Promise<Scores> | Scores,
    own: (key: string) => OwnIngredients | undefined = this.ofPairs,
  ): Promise<void> => {
    this.begin();
    try {
      const scores = await compute();
      for (const [key, value] of Object.entries(scores)) {
        if (!Number.isNaN(value)) this.scores[key] = value;
        else this.fail(new UsageError(`Cannot compute "${key}": it is not a number, because ${OVERFLOW}`));
      }
      for (const key of Object.keys(scores)) {
        const ingredients = key in this.scores ? own(key) : undefined;
        if (!this.common || !this.#options || !ingredients) continue;
        const { from, space } = ingredients, name = key.replaceAll("_", "-");
        const metric = { name, from, ...from === "encoder" && { space: space as EncoderSpace } };
        const { real, fake } = this.#part;
        const protocol = protocolOf(metric, this.#options, fake?.count, real?.statistics);
        this.ingredients[key] = { protocol, ...this.common, ...this.#part, ...ingredients };
      }
    } catch (error) {
      this.fail(error);
    }
  };

  /** Says that scores are computed from now on. */
  begin(): void {
    const run = this.beforeFirst;
    this.beforeFirst = undefined;
    run?.();
  }

  fail(error: unknown): void {
    if (!(error instanceof UsageError || error instanceof ShapeError)) throw error;
    this.#failure ??= error;
  }

  /** The same score; after a failure it adds nothing more. */
  guarded(pair: PairScore): PairScore {
    let failed = false;
    const own = this.#own;
    const fail = (error: unknown) => {
      failed = true;
      this.fail(error);
    };
    return {
      ...pair.name === undefined ? {} : { name: pair.name },
      ...pair.ingredients && { ingredients: pair.ingredients },
      async add(originals, reconstructions) {
        try {
          if (!failed) return await pair.add(originals, reconstructions);
        } catch (error) {
          fail(error);
        }
      },
      async scores() {
        try {
          const scores = failed ? {} : await pair.scores();
          for (const key of Object.keys(scores)) {
            own.set(key, { from: "reconstructions", ...pair.ingredients });
          }
          return scores;
        } catch (error) {
          fail(error);
          return {};
        }
      },
      ...pair.withoutGroups && {
        async withoutGroups(onGroup) {
          try {
            return failed ? {} : await pair.withoutGroups?.(onGroup) ?? {};
          } catch (error) {
            fail(error);
            return {};
          }
        },
      },
    };
  }

  /** @throws the first failure */
  rethrow(): void {
    if (this.#failure) throw this.#failure;
  }
}
