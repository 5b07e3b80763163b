// Class information in features: linear probe and k nearest neighbours. The probe is multinomial logistic regression on
// standardised features with a small L2 penalty, trained on all rows at once from zero by L-BFGS: its objective has one minimum,
// so that no seed and no learning rate decides what it predicts. Long computations yield to the event loop, as in linalg.ts.

import { NotFiniteError, UsageError } from "../errors.ts";
import { notFinite } from "../formats/finite.ts";
import type { Log } from "../run/log.ts";
import { DotProducts, padded, setRow } from "./dot_products.ts";
import { minimise, type Minimum, type Objective } from "./lbfgs.ts";
import type { ProbeIngredients } from "./ingredients.ts";
import { breather } from "./linalg.ts";
import type { Features } from "./moments.ts";

/** A trained linear classifier. */
export interface Probe {
  classes: number;
  /** Of the columns of the training rows; 1e-6 is added to each standard deviation. */
  mean: Float64Array;
  std: Float64Array;
  /** [classes, columns + 1] of standardised rows, the bias last. */
  weight: Float64Array;
  /** How the training ended; `value` is the objective. */
  fit: Omit<Minimum, "x">;
}

/** The objective is the mean cross-entropy + PENALTY / 2 |weight|^2, with the bias among the weights. */
const PENALTY = 1e-4;
/** Training ends where the gradient's norm is this share of that at zero: the objective is then minimal to about 1e-8. */
const TOLERANCE = 1e-6;
const MAX_ITERATIONS = 1000;
/** Features, logits and weights, f64, that fit into the 4 GiB of a WebAssembly memory with padding. */
const MAX_NUMBERS = 4e8;
/** Multiplications of a GEMM between two yields to the event loop, about 10 ms; at least 64 rows, which share loads. */
const MULTIPLICATIONS = 1e7;

/**
 * Trains a probe.
 * @param options.maxIterations of L-BFGS
 * @param options.of what the features are of, for messages ["training images"]
 * @throws UsageError for fewer than two images per class
 * @throws NotFiniteError for features that are not finite
 */
export async function trainProbe(
  features: Features,
  labels: ArrayLike<number>,
  classes: number,
  { maxIterations = MAX_ITERATIONS, of = "training images", progress }: {
    maxIterations?: number | undefined;
    of?: string;
    progress?: Log["progress"] | undefined;
  } = {},
): Promise<Probe> {
  const { rows, columns } = features;
  if (rows < 2 * classes || labels.length !== rows) {
    throw new UsageError(`Cannot train a probe: ${rows} images for ${classes} classes are too few`);
  }
  if (rows * columns + rows * classes + classes * columns > MAX_NUMBERS) {
    throw new UsageError(
      `Cannot train a probe: ${rows} images of ${columns} features and ${classes} classes are more than ` +
        `${MAX_NUMBERS} numbers; use fewer images`,
    );
  }
  refuseNotFinite(features, of);
  const scale = await scaleOf(features), start = new Float64Array(classes * (columns + 1));
  const bar = progress?.("linear probe", 100, "% converged");
  let least = 1; // the gradient falls about exponentially, with rises
  const onIteration = (done: number, gradient: number) => {
    least = Math.min(least, gradient);
    const share = Math.max(done / maxIterations, Math.log(least) / Math.log(TOLERANCE));
    bar?.update(Math.floor(99 * Math.min(1, share)), `iteration ${done}`);
  };
  const options = { tolerance: TOLERANCE, maxIterations, onIteration };
  try {
    const all = await objective(features, scale, labels, classes);
    const { x: weight, ...fit } = await minimise(all, start, options);
    return { classes, ...scale, weight, fit };
  } finally {
    bar?.end();
  }
}

/** @throws NotFiniteError for features that are not finite */
function refuseNotFinite({ data, columns }: Features, of: string): void {
  const fault = notFinite(data);
  if (fault === undefined) return;
  const row = Math.floor(data.findIndex((v) => v - v !== 0) / columns);
  throw new NotFiniteError(
    `Cannot use the features of the ${of}: those of image ${row} hold ${fault}; use other weights, or remove the image`,
  );
}

