// Detection of NaN and infinity before they reach a file, an image or a metric. The caller adds where it is: the tensor, the
// file, the image.

import { UsageError } from "../errors.ts";

/** Describes the first NaN or infinity, such as "NaN (number 17 of 512)"; undefined if all numbers are finite. */
export function notFinite(data: ArrayLike<number>): string | undefined {
  for (let i = 0; i < data.length; i++) {
    const value = data[i] as number;
    if (value - value !== 0) return `${value} (number ${i} of ${data.length})`;
  }
  return undefined;
}

/**
 * Checks that latents can be normalised with these means and standard deviations.
 * @param of whose they are, for the message
 * @throws UsageError that names the channel whose mean is not finite or whose deviation is not finite and above zero
 */
export function checkStatistics(of: string, mean: ArrayLike<number>, std: ArrayLike<number>): void {
  const fault = (c: number): string | undefined => {
    const m = mean[c] as number, s = std[c] as number;
    if (m - m !== 0) return `the mean of channel ${c} is ${m}`;
    if (!(s > 0 && s < Infinity)) return `the standard deviation of channel ${c} is ${s}`;
    return undefined;
  };
  for (let c = 0; c < mean.length; c++) {
    const found = fault(c);
    if (found !== undefined) {
      throw new UsageError(
        `Cannot use the statistics of latents of ${of}: ${found}; encode the images again, or use another tokenizer`,
      );
    }
  }
}
