// Edge cases of softmax and cross entropy: single classes, many rows, huge logits, wrong labels.

import { assert, assertEquals, assertThrows } from "@std/assert";
import { grad } from "../../src/tensor/autograd.ts";
import { ShapeError } from "../../src/errors.ts";
import { capture } from "../../src/gpu/program.ts";
import { scale } from "../../src/ops/math.ts";
import { crossEntropy, softmax } from "../../src/ops/softmax.ts";
import { input, type Tensor } from "../../src/tensor/tensor.ts";
import { checkOp, evaluate, PROFILES, randomArray, relativeError, testDevice } from "../helpers/check.ts";
import type { Nd } from "../helpers/reference.ts";

/** Softmax of each row with its maximum taken off. */
function reference(x: Nd): Nd {
  const K = x.shape.at(-1) as number, y = new Float64Array(x.data.length);
  for (let from = 0; from < y.length; from += K) {
    const row = x.data.subarray(from, from + K), top = Math.max(...row);
    const total = row.reduce((s, v) => s + Math.exp(v - top), 0);
    row.forEach((v, k) => y[from + k] = Math.exp(v - top) / total);
  }
  return { shape: x.shape, data: y };
}

Deno.test("softmax() and its gradient match the reference for any number of rows and columns", async () => {
  await checkOp({
    op: (x) => softmax(x),
    reference,
    shapes: [[[1, 1]], [[9, 3]], [[1001, 5]], [[3, 2, 96]], [[17, 768]], [[7]]],
  });
});

Deno.test("softmax() of logits around 10,000 is as exact as around 0", async () => {
  await checkOp({
    op: (x) => softmax(x),
    reference,
    shapes: [[[5, 7]], [[6, 64]]],
    // Quarters are exact in f32 at that height, so that only the kernel's own rounding is seen.
    prepare: ([x]) => x?.forEach((v, i) => x[i] = 1e4 + Math.round(4 * v) / 4),
  });
});

/** Mean cross entropy of the rows and its gradient with respect to the logits. */
function entropy(logits: Float32Array, labels: Uint32Array, K: number) {
  const R = labels.length, p = reference({ shape: [R, K], data: Float64Array.from(logits) }).data;
  let loss = 0;
  labels.forEach((label, r) => {
    const row = logits.subarray(r * K, (r + 1) * K), top = Math.max(...row);
    const total = row.reduce((s, v) => s + Math.exp(v - top), 0);
    loss += (Math.log(total) + top - (row[label] as number)) / R;
    p[r * K + label] = (p[r * K + label] as number) - 1;
  });
  return { loss, dx: p.map((v) => v / R) };
}

function run(logits: Float32Array, labels: Uint32Array, K: number, factor = 1) {
  const R = labels.length;
  return evaluate({ x: { shape: [R, K], data: logits }, labels: { shape: [R], data: labels } }, (t) => {
    const x = t.x as Tensor;
    x.requiresGrad = true;
    const loss = crossEntropy(x, t.labels as Tensor);
    return { loss, dx: grad(scale(loss, factor), [x])[0] as Tensor };
  });
}

Deno.test("crossEntropy() and its gradient match the reference, also scaled", async () => {
  for (const profile of PROFILES) {
    await testDevice(profile);
    for (const [R, K, height] of [[1, 3, 1], [1000, 7, 1], [33, 96, 20], [5, 4, 5000]] as const) {
      const logits = randomArray(R * K, R).map((v) => v * height);
      const labels = Uint32Array.from({ length: R }, (_, r) => (r * 5 + 2) % K);
      const expected = entropy(logits, labels, K);
      const { loss, dx } = await run(logits, labels, K, 3);
      assert(relativeError(loss, [expected.loss]) < 2e-6, `loss of [${R}, ${K}]`);
      assert(relativeError(dx, expected.dx.map((v) => 3 * v)) < 1e-5, `gradient of [${R}, ${K}]`);
    }
  }
});

Deno.test("crossEntropy() of a single class is zero, and so is its gradient", async () => {
  for (const profile of PROFILES) {
    await testDevice(profile);
    const { loss, dx } = await run(randomArray(9, 1), new Uint32Array(9), 1);
    assertEquals([...loss], [0]);
    assert(dx.every((v) => v === 0));
  }
});

Deno.test("crossEntropy() counts a label past the last class as the last one", async () => {
  for (const profile of PROFILES) {
    await testDevice(profile);
    const logits = randomArray(4 * 5, 1);
    const wild = await run(logits, new Uint32Array([0, 5, 1000, 0xffffffff]), 5);
    const tame = await run(logits, new Uint32Array([0, 4, 4, 4]), 5);
    assertEquals([...wild.loss, ...wild.dx], [...tame.loss, ...tame.dx]);
  }
});

Deno.test("crossEntropy() refuses labels that are not u32 [R], and logits that are not [R, K]", async () => {
  await testDevice();
  const call = (logits: Tensor, labels: Tensor) =>
    assertThrows(() => capture("t", {}, () => ({ y: crossEntropy(logits, labels) })), ShapeError, "u32 [R]");
  call(input([4, 3]), input([4]));
  call(input([4, 3]), input([3], "u32"));
  call(input([2, 2, 3]), input([2], "u32"));
});
