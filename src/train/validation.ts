// Validation during a run: every N steps the weights that would be the result, averages included, are scored on held-out images.
// Scores go to the log, to TensorBoard and to the progress line; the best checkpoint is kept. Training does not change by a bit.

import { join } from "@std/path";
import type { Image } from "../image/rows.ts";
import { UsageError } from "../errors.ts";
import { type Best, keepBest, readBest } from "../run/checkpoint.ts";
import type { Log } from "../run/log.ts";
import type { Resumed } from "../run/resume.ts";

export type Scores = Readonly<Record<string, number>>;

/** Metrics that are better where they are smaller. */
const SMALLER = new Set(["lpips", "fd_encoder", "mse"]);

/** What a training validates. */
export interface Validation {
  /** Steps of the run between validations, one number or one for each kind of them; 0: only after each recipe. */
  every: number | readonly number[];
  /** What its pictures show, for TensorBoard [reconstructions]. */
  shows?: string;
  /** The metric that chooses the best checkpoint, as in --best; undefined: none is kept. */
  best: string | undefined;
  /** The metrics that {@link score} returns. */
  metrics: readonly string[];
  /** Scores and draws the weights as they are after `step` steps of the run, in recipe `index`, whichever is due. */
  score(index: number, step: number): Promise<{ scores: Scores; picture?: Image }>;
  /** Writes the weights as they are as a result of its own in `folder`. */
  save(folder: string): Promise<void>;
}

/** Where scores go besides the log. */
export interface Watch {
  log: Log;
  /** Shows scores in the progress line. */
  show(text: string): void;
  /** Writes scores and a picture for TensorBoard. */
  record(step: number, scores: Scores, picture: Image | undefined): Promise<void>;
}

/** Name of the metric that chooses the best checkpoint. @throws UsageError if the run does not compute it */
export function metricOf({ best, metrics }: Validation): string | undefined {
  const metric = best?.replaceAll("-", "_");
  if (metric === undefined || metrics.includes(metric)) return metric;
  throw new UsageError(
    `Cannot choose the best checkpoint by --best ${best}: this run computes ${metrics.join(", ")} only` +
      (best === "lpips" ? "; give --lpips FILES" : "; choose one of them"),
  );
}

/** The validations of a run. */
export class Validator {
  #best: Best | undefined;
  /** Steps after which the latest validation was. */
  #latest = 0;
  /** The metric that chooses the best checkpoint; undefined: none is kept. */
  readonly #metric: string | undefined;

  /** @throws UsageError as {@link metricOf} */
  constructor(
    private readonly out: string,
    private readonly validation: Validation,
    private readonly watch: Watch,
  ) {
    this.#metric = metricOf(validation);
  }

  /** Field of a checkpoint's configuration: the step of the latest validation. */
  get latest(): number {
    return this.#latest;
  }

  get best(): Best | undefined {
    return this.#best;
  }

  /** Continues after a checkpoint. A best checkpoint of a later step is ignored: the run went back before it. */
  resume({ step, config, elsewhere }: Resumed): void {
    this.#latest = Number((config as { validated?: number }).validated ?? 0);
    const best = elsewhere ? undefined : readBest(this.out);
    if (best?.metric === this.#metric && best && best.step <= step) this.#best = best;
  }

  /** Whether a validation is due after `step` steps and was not yet done. */
  isDue(step: number): boolean {
    const due = [this.validation.every].flat().some((every) => every > 0 && step % every === 0);
    return due && step > 0 && this.#latest !== step;
  }

  /** Scores the weights as they are. @returns whether they are the best so far: their checkpoint is then to be kept */
  async run(index: number, stage: string, step: number): Promise<boolean> {
    const { scores, picture } = await this.validation.score(index, step);
    const best = await this.add(stage, step, scores, picture);
    const { shows = "reconstructions" } = this.validation;
    const text = textOf(scores) || `${picture ? "a" : "no"} picture of ${shows}`;
    this.watch.log.line(`step ${step} (${stage}): ${text}${best ? "; the best so far" : ""}`);
    return best;
  }

  /** Adds scores of the weights as they are. @returns as {@link run} */
  async add(stage: string, step: number, scores: Scores, picture?: Image): Promise<boolean> {
    const { log, show, record } = this.watch, value = scores[this.#metric ?? ""];
    this.#latest = step;
    const before = this.#best?.value, smaller = SMALLER.has(this.#metric ?? "");
    const best = value !== undefined && Number.isFinite(value) &&
      (before === undefined || (smaller ? value < before : value > before));
    if (best) this.#best = { step, metric: this.#metric as string, value };
    log.event("validation", { stage, step, ...scores, ...best ? { best } : {} });
    if (Object.keys(scores).length) show(`${textOf(scores, 1)} at ${step}`);
    await record(step, scores, picture);
    if (best) await this.validation.save(join(this.out, "best"));
    return best;
  }

  /** Keeps the checkpoint of the best step, which must be saved. */
  keep(): void {
    if (this.#best) keepBest(this.out, this.#best);
  }
}

/** The first `count` scores as text. */
function textOf(scores: Scores, count = Infinity): string {
  const shown = Object.entries(scores).slice(0, count);
  return shown.map(([name, v]) => `${name} ${v.toFixed(name === "n" ? 0 : 3)}`).join(", ");
}
