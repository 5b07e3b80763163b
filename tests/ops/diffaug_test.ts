// DiffAug against f64 loops, with gradients: each augmentation alone and all together; and its random numbers.

import { assert, assertEquals } from "@std/assert";
import { capture } from "../../src/gpu/program.ts";
import { within } from "../../src/gpu/scope.ts";
import { type Augmentation, augmentationNumbers, AUGMENTATIONS, diffAugment } from "../../src/ops/diffaug.ts";
import { RandomState } from "../../src/ops/random.ts";
import type { Tensor } from "../../src/tensor/tensor.ts";
import { assertClose, checkOp, evaluate, PROFILES, randomArray, testDevice } from "../helpers/check.ts";
import { build, type Nd } from "../helpers/reference.ts";

/** Each image of x [B,H,W,C] augmented by its row of u [B,7]. */
function reference(x: Nd, u: Nd, which: readonly Augmentation[]): Nd {
  const [, H, W, C] = x.shape as [number, number, number, number];
  const number = (b: number, k: number) => u.data[7 * b + k] as number;
  let y = x;
  const at = (b: number, i: number, j: number, c: number) => y.data[((b * H + i) * W + j) * C + c] as number;
  const mean = (b: number, rows: number[], columns: number[]) => {
    let sum = 0;
    for (const i of rows) for (const j of columns) for (let c = 0; c < C; c++) sum += at(b, i, j, c);
    return sum / (rows.length * columns.length * C);
  };
  if (which.includes("color")) {
    y = build(
      y.shape,
      (b, i, j, c) => at(b as number, i as number, j as number, c as number) + number(b as number, 0) - 0.5,
    );
    const bright = y;
    y = build(bright.shape, (b = 0, i = 0, j = 0, c = 0) => {
      const gray = mean(b, [i], [j]);
      return (at(b, i, j, c) - gray) * 2 * number(b, 1) + gray;
    });
    const all = (n: number) => Array.from({ length: n }, (_, i) => i);
    const levels = all(y.shape[0] as number).map((b) => mean(b, all(H), all(W)));
    y = build(y.shape, (b = 0, i = 0, j = 0, c = 0) => {
      const level = levels[b] as number;
      return (at(b, i, j, c) - level) * (number(b, 2) + 0.5) + level;
    });
  }
  if (which.includes("translation")) {
    const before = y;
    const shift = (b: number, k: number, size: number) => {
      const n = Math.round(size / 8);
      return Math.min(Math.floor(number(b, k) * (2 * n + 1)), 2 * n) - n;
    };
    y = build(before.shape, (b = 0, i = 0, j = 0, c = 0) => {
      const [row, column] = [i + shift(b, 3, H), j + shift(b, 4, W)];
      const inside = row >= 0 && row < H && column >= 0 && column < W;
      return inside ? before.data[((b * H + row) * W + column) * C + c] as number : 0;
    });
  }
  if (which.includes("cutout")) {
    const cut = (b: number, k: number, size: number, position: number) => {
      const side = Math.round(size / 5), centres = size + (1 - side % 2);
      const first = Math.min(Math.floor(number(b, k) * centres), centres - 1) - Math.floor(side / 2);
      return position >= first && position < first + side;
    };
    y = build(
      y.shape,
      (b = 0, i = 0, j = 0, c = 0) => cut(b, 5, H, i) && cut(b, 6, W, j) ? 0 : at(b, i, j, c),
    );
  }
  return y;
}

const SHAPES = [[[3, 16, 16, 3], [3, 7]], [[2, 9, 7, 3], [2, 7]], [[1, 1, 1, 3], [1, 7]]];

/** Uniform in 0..1. */
const asNumbers = (array: Float32Array) => array.forEach((v, i) => array[i] = (v + 1.5) / 3);

