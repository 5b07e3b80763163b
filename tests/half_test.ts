// Half precision: rounding, every op on halves against the same op on the same numbers in f32, the loss scale, memory, and
// training that follows f32.

import { assert, assertEquals, assertThrows } from "@std/assert";
import { grad } from "../src/autograd.ts";
import { GpuError } from "../src/errors.ts";
import { add as sumInto, copy } from "../src/gpu/memory.ts";
import { kernel } from "../src/gpu/kernel.ts";
import { withHalves } from "../src/gpu/half.ts";
import { capture } from "../src/gpu/program.ts";
import { Initializer } from "../src/init.ts";
import { Dit, DIT_SIZES, ditConfig } from "../src/models/dit.ts";
import { adamw, hyperVariable, packHyper, progressVariable, squaredNorm } from "../src/ops/adamw.ts";
import { attention } from "../src/ops/attention.ts";
import { conv2d } from "../src/ops/conv.ts";
import { add, gelu, mul, silu } from "../src/ops/math.ts";
import { linear, matmul } from "../src/ops/matmul.ts";
import { modulate, swiglu } from "../src/ops/modulate.ts";
import { groupNorm, layerNorm, rmsNorm } from "../src/ops/norm.ts";
import { averagePool, upsampleNearest2x } from "../src/ops/pool.ts";
import { mean } from "../src/ops/reduce.ts";
import { rotary, rotaryTables2d } from "../src/ops/rotary.ts";
import { concat, flip, pad, permute, slice, split } from "../src/ops/shape.ts";
import { softmax } from "../src/ops/softmax.ts";
import {
  constant,
  empty,
  inPrecision,
  input,
  type Precision,
  readTensor,
  type Shape,
  type Tensor,
  variable,
} from "../src/tensor.ts";
import { Diffusion, DIFFUSION_METERS } from "../src/train/diffusion.ts";
import { refreshWorkingCopies } from "../src/train/optimizer.ts";
import { normal } from "../src/philox.ts";
import { PROFILES, randomArray, relativeError, testDevice } from "./check.ts";

const bits = (values: Float16Array) => new Uint16Array(values.buffer);

Deno.test("packing rounds to the nearest half, ties to even, and what is too large becomes infinite", async () => {
  const bytes = new DataView(new ArrayBuffer(4));
  const float = (word: number) => (bytes.setUint32(0, word), bytes.getFloat32(0));
  const special = [0, -0, 1, 65504, 65519, 65520, 1e9, -65520, Infinity, -Infinity, 2 ** -14, 6.2e-5];
  const halfway = [1 + 2 ** -11, 1 + 3 * 2 ** -11, -(1 + 2 ** -11), 1 + 2 ** -11 + 2 ** -23];
  // Any bits whose exponent a normal half can have.
  const any = Array.from(
    { length: 4080 },
    (_, i) => float(0x38800000 + (i * 2654435761 % 0x0f000000)) * (i % 2 ? 1 : -1),
  );
  const values = Float32Array.from([...special, ...halfway, ...any]);
  await testDevice();
  const n = values.length;
  const program = await capture("pack", { x: input([n]) }, ({ x }) => {
    const y = empty([n], "f16");
    copy(x, y);
    return { y };
  }).prepare();
  program.run({ x: values });
  const got = bits(new Float16Array(await program.readBytes(program.outputs.y)));
  const expected = bits(new Float16Array(values));
  for (let i = 0; i < n; i++) {
    assertEquals((got[i] as number).toString(16), (expected[i] as number).toString(16), `${values[i]}`);
  }
  program.destroy();
});

Deno.test("halves that products cannot hold keep their sign and come near zero", async () => {
  await testDevice();
  const values = Float32Array.from({ length: 64 }, (_, i) => (i % 2 ? 1 : -1) * 2 ** (-14 - i / 4));
  const program = await capture("small", { x: input([64]) }, ({ x }) => {
    const y = empty([64], "f16");
    copy(x, y);
    return { y };
  }).prepare();
  program.run({ x: values });
  (await program.read(program.outputs.y)).forEach((v, i) =>
    assert(Math.abs(v - (values[i] as number)) <= 2 ** -24, `${values[i]} became ${v}`)
  );
  program.destroy();
});

interface Case {
  name: string;
  op: (...x: Tensor[]) => Tensor;
  shapes: readonly Shape[];
  /** Inputs that stay f32: weights. */
  weights?: readonly number[];
  /** The result is f32 by design. */
  single?: boolean;
}

