// Which scores `tok eval` takes: those asked for, or all that apply. A score that was asked for and cannot be taken is an
// error that says why; one that was not asked for is left out.

import { type EvalConfig, type Metric, METRICS } from "../src/config.ts";
import { UsageError } from "../src/errors.ts";
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

  constructor(private readonly explicit: boolean, metrics: readonly Metric[]) {
    this.#left = new Set(metrics);
  }

  any(...metrics: readonly Metric[]): boolean {
    return metrics.some((metric) => this.#left.has(metric));
  }

  /** @throws UsageError when none is left */
  needSome(): void {
    if (this.#left.size > 0) return;
    throw new UsageError(
      `Cannot score anything of that: no score applies; give --inception FILE (${INCEPTION_FILE}) for those of sets`,
    );
  }

  /** Takes metrics out for a reason, if there is one. @throws UsageError when they were asked for */
  exclude(metrics: readonly Metric[], reason: string | false | undefined): void {
    if (!reason) return;
    for (const metric of metrics) {
      if (this.#left.delete(metric) && this.explicit) {
        throw new UsageError(`Cannot score "${metric}": ${reason}`);
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
  for (const metric of METRICS) {
    const of = OF[metric].map((s) => SUBJECTS[s]).join(" or ");
    chosen.exclude(
      [metric],
      !OF[metric].includes(subject) && `it is a score of ${of}, and this is ${SUBJECTS[subject]}`,
    );
  }
  chosen.exclude(BY_INCEPTION, c.inception === undefined && `it needs --inception FILE: ${INCEPTION_FILE}`);
  chosen.exclude(["lpips"], c.lpips === undefined && `it needs --lpips FILES: ${LPIPS_FILES}`);
  return chosen;
}
