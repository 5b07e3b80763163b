// Prefetching: several values are computed while the caller uses the latest one.

/** Bytes of prefetched values, apart from the one that the caller uses; at least one value. */
const READY_BYTES = 128 * 1024 * 1024;
const MAX_AHEAD = 16;

/** The number of batches to prefetch: one without workers, more with them. */
export function depthOf(source: { parallel?: number }, batchBytes: number): number {
  if (!source.parallel) return 1;
  return Math.max(1, Math.min(MAX_AHEAD, Math.floor(READY_BYTES / batchBytes)));
}

/** Yields `make(from)`, ..., `make(to - 1)`, or throws its error, while up to `depth` more are computed. */
export async function* ahead<T>(
  make: (n: number) => Promise<T>,
  { from = 0, to = Infinity, depth }: { from?: number; to?: number; depth: number },
): AsyncGenerator<T, void> {
  const underWay: Promise<T>[] = [];
  let next = from;
  const fill = () => {
    while (underWay.length < depth && next < to) {
      const value = make(next++);
      value.catch(() => {});
      underWay.push(value);
    }
  };
  for (fill(); underWay.length > 0;) {
    const value = await underWay.shift() as T;
    fill();
    yield value;
  }
}
