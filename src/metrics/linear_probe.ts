// Class information in features: linear probe and k nearest neighbours. The probe is multinomial logistic regression on
// standardised features with a small L2 penalty, trained on all rows at once from zero by L-BFGS: its objective has one minimum,
// so that no seed and no learning rate decides what it predicts.

import { UsageError } from "../errors.ts";
import { DotProducts, padded, setRow } from "./dot_products.ts";
import { minimise, type Minimum, type Objective } from "./lbfgs.ts";
import type { ProbeIngredients } from "./ingredients.ts";
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
/** Features, f64, that fit into the 4 GiB of a WebAssembly memory with weights and gradients. */
const MAX_NUMBERS = 4e8;

/**
 * Trains a probe.
 * @param maxIterations of L-BFGS
 * @throws UsageError for fewer than two images per class
 */
export function trainProbe(
  features: Features,
  labels: ArrayLike<number>,
  classes: number,
  maxIterations = MAX_ITERATIONS,
): Probe {
  const { rows, columns } = features;
  if (rows < 2 * classes || labels.length !== rows) {
    throw new UsageError(`Cannot train a probe: ${rows} images for ${classes} classes are too few`);
  }
  if (rows * columns > MAX_NUMBERS) {
    throw new UsageError(
      `Cannot train a probe: ${rows} images of ${columns} features are more than ${MAX_NUMBERS} numbers; ` +
        `use fewer images`,
    );
  }
  const scale = scaleOf(features), start = new Float64Array(classes * (columns + 1));
  const options = { tolerance: TOLERANCE, maxIterations };
  const { x: weight, ...fit } = minimise(objective(features, scale, labels, classes), start, options);
  return { classes, ...scale, weight, fit };
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
function scaleOf({ data, rows, columns }: Features): Pick<Probe, "mean" | "std"> {
  const mean = new Float64Array(columns), std = new Float64Array(columns);
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      mean[c] = (mean[c] as number) + (data[r * columns + c] as number) / rows;
    }
  }
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      std[c] = (std[c] as number) + ((data[r * columns + c] as number) - (mean[c] as number)) ** 2 / rows;
    }
  }
  std.forEach((v, c) => std[c] = Math.sqrt(v) + 1e-6);
  return { mean, std };
}

/** The objective as a function of the weights [classes, columns + 1]. */
function objective(
  { data, rows, columns }: Features,
  { mean, std }: Pick<Probe, "mean" | "std">,
  labels: ArrayLike<number>,
  classes: number,
): Objective {
  // Sizes are zero-padded to multiples of four, as DotProducts needs.
  const D = columns + 1, N = padded(D), R = padded(rows), K = padded(classes);
  const forward = new DotProducts(R + K, N, R, K); // standardised rows, then weights; sums: logits
  const backward = new DotProducts(N + K, R, K, N); // columns of these rows, then errors; sums: gradient
  const row = new Float64Array(D).fill(1);
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      row[c] = ((data[r * columns + c] as number) - (mean[c] as number)) / (std[c] as number);
    }
    setRow(forward, r, row);
    for (let c = 0; c < D; c++) backward.panels[backward.at(c) + 4 * r] = row[c] as number;
  }
  return (weight, gradient) => {
    for (let k = 0; k < classes; k++) setRow(forward, R + k, weight.subarray(k * D, (k + 1) * D));
    forward.sums.fill(0);
    forward.add([0, R], [R, R + K]);
    let loss = 0;
    for (let r = 0; r < rows; r++) {
      const label = labels[r] as number, logits = forward.sums.subarray(r * K, r * K + classes);
      loss += softmax(logits, label) / rows;
      for (let k = 0; k < classes; k++) {
        backward.panels[backward.at(N + k) + 4 * r] = ((logits[k] as number) - (label === k ? 1 : 0)) / rows;
      }
    }
    backward.sums.fill(0);
    backward.add([N, N + K], [0, N]);
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

/** The most likely class of each row. */
export function predict(
  { classes, mean, std, weight }: Probe,
  { data, rows, columns }: Features,
): Int32Array {
  const D = columns + 1, row = new Float64Array(D).fill(1), logits = new Float64Array(classes);
  return Int32Array.from({ length: rows }, (_, r) => {
    for (let c = 0; c < columns; c++) {
      row[c] = ((data[r * columns + c] as number) - (mean[c] as number)) / (std[c] as number);
    }
    score(weight, row, logits);
    return logits.indexOf(Math.max(...logits));
  });
}

/** Share of rows whose prediction is their label. */
export function accuracy(predicted: ArrayLike<number>, labels: ArrayLike<number>): number {
  let hits = 0;
  for (let i = 0; i < labels.length; i++) if (predicted[i] === labels[i]) hits++;
  return hits / labels.length;
}

/** Labels by the vote of the k nearest training rows by cosine; ties go to the nearer. */
export function nearest(train: Features, labels: ArrayLike<number>, test: Features, k = 5): Int32Array {
  const n = train.columns;
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
  return Int32Array.from({ length: test.rows }, (_, t) => {
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
  });
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
