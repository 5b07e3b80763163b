// Class information in features: linear probe and k nearest neighbours. The probe is multinomial logistic regression on
// standardised features with a small L2 penalty, trained full-batch from zero by Nesterov's accelerated gradient with a step
// derived from the features: deterministic, without a seed or a learning rate.

import { UsageError } from "../errors.ts";
import type { Features } from "./moments.ts";
import { padded } from "./dot_products.ts";
import { addDotProducts } from "./linalg.ts";

/** A trained linear classifier. */
export interface Probe {
  classes: number;
  mean: Float64Array;
  std: Float64Array;
  /** [classes, columns + 1], the bias last. */
  weight: Float64Array;
}

const ROUNDS = 300;
const PENALTY = 1e-4;

/** Trains a probe. @throws UsageError for fewer than two images per class */
export function trainProbe(features: Features, labels: ArrayLike<number>, classes: number): Probe {
  const { data, rows, columns } = features;
  if (rows < 2 * classes || labels.length !== rows) {
    throw new UsageError(`Cannot train a probe: ${rows} images for ${classes} classes are too few`);
  }
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
  // Rows of x, columns and classes are zero-padded to multiples of four, as addDotProducts needs.
  const D = columns + 1, N = padded(D), R = padded(rows), K = padded(classes);
  const x = new Float64Array(R * N), across = new Float64Array(N * R); // [R,N] and its transpose
  let largest = 0;
  for (let r = 0; r < rows; r++) {
    let norm = 1;
    for (let c = 0; c < columns; c++) {
      const v = ((data[r * columns + c] as number) - (mean[c] as number)) / (std[c] as number);
      x[r * N + c] = v;
      norm += v * v;
    }
    x[r * N + columns] = 1;
    largest += norm / rows;
  }
  for (let r = 0; r < rows; r++) for (let c = 0; c < D; c++) across[c * R + r] = x[r * N + c] as number;
  // The curvature is at most half the mean squared length; correlated features reach a fraction of it.
  const rate = 2 / largest * 4;
  let weight = new Float64Array(K * N);
  const ahead = weight.slice();
  const logits = new Float64Array(R * K), errors = new Float64Array(K * R);
  const gradient = new Float64Array(K * N);
  for (let round = 0; round < ROUNDS; round++) {
    logits.fill(0);
    for (let r = 0; r < R; r += 4) {
      for (let k = 0; k < K; k += 4) addDotProducts(logits, K, x, r, ahead, k, N);
    }
    for (let r = 0; r < rows; r++) {
      const row = logits.subarray(r * K, r * K + classes);
      softmax(row);
      for (let k = 0; k < classes; k++) {
        const g = ((row[k] as number) - (labels[r] === k ? 1 : 0)) / rows;
        errors[k * R + r] = Math.abs(g) < 1e-12 ? 0 : g;
      }
    }
    gradient.fill(0);
    for (let k = 0; k < K; k += 4) {
      for (let c = 0; c < N; c += 4) addDotProducts(gradient, N, errors, k, across, c, R);
    }
    const momentum = round / (round + 3), next = new Float64Array(K * N);
    for (let i = 0; i < next.length; i++) {
      const w = ahead[i] as number;
      next[i] = w - rate * ((gradient[i] as number) + PENALTY * w);
      ahead[i] = (next[i] as number) + momentum * ((next[i] as number) - (weight[i] as number));
    }
    weight = next;
  }
  const plain = new Float64Array(classes * D);
  for (let k = 0; k < classes; k++) plain.set(weight.subarray(k * N, k * N + D), k * D);
  return { classes, mean, std, weight: plain };
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

function softmax(x: Float64Array): void {
  const top = Math.max(...x);
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += x[i] = Math.exp((x[i] as number) - top);
  for (let i = 0; i < x.length; i++) x[i] = (x[i] as number) / sum;
}
