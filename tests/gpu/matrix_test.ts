// GEMMs by subgroup matrices. The texts, the choice of the backend and the self-test everywhere; results where the device has
// matrices, which is where tasks/dev runs the tests through Dawn.

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import {
  type GemmProblem,
  type GemmSource,
  gemmWgsl,
  matrixIterations,
  matrixSpec,
  matrixTileBytes,
  type MatrixUnit,
} from "../../kernels/gemm.ts";
import { GpuError, UsageError } from "../../src/errors.ts";
import { launch } from "../../src/gpu/bind.ts";
import { device } from "../../src/gpu/device.ts";
import { kernel } from "../../src/gpu/kernel.ts";
import { capture } from "../../src/gpu/program.ts";
import { chooseMatrices, findMatrices, prepareMatrices } from "../../src/ops/gemm_matrices.ts";
import {
  chooseTile,
  matricesInUse,
  onlyTile,
  splitLength,
  thisMachine,
  type Tile,
  TILES,
  tilesWithin,
  useMatrices,
  useTiles,
} from "../../src/ops/gemm_tiles.ts";
import { ResBlock } from "../../src/models/decoder.ts";
import { Dit, ditConfig } from "../../src/models/dit.ts";
import type { Block } from "../../src/models/dit_blocks.ts";
import { relu } from "../../src/ops/math.ts";
import { linear, matmul } from "../../src/ops/matmul.ts";
import { type DType, input, type Precision, type Shape, type Tensor } from "../../src/tensor/tensor.ts";
import { randomArray, relativeError, testDevice } from "../helpers/check.ts";
import {
  blockGradients,
  checkGemms,
  convolutions,
  matmuls,
  type Model,
  type Reference,
} from "../helpers/fp16_gemms.ts";
import { size } from "../helpers/reference.ts";

/** What adapters offer: lavapipe and Apple, NVIDIA, Intel, AMD. */
const UNITS: readonly MatrixUnit[] = [
  { M: 8, N: 8, K: 8, subgroup: [8, 8] },
  { M: 16, N: 16, K: 16, subgroup: [32, 32] },
  { M: 8, N: 16, K: 16, subgroup: [8, 32] },
  { M: 16, N: 16, K: 16, subgroup: [32, 64] },
];

const CONV = { H: 9, W: 7, C: 8, Ho: 9, Wo: 7, Co: 12, KH: 3, KW: 3, stride: 1, top: 1, left: 1 };
const SOURCES: readonly GemmSource[] = [
  ...[false, true].flatMap((transposeA) =>
    [false, true].map((transposeB) => ({ kind: "plain", transposeA, transposeB } as const))
  ),
  { kind: "conv" },
  { kind: "conv_dx" },
  { kind: "conv_dweight" },
];

const problem = (source: GemmSource, tile: Tile): GemmProblem => ({
  source,
  K: 96,
  splitK: 96,
  conv: source.kind === "plain" ? undefined : CONV,
  tile,
  vector: true,
  vectorStore: true,
  bias: true,
});

