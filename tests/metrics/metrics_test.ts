// The scores against independent computations.

import { assert, assertEquals, assertRejects } from "@std/assert";
import { UsageError } from "../../src/errors.ts";
import { DotProducts, padded, setRow } from "../../src/metrics/dot_products.ts";
import { frechet } from "../../src/metrics/frechet.ts";
import { type Features, gaussian, Moments } from "../../src/metrics/moments.ts";
import { accuracy, nearest, predict, trainProbe } from "../../src/metrics/linear_probe.ts";
import { mse, psnr, ssim } from "../../src/metrics/psnr_ssim.ts";
import { symmetricEigenvalues } from "../../src/metrics/eigenvalues.ts";
import { breather, choleskyFactor } from "../../src/metrics/linalg.ts";
import { normal } from "../../src/philox.ts";
import fixture from "../fixtures/frechet.json" with { type: "json" };

const features = (data: number[] | Float32Array, rows: number, columns: number): Features => ({
  data: Float32Array.from(data),
  rows,
  columns,
});

for (const { rows, columns, a, b, distance } of fixture.cases) {
  Deno.test(`frechet() of ${rows} x ${columns} features equals scipy's, both ways round`, async () => {
    const [p, q] = [await gaussian(features(a, rows, columns)), await gaussian(features(b, rows, columns))];
    const got = [await frechet(p, q), await frechet(q, p)];
    for (const value of got) assert(Math.abs(value / distance - 1) < 1e-6, `${value} against ${distance}`);
    assert(await frechet(p, p) < 1e-6 * distance);
  });
}

for (
  const [n, values] of [
    [13, [9, 9, 5, 4, 2.5, 1, 0.3, 0.01, 1e-4, 0, 0, 0, 0]],
    [102, Array.from({ length: 102 }, (_, k) => k < 91 ? 9 * 0.9 ** k : 0)], // several blocks of columns, the last one partial
  ] as const
) {
  Deno.test(`symmetricEigenvalues() finds the ${n} values a matrix was made of, and choleskyFactor() its rank`, async () => {
    const vectors = orthonormal(n), A = new Float64Array(n * n);
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < n; j++) {
        A[i * n + j] = values.reduce((s, v, k) => s + v * vectors[k * n + i]! * vectors[k * n + j]!, 0);
      }
    }
    const { rank, order, upper } = await choleskyFactor(A, n, breather());
    assertEquals(rank, values.filter((v) => v > 0).length);
    assertEquals([...order].sort((a, b) => a - b), Array.from({ length: n }, (_, k) => k));
    for (let i = 0; i < n; i++) {
      for (let k = i + 1; k < rank; k++) assert(upper[k * padded(n) + i] === 0);
      for (let j = 0; j < n; j++) {
        let sum = 0;
        for (let k = 0; k < rank; k++) sum += upper[k * padded(n) + i]! * upper[k * padded(n) + j]!;
        assert(Math.abs(sum - A[order[i]! * n + order[j]!]!) < 1e-12);
      }
    }
    const found = await symmetricEigenvalues(A, n, n, breather());
    [...found].sort((a, b) => b - a).forEach((v, k) => {
      assert(Math.abs(v - values[k]!) < 1e-14 * (n + 10), `${v}, not ${values[k]}`);
    });
  });
}

Deno.test("equal images have a covariance of rank zero: the distance is that of the means and the other trace", async () => {
  const set = (data: number[]) => gaussian({ data: Float32Array.from(data), rows: 2, columns: 2 });
  const constant = await set([1, 2, 1, 2]), other = await set([0, 2, 2, 2]);
  assertEquals(await frechet(constant, constant), 0);
  assertEquals(await frechet(constant, other), 2);
});

