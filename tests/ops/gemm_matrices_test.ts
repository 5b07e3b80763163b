// Subgroup matrices or ordinary kernels: what the measured rates decide, and that a kernel which computes wrong is found at the
// start. The latter runs where the device has matrices (tasks/dev/dawn.sh).

import { assert, assertEquals, assertMatch } from "@std/assert";
import type { MatrixUnit } from "../../kernels/gemm.ts";
import { device } from "../../src/gpu/device.ts";
import { capture } from "../../src/gpu/program.ts";
import type { Provider } from "../../src/gpu/provider.ts";
import { conv2d } from "../../src/ops/conv.ts";
import { chooseMatrices, findMatrices } from "../../src/ops/gemm_matrices.ts";
import {
  chooseTile,
  fp16Key,
  GEMM_KINDS,
  type GemmKind,
  kindsByMatrices,
  matricesInUse,
  resumeKinds,
  thisMachine,
  type Tile,
  tileKey,
  TILES,
  type TileTable,
  useMatrices,
  useTiles,
} from "../../src/ops/gemm_tiles.ts";
import { matmul } from "../../src/ops/matmul.ts";
import { type DType, input, type Shape, type Tensor } from "../../src/tensor/tensor.ts";
import { testDevice } from "../helpers/check.ts";

const NVIDIA: MatrixUnit = { M: 16, N: 16, K: 16, subgroup: [32, 32] };

/** Runs `fn` on a device of profile gpu that may use matrices, with measured rates. */
async function withRates(
  rates: TileTable,
  fn: () => void,
  kinds?: readonly GemmKind[],
): Promise<void> {
  await testDevice("gpu");
  try {
    useMatrices(NVIDIA, kinds);
    useTiles(rates);
    fn();
  } finally {
    useMatrices(undefined);
    useTiles({});
  }
}

/** Whether the GEMM of an op uses matrices; nothing is compiled. */
function usesMatrices(
  fn: (a: Tensor, b: Tensor) => Tensor,
  shapes: readonly Shape[],
  type: DType = "f16",
): boolean {
  const [a, b] = shapes.map((shape) => input(shape, type)) as [Tensor, Tensor];
  const { plan } = capture("choice", { a, b }, ({ a, b }) => ({ y: fn(a as Tensor, b as Tensor) }));
  return plan.launches.some(({ kernel }) => /subgroupMatrix/.test(kernel.wgsl));
}

const SQUARE = [[64, 64], [64, 64]] as const;
const OPS: readonly (readonly [GemmKind, readonly Shape[], (a: Tensor, b: Tensor) => Tensor])[] = [
  ["nn", SQUARE, (a, b) => matmul(a, b)],
  ["nt", SQUARE, (a, b) => matmul(a, b, { transposeB: true })],
  ["tn", SQUARE, (a, b) => matmul(a, b, { transposeA: true })],
  ["conv", [[1, 8, 8, 8], [8, 3, 3, 8]], (x, w) => conv2d(x, w, undefined, { padding: 1 })],
];

/** Measured rates: of each kind, its fastest tile of matrices and the ordinary kernels. */
const measured = (
  rates: Partial<Record<GemmKind, readonly [matrices: number, ordinary?: number]>>,
): TileTable =>
  Object.fromEntries(
    Object.entries(rates).flatMap(([kind, [matrices, ordinary]]) => [
      ...TILES.matrix.map((tile, i) => [
        tileKey("matrix", kind as GemmKind, tile),
        { rate: matrices / (i + 1), slots: 1 },
      ]),
      ...ordinary === undefined ? [] : [[fp16Key(kind as GemmKind), { rate: ordinary, slots: 1 }]],
    ]),
  );

/** The kinds of OPS that use matrices. */
const used = () => OPS.filter(([, shapes, fn]) => usesMatrices(fn, shapes)).map(([kind]) => kind);

Deno.test("each kind of fp16 GEMM uses what was measured to be faster, and matrices where that was not measured", async () => {
  const ordinary = () => kindsByMatrices()?.ordinary;
  await withRates({}, () => assertEquals([used(), ordinary()], [["nn", "nt", "tn", "conv"], []]));
  const rates = measured({ nn: [300, 40], nt: [39, 40], tn: [20], conv: [30, 40], conv_dx: [50, 40] });
  await withRates(rates, () => {
    assertEquals([used(), ordinary()], [["nn", "tn"], ["nt", "conv"]]);
    for (const [, shapes, fn] of OPS.slice(0, 3)) assert(!usesMatrices(fn, shapes, "f32"));
  });
  await withRates(
    rates,
    () => assertEquals([used(), ordinary()], [["nn", "nt", "tn", "conv"], []]),
    GEMM_KINDS, // --kernels matrix
  );
});

Deno.test("a resumed run uses matrices for the kinds that it did before, whatever was measured since", async () => {
  const before = measured({ nn: [300, 40], nt: [39, 40] }), after = measured({ nn: [39, 40], nt: [300, 40] });
  let saved: GemmKind[] | undefined;
  await withRates(before, () => saved = kindsByMatrices()?.matrix);
  await withRates(after, () => {
    assertEquals(used(), ["nt", "tn", "conv"]);
    assertEquals(resumeKinds(saved), undefined);
    assertEquals(used(), ["nn", "tn", "conv"]);
    assertEquals(kindsByMatrices()?.matrix, saved);
  });
  // A run that had no matrices, as one through Deno's own WebGPU, or whose checkpoints do not record them.
  await withRates(after, () => {
    assertMatch(resumeKinds(undefined) ?? "", /^fp16 GEMMs \(nt, tn, .*\) by subgroup matrices, which/);
    assertEquals(used(), ["nt", "tn", "conv"]);
  });
  assertEquals(kindsByMatrices(), undefined);
  assertEquals(resumeKinds(undefined), undefined);
  assertMatch(resumeKinds(saved) ?? "", /^fp16 GEMMs \(nn, tn, .*\) by the ordinary kernels: /);
});

