// Elementwise functions, broadcasting, reductions and their gradients, and fusion of chains.

import { assert, assertEquals, assertThrows } from "@std/assert";
import { grad } from "../../src/tensor/autograd.ts";
import { ShapeError } from "../../src/errors.ts";
import * as math from "../../src/ops/math.ts";
import { mean, sum } from "../../src/ops/reduce.ts";
import { capture } from "../../src/gpu/program.ts";
import { input, type Tensor } from "../../src/tensor/tensor.ts";
import { checkOp, evaluate, PROFILES, randomArray, relativeError, testDevice } from "../helpers/check.ts";
import { elementwise, erf, reduce } from "../helpers/reference.ts";

const PAIRS = [
  [[1], [1]],
  [[3, 5], [3, 5]],
  [[2, 3, 8], [8]],
  [[2, 3, 8], [2, 3, 1]],
  [[2, 3, 8], [2, 1, 8]],
  [[4, 1, 7], [3, 1]],
  [[2, 3, 4, 8], [2, 1, 4, 1]],
  [[33, 40], []],
  [[2, 6, 3], [3]],
  [[4, 6], [6]],
];

const two: [string, (a: Tensor, b: Tensor) => Tensor, (a: number, b: number) => number][] = [
  ["add", math.add, (a, b) => a + b],
  ["sub", math.sub, (a, b) => a - b],
  ["mul", math.mul, (a, b) => a * b],
];
for (const [name, op, f] of two) {
  Deno.test(`${name}() and its gradients match the reference under broadcasting`, async () => {
    await checkOp({ op, reference: elementwise(f), shapes: PAIRS, wrong: [[[2, 3], [4]]] });
  });
}

Deno.test("div() and its gradients match the reference under broadcasting", async () => {
  await checkOp({
    op: math.div,
    reference: elementwise((a, b) => a / b),
    shapes: PAIRS,
    prepare: ([, b]) => b?.forEach((v, i) => b[i] = Math.sign(v) * (Math.abs(v) + 0.3)),
    wrong: [[[2, 3], [4]]],
  });
});

const sigmoid = (a: number) => 1 / (1 + Math.exp(-a));
const one: [string, (a: Tensor) => Tensor, (a: number) => number, "positive"?][] = [
  ["exp", math.exp, Math.exp],
  ["clamp", (a) => math.clamp(a, -0.5, 1), (a) => Math.min(Math.max(a, -0.5), 1)],
  ["sqrt", math.sqrt, Math.sqrt, "positive"],
  ["square", math.square, (a) => a * a],
  ["abs", math.abs, Math.abs],
  ["neg", math.neg, (a) => -a],
  ["scale", (a) => math.scale(a, 2.5), (a) => 2.5 * a],
  ["shift", (a) => math.shift(a, 0.75), (a) => a + 0.75],
  ["relu", math.relu, (a) => Math.max(a, 0)],
  ["leakyRelu", (a) => math.leakyRelu(a, 0.25), (a) => a > 0 ? a : 0.25 * a],
  ["sigmoid", math.sigmoid, sigmoid],
  ["softplus", math.softplus, (a) => Math.log1p(Math.exp(a))],
  ["silu", math.silu, (a) => a * sigmoid(a)],
  ["gelu", math.gelu, (a) => 0.5 * a * (1 + erf(a / Math.SQRT2))],
  [
    "geluTanh",
    math.geluTanh,
    (a) => 0.5 * a * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (a + 0.044715 * a ** 3))),
  ],
  ["quickGelu", math.quickGelu, (a) => a * sigmoid(1.702 * a)],
];
for (const [name, op, f, domain] of one) {
  Deno.test(`${name}() and its gradient match the reference`, async () => {
    await checkOp({
      op,
      reference: elementwise(f),
      shapes: [[[1]], [[5, 7]], [[3, 8, 100]]],
      prepare: (xs) => {
        for (const x of xs) {
          x.forEach((v, i) => x[i] = domain === "positive" ? Math.abs(v) + 0.1 : 2 * v);
        }
      },
    });
  });
}

