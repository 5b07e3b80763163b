// Mean and covariance of features, accumulated in f64 while a network computes the next ones. The lower triangle of the sum of
// outer products is divided into bands of rows, one a thread. Each element accumulates the same chunks of rows in the same
// order whatever the batches and the number of threads, so the bits depend on neither.

import { NotFiniteError, ShapeError, UsageError } from "../errors.ts";
import { bandsOf, DotProducts, padded } from "./dot_products.ts";

/** Features of many images, one row each. */
export interface Features {
  data: Float32Array;
  rows: number;
  columns: number;
}

export interface Gaussian {
  mean: Float64Array;
  /** Unbiased covariance [n, n]. */
  covariance: Float64Array;
}

/** Rows per accumulation of their outer dots. */
const CHUNK = 256;
/** Columns that are copied together: a cache line of f32. */
const LINE = 16;
/** Columns from which threads are worth their start, and the maximum number of these. */
const MIN_COLUMNS = 512, MAX_THREADS = 8;
/** Chunks that a thread may have in its queue. */
const QUEUE = 3;

/** What a band is opened with. */
export interface BandInit {
  /** The first row of all, which is subtracted from each to avoid cancellation. */
  origin: Float32Array;
  /** Rows of the sum of outer dots. */
  range: readonly [number, number];
}

/** Some rows of the sum of outer products of rows. */
export class Band {
  readonly #dots: DotProducts;

  constructor(private readonly init: BandInit) {
    const [from, to] = init.range; // columns behind the diagonal of the last row do not matter
    this.#dots = new DotProducts(to, CHUNK, to - from, to);
  }

  /** Adds up to {@link CHUNK} rows. */
  add(rows: Float32Array): void {
    const { origin, range: [from, to] } = this.init, n = origin.length, dots = this.#dots;
    const { panels } = dots, count = rows.length / n, columns = Math.min(n, to);
    panels.fill(0, 0, count < CHUNK ? panels.length : 0);
    for (let first = 0; first < columns; first += LINE) {
      const end = Math.min(columns, first + LINE);
      for (let r = 0; r < count; r++) {
        for (let i = first; i < end; i++) {
          panels[(i & ~3) * CHUNK + (i & 3) + 4 * r] = (rows[r * n + i] as number) - (origin[i] as number);
        }
      }
    }
    dots.add([from, to], [0, to], { lower: 0 });
  }

  /** The sums [to - from, to]; right of the diagonal they are undefined. */
  sums(): Float64Array<ArrayBuffer> {
    return this.#dots.sums;
  }
}

/** A message to a thread: first what its band is, then chunks, and at the end a request for the sums. */
export type BandMessage = BandInit | { rows: Float32Array } | "sums";
/** Its answer: "added" for each chunk. */
export type BandReply = "added" | { sums: Float64Array<ArrayBuffer> };

/** A band on its own thread. */
class BandThread {
  readonly #worker = new Worker(new URL("./moments_worker.ts", import.meta.url), { type: "module" });
  readonly #waiting: PromiseWithResolvers<BandReply>[] = [];

  constructor(init: BandInit) {
    this.#worker.onmessage = ({ data }: MessageEvent<BandReply>) => this.#waiting.shift()?.resolve(data);
    this.#worker.onerror = (event) => {
      event.preventDefault(); // or it would end the program where nobody can catch it
      const [reason] = event.message.replace(/^Uncaught /, "").split("\n");
      const error = new Error(`Cannot compute the covariance: a thread stopped (${reason})`);
      for (const { reject } of this.#waiting) reject(error);
    };
    this.#worker.postMessage(init satisfies BandMessage);
  }

  /** Adds rows in shared memory; returns when the queue is short enough. */
  async add(rows: Float32Array): Promise<void> {
    this.#post({ rows });
    if (this.#waiting.length > QUEUE) await this.#waiting.at(-1 - QUEUE)?.promise;
  }

  async sums(): Promise<Float64Array<ArrayBuffer>> {
    const reply = await this.#post("sums");
    return (reply as Exclude<BandReply, string>).sums;
  }

  end(): void {
    this.#worker.terminate();
  }

  #post(message: BandMessage): Promise<BandReply> {
    const waiting = Promise.withResolvers<BandReply>();
    waiting.promise.catch(() => {}); // the last one of the queue is awaited
    this.#waiting.push(waiting);
    this.#worker.postMessage(message);
    return waiting.promise;
  }
}