for (const which of [...AUGMENTATIONS.map((name) => [name]), AUGMENTATIONS, []]) {
  Deno.test(`diffAugment() by ${which.join(", ") || "nothing"} equals loops, with gradients`, async () => {
    await checkOp({
      op: (x, u) => diffAugment(x, which, u),
      reference: (x, u) => reference(x, u, which),
      shapes: which.length === 1 ? [[[2, 9, 7, 3], [2, 7]]] : SHAPES,
      wrong: [[[2, 8, 8, 3], [3, 7]], [[2, 8, 8, 3], [2, 6]], [[8, 8, 3], [8, 7]]],
      prepare: ([, u]) => asNumbers(u as Float32Array),
      differentiable: [true, false],
    });
  });
}

Deno.test("translations reach an eighth of the side in both directions and no further, cutouts reach every pixel", async () => {
  const S = 16, numbers = [0, 2 ** -24, 0.5, 1 - 2 ** -24, 1], B = numbers.length;
  for (const profile of PROFILES) {
    await testDevice(profile);
    const x = {
      shape: [B, S, S, 1],
      data: new Float32Array(B * S * S).map((_, i) => 1 + Math.floor(i % (S * S) / S)),
    };
    const u = { shape: [B, 7], data: Float32Array.from(numbers.flatMap((v) => Array(7).fill(v))) };
    const { moved, cut } = await evaluate({ x, u }, (t) => ({
      moved: diffAugment(t.x as Tensor, ["translation"], t.u as Tensor),
      cut: diffAugment(t.x as Tensor, ["cutout"], t.u as Tensor),
    }));
    const row = (
      y: Float32Array,
      b: number,
      i: number,
    ) => [...y.subarray((b * S + i) * S, (b * S + i + 1) * S)];
    // Row 8 holds 9 where nothing moves; by -2, 0 and 2 rows and columns.
    const expected = [-2, -2, 0, 2, 2];
    numbers.forEach((_, b) => {
      const shift = expected[b] as number, values = row(moved, b, 8);
      assertEquals(values.filter((v) => v > 0), Array(S - Math.abs(shift)).fill(9 + shift));
      assertEquals(values[0] === 0, shift < 0);
    });
    assertEquals([0, 15].map((i) => [0, 2, 4].map((b) => row(cut, b, i)[i])), [[0, 1, 1], [16, 16, 0]]);
  }
});

Deno.test("an image's random numbers depend on seed, step and its number, not on the batch", async () => {
  await testDevice();
  const states = [new RandomState(5), new RandomState(5), new RandomState(5), new RandomState(6)];
  const program = await capture("numbers", {}, () => ({
    all: augmentationNumbers(4, states[0] as RandomState),
    last: augmentationNumbers(2, states[1] as RandomState),
    later: augmentationNumbers(4, states[2] as RandomState),
    other: augmentationNumbers(4, states[3] as RandomState),
  })).prepare();
  [[3, 8], [3, 10], [4, 8], [3, 8]].forEach(([step, row], i) => states[i]?.set(step as number, row));
  program.run();
  const { all, last, later, other } = program.outputs;
  const numbers = await program.read(all);
  assertEquals(await program.read(last), numbers.subarray(14));
  for (const different of [await program.read(later), await program.read(other)]) {
    assert(different.every((v, i) => v !== numbers[i]));
  }
  program.destroy();
});

Deno.test("fp16 images are augmented in fp32", async () => {
  await testDevice();
  const u = randomArray(14, 2);
  asNumbers(u);
  const inputs = { x: { shape: [2, 8, 8, 4], data: randomArray(512, 1) }, u: { shape: [2, 7], data: u } };
  const by = (precision: "f32" | "f16") =>
    evaluate(inputs, (t) => ({
      y: within({ precision }, () => diffAugment(t.x as Tensor, AUGMENTATIONS, t.u as Tensor)),
    }));
  assertClose((await by("f16")).y, (await by("f32")).y, { tolerance: 0 }, "images");
});
