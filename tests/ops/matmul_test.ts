// Matmuls and linear layers against loops, in every transposition, with sizes around the tiles.

import { linear, matmul } from "../../src/ops/matmul.ts";
import { checkOp } from "../helpers/check.ts";
import { at, build, type Nd } from "../helpers/reference.ts";

const SIZES = [[1, 1, 1], [3, 5, 7], [16, 16, 16], [20, 36, 24], [33, 4, 65], [70, 130, 8], [4, 100, 12], [
  8,
  12,
  1200,
]];

function reference(transposeA: boolean, transposeB: boolean, alpha = 1) {
  return (a: Nd, b: Nd): Nd => {
    const lead = a.shape.slice(0, -2), n = lead.length;
    const [M, K] = transposeA ? [a.shape[n + 1], a.shape[n]] : [a.shape[n], a.shape[n + 1]];
    const N = transposeB ? b.shape[n] : b.shape[n + 1];
    return build([...lead, M as number, N as number], (...index) => {
      const z = index.slice(0, -2), [i, j] = index.slice(-2) as [number, number];
      let sum = 0;
      for (let k = 0; k < (K as number); k++) {
        sum += at(a, ...z, ...(transposeA ? [k, i] : [i, k])) *
          at(b, ...z, ...(transposeB ? [j, k] : [k, j]));
      }
      return alpha * sum;
    });
  };
}

for (const transposeA of [false, true]) {
  for (const transposeB of [false, true]) {
    Deno.test(`matmul() with transposeA ${transposeA}, transposeB ${transposeB} and its gradients match the reference`, async () => {
      await checkOp({
        op: (a, b) => matmul(a, b, { transposeA, transposeB, alpha: 0.5 }),
        reference: reference(transposeA, transposeB, 0.5),
        shapes: [
          ...SIZES.map((s) => [[], s] as const),
          [[3], [5, 6, 7]] as const,
          [[2, 3], [17, 20, 8]] as const,
          [[2], [36, 20, 29]] as const,
        ].map(
          ([lead, [M, N, K]]) => [
            [...lead, ...(transposeA ? [K, M] : [M, K])] as number[],
            [...lead, ...(transposeB ? [N, K] : [K, N])] as number[],
          ],
        ),
        wrong: [[[3, 4], [5, 6]], [[2, 3, 3], [3, 3]], [[3], [3, 3]]],
        accumulates: true,
      });
    });
  }
}

Deno.test("linear() with bias and its gradients match the reference", async () => {
  await checkOp({
    op: (x, w, b) => linear(x, w, b),
    reference: (x, w, b) =>
      build([...x.shape.slice(0, -1), w.shape[0] as number], (...index) => {
        const row = index.slice(0, -1), o = index.at(-1) as number;
        let sum = at(b, o);
        for (let k = 0; k < (w.shape[1] as number); k++) sum += at(x, ...row, k) * at(w, o, k);
        return sum;
      }),
    shapes: [
      [[1, 1], [1, 1], [1]],
      [[2, 3, 5], [7, 5], [7]],
      [[2, 17, 24], [40, 24], [40]],
      [[700, 8], [12, 8], [12]],
      [[3000, 16], [3, 16], [3]],
    ],
    wrong: [[[2, 4], [3, 5], [3]], [[2, 5], [3, 5], [4]]],
    accumulates: true,
  });
});