const { cos, sin } = rotaryTables2d(3, 3, 8);
const tables = () => [constant(cos, [9, 8]), constant(sin, [9, 8])] as const;

const CASES: readonly Case[] = [
  { name: "matmul NN", op: (a, b) => matmul(a, b), shapes: [[2, 20, 36], [2, 36, 12]] },
  {
    name: "matmul NT",
    op: (a, b) => matmul(a, b, { transposeB: true, alpha: 0.5 }),
    shapes: [[36, 40], [24, 40]],
  },
  { name: "matmul TN", op: (a, b) => matmul(a, b, { transposeA: true }), shapes: [[48, 20], [48, 24]] },
  { name: "linear", op: (x, w, b) => linear(x, w, b), shapes: [[3, 7, 24], [16, 24], [16]], weights: [1, 2] },
  {
    name: "linear of odd width",
    op: (x, w) => linear(x, w),
    shapes: [[9, 24], [7, 24]],
    weights: [1],
    single: true,
  },
  {
    name: "split product",
    op: (x, w) => linear(x, w),
    shapes: [[4, 2048], [8, 2048]],
    weights: [1],
    single: true,
  },
  {
    name: "conv2d",
    op: (x, w, b) => conv2d(x, w, b, { padding: 1 }),
    shapes: [[2, 6, 5, 8], [12, 3, 3, 8], [12]],
    weights: [1, 2],
  },
  {
    name: "conv2d from three channels, stride 2",
    op: (x, w) => conv2d(x, w, undefined, { stride: 2, padding: 1 }),
    shapes: [[1, 7, 7, 3], [8, 3, 3, 3]],
    weights: [0, 1],
  },
  { name: "attention", op: attention, shapes: [[2, 9, 2, 8], [2, 9, 2, 8], [2, 9, 2, 8]] },
  { name: "rotary", op: (x) => rotary(x, ...tables()), shapes: [[2, 9, 2, 8]] },
  { name: "rotary halves", op: (x) => rotary(x, ...tables(), "halves"), shapes: [[2, 9, 2, 8]] },
  { name: "layerNorm", op: (x, w, b) => layerNorm(x, w, b), shapes: [[11, 20], [20], [20]], weights: [1, 2] },
  { name: "rmsNorm", op: (x, w) => rmsNorm(x, w), shapes: [[11, 128], [128]], weights: [1] },
  {
    name: "groupNorm",
    op: (x, w, b) => groupNorm(x, 2, w, b, 1e-6, { silu: true }),
    shapes: [[2, 3, 5, 8], [8], [8]],
    weights: [1, 2],
  },
  { name: "swiglu", op: swiglu, shapes: [[5, 24]] },
  { name: "modulate", op: modulate, shapes: [[2, 5, 12], [2, 1, 12], [2, 1, 12]] },
  { name: "broadcast column", op: (a, b) => mul(a, b), shapes: [[6, 8], [6, 1]] },
  { name: "chain", op: (a, b) => gelu(add(silu(a), b)), shapes: [[4, 8], [8]] },
  { name: "softmax", op: softmax, shapes: [[6, 20]] },
  { name: "mean", op: (x) => mean(x, [0]), shapes: [[6, 20]] },
  { name: "upsample", op: upsampleNearest2x, shapes: [[2, 3, 4, 8]] },
  { name: "average pool", op: (x) => averagePool(x, { kernel: 2 }), shapes: [[2, 4, 4, 8]] },
  { name: "permute", op: (x) => permute(x, [1, 0, 2]), shapes: [[3, 5, 8]] },
  { name: "transpose", op: (x) => permute(x, [1, 0]), shapes: [[8, 12]], single: true },
  { name: "concat", op: (a, b) => concat([a, b], 1), shapes: [[3, 8], [3, 4]] },
  {
    name: "concat of odd parts",
    op: (a, b) => concat([a, b], 1),
    shapes: [[3, 5], [3, 3]],
    weights: [0, 1],
    single: true,
  },
  { name: "split", op: (x) => split(x, [4, 8], 1)[1] as Tensor, shapes: [[3, 12]] },
  { name: "slice of odd width", op: (x) => slice(x, 1, 2, 5), shapes: [[4, 8]], single: true },
  { name: "pad", op: (x) => pad(x, [[1, 0], [4, 0]]), shapes: [[3, 8]] },
  { name: "flip", op: (x) => flip(x, 0), shapes: [[3, 8]] },
];

