// Operands staged in textures: the same bits as from buffers, and never a stale copy.

import { assert, assertEquals, assertNotEquals } from "@std/assert";
import { grad } from "../../../src/tensor/autograd.ts";
import { type Device, device } from "../../../src/gpu/device.ts";
import { addInPlace } from "../../../src/gpu/memory.ts";
import { capture } from "../../../src/gpu/program.ts";
import type { CompilerTraits } from "../../../src/gpu/software/prepare.ts";
import { stagingBytes } from "../../../src/gpu/software/staging.ts";
import { conv2d } from "../../../src/ops/conv.ts";
import { add } from "../../../src/ops/math.ts";
import { linear, matmul } from "../../../src/ops/matmul.ts";
import { input, type Shape, type Tensor, variable } from "../../../src/tensor/tensor.ts";
import { evaluate, randomArray, testDevice } from "../../helpers/check.ts";

/**
 * The traits of a compiler that differs in every switch. GEMMs that load single elements get tiles of 4x4 in place of 16x16 (on
 * Mesa 25.0 they have them already: 16x16 compiles there for a minute). ops/gemm_tiles_test.ts compares the large tiles.
 */
const otherTraits = (traits: CompilerTraits): CompilerTraits => ({
  ...traits,
  loadsFirst: !traits.loadsFirst,
  scalarLoads: !traits.scalarLoads,
  loopsStores: !traits.loopsStores,
  largeScalarTilesFrom: Infinity,
});

/** What GEMMs are written for. */
type Form = Partial<Pick<Device, "staging" | "compiler">>;

/**
 * Outputs and gradients of `fn` must be equal bit for bit in all forms [from textures, from buffers, and for a compiler of other
 * traits].
 * @returns the texts of each form's GEMMs
 */
async function sameBits(
  shapes: readonly (readonly number[])[],
  fn: (...x: Tensor[]) => Tensor,
  forms?: readonly Form[],
): Promise<string[]> {
  await testDevice("cpu");
  const inputs = Object.fromEntries(shapes.map((shape, i) => [
    `x${i}`,
    { shape, data: randomArray(shape.reduce((a, b) => a * b, 1), i + 1) },
  ]));
  const body = (tensors: Record<string, Tensor>) => {
    const x = Object.values(tensors);
    for (const t of x) t.requiresGrad = true;
    const y = fn(...x);
    return { y, ...Object.fromEntries(grad(y, x).map((dx, i) => [`dx${i}`, dx])) };
  };
  const { compiler } = device(), all: Record<string, Float32Array>[] = [], texts: string[] = [];
  for (const form of forms ?? [{ compiler }, { compiler: otherTraits(compiler) }, { staging: false }]) {
    Object.assign(device(), form);
    try {
      const { plan } = capture("texts", Object.fromEntries(shapes.map((s, i) => [`x${i}`, input(s)])), body);
      texts.push(plan.launches.filter((l) => l.kernel.entry === "gemm").map((l) => l.kernel.wgsl).join());
      all.push(await evaluate(inputs, body));
    } finally {
      Object.assign(device(), { staging: true, compiler });
    }
  }
  for (const bits of all.slice(1)) assertEquals(all[0], bits);
  return texts;
}

for (
  const [M, N, K] of [[16, 16, 8], [40, 36, 12], [130, 70, 1048], [300, 144, 144], [17, 20, 2048]] as const
) {
  Deno.test(`GEMMs of ${M}x${N}x${K} have the same bits from textures and from buffers, for all compilers`, async () => {
    await sameBits([[M, K], [K, N]], (a, b) => matmul(a, b));
    await sameBits([[M, K], [N, K]], (a, b) => matmul(a, b, { transposeB: true }));
    await sameBits([[3, K, M], [3, K, N]], (a, b) => matmul(a, b, { transposeA: true }));
  });
}

const withBias = [[21, 8], [18, 8], [18]] as const; // depth 18 of the gradients is no whole vec4s

Deno.test("a loop of stores writes the bits of unrolled ones, single elements and a bias included", async () => {
  const [ours, others] = await sameBits(withBias, (x, w, b) => linear(x, w, b));
  assertNotEquals(ours, others);
});

Deno.test("GEMMs of single elements have the same bits in tiles of 16x16 and of 4x4", async () => {
  const { compiler } = await testDevice("cpu");
  if (compiler.largeScalarTilesFrom > 0) return; // 16x16 compiles for a minute
  const forms = [0, Infinity].map((largeScalarTilesFrom) => ({
    compiler: { ...compiler, largeScalarTilesFrom },
  }));
  const [large, small] = await sameBits(withBias, (x, w, b) => linear(x, w, b), forms);
  assertNotEquals(large, small, "the tiles differ");
});

