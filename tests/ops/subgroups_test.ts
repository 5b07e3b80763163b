// Reductions by subgroup operations: each op against f64 loops with the tolerances of its own tests, the same bits as without
// subgroups, and the self-test. Where the device has no subgroups only the last tests run.

import { assert, assertEquals, assertMatch } from "@std/assert";
import { closeDevice, device } from "../../src/gpu/device.ts";
import { capture } from "../../src/gpu/program.ts";
import { within } from "../../src/gpu/scope.ts";
import { attention } from "../../src/ops/attention.ts";
import { mul } from "../../src/ops/math.ts";
import { groupNorm, layerNorm, rmsNorm } from "../../src/ops/norm.ts";
import { sum, sumOfSquares } from "../../src/ops/reduce.ts";
import { crossEntropy, softmax } from "../../src/ops/softmax.ts";
import { findSubgroups, prepareSubgroups } from "../../src/ops/subgroups.ts";
import { grad } from "../../src/tensor/autograd.ts";
import { constant, input, type Shape, type Tensor } from "../../src/tensor/tensor.ts";
import { openAdapter } from "../../tasks/command.ts";
import { checkOp, randomArray, testDevice } from "../helpers/check.ts";
import { quietLog } from "../helpers/commands.ts";
import { type Nd, size } from "../helpers/reference.ts";

/** Runs `fn` with reductions by subgroups of `threads`. */
async function bySubgroups<T>(threads: number, fn: () => Promise<T>): Promise<T> {
  await testDevice("gpu");
  device().subgroups = threads;
  try {
    return await fn();
  } finally {
    device().subgroups = 0;
  }
}

/** Each row by a function of its elements. */
const rows = (of: (row: Float64Array) => ArrayLike<number>) => (x: Nd): Nd => {
  const C = x.shape.at(-1) as number, y = new Float64Array(x.data.length);
  for (let at = 0; at < y.length; at += C) y.set(of(Float64Array.from(x.data.subarray(at, at + C))), at);
  return { shape: [...x.shape], data: y };
};
const total = (values: Float64Array) => values.reduce((a, b) => a + b, 0);

const softmaxRows = rows((row) => {
  const top = Math.max(...row), exps = row.map((v) => Math.exp(v - top)), all = total(exps);
  return exps.map((v) => v / all);
});
const layerNormRows = rows((row) => {
  const mean = total(row) / row.length, d = row.map((v) => v - mean);
  const deviation = Math.sqrt(total(d.map((v) => v * v)) / row.length + 1e-6);
  return d.map((v) => v / deviation);
});
const rmsNormRows = rows((row) => {
  const r = Math.sqrt(total(row.map((v) => v * v)) / row.length + 1e-6);
  return row.map((v) => v / r);
});
const rowSums = (x: Nd): Nd => {
  const C = x.shape[1] as number;
  const data = Float64Array.from(
    { length: x.shape[0] as number },
    (_, r) => total(Float64Array.from(x.data.subarray(r * C, (r + 1) * C))),
  );
  return { shape: [data.length], data };
};

/** The first launch of each kernel of a program that has one of these entry points. */
const wgslOf = (entries: readonly string[], inputs: readonly Shape[], op: (...x: Tensor[]) => Tensor) => {
  const { plan } = capture(
    "text",
    Object.fromEntries(inputs.map((s, i) => [`x${i}`, input(s)])),
    (x) => ({ y: op(...Object.values(x)) }),
  );
  return plan.launches.filter(({ kernel }) => entries.includes(kernel.entry)).map(({ kernel }) =>
    kernel.wgsl
  );
};

interface Case {
  op: (...x: Tensor[]) => Tensor;
  shapes: readonly (readonly Shape[])[];
}

/** Rows that 4, 8, 16 or 64 threads share, and workgroups that are not full. */
const OPS: Readonly<Record<string, Case>> = {
  "sum of fused squares": { op: (x) => sum(mul(x, x), [1]), shapes: [[[3, 40]], [[2, 9001]]] },
  "sum of squares": { op: (x) => sumOfSquares(x), shapes: [[[4, 3000]]] },
  layerNorm: { op: (x, w, b) => layerNorm(x, w, b), shapes: [[[5, 300], [300], [300]]] },
  groupNorm: { op: (x, w, b) => groupNorm(x, 2, w, b), shapes: [[[2, 9, 50, 8], [8], [8]]] },
  softmax: { op: (x) => softmax(x), shapes: [[[33, 7]], [[3, 257]]] },
  "cross entropy": {
    op: (x) => crossEntropy(x, constant(new Uint32Array(9).fill(3), [9])),
    shapes: [[[9, 101]]],
  },
  attention: { op: attention, shapes: [[[1, 9, 1, 4], [1, 81, 1, 4], [1, 81, 1, 4]]] },
};

