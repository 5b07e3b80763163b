// checkOp and assertClose find one wrong element, at any place and of any size.

import { AssertionError, assertRejects, assertThrows } from "@std/assert";
import { concat, reshape, slice } from "../../src/ops/layout.ts";
import { exp, mul, scale } from "../../src/ops/math.ts";
import { differentiable, noGrad } from "../../src/tensor/autograd.ts";
import type { Tensor } from "../../src/tensor/tensor.ts";
import { assertClose, checkOp, randomArray } from "./check.ts";
import { elementwise } from "./reference.ts";

const N = 60, SHAPE = [5, 12];
const stretched = randomArray(N, 1).map((v) => 4 * v); // exponentials from 0.003 to 400
const smallest = stretched.indexOf(Math.min(...stretched));

/** `x` with an error of 1 % in element `i`. */
function spoil(x: Tensor, i: number | undefined): Tensor {
  if (i === undefined) return x;
  const flat = reshape(x, [N]);
  const parts = ([[0, i], [i, i + 1], [i + 1, N]] as const).filter(([from, to]) => from < to);
  const pieces = parts.map(([from, to]) => {
    const part = slice(flat, 0, from, to);
    return from === i ? scale(part, 1.01) : part;
  });
  return reshape(concat(pieces, 0), SHAPE);
}

/** Checks exp with a wrong element in its result or in its gradient. */
const check = (wrong: { result?: number; gradient?: number }) =>
  checkOp({
    op: (x) => {
      const y = noGrad(() => exp(x));
      return differentiable(
        noGrad(() => spoil(y, wrong.result)),
        [x],
        (dy) => [spoil(mul(dy, y), wrong.gradient)],
      );
    },
    reference: elementwise(Math.exp),
    shapes: [[SHAPE]],
    prepare: ([x]) => x?.set(stretched),
    profiles: ["cpu"],
  });

Deno.test("checkOp() passes a correct op and finds one wrong element of the result, also the smallest", async () => {
  await check({});
  for (const result of [0, 31, N - 1, smallest]) {
    await assertRejects(() => check({ result }), AssertionError, `element ${result} is`);
  }
});

Deno.test("checkOp() finds one wrong element of the gradient: the first, the last, or one between the samples", async () => {
  for (const gradient of [0, N - 1]) {
    await assertRejects(() => check({ gradient }), AssertionError, `element ${gradient} is`);
  }
  await assertRejects(() => check({ gradient: 31 }), AssertionError, "direction");
});

Deno.test("assertClose() compares small elements relative to their size, unless they accumulate, and refuses NaN", () => {
  const expected = [1000, 1e-3], tolerance = 1e-5;
  assertClose([1000.005, 1.005e-3], expected, { tolerance }, "x");
  assertThrows(
    () => assertClose([1000, 1.1e-3], expected, { tolerance }, "x"),
    AssertionError,
    "element 1 is",
  );
  assertClose([1000, 6e-3], expected, { tolerance, accumulates: true }, "x");
  assertThrows(
    () => assertClose([1000, 9e-3], expected, { tolerance, accumulates: true }, "x"),
    AssertionError,
  );
  assertThrows(
    () => assertClose([NaN, 1e-3], expected, { tolerance }, "x"),
    AssertionError,
    "element 0 is NaN",
  );
});
