// The scores against independent computations.

import { assert, assertEquals, assertThrows } from "@std/assert";
import { UsageError } from "../src/errors.ts";
import { type Features, frechet, gaussian, symmetricEigen } from "../src/metrics/frechet.ts";
import { accuracy, nearest, predict, trainProbe } from "../src/metrics/probe.ts";
import { mse, psnr, ssim } from "../src/metrics/quality.ts";
import { normal } from "../src/philox.ts";
import fixture from "./fixtures/frechet.json" with { type: "json" };

const features = (data: number[] | Float32Array, rows: number, columns: number): Features => ({
  data: Float32Array.from(data),
  rows,
  columns,
});

for (const { rows, columns, a, b, distance } of fixture.cases) {
  Deno.test(`frechet() of ${rows} x ${columns} features equals scipy's, both ways round`, () => {
    const [p, q] = [gaussian(features(a, rows, columns)), gaussian(features(b, rows, columns))];
    assert(Math.abs(frechet(p, q) / distance - 1) < 1e-6, `${frechet(p, q)} against ${distance}`);
    assert(Math.abs(frechet(q, p) / distance - 1) < 1e-6);
    assert(frechet(p, p) < 1e-6 * distance);
  });
}

Deno.test("symmetricEigen() gives vectors with A v = l v, orthonormal", () => {
  const n = 12, random = normal(1, 1, n * n);
  const A = Float64Array.from({ length: n * n }, (_, k) => {
    const [i, j] = [Math.floor(k / n), k % n];
    return (random[Math.min(i, j) * n + Math.max(i, j)] as number);
  });
  const { values, vectors } = symmetricEigen(A, n, true);
  assertEquals(
    [...symmetricEigen(A, n, false).values].map((v) => v.toFixed(9)).sort(),
    [...values].map((v) => v.toFixed(9)).sort(),
  );
  for (let k = 0; k < n; k++) {
    for (let i = 0; i < n; i++) {
      let sum = 0;
      for (let j = 0; j < n; j++) sum += (A[i * n + j] as number) * (vectors[j * n + k] as number);
      assert(Math.abs(sum - (values[k] as number) * (vectors[i * n + k] as number)) < 1e-10);
    }
  }
});

Deno.test("gaussian() refuses too few images and features that are not finite", () => {
  assertThrows(() => gaussian(features([1, 2], 1, 2)), UsageError, "too few");
  assertThrows(() => gaussian(features([1, NaN, 2, 3], 2, 2)), UsageError, "finite");
});

Deno.test("psnr() and mse() follow their definitions, ssim() is one for equal images and falls with noise", () => {
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

Deno.test("a probe separates what a line separates, nearest neighbours follow the angle, both repeatably", () => {
  const rows = 300, columns = 6, classes = 3, noise = normal(3, 1, rows * columns);
  const labels = Uint32Array.from({ length: rows }, (_, r) => r % classes);
  const data = noise.map((v, i) =>
    v * 0.5 + (i % columns === (labels[Math.floor(i / columns)] as number) ? 3 : 0)
  );
  const half = (from: number) =>
    features(data.subarray(from * columns, (from + 150) * columns), 150, columns);
  const probe = trainProbe(half(0), labels.subarray(0, 150), classes);
  assertEquals(accuracy(predict(probe, half(150)), labels.subarray(150)), 1);
  assertEquals(trainProbe(half(0), labels.subarray(0, 150), classes).weight, probe.weight);
  assert(accuracy(nearest(half(0), labels.subarray(0, 150), half(150)), labels.subarray(150)) > 0.98);
  const shuffled = Uint32Array.from({ length: 150 }, (_, i) => (i * 7919 + (i >> 2)) % 3);
  assert(
    accuracy(predict(trainProbe(half(0), shuffled, 3), half(150)), labels.subarray(150)) < 0.7,
    "a probe cannot learn noise",
  );
});