/** What to say of a probe whose training did not converge; undefined if it did. */
export function cautionOfProbe({ fit }: Probe): string | undefined {
  if (fit.converged) return undefined;
  return `the linear probe did not converge: after ${fit.iterations} iterations of L-BFGS the gradient is ` +
    `${fit.gradient.toExponential(1)} of that at zero, not ${TOLERANCE}; its accuracy may still change`;
}

/** How a probe was trained, for metrics.json. */
export function probeIngredients({ fit: { iterations, converged } }: Probe): ProbeIngredients {
  return {
    optimizer: `L-BFGS from zero, history 10, until the gradient is ${TOLERANCE} of that at zero`,
    objective: "mean cross-entropy + penalty / 2 * squared norm of the weights, with bias",
    penalty: PENALTY,
    features: "standardized by mean and standard deviation of the training images",
    ...{ iterations, converged },
  };
}

/** Mean and standard deviation of each column. */
async function scaleOf({ data, rows, columns }: Features): Promise<Pick<Probe, "mean" | "std">> {
  const breathe = breather(), mean = new Float64Array(columns), std = new Float64Array(columns);
  for (let r = 0; r < rows; r++) {
    await breathe();
    for (let c = 0; c < columns; c++) {
      mean[c] = (mean[c] as number) + (data[r * columns + c] as number) / rows;
    }
  }
  for (let r = 0; r < rows; r++) {
    await breathe();
    for (let c = 0; c < columns; c++) {
      std[c] = (std[c] as number) + ((data[r * columns + c] as number) - (mean[c] as number)) ** 2 / rows;
    }
  }
  std.forEach((v, c) => std[c] = Math.sqrt(v) + 1e-6);
  return { mean, std };
}

/** The objective as a function of the weights [classes, columns + 1]. */
async function objective(
  { data, rows, columns }: Features,
  { mean, std }: Pick<Probe, "mean" | "std">,
  labels: ArrayLike<number>,
  classes: number,
): Promise<Objective> {
  // Sizes are zero-padded to multiples of four, as DotProducts needs.
  const D = columns + 1, N = padded(D), R = padded(rows), K = padded(classes);
  const forward = new DotProducts(R + K, N, R, K); // standardised rows, then weights; sums: logits
  const backward = new DotProducts(N + K, R, K, N); // columns of these rows, then errors; sums: gradient
  const row = new Float64Array(D).fill(1), breathe = breather();
  for (let r = 0; r < rows; r++) {
    await breathe();
    for (let c = 0; c < columns; c++) {
      row[c] = ((data[r * columns + c] as number) - (mean[c] as number)) / (std[c] as number);
    }
    setRow(forward, r, row);
    for (let c = 0; c < D; c++) backward.panels[backward.at(c) + 4 * r] = row[c] as number;
  }
  /** Rows, or columns, of a GEMM at a time: each sum has the same order of additions, whatever their number. */
  const atATime = (each: number) => padded(Math.max(64, Math.ceil(MULTIPLICATIONS / each)));
  const rowsAtATime = atATime(N * K), columnsAtATime = atATime(R * K);
  return async (weight, gradient) => {
    for (let k = 0; k < classes; k++) setRow(forward, R + k, weight.subarray(k * D, (k + 1) * D));
    forward.sums.fill(0);
    for (let r = 0; r < R; r += rowsAtATime) {
      await breathe();
      forward.add([r, Math.min(R, r + rowsAtATime)], [R, R + K], { sumTop: 0 });
    }
    let loss = 0;
    for (let r = 0; r < rows; r++) {
      const label = labels[r] as number, logits = forward.sums.subarray(r * K, r * K + classes);
      loss += softmax(logits, label) / rows;
      for (let k = 0; k < classes; k++) {
        backward.panels[backward.at(N + k) + 4 * r] = ((logits[k] as number) - (label === k ? 1 : 0)) / rows;
      }
    }
    backward.sums.fill(0);
    for (let c = 0; c < N; c += columnsAtATime) {
      await breathe();
      backward.add([N, N + K], [c, Math.min(N, c + columnsAtATime)], { sumLeft: 0 });
    }
    for (let k = 0; k < classes; k++) {
      for (let c = 0; c < D; c++) {
        const w = weight[k * D + c] as number;
        gradient[k * D + c] = (backward.sums[k * N + c] as number) + PENALTY * w;
        loss += PENALTY / 2 * w * w;
      }
    }
    return loss;
  };
}

