// Classes and numbers of generated images.

import { assert, assertEquals, assertThrows } from "@std/assert";
import { parseRange } from "../../src/cli/options.ts";
import { UsageError } from "../../src/errors.ts";
import { classesOf, labelsOf, labelSummary } from "../../src/sampling/labels.ts";

const range = (n: number) => Array.from({ length: n }, (_, i) => i);

function counts(labels: readonly number[], K: number): number[] {
  const n = new Array<number>(K).fill(0);
  for (const label of labels) n[label]!++;
  return n;
}

Deno.test("equal labels: any first N images have each class equally often, up to one", () => {
  for (const K of [1, 2, 10, 20, 21, 22, 24, 30, 100, 997, 1000, 1024]) {
    const labels = labelsOf({ count: 2 * K + 7, classes: range(K) });
    for (const N of [1, 7, Math.ceil(K / 2), K, K + 3, 2 * K + 7]) {
      const n = counts(labels.slice(0, N), K);
      assert(Math.max(...n) - Math.min(...n) <= 1, `${N} images of ${K} classes: ${n}`);
    }
  }
});

Deno.test("equal labels of up to 20 classes keep the order of the classes", () => {
  assertEquals(labelsOf({ count: 25, classes: range(10) }), range(25).map((i) => i % 10));
  assertEquals(labelsOf({ count: 5, classes: [7, 2] }), [7, 2, 7, 2, 7]);
});

Deno.test("equal labels of many classes spread the first N over all of them", () => {
  for (const K of [21, 30, 64, 100, 345, 1000, 1024, 10_000, 21_841]) {
    for (const N of [10, 21, 50, 100, 137, 500].filter((N) => N <= K)) {
      const first = labelsOf({ count: N, classes: range(K) }).sort((a, b) => a - b);
      const gaps = first.map((k, i) => (i + 1 < N ? first[i + 1] as number : (first[0] as number) + K) - k);
      const most = Math.max(...gaps), least = Math.min(...gaps);
      assert(
        most <= Math.ceil(2.2 * K / N) && least >= Math.floor(0.2 * K / N),
        `${N} of ${K} classes: gaps of ${least} to ${most}, ${K / N} on average`,
      );
    }
  }
});

Deno.test("the class of an image depends on its number, not on the range that is made", () => {
  for (const labeling of ["equal", "random"] as const) {
    const of = (first: number, count: number) =>
      labelsOf({ first, count, classes: range(100), labeling, seed: 3 });
    assertEquals(of(37, 20), of(0, 80).slice(37, 57));
  }
});

Deno.test("random labels are uniform, another sequence for each seed, and independent of the noise", () => {
  const K = 10,
    N = 20_000,
    of = (seed: number) => labelsOf({ count: N, classes: range(K), labeling: "random", seed });
  const labels = of(1);
  // Chi-squared with 9 degrees of freedom: 99.9 % are below 27.9.
  const chi = counts(labels, K).reduce((sum, n) => sum + (n - N / K) ** 2 / (N / K), 0);
  assert(chi < 27.9, `${chi}`);
  const pairs = counts(labels.slice(1).map((k, i) => k * K + (labels[i] as number)), K * K);
  const chiPairs = pairs.reduce((sum, n) => sum + (n - N / K ** 2) ** 2 / (N / K ** 2), 0);
  assert(chiPairs < 149, `${chiPairs}`); // 99.9 % of 99 degrees of freedom are below 148.2
  const same = of(2).filter((k, i) => k === labels[i]).length;
  assert(Math.abs(same - N / K) < 5 * Math.sqrt(N / K), `${same}`);
});

Deno.test("labelSummary() says how many images each class gets", () => {
  const summary = (count: number, K: number) =>
    labelSummary(labelsOf({ count, classes: range(K) }), range(K), "equal");
  assertEquals(summary(100, 10), "labels: equal, 10 images per class (10 classes)");
  assertEquals(summary(100, 1000), "labels: equal, 0 or 1 image per class (1000 classes)");
  assertEquals(summary(3, 1), "labels: equal, 3 images per class (1 class)");
});

Deno.test("classesOf() takes numbers and names, and names the nearest for an unknown one", () => {
  const names = ["cat", "dog", "horse"];
  assertEquals(classesOf(["all"], names), [0, 1, 2]);
  assertEquals(classesOf(["2", "cat"], names), [2, 0]);
  assertThrows(
    () => classesOf(["hrose"], names),
    UsageError,
    'Cannot sample the class "hrose": the model\'s classes are 0 to 2 (cat, dog, horse); did you mean horse?',
  );
  assertThrows(
    () => classesOf(["3"], names),
    UsageError,
    'Cannot sample the class "3": the model\'s classes are 0 to 2 (cat, dog, horse); choose among them',
  );
  const many = range(1000).map((i) => `class ${i}`);
  assertThrows(() => classesOf(["1000"], many), UsageError, "the model's classes are 0 to 999; choose");
  assertThrows(() => classesOf(["-1"], names), UsageError, 'the class "-1"');
});

Deno.test("parseRange() takes A-B and one number, and nothing else", () => {
  assertEquals(parseRange("0-9"), [0, 9]);
  assertEquals(parseRange("7"), [7, 7]);
  assertEquals(parseRange("4294967295"), [4294967295, 4294967295]);
  for (const text of ["9-0", "-3", "1-", "a-b", "1-2-3", "", "1.5", "0-4294967296"]) {
    assertEquals(parseRange(text), undefined, text);
  }
});