Deno.test("every op on halves gives what it gives in f32, rounded; and so do its gradients", async () => {
  for (const { name, op, shapes, weights = [], single = false } of CASES) {
    const halves = shapes.map((shape, i) =>
      new Float16Array(randomArray(shape.reduce((a, b) => a * b), i + 1))
    );
    for (const profile of PROFILES) {
      await testDevice(profile);
      const run = async (precision: Precision) => {
        const stored = (i: number) => precision === "f16" && !weights.includes(i);
        const x = Object.fromEntries(shapes.map((s, i) => [`x${i}`, input(s, stored(i) ? "f16" : "f32")]));
        let dtype = "";
        const program = await inPrecision(precision, () =>
          capture(name, x, (x) => {
            const xs = shapes.map((_, i) => Object.assign(x[`x${i}`] as Tensor, { requiresGrad: true }));
            const y = op(...xs);
            dtype = y.dtype;
            const dys = constant(randomArray(y.size, 77), y.shape);
            const dxs = grad(y, xs, dys);
            return { y, ...Object.fromEntries(dxs.map((dx, i) => [`d${i}`, dx])) } as Record<string, Tensor>;
          })).prepare();
        program.run(
          Object.fromEntries(halves.map((h, i) => [`x${i}`, stored(i) ? bits(h) : Float32Array.from(h)])),
        );
        const results: Record<string, Float32Array> = {};
        for (const [key, t] of Object.entries(program.outputs)) results[key] = await program.read(t);
        program.destroy();
        if (precision === "f16" && !["softmax", "mean"].includes(name)) {
          assertEquals(dtype, single ? "f32" : "f16", name);
        }
        return results;
      };
      const expected = await run("f32"), got = await run("f16");
      for (const key of Object.keys(expected)) {
        const error = relativeError(got[key] as Float32Array, expected[key] as Float32Array);
        assert(error < 1.5e-3, `${name}, ${key}, profile ${profile}: relative error ${error}`);
      }
    }
  }
});

Deno.test("sums of gradients in halves are rounded sums", async () => {
  await testDevice();
  const a = new Float16Array(randomArray(24, 1)), b = new Float16Array(randomArray(24, 2));
  const inputs = { a: input([2, 12], "f16"), b: input([2, 12], "f16") };
  const program = await capture("sum", inputs, ({ a, b }) => {
    const y = empty([2, 12], "f16");
    sumInto(a, b, y);
    return { y };
  }).prepare();
  program.run({ a: bits(a), b: bits(b) });
  const got = await program.read(program.outputs.y);
  assertEquals([...got], [...Float16Array.from(a, (x, i) => x + (b[i] as number))]);
  program.destroy();
});

Deno.test("a text that writes single elements cannot be bound to halves, and says so", () => {
  const text = "@group(0) @binding(0) var<storage, read_write> y: array<f32>;\nfn f() { y[0] = 1.0; }";
  assertThrows(() => withHalves(text, ["y"]), GpuError, 'single halves to "y"');
  assertThrows(() => withHalves("var<storage, read> m: array<mat2x2<f32>>;", ["m"]), GpuError, '"m"');
});

Deno.test("accesses are rewritten wherever they stand", async () => {
  await testDevice();
  const source = `alias W = vec4<f32>;
@group(0) @binding(0) var<storage, read> x: array<W>;
@group(0) @binding(1) var<storage, read_write> y: array<W>;
fn at(i: u32) -> vec4<f32> { return x[i] * x[1u - i].wzyx; }
@compute @workgroup_size(1) fn nested() { y[0] = at(u32(x[0][0])); y[1] = x[0]; y[1] += x[u32(x[0].x + 1.0) - 1u]; }`;
  const program = await capture("nested", { x: input([8], "f16") }, ({ x }) => {
    const y = empty([8], "f16");
    kernel(source, "nested").launch({ x, y }, {}, [1]);
    return { y };
  }).prepare();
  program.run({ x: bits(new Float16Array([0, 1, 2, 3, 4, 5, 6, 7])) });
  assertEquals([...await program.read(program.outputs.y)], [0, 6, 10, 12, 0, 2, 4, 6]);
  program.destroy();
});