/** Ops with GEMMs of 16 columns of tiles, which a workgroup shares, and the number of these, gradients included. */
const UNIFORM: readonly [string, number, readonly Shape[], (...x: Tensor[]) => Tensor][] = [
  ["nn and tn, a batch", 2, [[2, 3, 20, 12], [2, 3, 12, 252]], (a, b) => matmul(a, b)],
  ["nn and tn, splits of K", 2, [[20, 516], [516, 252]], (a, b) => matmul(a, b)],
  ["nt", 1, [[20, 516], [252, 516]], (a, b) => matmul(a, b, { transposeB: true })],
  ["tt", 1, [[516, 20], [252, 516]], (a, b) => matmul(a, b, { transposeA: true, transposeB: true })],
  ["sums of A's rows", 2, [[516, 252], [20, 252], [20]], (x, w, b) => linear(x, w, b)],
  ["conv_dweight", 1, [[2, 9, 7, 28], [20, 3, 3, 28]], (x, w) => conv2d(x, w, undefined, { padding: 1 })],
];

for (const [name, count, shapes, fn] of UNIFORM) {
  Deno.test(`GEMMs with uniform A have the same bits: ${name}`, async () => {
    const { compiler } = await testDevice("cpu");
    const [other, uniform] = [false, true].map((scalarLoads) => ({ compiler: { ...compiler, scalarLoads } }));
    const texts = await sameBits(shapes, fn, [other as Form, uniform as Form, {
      ...uniform,
      staging: false,
    }]);
    const counts = (part: string) => texts.map((text) => text.split(part).length - 1);
    assertEquals(counts("let groups_n"), [0, count, count]);
    const [all = 0] = counts("var b_data: texture");
    assertEquals(counts("var b_data: texture"), [all, all, 0]);
    assertEquals(counts("var a_data: texture"), [all, all - count, 0]);
  });
}

for (const [C, stride] of [[8, 1], [12, 2]] as const) {
  Deno.test(`convolutions of ${C} channels, stride ${stride}, have the same bits from textures and from buffers, for all compilers`, async () => {
    await sameBits(
      [[2, 13, 11, C], [20, 3, 3, C]],
      (x, w) => conv2d(x, w, undefined, { padding: 1, stride }),
    );
  });
}

Deno.test("no staging texture has a height for which llvmpipe compiles the kernel again", async () => {
  await testDevice("cpu");
  for (const rows of [1, 2, 3, 4, 8, 11, 16]) {
    const K = 64, N = 1024 * 4 * rows / K;
    const { plan } = capture(
      "t",
      { a: input([K, K]), b: input([K, N]) },
      ({ a, b }) => ({ y: matmul(a, b) }),
    );
    for (const bytes of stagingBytes(plan.launches).values()) {
      const height = bytes / 16384;
      assert((height & (height - 1)) !== 0, `a height of ${height}`);
    }
  }
});

Deno.test("a staged operand is copied again only after a write", async () => {
  await testDevice("cpu");
  const S = 72; // more than one row of a texture, and a part of the next
  const a = variable([S, S], { init: () => randomArray(S * S, 1) });
  const program = await capture("t", { b: input([S, S]) }, ({ b }) => {
    const first = matmul(a, b), again = matmul(a, b, { transposeB: true });
    addInPlace(b, a);
    return { first, again, second: matmul(a, b) };
  }).prepare();
  const staged = stagingBytes(program.plan.launches);
  assertEquals(
    [...staged.values()],
    [49152, 49152],
    "two rows, and one so that their number is no power of two",
  );
  assert(program.plan.bytes.activations >= 98304);
  const b = randomArray(S * S, 2);
  const plain = await evaluate(
    { a: { shape: [S, S], data: randomArray(S * S, 1) }, b: { shape: [S, S], data: b } },
    ({ a, b }) => ({
      first: matmul(a as Tensor, b as Tensor),
      again: matmul(a as Tensor, b as Tensor, { transposeB: true }),
      second: matmul(add(a as Tensor, b as Tensor), b as Tensor),
    }),
  );
  program.run({ b });
  for (const name of ["first", "again", "second"] as const) {
    assertEquals(await program.read(program.outputs[name]), plain[name]);
  }
  program.destroy();
});
