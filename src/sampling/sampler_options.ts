// Which options of a sampler have an effect, and refusing the others.

import { kebab, type Origin } from "../cli/flags.ts";
import { UsageError } from "../errors.ts";
import { gridOf, type SamplerOptions } from "./samplers.ts";

/** A condition of an option, and why the option has no effect where it does not hold. */
type Condition = readonly [holds: (c: SamplerOptions) => boolean, otherwise: string];

const GRID: Condition = [(c) => c.sampler !== "dopri5", "dopri5 chooses its own steps"];
const DOPRI5: Condition = [(c) => c.sampler === "dopri5", "it is for --sampler dopri5"];
const SDE: Condition = [(c) => c.sampler === "sde", "it is for --sampler sde"];
const SHIFTED: Condition = [
  (c) => c.spacing !== "uniform" && c.spacing !== "log-snr",
  "it is for --spacing shifted",
];

/** Options of some samplers. */
const CONDITIONAL = {
  steps: [GRID],
  spacing: [GRID],
  shift: [GRID, SHIFTED],
  atol: [DOPRI5],
  rtol: [DOPRI5],
  diffusionForm: [SDE],
  lastStep: [SDE],
  lastStepSize: [SDE],
  reuseEncoder: [GRID],
} as const satisfies Partial<Record<keyof SamplerOptions, readonly Condition[]>>;

const CONDITIONS = Object.entries(CONDITIONAL) as [keyof typeof CONDITIONAL, readonly Condition[]][];

/** The options that the sampler does not read. */
export const withoutEffect = (c: SamplerOptions): (keyof typeof CONDITIONAL)[] =>
  CONDITIONS.filter(([, conditions]) => conditions.some(([holds]) => !holds(c))).map(([option]) => option);

/**
 * Checks that the sampler reads each option from the command line.
 * @param origins of the options
 * @throws UsageError for an option without effect, and for too few steps
 */
export function checkSamplerOptions(c: SamplerOptions, origins: Readonly<Record<string, Origin>> = {}): void {
  for (const [option, conditions] of CONDITIONS) {
    const failed = conditions.find(([holds]) => !holds(c));
    if (origins[option] !== "command line" || !failed) continue;
    throw new UsageError(`Cannot use --${kebab(option)}: ${failed[1]}; leave it out`);
  }
  gridOf(c);
}

/** Evaluations of the network for each image (NFE): mean and maximum. */
export class Evaluations {
  #images = 0;
  #sum = 0;
  #max = 0;

  /** Passes images on and counts their evaluations. */
  async *of<T extends { evaluations: number }>(images: AsyncIterable<T>): AsyncGenerator<T> {
    for await (const image of images) {
      this.#images++;
      this.#sum += image.evaluations;
      this.#max = Math.max(this.#max, image.evaluations);
      yield image;
    }
  }

  /** For a command's last JSON line; nothing if no image was made. */
  get result(): { nfe?: number; nfe_max?: number } {
    return this.#images ? { nfe: this.#sum / this.#images, nfe_max: this.#max } : {};
  }

  /** Such as ", 40 NFE"; empty if no image was made. */
  toString(): string {
    const { nfe, nfe_max: max } = this.result;
    if (nfe === undefined) return "";
    return nfe === max ? `, ${nfe} NFE` : `, ${nfe.toFixed(1)} NFE on average (at most ${max})`;
  }
}