Deno.test("activations of huge arguments stay finite", async () => {
  await testDevice();
  const data = new Float32Array([-1e30, -200, -100, 100, 200, 1e30, 0, 20]);
  const functions = [
    "relu",
    "leakyRelu",
    "silu",
    "sigmoid",
    "softplus",
    "gelu",
    "geluTanh",
    "quickGelu",
  ] as const;
  for (const name of functions) {
    const { y } = await evaluate(
      { x: { shape: [8], data } },
      ({ x }) => ({ y: math[name](x as Tensor, 0.2) }),
    );
    assert(y.every(Number.isFinite), `${name} gave ${y}`);
  }
});

const AXES: [number[], number[][]][] = [
  [[5], [[0]]],
  [[3, 8], [[0], [1], [0, 1]]],
  [[2, 3, 5, 4], [[0], [1], [3], [1, 2], [0, 2], [0, 3], [0, 1, 2, 3], [-1]]],
  [[1, 300, 7], [[1], [2]]],
  [[2, 1200], [[1]]],
  [[2000, 8], [[0]]],
];
for (const [shape, list] of AXES) {
  for (const axes of list) {
    const absolute = axes.map((a) => a < 0 ? a + shape.length : a);
    Deno.test(`sum and mean of [${shape}] over [${axes}] match the reference`, async () => {
      const n = absolute.reduce((product, a) => product * (shape[a] as number), 1);
      await checkOp({
        op: (x) => sum(x, axes),
        reference: (x) => reduce(x, absolute, (a, b) => a + b, 0),
        shapes: [[shape]],
      });
      await checkOp({
        op: (x) => mean(x, axes, { keepDims: true }),
        reference: (x) => reduce(x, absolute, (a, b) => a + b / n, 0, true),
        shapes: [[shape]],
      });
    });
  }
}

Deno.test("a reduction over a missing axis throws ShapeError", async () => {
  await testDevice();
  assertThrows(() => capture("t", {}, () => ({ y: sum(input([2, 3]), [2]) })), ShapeError);
});

Deno.test("a fused chain of pointwise ops equals its parts and takes fewer launches", async () => {
  const shape = [6, 40];
  const x = { shape, data: randomArray(240, 1) }, b = { shape: [40], data: randomArray(40, 2) };
  for (const profile of PROFILES) {
    await testDevice(profile);
    const chain = (a: Tensor, c: Tensor) => {
      const first = math.silu(math.scale(math.add(a, c), 1.5));
      const second = math.mul(first, math.sigmoid(a));
      return { first, second };
    };
    const merged = capture(
      "chain",
      { x: input(shape), b: input([40]) },
      ({ x, b }) => ({ y: chain(x, b).second }),
    );
    assertEquals(merged.plan.recorded, 5);
    assertEquals(merged.plan.launches.length, 1);
    const { y } = await evaluate({ x, b }, ({ x, b }) => ({ y: chain(x as Tensor, b as Tensor).second }));
    // With every intermediate asked for, nothing can be merged.
    const parts = await evaluate({ x, b }, (t) => {
      const sum = math.add(t.x as Tensor, t.b as Tensor), scaled = math.scale(sum, 1.5);
      const first = math.silu(scaled), gate = math.sigmoid(t.x as Tensor);
      return { sum, scaled, first, gate, y: math.mul(first, gate) };
    });
    assert(relativeError(y, parts.y) < 1e-6);
  }
});

Deno.test("gradients accumulate where a tensor is used more than once", async () => {
  await testDevice();
  const data = randomArray(12, 3);
  const { dx } = await evaluate({ x: { shape: [3, 4], data } }, (t) => {
    const x = t.x as Tensor;
    x.requiresGrad = true;
    const y = math.add(math.square(x), math.mul(x, math.exp(x)));
    return { dx: grad(sum(y), [x])[0] as Tensor };
  });
  const expected = data.map((v) => 2 * v + Math.exp(v) * (1 + v));
  assert(relativeError(dx, expected) < 2e-6);
});