/** n orthonormal rows, by Gram and Schmidt from random ones. */
function orthonormal(n: number): Float64Array {
  const rows = Float64Array.from(normal(1, 1, n * n));
  for (let i = 0; i < n; i++) {
    const row = rows.subarray(i * n, i * n + n);
    for (let twice = 0; twice < 2; twice++) {
      for (let j = 0; j < i; j++) {
        const other = rows.subarray(j * n, j * n + n);
        const along = row.reduce((s, v, k) => s + v * other[k]!, 0);
        row.forEach((v, k) => row[k] = v - along * other[k]!);
      }
    }
    const length = Math.sqrt(row.reduce((s, v) => s + v * v, 0));
    row.forEach((v, k) => row[k] = v / length);
  }
  return rows;
}

Deno.test("Moments of rows in batches equal those of two passes, also far from zero", async () => {
  const n = 7, rows = 700, data = normal(2, 1, rows * n).map((v, i) => 1000 * (i % n) + v * (1 + i % n));
  const moments = new Moments(n);
  for (const [from, to] of [[0, 1], [1, 300], [300, 301], [301, rows]] as const) {
    await moments.add(data.subarray(from * n, to * n));
  }
  const { mean, covariance } = await moments.gaussian();
  for (let i = 0; i < n; i++) {
    let average = 0;
    for (let r = 0; r < rows; r++) average += data[r * n + i]! / rows;
    assert(Math.abs(mean[i]! - average) < 1e-9);
    for (let j = 0; j < n; j++) {
      let sum = 0;
      for (let r = 0; r < rows; r++) sum += (data[r * n + i]! - mean[i]!) * (data[r * n + j]! - mean[j]!);
      assert(Math.abs(covariance[i * n + j]! - sum / (rows - 1)) < 1e-9);
    }
  }
});

Deno.test("Moments have the same bits on any number of threads, and in batches of any size", async () => {
  const n = 70, rows = 1200, data = normal(4, 1, rows * n).map((v, i) => 30 * (i % n) + v);
  const momentsOf = async (threads: number, batch: number) => {
    using moments = new Moments(n, threads);
    for (let r = 0; r < rows; r += batch) await moments.add(data.subarray(r * n, (r + batch) * n));
    return await moments.gaussian();
  };
  const expected = await momentsOf(0, rows);
  for (const [threads, batch] of [[1, 7], [3, 64], [0, 1]] as const) {
    assertEquals(await momentsOf(threads, batch), expected, `${threads} threads, batches of ${batch}`);
  }
});

Deno.test("covariances that are ill-conditioned and far from zero equal those of two passes to 1e-12", async () => {
  // Column i is 1000 + scale (a + 1e-3 b_i) in f32: condition number about 1e6 times that of the scales, 1e8.
  const n = 8, rows = 600, common = normal(5, 1, rows), own = normal(6, 1, rows * n);
  const data = own.map((v, k) => 1000 + 10 ** (k % n / 2) * (common[Math.floor(k / n)]! + 1e-3 * v));
  using moments = new Moments(n, 2);
  await moments.add(data);
  const { covariance } = await moments.gaussian();
  const sum = (values: number[]) => values.reduce((s, v) => s + v, 0);
  const centred = Array.from({ length: n }, (_, i) => {
    const values = Array.from({ length: rows }, (_, r) => data[r * n + i]!), mean = sum(values) / rows;
    return values.map((v) => v - mean);
  });
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n; j++) {
      const expected = sum(centred[i]!.map((v, r) => v * centred[j]![r]!)) / (rows - 1);
      assert(Math.abs(covariance[i * n + j]! / expected - 1) < 1e-12, `${i}, ${j}`);
    }
  }
});

