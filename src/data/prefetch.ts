// Values that are made before they are needed: several are under way while the caller works on the latest one.

/** Bytes that may lie ready. */
const READY_BYTES = 128 * 1024 * 1024;
const MAX_AHEAD = 16;

/** How many batches to keep ahead: one where they are made on this thread, more where workers make them. */
export function depthOf(source: { parallel?: number }, batchBytes: number): number {
  if (!source.parallel) return 1;
  return Math.max(1, Math.min(MAX_AHEAD, Math.floor(READY_BYTES / batchBytes)));
}

/**
 * `make(from)`, ..., `make(to - 1)`, in order; up to `depth` more are under way while one is used. An error is thrown when
 * its turn comes, if it does.
 */
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
