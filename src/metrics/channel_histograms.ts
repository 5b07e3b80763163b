// How the values of each channel of latents are distributed: counts in bins around the mean of the first images.

import { ChannelStatistics } from "../formats/channel_statistics.ts";

/** Bins of a channel; the outer ones hold all that is beyond. */
const BINS = 48;
/** Half the width of all bins, in standard deviations of the first images. */
const REACH = 4;

/** Counts of a channel. */
export interface ChannelHistogram {
  /** Outer edges of the bins. */
  from: number;
  to: number;
  counts: readonly number[];
}

export class ChannelHistograms {
  #ranges: { from: number; width: number }[] = [];
  readonly #counts: Float64Array;

  constructor(readonly channels: number) {
    this.#counts = new Float64Array(channels * BINS);
  }

  /** Adds latents [..., channels]. */
  add(latents: Float32Array): void {
    const { channels } = this;
    if (this.#ranges.length === 0) {
      const first = new ChannelStatistics(channels);
      first.add(latents, 1);
      const { mean } = first;
      this.#ranges = [...first.std()].map((std, c) => {
        const reach = REACH * (std > 0 ? std : 1);
        return { from: (mean[c] as number) - reach, width: 2 * reach / BINS };
      });
    }
    for (let i = 0; i < latents.length; i++) {
      const c = i % channels, { from, width } = this.#ranges[c] as { from: number; width: number };
      const bin = Math.floor(((latents[i] as number) - from) / width);
      const at = c * BINS + Math.max(0, Math.min(BINS - 1, bin));
      this.#counts[at] = (this.#counts[at] as number) + 1;
    }
  }

  /** A histogram for each channel; none before values were added. */
  get all(): ChannelHistogram[] {
    return this.#ranges.map(({ from, width }, c) => ({
      from,
      to: from + BINS * width,
      counts: [...this.#counts.subarray(c * BINS, (c + 1) * BINS)],
    }));
  }
}