Deno.test("the loss scale falls with a step that overflowed, which is skipped, and grows after 500 good ones", async () => {
  await testDevice();
  const n = 64, g = input([n]), start = randomArray(n, 1);
  const flat = (init?: () => Float32Array) => variable([n], init ? { init } : {});
  const set = {
    parameters: flat(() => start),
    gradients: g,
    m: flat(),
    v: flat(),
    working: variable([n], { dtype: "f16" }),
    lrFactor: 1,
  };
  const hyper = hyperVariable(), progress = progressVariable(true);
  hyper.storage.write(
    packHyper({ lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weightDecay: 0, clip: 0, emaDecay: 0 }),
  );
  const program = await capture("adamw", { g }, ({ g }) => {
    adamw([set], hyper, squaredNorm([g]), progress);
    return {};
  }).prepare();
  program.run({ g: new Float32Array(n).fill(Infinity) });
  assertEquals([...await readTensor(progress)], [0, 1, 32768, 0]);
  assertEquals(await readTensor(set.parameters), start);
  progress.storage.write(new Float32Array([7, 1, 32768, 499]));
  program.run({ g: new Float32Array(n).fill(32768) });
  assertEquals([...await readTensor(progress)], [8, 1, 65536, 0]);
  const p = await readTensor(set.parameters);
  assert(p.every((v, i) => v !== start[i]));
  assertEquals(await readTensor(set.working), Float32Array.from(new Float16Array(p)), "the working copy");
  program.destroy();
});

const plan = (precision: Precision, batchSize: number) => {
  const dit = new Dit(ditConfig.parse({ ...DIT_SIZES["S/1"], input_size: 16, in_channels: 32 }));
  return new Diffusion(dit, {
    batchSize,
    labelDropout: 0.1,
    directionWeight: 1,
    ema: true,
    seed: 0,
    precision,
  }).capture()
    .plan;
};

Deno.test("a DiT-S/1 step at batch 32 takes at least 35 % less memory in halves", async () => {
  await testDevice("gpu"); // without the textures of software adapters
  const single = plan("f32", 32), half = plan("f16", 32);
  assert(half.bytes.activations < 0.55 * single.bytes.activations, `${half.bytes.activations}`);
  assert(half.totalBytes < 0.65 * single.totalBytes, `${half.totalBytes} of ${single.totalBytes}`);
});

Deno.test("flow matching in halves follows f32 within 2 %", async () => {
  await testDevice();
  const S = 2, C = 4, B = 32, STEPS = 90;
  const curve = async (precision: Precision) => {
    const dit = new Dit(
      ditConfig.parse({
        input_size: S,
        in_channels: C,
        hidden_size: 48,
        depth: 2,
        num_heads: 2,
        num_classes: 2,
      }),
    );
    const options = { batchSize: B, labelDropout: 0.1, directionWeight: 1, ema: true, seed: 0, precision };
    const diffusion = new Diffusion(dit, options);
    dit.init(new Initializer(0));
    const program = await diffusion.capture().prepare();
    await refreshWorkingCopies([diffusion.set]);
    const labels = Uint32Array.from({ length: B }, (_, i) => i % 2);
    const losses: number[] = [];
    for (let n = 0; n < STEPS; n++) {
      const x = normal(5, 1, B * S * S * C, n).map((v, i) =>
        0.15 * v + (labels[Math.floor(i / (S * S * C))] ? 1 : -1)
      );
      diffusion.optimizer.set({
        lr: 1e-3, // at 3e-3 another thousandth in the first weights changes the curve by more
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weightDecay: 0,
        clip: 1,
        emaDecay: 0.98,
      });
      diffusion.random.set(n);
      program.run({ x, labels });
      if (n % 30 === 29) {
        losses.push((await readTensor(diffusion.meter))[0] as number / 30);
        diffusion.meter.storage.write(new Float32Array(DIFFUSION_METERS.length));
      }
    }
    assertEquals(
      (await readTensor(diffusion.optimizer.progress)).subarray(0, 2),
      new Float32Array([STEPS, 0]),
    );
    program.destroy();
    diffusion.destroy();
    return losses;
  };
  const single = await curve("f32"), half = await curve("f16");
  assert(single.at(-1) as number < 0.9 * (single[0] as number), `it learns: ${single}`);
  single.forEach((loss, i) =>
    assert(Math.abs((half[i] as number) / loss - 1) < 0.02, `f32 ${single}, f16 ${half}`)
  );
});
