// The choice of GEMM tiles: every tile gives the same bits, so tuning changes speed only; the default rule minimises padded
// work.

import { assertEquals, assertNotEquals } from "@std/assert";
import { grad } from "../../src/tensor/autograd.ts";
import { capture } from "../../src/gpu/program.ts";
import { conv2d } from "../../src/ops/conv.ts";
import {
  chooseTile,
  GEMM_KINDS,
  type GemmKind,
  isUniformA,
  onlyTile,
  splitLength,
  TILES,
  useTiles,
} from "../../src/ops/gemm_tiles.ts";
import { matmul } from "../../src/ops/matmul.ts";
import { input, type Tensor } from "../../src/tensor/tensor.ts";
import { evaluate, PROFILES, randomArray, testDevice } from "../helpers/check.ts";

/** Output and gradients of `fn`, and the text of every product that was launched. */
async function run(shapes: readonly (readonly number[])[], fn: (...x: Tensor[]) => Tensor) {
  const body = (tensors: Record<string, Tensor>) => {
    const x = shapes.map((_, i) => tensors[`x${i}`] as Tensor);
    for (const t of x) t.requiresGrad = true;
    const y = fn(...x);
    return { y, ...Object.fromEntries(grad(y, x).map((dx, i) => [`dx${i}`, dx])) };
  };
  const texts = capture(
    "texts",
    Object.fromEntries(shapes.map((s, i) => [`x${i}`, input(s)])),
    body,
  ).plan.launches.filter((l) => l.kernel.entry === "gemm").map((l) => l.kernel.wgsl);
  const values = await evaluate(
    Object.fromEntries(shapes.map((shape, i) => [
      `x${i}`,
      { shape, data: randomArray(shape.reduce((a, b) => a * b, 1), i + 1) },
    ])),
    body,
  );
  return { texts, values };
}

const CASES: [string, readonly (readonly number[])[], (...x: Tensor[]) => Tensor][] = [
  ["A B", [[70, 1048], [1048, 36]], (a, b) => matmul(a, b)],
  ["A B^T, odd sizes", [[2, 37, 29], [2, 41, 29]], (a, b) => matmul(a, b, { transposeB: true })],
  ["A^T B", [[3, 72, 40], [3, 72, 132]], (a, b) => matmul(a, b, { transposeA: true })],
  ["A^T B of odd depth", [[257, 40], [257, 52]], (a, b) => matmul(a, b, { transposeA: true })],
  ["convolution", [[2, 13, 11, 36], [40, 3, 3, 36]], (x, w) => conv2d(x, w, undefined, { padding: 1 })],
  [
    "convolution of even width",
    [[2, 5, 12, 8], [20, 3, 3, 8]],
    (x, w) => conv2d(x, w, undefined, { padding: 1 }),
  ],
  [
    "convolution of stride 2",
    [[1, 9, 12, 12], [36, 3, 3, 12]],
    (x, w) => conv2d(x, w, undefined, { padding: 1, stride: 2 }),
  ],
];

for (const profile of PROFILES) {
  for (const [name, shapes, fn] of CASES) {
    Deno.test(`${name} and its gradients have the same bits with every tile, profile ${profile}`, async () => {
      await testDevice(profile);
      try {
        const plain = await run(shapes, fn);
        const seen = new Set<string>();
        for (const tile of TILES[profile]) {
          useTiles(onlyTile(profile, tile));
          const { texts, values } = await run(shapes, fn);
          assertEquals(values, plain.values);
          seen.add(texts.join());
        }
        if (!name.includes("odd")) {
          assertEquals(seen.size, TILES[profile].length, "the table chooses the tile");
        }
      } finally {
        useTiles({});
      }
    });
  }
}