/**
 * The most likely class of each row.
 * @param of what the features are of, for messages
 * @throws NotFiniteError for features that are not finite
 */
export async function predict(
  { classes, mean, std, weight }: Probe,
  features: Features,
  of = "test images",
): Promise<Int32Array> {
  const { data, rows, columns } = features, breathe = breather(), predicted = new Int32Array(rows);
  const D = columns + 1, row = new Float64Array(D).fill(1), logits = new Float64Array(classes);
  refuseNotFinite(features, of);
  for (let r = 0; r < rows; r++) {
    await breathe();
    for (let c = 0; c < columns; c++) {
      row[c] = ((data[r * columns + c] as number) - (mean[c] as number)) / (std[c] as number);
    }
    score(weight, row, logits);
    predicted[r] = logits.indexOf(Math.max(...logits));
  }
  return predicted;
}

/** Share of rows whose prediction is their label. */
export function accuracy(predicted: ArrayLike<number>, labels: ArrayLike<number>): number {
  let hits = 0;
  for (let i = 0; i < labels.length; i++) if (predicted[i] === labels[i]) hits++;
  return hits / labels.length;
}

/**
 * Labels by the vote of the k nearest training rows by cosine; ties go to the nearer.
 * @throws NotFiniteError for features that are not finite
 */
export async function nearest(
  train: Features,
  labels: ArrayLike<number>,
  test: Features,
  k = 5,
): Promise<Int32Array> {
  const n = train.columns, breathe = breather(), found = new Int32Array(test.rows);
  refuseNotFinite(train, "training images");
  refuseNotFinite(test, "test images");
  const unit = ({ data, rows }: Features) => {
    const out = new Float64Array(rows * n);
    for (let r = 0; r < rows; r++) {
      let norm = 0;
      for (let c = 0; c < n; c++) norm += (data[r * n + c] as number) ** 2;
      for (let c = 0; c < n; c++) out[r * n + c] = (data[r * n + c] as number) / (Math.sqrt(norm) + 1e-12);
    }
    return out;
  };
  const a = unit(train), b = unit(test);
  const vote = (t: number): number => {
    const best: [number, number][] = [];
    for (let r = 0; r < train.rows; r++) {
      let dot = 0;
      for (let c = 0; c < n; c++) dot += (a[r * n + c] as number) * (b[t * n + c] as number);
      if (best.length < k || dot > (best.at(-1) as [number, number])[0]) {
        best.push([dot, labels[r] as number]);
        best.sort((p, q) => q[0] - p[0]);
        if (best.length > k) best.pop();
      }
    }
    const votes = new Map<number, number>();
    for (const [, label] of best) votes.set(label, (votes.get(label) ?? 0) + 1);
    const most = Math.max(...votes.values());
    return best.find(([, label]) => votes.get(label) === most)?.[1] ?? 0;
  };
  for (let t = 0; t < test.rows; t++) {
    await breathe();
    found[t] = vote(t);
  }
  return found;
}

function score(weight: Float64Array, row: Float64Array, out: Float64Array): void {
  const D = row.length;
  for (let k = 0; k < out.length; k++) {
    let sum = 0;
    for (let c = 0; c < D; c++) sum += (weight[k * D + c] as number) * (row[c] as number);
    out[k] = sum;
  }
}

/** Replaces logits by probabilities. @returns the cross-entropy with a label */
function softmax(x: Float64Array, label: number): number {
  let top = -Infinity, sum = 0;
  for (let i = 0; i < x.length; i++) top = Math.max(top, x[i] as number);
  const logit = (x[label] as number) - top;
  for (let i = 0; i < x.length; i++) sum += x[i] = Math.exp((x[i] as number) - top);
  for (let i = 0; i < x.length; i++) x[i] = (x[i] as number) / sum;
  return Math.log(sum) - logit;
}
