// Which scores `tok eval` takes: those asked for, or all that apply. A score that was asked for and does not apply is an
// error before anything is computed; one that was not asked for is left out with a note. One that fails while it is computed
// does not lose the others.

import { type EvalConfig, type Metric, METRICS } from "../src/cli/config.ts";
import { ShapeError, UsageError } from "../src/errors.ts";
import type { PairScore } from "../src/metrics/tokenizer.ts";
import { INCEPTION_FILE } from "../src/models/inception.ts";
import { LPIPS_FILES } from "../src/models/lpips.ts";

/** What is scored. */
export type Subject = "tokenizer" | "model" | "sets";

const SUBJECTS: Record<Subject, string> = {
  tokenizer: "a tokenizer",
  model: "a diffusion model",
  sets: "two sets of images",
};

const OF: Record<Metric, readonly Subject[]> = {
  psnr: ["tokenizer"],
  ssim: ["tokenizer"],
  lpips: ["tokenizer"],
  rfid: ["tokenizer"],
  probe: ["tokenizer", "model"],
  knn: ["tokenizer", "model"],
  classes: ["model"],
  "fd-encoder": ["model", "sets"],
  fid: ["model", "sets"],
  sfid: ["model", "sets"],
  is: ["model", "sets"],
  kid: ["model", "sets"],
  precision: ["model", "sets"],
  recall: ["model", "sets"],
};

const BY_INCEPTION: readonly Metric[] = ["rfid", "fid", "sfid", "is", "kid", "precision", "recall"];

/** The scores to take; more of them may turn out not to apply. */
export class Chosen {
  readonly #left: Set<Metric>;
  /** Which metrics are left out, and why. */
  readonly #notes: string[] = [];

  constructor(private readonly explicit: boolean, metrics: readonly Metric[]) {
    this.#left = new Set(metrics);
  }

  any(...metrics: readonly Metric[]): boolean {
    return metrics.some((metric) => this.#left.has(metric));
  }

  /** Says what is left out, before anything is computed. @throws UsageError when no score is left */
  settle(note: (line: string) => void): void {
    if (this.#left.size === 0) {
      throw new UsageError(`Cannot score anything of that: no score applies: ${this.#notes.join("; ")}`);
    }
    for (const text of this.#notes.splice(0)) note(`left out: ${text}`);
  }

  /** Takes metrics out for a reason, if there is one. @throws UsageError when they were asked for */
  exclude(metrics: readonly Metric[], reason: string | false | undefined): void {
    this.excludeEach(metrics, () => reason);
  }

  /** Takes out each metric that has a reason for it. @throws UsageError when it was asked for */
  excludeEach<M extends Metric>(
    metrics: readonly M[],
    reasonOf: (metric: M) => string | false | undefined,
  ): void {
    const reasons = new Map<string, Metric[]>();
    for (const metric of metrics) {
      const reason = this.#left.has(metric) && reasonOf(metric);
      if (!reason) continue;
      if (this.explicit) throw new UsageError(`Cannot score "${metric}": ${reason}`);
      this.#left.delete(metric);
      reasons.set(reason, [...reasons.get(reason) ?? [], metric]);
    }
    for (const [reason, left] of reasons) this.#notes.push(`${left.join(", ")} (${reason})`);
  }

  /** Keeps the scores that something of this kind has; the others are no loss. @throws UsageError when they were asked for */
  keepOf(subject: Subject): void {
    for (const metric of METRICS) {
      if (OF[metric].includes(subject)) continue;
      if (this.#left.delete(metric) && this.explicit) {
        const of = OF[metric].map((s) => SUBJECTS[s]).join(" or ");
        throw new UsageError(
          `Cannot score "${metric}": it is a score of ${of}, and this is ${SUBJECTS[subject]}`,
        );
      }
    }
  }
}

/** @throws UsageError when a score was asked for that does not apply, or whose file was not given */
export function chosenMetrics(
  c: Pick<EvalConfig, "metrics" | "inception" | "lpips">,
  subject: Subject,
): Chosen {
  const chosen = new Chosen(c.metrics !== undefined, c.metrics ?? METRICS);
  chosen.keepOf(subject);
  chosen.exclude(BY_INCEPTION, c.inception === undefined && `it needs --inception FILE: ${INCEPTION_FILE}`);
  chosen.exclude(["lpips"], c.lpips === undefined && `it needs --lpips FILES: ${LPIPS_FILES}`);
  return chosen;
}

/** Scores as they come. What fails is kept for the end, and the rest goes on. */
export class Results {
  readonly scores: Record<string, number> = {};
  #failure: Error | undefined;

  /** Computes scores. @throws what is no fault of these scores, such as a lost device */
  readonly take = async (score: () => Promise<Record<string, number>>): Promise<void> => {
    try {
      Object.assign(this.scores, await score());
    } catch (error) {
      this.fail(error);
    }
  };

  fail(error: unknown): void {
    if (!(error instanceof UsageError || error instanceof ShapeError)) throw error;
    this.#failure ??= error;
  }

  /** The same score, which adds no more once it has failed. */
  guarded(pair: PairScore): PairScore {
    let failed = false;
    const fail = (error: unknown) => {
      failed = true;
      this.fail(error);
    };
    return {
      add: async (originals, made) => failed ? undefined : await pair.add(originals, made).catch(fail),
      scores: async () => failed ? {} : await pair.scores().catch(fail) ?? {},
    };
  }

  /** @throws the first failure, if there was one */
  rethrow(): void {
    if (this.#failure) throw this.#failure;
  }
}