/** Accumulates mean and covariance of rows; no row is kept. Dispose of it at the end: threads keep the process alive. */
export class Moments implements Disposable {
  rows = 0;
  readonly #threads: number;
  readonly #sum: Float64Array;
  #origin: Float32Array | undefined;
  /** The latest rows [CHUNK, n], in memory that is shared with threads, and the number of them that wait. */
  #chunk: Float32Array;
  #waiting = 0;
  #bands: (Band | BandThread)[] = [];
  #ranges: [number, number][] = [];
  /** Those of all rows, until rows are added. */
  #gaussian: Gaussian | undefined;

  /** @param threads which accumulate [one a core for many columns, else none]; they start with the first full chunk */
  constructor(readonly columns: number, threads?: number) {
    const cores = Math.min(MAX_THREADS, navigator.hardwareConcurrency);
    this.#threads = threads ?? (columns < MIN_COLUMNS ? 0 : cores);
    this.#sum = new Float64Array(columns);
    this.#chunk = this.#newChunk();
  }

  /** Adds complete rows. @throws ShapeError for a part of a row, UsageError for features that are not finite */
  async add(data: Float32Array): Promise<void> {
    const n = this.columns;
    if (data.length % n !== 0) throw new ShapeError(`${data.length} numbers are no rows of ${n} features`);
    this.#gaussian = undefined;
    for (let from = 0; from < data.length; from += n) {
      const row = data.subarray(from, from + n);
      if (!allFinite(row)) {
        throw new NotFiniteError("Cannot compute the covariance: a feature is not finite");
      }
      const origin = this.#origin ??= row.slice();
      for (let i = 0; i < n; i++) {
        this.#sum[i] = (this.#sum[i] as number) + ((row[i] as number) - (origin[i] as number));
      }
      this.#chunk.set(row, this.#waiting++ * n);
      this.rows++;
      if (this.#waiting < CHUNK) continue;
      if (this.#bands.length === 0) this.#start(this.#threads);
      await this.#addWaiting();
    }
  }

  /** Of all rows so far. @throws UsageError for fewer than two rows */
  async gaussian(): Promise<Gaussian> {
    if (this.#gaussian) return this.#gaussian;
    const { rows, columns: n } = this, sum = this.#sum;
    if (rows < 2) throw new UsageError(`Cannot compute the covariance: ${rows} images are too few`);
    if (this.#bands.length === 0) this.#start(0);
    if (this.#waiting > 0) await this.#addWaiting();
    const covariance = new Float64Array(n * n);
    const finish = async (band: Band | BandThread, [from, to]: readonly [number, number]) => {
      const sums = await band.sums();
      for (let i = from; i < Math.min(n, to); i++) {
        for (let j = 0; j <= i; j++) {
          const centred = (sums[(i - from) * to + j] as number) -
            (sum[i] as number) * (sum[j] as number) / rows;
          covariance[i * n + j] = covariance[j * n + i] = centred / (rows - 1);
        }
      }
    };
    await Promise.all(this.#bands.map((band, k) => finish(band, this.#ranges[k] as [number, number])));
    const mean = Float64Array.from(sum, (v, i) => (this.#origin?.[i] ?? 0) + v / rows);
    return this.#gaussian = { mean, covariance };
  }

  [Symbol.dispose](): void {
    for (const band of this.#bands) if (band instanceof BandThread) band.end();
    this.#bands = [];
  }

  async #addWaiting(): Promise<void> {
    const rows = this.#chunk.subarray(0, this.#waiting * this.columns);
    this.#chunk = this.#newChunk();
    this.#waiting = 0;
    await Promise.all(this.#bands.map((band) => band.add(rows)));
  }

  #newChunk(): Float32Array {
    return new Float32Array(new SharedArrayBuffer(4 * CHUNK * this.columns));
  }

  #start(threads: number): void {
    const origin = this.#origin as Float32Array;
    this.#ranges = bandsOf(padded(this.columns), Math.max(1, threads));
    this.#bands = this.#ranges.map((range) =>
      threads === 0 ? new Band({ origin, range }) : new BandThread({ origin, range })
    );
  }
}

/** Whether all numbers are finite, without a call for each of them. */
export function allFinite(values: Float32Array | Float64Array): boolean {
  let zero = 0; // NaN from the first number on that is not finite
  for (let k = 0; k < values.length; k++) zero += (values[k] as number) - (values[k] as number);
  return zero === 0;
}

/**
 * Mean and covariance of features.
 * @throws UsageError for fewer than two rows or features that are not finite, ShapeError if data is not [rows, columns]
 */
export async function gaussian({ data, rows, columns }: Features): Promise<Gaussian> {
  if (data.length !== rows * columns) {
    throw new ShapeError(`features [${rows}, ${columns}] have ${data.length} numbers`);
  }
  using moments = new Moments(columns);
  await moments.add(data);
  return await moments.gaussian();
}