Deno.test("DotProducts add the dot products of the requested pairs, longer than a block", () => {
  const length = 516, rows = 152, left = 8, values = normal(7, 1, rows * length);
  const at = (i: number, k: number) => k < i ? 0 : values[i * length + k]!; // row i starts with i zeros
  const dots = new DotProducts(rows, length, 140, 144);
  for (let i = 0; i < rows; i++) {
    setRow(dots, i, Float64Array.from({ length }, (_, k) => at(i, k)));
  }
  dots.sums.fill(1);
  dots.add([12, rows], [left, rows], { lower: 4, zeros: (i, j) => Math.max(i, j) });
  for (let i = 12; i < rows; i++) {
    for (let j = left; j < rows; j++) {
      let expected = 1;
      if (j - j % 4 <= i - i % 4 - 4) { for (let k = 0; k < length; k++) expected += at(i, k) * at(j, k); }
      const got = dots.sums[(i - 12) * 144 + j - left]!;
      assert(Math.abs(got - expected) < 1e-12 * length, `${i}, ${j}: ${got}, not ${expected}`);
    }
  }
});

Deno.test("gaussian() refuses too few images and features that are not finite", async () => {
  await assertRejects(() => gaussian(features([1, 2], 1, 2)), UsageError, "too few");
  await assertRejects(() => gaussian(features([1, NaN, 2, 3], 2, 2)), UsageError, "finite");
  const one = { mean: new Float64Array(2), covariance: Float64Array.of(1, 0, 0, 1) };
  await assertRejects(
    () => frechet(one, { ...one, covariance: Float64Array.of(1, NaN, NaN, 1) }),
    UsageError,
    "finite",
  );
  await assertRejects(
    () => frechet(one, { mean: new Float64Array(1), covariance: new Float64Array(1) }),
    UsageError,
    "2 against 1",
  );
});

Deno.test("psnr() and mse() equal their definitions; ssim() is 1 for equal images and falls with noise", () => {
  const a = Uint8Array.from({ length: 16 * 16 * 3 }, (_, i) => (i * 37) % 256);
  const b = a.map((v) => v < 250 ? v + 5 : v - 5);
  assertEquals(mse(a, b), 25);
  assert(Math.abs(psnr(a, b) - 10 * Math.log10(255 ** 2 / 25)) < 1e-12);
  assertEquals(psnr(a, a), Infinity);
  assert(Math.abs(ssim(a, a, 16, 16) - 1) < 1e-12);
  const noisy = a.map((v, i) => Math.min(255, Math.max(0, v + (i % 7 - 3) * 20)));
  assert(ssim(a, b, 16, 16) > ssim(a, noisy, 16, 16) && ssim(a, noisy, 16, 16) < 0.98);
});

Deno.test("ssim() of two flat images is the luminance term alone", () => {
  const flat = (v: number) => new Uint8Array(12 * 12 * 3).fill(v), c1 = (0.01 * 255) ** 2;
  assert(
    Math.abs(ssim(flat(100), flat(120), 12, 12) - (2 * 100 * 120 + c1) / (100 ** 2 + 120 ** 2 + c1)) < 1e-9,
  );
});

Deno.test("a probe separates linearly separable classes, nearest neighbours go by the angle, both deterministically", async () => {
  const rows = 300, columns = 6, classes = 3, noise = normal(3, 1, rows * columns);
  const labels = Uint32Array.from({ length: rows }, (_, r) => r % classes);
  const data = noise.map((v, i) =>
    v * 0.5 + (i % columns === (labels[Math.floor(i / columns)] as number) ? 3 : 0)
  );
  const half = (from: number) =>
    features(data.subarray(from * columns, (from + 150) * columns), 150, columns);
  const probe = await trainProbe(half(0), labels.subarray(0, 150), classes);
  assertEquals(accuracy(await predict(probe, half(150)), labels.subarray(150)), 1);
  assertEquals((await trainProbe(half(0), labels.subarray(0, 150), classes)).weight, probe.weight);
  assert(accuracy(await nearest(half(0), labels.subarray(0, 150), half(150)), labels.subarray(150)) > 0.98);
  const shuffled = Uint32Array.from({ length: 150 }, (_, i) => (i * 7919 + (i >> 2)) % 3);
  assert(
    accuracy(await predict(await trainProbe(half(0), shuffled, 3), half(150)), labels.subarray(150)) < 0.7,
    "a probe cannot learn noise",
  );
});
