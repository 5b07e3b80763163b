// Sampling options that do not go together, and the number of network evaluations of what was sampled.

import { type Origins, refuseWithoutEffect } from "../cli/conditions.ts";
import { SAMPLING, type SamplingConfig } from "../cli/sampling_conditions.ts";
import { gridOf } from "./samplers.ts";

/**
 * Checks the sampling options of a command.
 * @param origins of the options
 * @throws UsageError for an option without effect, and for too few steps
 */
export function checkSampling(c: SamplingConfig, origins?: Origins): void {
  refuseWithoutEffect(c, SAMPLING, origins);
  gridOf(c);
}

/** A number of evaluations to two decimals: a pass between key steps is a part of one. */
export const roundedNfe = (nfe: number): number => Math.round(100 * nfe) / 100;

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
    if (!this.#images) return {};
    return { nfe: roundedNfe(this.#sum / this.#images), nfe_max: roundedNfe(this.#max) };
  }

  /** Such as ", 40 NFE"; empty if no image was made. */
  toString(): string {
    const { nfe, nfe_max: max } = this.result;
    if (nfe === undefined) return "";
    return nfe === max ? `, ${nfe} NFE` : `, ${nfe} NFE on average (at most ${max})`;
  }
}