Deno.test("tiles are chosen by padded work, and narrow GEMMs get narrow tiles", () => {
  const at = (M: number, N: number, kind: GemmKind = "nt", count = 1, vector = true, runs = 1000) =>
    chooseTile({ profile: "cpu", threads: 8, storage: 32768, runs }, {
      kind,
      M,
      N,
      K: 1024,
      count,
      vector,
    }).join(
      "x",
    );
  assertEquals(at(257, 768), "24x24"); // 264 rows instead of 272 or 288
  assertEquals(at(256, 1536), "32x20"); // 1540 columns, of the fastest
  assertEquals(at(4096, 64, "conv"), "32x16"); // 64 columns are 72 in tiles of 24
  assertEquals(at(3, 512), "4x16");
  assertEquals(at(512, 3), "16x4");
  assertEquals(at(512, 512, "nn", 1, false), "16x16");
  assertEquals(at(96, 96), "16x16"); // not worth compiling a larger one for
  assertEquals(at(257, 768, "nt", 1, true, 10), "16x16"); // nor here, where it runs so seldom
  const gpu = (M: number, N: number, storage = 49152) =>
    chooseTile(
      { profile: "gpu", threads: 8, storage, runs: 1000 },
      { kind: "nn", M, N, K: 1024, count: 1, vector: true },
    ).join("x");
  assertEquals(gpu(256, 384), "64x64"); // few outputs: more workgroups
  assertEquals(gpu(8192, 8192), "128x128");
  assertNotEquals(gpu(8192, 8192, 16384), "128x128"); // does not fit the workgroup memory
});

Deno.test("where loads are scalar, A is uniform if B's tiles fill the workgroups, and the tile is chosen for it", () => {
  const machine = { profile: "cpu", threads: 16, scalarLoads: true, storage: 32768, runs: 1000 } as const;
  const shape = { kind: "nn", M: 512, N: 512, K: 512, count: 1, vector: true } as const;
  assertEquals(isUniformA(machine, shape, [32, 16]), true);
  assertEquals(isUniformA(machine, shape, [32, 20]), false); // 26 tiles in 2 workgroups of 16
  assertEquals(isUniformA({ ...machine, scalarLoads: false }, shape, [32, 16]), false);
  assertEquals(isUniformA(machine, { ...shape, vector: false }, [32, 16]), false);
  const kinds = GEMM_KINDS.filter((kind) => !isUniformA(machine, { ...shape, kind }, [32, 16]));
  assertEquals(kinds, ["conv", "conv_dx"]); // their A differs by pixel
  assertEquals(chooseTile(machine, shape), [32, 16]);
  assertEquals(chooseTile({ ...machine, scalarLoads: false }, shape), [32, 20]);
});

Deno.test("large tiles are chosen from the work that earns back their compilation", () => {
  const at = (from: number, runs: number, vector = true) =>
    chooseTile({
      ...{ profile: "cpu", threads: 16, storage: 32768, runs },
      ...vector ? { largeTilesFrom: from } : { largeScalarTilesFrom: from },
    }, {
      kind: "nt",
      M: 480,
      N: 480,
      K: 480,
      count: 1,
      vector,
    }).join("x");
  const runs = 500; // 55e9 multiply-adds
  assertEquals([at(40e9, runs), at(240e9, runs), at(240e9, 5 * runs)], ["32x20", "16x16", "32x20"]);
  assertEquals([at(40e9, runs, false), at(240e9, runs, false)], ["16x16", "4x4"]);
});

Deno.test("split-K depends on the shape alone, and its parts fill the device", () => {
  assertEquals(splitLength({ profile: "cpu" }, 512, 512, 512, 1), 512);
  assertEquals(splitLength({ profile: "cpu" }, 16, 16, 4096, 1), 128);
  assertEquals(splitLength({ profile: "gpu" }, 384, 384, 65536, 1) % 16, 0);
  assertEquals(Math.ceil(65536 / splitLength({ profile: "gpu" }, 384, 384, 65536, 1)), 29); // of 9 tiles: 261 workgroups
  assertEquals(splitLength({ profile: "gpu" }, 256, 768, 768, 1), 128); // 12 tiles, whose K of 6 times 128 is cut as fine as it may be
  assertEquals(splitLength({ profile: "gpu" }, 8192, 768, 768, 1), 768); // of 384 tiles
  for (const [M, K] of [[64, 5000], [300, 1040]] as const) {
    const depth = splitLength({ profile: "cpu" }, M, 48, K, 1);
    useTiles(onlyTile("cpu", [32, 16]));
    assertEquals(splitLength({ profile: "cpu" }, M, 48, K, 1), depth);
    useTiles({});
  }
});
