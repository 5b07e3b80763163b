// Which metrics `tok eval` computes: the requested ones, or all that apply. A requested metric that does not apply is an error
// before anything is computed; one that was not requested is left out with a note. Also the scores as they are computed: one
// that fails does not lose the others.

import { ShapeError, UsageError } from "../errors.ts";
import { INCEPTION_FILE } from "../models/inception.ts";
import { LPIPS_FILES } from "../models/lpips.ts";
import { type ProtocolName, PROTOCOLS } from "./protocols.ts";
import { type Metric, METRICS, type Scores, type Subject } from "./table.ts";
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
  inception?: string | undefined;
  lpips?: readonly string[] | undefined;
}

/** What the options say is scored. @throws UsageError for options that exclude each other */
export function subjectOf(
  c: Partial<Record<"real" | "fake" | "tokenizer" | "model" | "data", string | undefined>>,
): Subject {
  if (c.fake !== undefined && (c.tokenizer ?? c.model) !== undefined) {
    throw new UsageError("Cannot score several things at once: give --fake, --tokenizer or --model");
  }
  const tokenizer = c.fake === undefined && c.tokenizer !== undefined && c.model === undefined;
  if (tokenizer && c.real !== undefined) {
    throw new UsageError("Cannot score a tokenizer with --real: the images that it reconstructs are --data");
  }
  if (!tokenizer && c.data !== undefined) {
    throw new UsageError("Cannot use --data here: it is for a tokenizer; give the real images as --real");
  }
  return c.fake !== undefined ? "sets" : tokenizer ? "tokenizer" : "model";
}

export class Selection {
  #metrics: readonly Metric[] = METRICS;
  readonly #requested: boolean;
  readonly #notes: string[] = [];

  /** @throws UsageError for a requested metric that does not score the subject, or whose weights are not given */
  constructor(subject: Subject, options: SelectionOptions) {
    const { metrics, standard } = options;
    this.#requested = metrics !== undefined;
    if (!metrics) this.#metrics = METRICS.filter(({ onRequest }) => !onRequest);
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
      metric.from === "encoder" ? { ...metric, space: spaces[metric.space] ?? metric.space } : metric
    );
    this.exclude(({ weights }) => weights && options[weights] === undefined && FILES[weights]);
  }

  /** The selected metrics that are computed from one kind of input. */
  from<F extends Metric["from"]>(...kinds: readonly F[]): (Metric & { from: F })[] {
    return this.#metrics.filter((metric): metric is Metric & { from: F } =>
      (kinds as readonly string[]).includes(metric.from)
    );
  }

  /** Leaves out the metrics for which there is a reason. @throws UsageError if they were requested */
  exclude(reasonOf: (metric: Metric) => string | false | undefined): void {
    const reasons = new Map<string, Set<string>>();
    this.#metrics = this.#metrics.filter((metric) => {
      const reason = reasonOf(metric);
      if (!reason) return true;
      if (this.#requested) throw new UsageError(`Cannot score "${metric.name}": ${reason}`);
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

/** Scores as they are computed. The first failure is kept for the end. */
export class Results {
  readonly scores: Scores = {};
  #failure: Error | undefined;

  /** Adds the scores that `compute` returns. @throws errors other than UsageError and ShapeError, such as a lost device */
  readonly add = async (compute: () => Promise<Scores> | Scores): Promise<void> => {
    try {
      Object.assign(this.scores, await compute());
    } catch (error) {
      this.fail(error);
    }
  };

  fail(error: unknown): void {
    if (!(error instanceof UsageError || error instanceof ShapeError)) throw error;
    this.#failure ??= error;
  }

  /** The same score; after a failure it adds nothing more. */
  guarded(pair: PairScore): PairScore {
    let failed = false;
    const fail = (error: unknown) => {
      failed = true;
      this.fail(error);
    };
    return {
      ...pair.name === undefined ? {} : { name: pair.name },
      async add(originals, reconstructions) {
        try {
          if (!failed) return await pair.add(originals, reconstructions);
        } catch (error) {
          fail(error);
        }
      },
      async scores() {
        try {
          return failed ? {} : await pair.scores();
        } catch (error) {
          fail(error);
          return {};
        }
      },
    };
  }

  /** @throws the first failure */
  rethrow(): void {
    if (this.#failure) throw this.#failure;
  }
}
