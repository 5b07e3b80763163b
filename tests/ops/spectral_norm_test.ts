// Spectral normalization against f64 loops, with gradients, and its estimate of the largest singular value.

import { assert, assertEquals } from "@std/assert";
import { capture } from "../../src/gpu/program.ts";
import { spectralNorm } from "../../src/ops/spectral_norm.ts";
import { input, readTensor, variable } from "../../src/tensor/tensor.ts";
import { assertClose, checkOp, PROFILES, randomArray, testDevice } from "../helpers/check.ts";
import type { Nd } from "../helpers/reference.ts";

const unit = (v: number[]) => {
  const length = Math.hypot(...v);
  return v.map((x) => x / length);
};

/** One step of the power method: the new singular vectors. */
function step(w: ArrayLike<number>, u: ArrayLike<number>, rows: number, K: number) {
  const v = unit(Array.from({ length: K }, (_, k) => {
    let sum = 0;
    for (let r = 0; r < rows; r++) sum += (w[r * K + k] as number) * (u[r] as number);
    return sum;
  }));
  const wv = (w: ArrayLike<number>) =>
    Array.from({ length: rows }, (_, r) => v.reduce((sum, x, k) => sum + x * (w[r * K + k] as number), 0));
  return { u: unit(wv(w)), wv };
}

Deno.test("spectralNorm() is W / (u' W v) with u', v of one step of the power method, which get no gradient", async () => {
  // The gradient takes the vectors as constants: those of the weight before it is moved.
  const known = new Map<string, ReturnType<typeof step>>();
  const reference = (w: Nd, u: Nd): Nd => {
    const rows = w.shape[0] as number, key = w.shape.join();
    const found = known.get(key) ?? step(w.data, u.data, rows, w.data.length / rows);
    known.set(key, found);
    const sigma = found.wv(w.data).reduce((sum, x, r) => sum + x * (found.u[r] as number), 0);
    return { shape: w.shape, data: w.data.map((x) => x / sigma) };
  };
  await checkOp({
    op: (w, u) => spectralNorm(w, u, { update: false }),
    reference,
    shapes: [[[5, 1, 9, 7], [5]], [[1, 6], [1]], [[96, 300], [96]]],
    wrong: [[[8, 12], [12]]],
    differentiable: [true, false],
    accumulates: true,
  });
});

for (const profile of PROFILES) {
  Deno.test(`repeated updates find the largest singular value, and without update u stays, profile ${profile}`, async () => {
    await testDevice(profile);
    const [rows, K] = [12, 20], data = randomArray(rows * K, 3), first = randomArray(rows, 4);
    const u = variable([rows], { label: "u", init: () => first });
    const programs = await Promise.all(
      [false, true].map((update) =>
        capture("spectral norm", { w: input([rows, K]) }, ({ w }) => ({ y: spectralNorm(w, u, { update }) }))
          .prepare()
      ),
    );
    const [still, moving] = programs as [typeof programs[0], typeof programs[0]];
    still.run({ w: data });
    assertEquals(await readTensor(u), first);
    let expected: ArrayLike<number> = first;
    for (let n = 0; n < 200; n++) {
      moving.run({ w: data });
      expected = step(data, expected, rows, K).u;
      if (n === 0) assertClose(await readTensor(u), expected, { tolerance: 1e-6 }, "u after one step");
    }
    assertClose(await readTensor(u), expected, { tolerance: 1e-5 }, "u after 200 steps");
    const y = await moving.read(moving.outputs.y), ones = step(y, expected, rows, K);
    const sigma = Math.hypot(...ones.wv(y));
    assert(Math.abs(sigma - 1) < 1e-5, `largest singular value ${sigma}`);
    for (const program of programs) program.destroy();
  });
}