/** The bits of an op's result and its gradients. */
async function bitsOf(op: Case["op"], shapes: readonly Shape[]): Promise<Uint32Array[]> {
  const data = Object.fromEntries(shapes.map((shape, i) => [`x${i}`, randomArray(size(shape), i + 1)]));
  const inputs = Object.fromEntries(shapes.map((shape, i) => [`x${i}`, input(shape)]));
  const program = await capture("bits", inputs, (inputs) => {
    const xs: Tensor[] = Object.values(inputs);
    for (const x of xs) x.requiresGrad = true;
    const y = op(...xs);
    const dxs = y.node ? grad(y, xs, constant(randomArray(y.size, 9), y.shape)) : [];
    return { y, ...Object.fromEntries(dxs.map((dx, i) => [`d${i}`, dx])) };
  }).prepare();
  try {
    program.run(data);
    const bits: Uint32Array[] = [];
    for (const output of Object.values(program.outputs)) {
      bits.push(new Uint32Array((await program.read(output)).buffer));
    }
    return bits;
  } finally {
    program.destroy();
  }
}

await testDevice("gpu");
const THREADS = findSubgroups();

if (THREADS) {
  Deno.test("the self-test passes, and row kernels then use subgroups in profile gpu alone", async () => {
    await testDevice("gpu");
    const texts = () =>
      wgslOf(["softmax", "norm", "reduce_rows"], [[2, 300]], (x) => sum(softmax(layerNorm(x)), [1]));
    const plain = texts();
    assertEquals(plain.length, 3);
    assert(!plain.some((text) => /subgroup[A-Z]/.test(text)), "none before the self-test");
    try {
      assertEquals(await prepareSubgroups(), undefined);
      assertEquals([device().subgroups, device().profile], [THREADS, "gpu"]);
      assert(texts().every((text) => /enable subgroups;[^]*subgroupShuffleXor/.test(text)));
      device().profile = "cpu";
      assert(!texts().some((text) => /subgroup[A-Z]/.test(text)));
    } finally {
      device().subgroups = 0;
    }
  });

  Deno.test("a subgroup smaller than its claimed size fails the self-test, and subgroups are not used", async () => {
    await testDevice("gpu");
    const { subgroupMaxSize } = device().facts;
    if (subgroupMaxSize > 32) return; // there are no levels for more than 64
    assertMatch(
      await prepareSubgroups(2 * subgroupMaxSize) ?? "passed",
      /^the (sum|maximum).* of rows of \d+ threads is \S+ instead of -?\d+$/,
    );
    assertEquals(device().subgroups, 0);
  });

  Deno.test("reductions by subgroups and their gradients match f64 loops, with the same bits twice", () =>
    bySubgroups(THREADS, async () => {
      const profiles = ["gpu"] as const;
      await checkOp({
        op: (x) => softmax(x),
        reference: softmaxRows,
        shapes: [[[9, 3]], [[7, 268]]],
        profiles,
      });
      await checkOp({
        op: (x) => layerNorm(x),
        reference: layerNormRows,
        shapes: [[[5, 300]]],
        profiles,
      });
      await checkOp({ op: (x) => rmsNorm(x), reference: rmsNormRows, shapes: [[[9, 20]]], profiles });
      const sums = { op: (x: Tensor) => sum(x, [1]), reference: rowSums, accumulates: true, profiles };
      await checkOp({ ...sums, shapes: [[[3, 1100]]] });
      assertEquals(device().subgroups, THREADS);
    }));

  for (const [name, { op, shapes }] of Object.entries(OPS)) {
    Deno.test(`${name} and its gradients have the same bits with subgroups and without`, async () => {
      for (const inputs of shapes) {
        const plain = await bySubgroups(0, () => bitsOf(op, inputs));
        for (const threads of name === "softmax" ? [2, THREADS] : [THREADS]) { // 2 exist on no device
          assertEquals(await bySubgroups(threads, () => bitsOf(op, inputs)), plain, `${threads}, ${inputs}`);
        }
      }
    });
  }

  Deno.test("an image has the same bits in any batch with subgroups", () =>
    bySubgroups(THREADS, async () => {
      const one = randomArray(40 * 24, 1), bits: Float32Array[] = [];
      for (const B of [1, 5]) {
        const program = await within({ batchInvariant: true }, () =>
          capture("batch", { x: input([B, 40, 24]) }, ({ x }) => ({ y: sum(softmax(layerNorm(x)), [2]) })))
          .prepare();
        program.run({
          x: Float32Array.from({ length: B * one.length }, (_, i) =>
            one[i % one.length] as number),
        });
        bits.push((await program.read(program.outputs.y)).slice(-40));
        program.destroy();
      }
      assertEquals(bits[0], bits[1]);
    }));
}

Deno.test("a device that has no subgroups keeps its kernels, without a complaint", async () => {
  await testDevice("gpu");
  assertEquals([await prepareSubgroups(0), device().subgroups], [undefined, 0]);
});

Deno.test("commands use subgroups with the gpu kernels alone", async () => {
  for (const kernels of ["gpu", "cpu"] as const) {
    closeDevice();
    await openAdapter({ cpu: false, kernels }, quietLog().log);
    assertEquals(device().subgroups, kernels === "gpu" ? findSubgroups() : 0, kernels);
  }
});