Deno.test("the text of every source, tile and matrix covers the tile once, within the memory that is declared", () => {
  for (const unit of UNITS) {
    const tiles = TILES.matrix.filter((tile) => matrixTileBytes(tile, unit) <= 32768);
    assertEquals(tiles, TILES.matrix, `the tiles for ${JSON.stringify(unit)}`);
    for (const tile of tiles) {
      for (const source of SOURCES) {
        const p = problem(source, tile), text = gemmWgsl(matrixSpec(p, unit));
        const where = `${JSON.stringify(source)}, ${tile}, ${JSON.stringify(unit)}`;
        const count = (pattern: RegExp) => [...text.matchAll(pattern)].length;
        const matrices = tile[0] / unit.M * (tile[1] / unit.N) / 4; // of each of four subgroups
        assertEquals(count(/= subgroup_matrix_result</g), matrices, where);
        assertEquals(count(/subgroupMatrixMultiplyAccumulate\(/g), matrices, where);
        assertEquals(count(/subgroupMatrixStore</g), matrices, where);
        const [min, max] = unit.subgroup;
        assert(text.includes(`@workgroup_size(${4 * max})`), where);
        assertEquals(text.includes("if (subgroup < 4u)"), min < max, `surplus subgroups, ${where}`);
        const declared = [...text.matchAll(/var<workgroup> \w+: array<vec4<(f16|f32)>, (\d+)>/g)];
        const bytes = declared.reduce((sum, [, type, n]) => sum + Number(n) * (type === "f16" ? 8 : 16), 0);
        assert(bytes > 0 && bytes <= matrixTileBytes(tile, unit), `${bytes} bytes, ${where}`);
        const step = Number(/k \+= (\d+)u/.exec(text)?.[1]);
        assertEquals(matrixIterations(p, unit), Math.ceil(p.splitK / step) * (1 + step / unit.K));
      }
    }
  }
});

/** Evaluates an index expression of the text for one thread or subgroup. */
function evaluate(text: string, names: Record<string, number>): number {
  const integer = text.replace(/(\d)u\b/g, "$1").replace(
    /\b(t|u|row|column)\b/g,
    (name) => `${names[name]}`,
  );
  // Divisions of unsigned integers round down.
  assert(/^[\d\s+*/%()]+$/.test(integer), `"${text}" is arithmetic`);
  const parse = (tokens: string[]): number => {
    const factor = (): number => {
      const token = tokens.shift() as string;
      if (token !== "(") return Number(token);
      const inner = sum();
      tokens.shift();
      return inner;
    };
    const term = (): number => {
      let value = factor();
      while (/^[*/%]$/.test(tokens[0] ?? "")) {
        const operator = tokens.shift(), by = factor();
        value = operator === "*" ? value * by : operator === "/" ? Math.floor(value / by) : value % by;
      }
      return value;
    };
    const sum = (): number => {
      let value = term();
      while (tokens[0] === "+") {
        tokens.shift();
        value += term();
      }
      return value;
    };
    return sum();
  };
  return parse(integer.match(/\d+|[-+*/%()]/g) ?? []);
}

Deno.test("matrices are loaded from what the threads staged: every element once, none outside, padding never", () => {
  for (const unit of UNITS) {
    for (const tile of TILES.matrix.slice(0, 3)) {
      for (const [transposeA, transposeB] of [[false, false], [true, true]] as const) {
        const text = gemmWgsl(matrixSpec(problem({ kind: "plain", transposeA, transposeB }, tile), unit));
        for (const [operand, side, rows] of [["a", tile[0], unit.M], ["b", tile[1], unit.N]] as const) {
          const elements = Number(new RegExp(`tile_${operand}: array<vec4<f16>, (\\d+)>`).exec(text)?.[1]);
          const staged = new Set<number>();
          for (const [, index = ""] of text.matchAll(new RegExp(`tile_${operand}\\[(.*)\\] = `, "g"))) {
            for (let t = 0; t < 4 * unit.subgroup[1]; t++) {
              const at = evaluate(index, { t });
              assert(at < elements && !staged.has(at), `${operand} ${at} of ${elements}`);
              staged.add(at);
            }
          }
          assertEquals(staged.size, side * 2 * unit.K / 4, "the K-tile");
          const along = operand === "a" ? transposeA : !transposeB, read = new Set<number>();
          const loads = text.matchAll(
            new RegExp(`(row_major|col_major)>\\(&tile_${operand}, (.*), (\\d+)u\\);`, "g"),
          );
          for (const [, order, offset = "", stride = ""] of loads) {
            assertEquals(order, along === (operand === "b") ? "row_major" : "col_major");
            for (let s = 0; s < 4; s++) {
              const row = Math.floor(s / 2) * tile[0] / 2, column = s % 2 * tile[1] / 2;
              const [outer, inner] = along ? [unit.K, rows] : [rows, unit.K];
              for (let u = 0; u < 2 * unit.K; u += unit.K) {
                const from = evaluate(offset, { row, column, u });
                for (let i = 0; i < outer; i++) {
                  for (let j = 0; j < inner / 4; j++) read.add(from + i * Number(stride) + j);
                }
              }
            }
          }
          assertEquals([...read].sort((a, b) => a - b), [...staged].sort((a, b) => a - b));
        }
      }
    }
  }
});

Deno.test("splits of K begin at K-tiles, so that no K-tile of a convolution straddles two taps", () => {
  for (const unit of UNITS) {
    const text = gemmWgsl(matrixSpec(problem({ kind: "conv" }, [32, 32]), unit));
    const tileK = Number(/k \+= (\d+)u/.exec(text)?.[1]);
    for (const [M, N, K] of [[1024, 64, 576], [9, 4, 288], [16, 16, 1040], [2304, 512, 65536]] as const) {
      const length = splitLength({ profile: "matrix", unit }, M, N, K, 1);
      assert(length < K && length % tileK === 0, `${length} of ${K}, K-tiles of ${tileK}`);
    }
  }
});

/** The texts of the GEMMs of a captured function; nothing is compiled. */
function texts(types: readonly [DType, DType], fn: (a: Tensor, b: Tensor) => Tensor): string[] {
  const inputs = { a: input([40, 24], types[0]), b: input([24, 24], types[1]) };
  const { plan } = capture("texts", inputs, ({ a, b }) => ({ y: fn(a, b) }));
  return plan.launches.filter((l) => l.kernel.entry === "gemm").map((l) => l.kernel.wgsl);
}

Deno.test("GEMMs use matrices where both operands are fp16, on a device that may use them; others use the kernels of profile gpu", async () => {
  const by = (types: readonly [DType, DType]) =>
    texts(types, matmul).map((text) => /subgroupMatrix/.test(text));
  const others = [["f32", "f32"], ["f16", "f32"], ["f32", "f16"]] as const;
  await testDevice("gpu");
  assertEquals(by(["f16", "f16"]), [false], "the device may not");
  const ordinary = others.map((types) => texts(types, matmul));
  try {
    useMatrices(UNITS[1]);
    assertEquals(by(["f16", "f16"]), [true]);
    assertEquals(others.map(by), others.map(() => [false]));
    assertEquals(others.map((types) => texts(types, matmul)), ordinary);
    assertEquals(thisMachine().profile, "gpu");
    (await testDevice("gpu")).profile = "cpu";
    useMatrices(UNITS[1]);
    assertEquals(by(["f16", "f16"]), [false], "software adapters are faster without");
  } finally {
    useMatrices(undefined);
  }
});

Deno.test("tiles fit the matrices and the workgroup memory; the smallest is for GEMMs of few rows", () => {
  for (const unit of UNITS) {
    const machine = { profile: "matrix", unit, threads: 8, storage: 32768, runs: 1000 } as const;
    const at = (M: number, N: number) =>
      chooseTile(machine, { kind: "nt", M, N, K: 1024, count: 1, vector: true });
    assertEquals(at(4096, 4096), [128, 128]);
    assertEquals(at(32, 1024), [32, 32]);
    const little = tilesWithin({ ...machine, storage: 12_000 });
    assert(little.length > 0 && !little.some(([m, n]) => m * n > 64 * 128), `${little}`);
  }
  const odd: MatrixUnit = { M: 24, N: 16, K: 16, subgroup: [32, 32] };
  assertEquals(tilesWithin({ profile: "matrix", unit: odd, threads: 8, storage: 32768, runs: 1 }), []);
});

Deno.test("a device that cannot run the kernels fails the self-test, and the ordinary kernels stay", async () => {
  await testDevice("gpu");
  const { unit, failure } = await prepareMatrices({ M: 16, N: 4, K: 8, subgroup: [1, 1] }); // no adapter has these
  assertEquals(unit, undefined);
  assert(failure, "the reason is given");
  assertEquals(matricesInUse(), undefined);
  assert(!texts(["f16", "f16"], matmul).some((text) => /subgroupMatrix/.test(text)));
});

Deno.test("matrices are refused without fp16 and on a device that has none, and not looked for on software adapters", async () => {
  await testDevice("gpu");
  const said: string[] = [],
    choose = (kernels: string, precision?: Precision) =>
      chooseMatrices({ kernels, ...precision ? { precision } : {} }, (text) => said.push(text));
  await assertRejects(() => choose("matrix"), UsageError, "add --precision f16");
  await assertRejects(() => choose("matrix", "f32"), UsageError, "add --precision f16");
  if (!findMatrices()) {
    await assertRejects(() => choose("matrix", "f16"), UsageError, "Cannot use --kernels matrix on");
  }
  if (device().facts.software) assertEquals(await choose("auto", "f16"), undefined);
  assertEquals([await choose("auto", "f32"), said], [undefined, []]);
});

Deno.test("an f32 buffer cannot be bound to an array of f16", async () => {
  await testDevice("gpu");
  const source = `enable f16; var<storage> x: array<vec4<f16>>; var<storage> y: array<vec4<f32>>;
@compute @workgroup_size(1) fn main() { store_y(0u, vec4<f32>(x(0u))); }`;
  const bound = (type: DType) =>
    capture("bound", { x: input([4], type), y: input([4]) }, ({ x, y }) => {
      launch(kernel(source, "main"), { x, y }, {}, [1]);
      return {};
    });
  assertThrows(() => bound("f32"), GpuError, 'array "x" is f16');
  bound("f16");
});

// What follows runs where the device has subgroup matrices.

await testDevice();
if (findMatrices()) {
  Deno.test("a GPU uses matrices for fp16 by default, and not with --kernels gpu", async () => {
    await testDevice("gpu");
    const { facts } = device(), { software } = facts;
    facts.software = false;
    try {
      const choose = (kernels: string) => chooseMatrices({ kernels, precision: "f16" }, () => {});
      assertEquals([await choose("gpu"), await choose("auto")], [undefined, findMatrices()]);
    } finally {
      facts.software = software;
    }
  });

  Deno.test("the self-test passes", async () => {
    await testDevice("gpu");
    const { unit, failure } = await prepareMatrices();
    assertEquals(failure, undefined);
    assertEquals(unit, matricesInUse());
  });

  for (const transposeA of [false, true]) {
    for (const transposeB of [false, true]) {
      Deno.test(`matmul by matrices, transposeA ${transposeA}, transposeB ${transposeB}, is within the rounding of its sums`, async () => {
        // Texts depend on the alignment of sizes, so that these share theirs; a software adapter compiles one for seconds.
        for (const dims of [[8, 8, 8], [36, 44, 28], [12, 100, 64]] as const) {
          await checkGemms(matmuls(1, dims, { transposeA, transposeB }));
        }
        await checkGemms(matmuls(3, [20, 36, 24], { transposeA, transposeB, alpha: 0.5 }));
      });
    }
  }

  Deno.test("edges in scalar loads: sizes that are no multiple of 4", async () => {
    const forward = { gradients: false }; // they have fp32 operands here
    for (const transposeB of [false, true]) {
      await checkGemms(matmuls(2, [37, 29, 43], { transposeB }), forward);
    }
    await checkGemms(matmuls(1, [37, 29, 43], { transposeA: true }), forward);
  });

  Deno.test("a bias, and an activation fused into the stores", async () => {
    const [R, K, N] = [37, 40, 44];
    const reference = (activation: (v: number) => number): Reference => ([x, w, b]) => [
      Float64Array.from({ length: R * N }, (_, o) => {
        let sum = b![o % N]!;
        for (let k = 0; k < K; k++) sum += x![Math.floor(o / N) * K + k]! * w![o % N * K + k]!;
        return activation(sum);
      }),
    ];
    const common = { shapes: [[R, K], [N, K], [N]], terms: K + 1 };
    const plain = { ...common, fn: (x: Tensor, w: Tensor, b: Tensor) => linear(x, w, b) };
    await checkGemms({ ...plain, reference: reference((v) => v) }, { gradients: false });
    const fused = { ...common, fn: (x: Tensor, w: Tensor, b: Tensor) => relu(linear(x, w, b)) };
    await checkGemms({ ...fused, reference: reference((v) => Math.max(0, v)) }, {
      gradients: false,
      launches: 1,
    });
  });

  Deno.test("split-K: few outputs of long sums", async () => {
    await checkGemms(matmuls(1, [8, 12, 1200], { transposeB: true }));
    await checkGemms(matmuls(1, [36, 8, 520], { transposeA: true }), { gradients: false });
  });

  for (const [stride, shape, Co] of [[1, [2, 7, 5, 8], 12], [2, [1, 6, 9, 36], 20]] as const) {
    Deno.test(`a 3x3 convolution of stride ${stride} and its gradients are within the rounding of their sums`, async () => {
      await checkGemms(convolutions(shape, Co, 3, stride));
    });
  }

  Deno.test("every tile gives the same bits", async () => {
    await testDevice("matrix");
    const [M, N, K] = [70, 68, 72], shapes = [[M, K], [N, K]] as const;
    const bits = shapes.map((shape, i) =>
      new Uint16Array(new Float16Array(randomArray(size(shape), i + 1)).buffer)
    );
    const results: Float32Array[] = [];
    try {
      for (const tile of TILES.matrix.slice(0, 2)) {
        useTiles(onlyTile("matrix", tile));
        const program = await capture(
          "tiles",
          { a: input(shapes[0], "f16"), b: input(shapes[1], "f16") },
          ({ a, b }) => ({ y: matmul(a, b, { transposeB: true }) }),
        ).prepare();
        program.run({ a: bits[0] as Uint16Array, b: bits[1] as Uint16Array });
        results.push(await program.read(program.outputs.y));
        assert(program.plan.launches[0]?.kernel.wgsl.includes(`* ${tile[1]}u;`));
        program.destroy();
      }
    } finally {
      useTiles({});
    }
    const [first, second] = results as [Float32Array, Float32Array];
    assertEquals(first.findIndex((v, i) => v !== second[i]), -1);
  });

  const dit = { hidden_size: 32, num_heads: 2, depth: 1, input_size: 4, in_channels: 4 };
  const blocks: Record<string, [make: () => Model, shapes: Shape[]]> = {
    "a DiT block": [() => {
      const { blocks: [block] } = new Dit(ditConfig.parse(dit));
      return { model: block as object, forward: (x, c) => (block as Block).forward(x, c, undefined) };
    }, [[2, 16, 32], [2, 32]]],
    "a decoder block": [() => {
      const block = new ResBlock(16, 16, 4);
      return { model: block, forward: (x) => block.forward(x) };
    }, [[1, 6, 6, 16]]],
  };
  for (const [name, [make, shapes]] of Object.entries(blocks)) {
    Deno.test(`gradients of ${name} in fp16 by matrices are those of f32 within 5e-3`, async () => {
      const single = await blockGradients(make, shapes, "f32"),
        half = await blockGradients(make, shapes, "f16");
      for (const [key, expected] of single) {
        const error = relativeError(half.get(key) as Float32Array, expected);
        assert(error < 5e-3, `${key}: relative error ${error}`);
      }
    });
  }
}
