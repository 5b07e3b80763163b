// Mean and standard deviation of each channel, in one pass in f64: B. P. Welford, "Note on a method for calculating corrected
// sums of squares and products" (1962).

export class ChannelStatistics {
  /** Values of each channel so far. */
  readonly count: Float64Array;
  readonly mean: Float64Array;
  /** Sums of squared differences from the mean. */
  readonly squares: Float64Array;

  constructor(readonly channels: number) {
    this.count = new Float64Array(channels);
    this.mean = new Float64Array(channels);
    this.squares = new Float64Array(channels);
  }

  /** Adds values [..., channels, inner]. @param inner 1 for channels-last */
  add(values: Float32Array, inner: number): void {
    values.forEach((value, i) => {
      const c = Math.floor(i / inner) % this.channels;
      const n = this.count[c] = (this.count[c] as number) + 1;
      const before = value - (this.mean[c] as number);
      const mean = this.mean[c] = (this.mean[c] as number) + before / n;
      this.squares[c] = (this.squares[c] as number) + before * (value - mean);
    });
  }

  /** Standard deviations, unbiased as torch.std's: sums of squares over n - 1. */
  std(): Float64Array {
    return this.squares.map((sum, c) => Math.sqrt(sum / Math.max(1, (this.count[c] as number) - 1)));
  }
}