Deno.test("a resumed run warns of no change where all kinds of GEMMs use the ordinary kernels, before and now", async () => {
  const ordinary = measured(Object.fromEntries(GEMM_KINDS.map((kind) => [kind, [39, 40]])));
  await withRates(ordinary, () => {
    assertEquals(kindsByMatrices()?.matrix, []);
    assertEquals(resumeKinds(undefined), undefined); // --kernels gpu before
  });
  assertEquals(resumeKinds([]), undefined); // --kernels gpu now
});

Deno.test("the backend of a GEMM does not depend on its size, and its tile on the measured rates of that backend", async () => {
  await withRates(measured({ nn: [300, 40], nt: [39, 40] }), () => {
    for (const M of [4, 64, 4096]) {
      const shape = { kind: "nn", M, N: 4096, K: 64, count: 1, vector: true } as const;
      assertEquals(thisMachine("nn").profile, "matrix");
      assertEquals(chooseTile(thisMachine("nn"), shape), TILES.matrix[0]); // the fastest in this table
      assertEquals(thisMachine("nt").profile, "gpu");
    }
  });
  // Ordinary kernels of fp16 operands are expected to be as fast as those of fp32, unless they were measured.
  const ordinary = { [tileKey("gpu", "nn", [64, 64])]: { rate: 350, slots: 1 } };
  await withRates(
    { ...measured({ nn: [300] }), ...ordinary },
    () => assertEquals(thisMachine("nn").profile, "gpu"),
  );
  await withRates(
    { ...measured({ nn: [300, 40] }), ...ordinary },
    () => assertEquals(thisMachine("nn").profile, "matrix"),
  );
  // A rate that was measured scales the built-in ones of the tiles that were not.
  await withRates({ [tileKey("matrix", "nn", [32, 32])]: { rate: 0.6, slots: 2 } }, () => {
    const shape = { kind: "nn", M: 4096, N: 4096, K: 64, count: 1, vector: true } as const;
    assertEquals(chooseTile(thisMachine("nn"), shape), [128, 128]);
  });
  const rates = { [tileKey("matrix", "nn", [32, 32])]: { rate: 0.6, slots: 2 } };
  await withRates({
    ...rates,
    [tileKey("matrix", "nn", TILES.matrix.at(-1) as Tile)]: { rate: 0.1, slots: 2 },
  }, () => {
    const shape = { kind: "nn", M: 4096, N: 4096, K: 64, count: 1, vector: true } as const;
    assertEquals(chooseTile(thisMachine("nn"), shape), [32, 32]);
  });
});

/** Runs `fn` on the open device as if it were a GPU with matrices. */
async function asGpu(fn: () => Promise<void>): Promise<void> {
  const opened = await testDevice("gpu"), facts = { ...opened.facts }, { has } = opened;
  const shape = { componentType: "f16", resultComponentType: "f32", M: 16, N: 16, K: 16 };
  Object.assign(opened.facts, {
    software: false,
    ...facts.matrices.length ? {} : { matrices: [shape], simdWidth: 8, subgroupMaxSize: 8 },
  });
  opened.has = () => true;
  try {
    await fn();
  } finally {
    Object.assign(opened.facts, facts);
    opened.has = has;
    useMatrices(undefined);
  }
}

/** The warnings of a command that trains in fp16. */
async function warnings(): Promise<string[]> {
  const said: string[] = [];
  assertEquals(
    await chooseMatrices({ kernels: "auto", precision: "f16" }, (text) => said.push(text)),
    undefined,
  );
  return said;
}

await testDevice();
if (!findMatrices()) {
  Deno.test("a GPU that does not compile the kernels gets one line, and the ordinary kernels", async () => {
    await asGpu(async () => {
      const said = await warnings();
      assertEquals([said.length, matricesInUse()], [1, undefined]);
      assertMatch(
        said[0] as string,
        /^subgroup matrices fail their self-test \(Cannot compile kernel "gemm": .+\); fp16 GEMMs use the ordinary kernels$/,
      );
      assert(OPS.every(([, shapes, fn]) => !usesMatrices(fn, shapes)));
    });
  });
} else {
  Deno.test("a GPU whose convolutions are wrong fails the self-test, gets one line, and the ordinary kernels", async () => {
    await asGpu(async () => {
      const provider = device().provider as { -readonly [K in keyof Provider]: Provider[K] },
        { wgsl } = provider;
      const texts: string[] = [];
      // The channels of the tap before, where a K-tile begins in the middle of a tap.
      provider.wgsl = (text) => {
        const wrong = text.replace("let tap = k_tile / 32u;", "let tap = (k_tile + 16u) / 32u;");
        if (wrong !== text) texts.push(text);
        return wgsl(wrong);
      };
      try {
        const said = await warnings();
        assertEquals([said.length, matricesInUse(), texts.length], [1, undefined, 1]);
        assertMatch(
          said[0] as string,
          /^subgroup matrices fail their self-test \(element \(\d+, \d+\) of a convolution is -?\d+ instead of -?\d+\); fp16 GEMMs use the ordinary kernels$/,
        );
        assert(OPS.every(([, shapes, fn]) => !usesMatrices(fn, shapes)));
      } finally {
        provider.wgsl = wgsl;
      }
    });
  });
}
