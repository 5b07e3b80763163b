// Matmuls and linear layers against loops, in every transposition, with sizes around the tiles.

import { linear, matmul } from "../../src/ops/matmul.ts";
import { checkOp } from "../helpers/check.ts";
import { type Nd, size } from "../helpers/reference.ts";

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
    return dots(a, b, [size(lead), M as number, N as number, K as number], {
      transposeA,
      transposeB,
      alpha,
      lead,
    });
  };
}

/** By strides, since these loops take most of the time of these tests. */
function dots(
  a: Nd,
  b: Nd,
  [Z, M, N, K]: readonly [number, number, number, number],
  { transposeA = false, transposeB = false, alpha = 1, lead = [] as number[] },
): Nd {
  const y = { shape: [...lead, M, N], data: new Float64Array(Z * M * N) };
  const [ai, ak] = transposeA ? [1, M] : [K, 1], [bj, bk] = transposeB ? [K, 1] : [1, N];
  for (let z = 0; z < Z; z++) {
    for (let i = 0; i < M; i++) {
      for (let j = 0; j < N; j++) {
        let sum = 0, p = z * M * K + i * ai, q = z * K * N + j * bj;
        for (let k = 0; k < K; k++, p += ak, q += bk) sum += (a.data[p] as number) * (b.data[q] as number);
        y.data[(z * M + i) * N + j] = alpha * sum;
      }
    }
  }
  return y;
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
    reference: (x, w, b) => {
      const [N, K] = w.shape as [number, number], rows = x.shape.slice(0, -1);
      const y = dots(x, w, [1, size(rows), N, K], { transposeB: true });
      return { shape: [...rows, N], data: y.data.map((v, i) => v + (b.data[i % N] as number)) };
    },
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
