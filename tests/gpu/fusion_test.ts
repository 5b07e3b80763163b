// Fusion: the same numbers with and without it, in fewer launches, and never across a write to an operand. Sums have the same
// order; the driver may contract a multiplication and an addition of one kernel, which changes the last bit: hence 1e-6 and
// not equality.

import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { within } from "../../src/gpu/scope.ts";
import { type Axis, compose, type View, view } from "../../src/gpu/strides.ts";
import { device } from "../../src/gpu/device.ts";
import { addInPlace } from "../../src/gpu/memory.ts";
import { capture, type Program } from "../../src/gpu/program.ts";
import { Initializer } from "../../src/nn/init.ts";
import { Dit, ditConfig } from "../../src/models/dit.ts";
import type { ParameterSet } from "../../src/nn/parameter_set.ts";
import { attention } from "../../src/ops/attention.ts";
import { conv2d } from "../../src/ops/conv.ts";
import { add, gelu, mul, scale, shift, silu, square, sub } from "../../src/ops/math.ts";
import { linear, matmul } from "../../src/ops/matmul.ts";
import { gatedAdd, modulate, splitModulation, swiglu } from "../../src/ops/modulate.ts";
import { groupNorm, layerNorm, rmsNorm } from "../../src/ops/norm.ts";
import { mean, sum } from "../../src/ops/reduce.ts";
import { rotary } from "../../src/ops/rotary.ts";
import { concat, permute, reshape, slice, split } from "../../src/ops/layout.ts";
import { softmax } from "../../src/ops/softmax.ts";
import {
  input,
  type Precision,
  readTensor,
  type Shape,
  sizeOf,
  type Tensor,
  variable,
} from "../../src/tensor/tensor.ts";
import { grad } from "../../src/tensor/autograd.ts";
import { wordsOf } from "../../src/ops/pixels.ts";
import { StageRun } from "../../src/train/stage_run.ts";
import { Diffusion } from "../../src/train/diffusion.ts";
import { alignment } from "../helpers/alignment.ts";
import { PROFILES, randomArray, relativeError, testDevice } from "../helpers/check.ts";

type Fn = (...x: Tensor[]) => Tensor | Tensor[];

/** Results, and gradients of the sum of their squares, with fusion and without; and the launches of both. */
async function bothWays(shapes: readonly Shape[], fn: Fn, precision: Precision = "f32") {
  const results: Record<string, Float32Array>[] = [], launches: number[] = [];
  for (const fusing of [true, false]) {
    device().fusing = fusing;
    try {
      const inputs = Object.fromEntries(shapes.map((s, i) => [`x${i}`, input(s)]));
      const program = await capture("both ways", inputs, (t) =>
        within({ precision }, () => {
          const x = shapes.map((_, i) => Object.assign(t[`x${i}`] as Tensor, { requiresGrad: true }));
          const y = [fn(...x)].flat();
          const loss = y.map((v) => sum(square(v))).reduce(add);
          const named = [...y, ...grad(loss, x)].map((v, i) => [`y${i}`, v] as const);
          return Object.fromEntries(named) as Record<string, Tensor>;
        })).prepare();
      launches.push(program.plan.launches.length);
      program.run(Object.fromEntries(shapes.map((s, i) => [`x${i}`, randomArray(sizeOf(s), i + 1)])));
      const read: Record<string, Float32Array> = {};
      for (const [name, y] of Object.entries(program.outputs)) read[name] = await program.read(y);
      results.push(read);
      program.destroy();
    } finally {
      device().fusing = true;
    }
  }
  const [fused, plain] = results as [Record<string, Float32Array>, Record<string, Float32Array>];
  const worst = Math.max(
    ...Object.keys(plain).map((k) => relativeError(fused[k] as Float32Array, plain[k] as Float32Array, 1e-6)),
  );
  return { worst, fused: launches[0] as number, plain: launches[1] as number };
}

const heads = (x: Tensor, NH: number) => reshape(x, [x.dim(0), x.dim(1), NH, x.dim(2) / NH]);

/**
 * What is computed, on which shapes, and the least number of launches that fusion saves; `epilogues` of them by GEMMs, which have
 * none on a software adapter.
 */
const CASES: Record<string, { shapes: readonly Shape[]; fn: Fn; saves: number; epilogues?: number }> = {
  "a chain of elementwise ops, with broadcasts": {
    shapes: [[3, 5, 8], [8], [3, 1, 8], [3, 5, 1]],
    fn: (x, a, b, c) => silu(add(mul(sub(x as Tensor, a as Tensor), b as Tensor), c as Tensor)),
    saves: 4,
  },
  "sizes that are no multiple of four": {
    shapes: [[3, 5, 7], [7], [5, 1]],
    fn: (x, a, b) => mul(gelu(add(x as Tensor, a as Tensor)), b as Tensor),
    saves: 3,
  },
  "rows of three and of six, four elements at a time": {
    shapes: [[4, 5, 3], [3], [3], [10, 6], [6]],
    fn: (x, a, b, y, c) => [
      silu(add(mul(x as Tensor, a as Tensor), b as Tensor)),
      mul(y as Tensor, c as Tensor),
    ],
    saves: 2,
  },
  "activation, scale and residual after a GEMM": {
    shapes: [[20, 16], [24, 16], [24], [24], [20, 24]],
    fn: (x, w, b, s, r) =>
      add(r as Tensor, mul(linear(x as Tensor, w as Tensor, b, { activation: "gelu" }), s as Tensor)),
    saves: 4,
  },
  "an activation after a GEMM of odd sizes": {
    shapes: [[5, 6], [7, 6], [7]],
    fn: (x, w, b) => silu(linear(x as Tensor, w as Tensor, b)),
    saves: 2,
  },
  "bias and activation after the sum of a split GEMM": {
    shapes: [[8, 1024], [8, 1024], [8]],
    fn: (x, w, b) => silu(linear(x as Tensor, w as Tensor, b)),
    saves: 2,
  },
  "batched GEMMs": {
    shapes: [[3, 8, 12], [3, 12, 16]],
    fn: (a, b) => shift(scale(matmul(a as Tensor, b as Tensor), 0.5), 1),
    saves: 1,
  },
  "a convolution with a residual": {
    shapes: [[2, 6, 5, 8], [8, 3, 3, 8], [8]],
    fn: (x, w, b) => add(x as Tensor, conv2d(x as Tensor, w as Tensor, b, { padding: 1 })),
    saves: 2,
    epilogues: 1,
  },
  "sums of gradients after norms": {
    shapes: [[6, 16], [16], [16], [16]],
    fn: (x, w, b, r) => add(layerNorm(rmsNorm(x as Tensor, r as Tensor), w as Tensor, b), x as Tensor),
    saves: 2,
  },
  "a sum after a group norm with SiLU": {
    shapes: [[2, 5, 3, 8], [8], [8]],
    fn: (x, w, b) =>
      add(groupNorm(x as Tensor, 2, w as Tensor, b as Tensor, 1e-6, { silu: true }), x as Tensor),
    saves: 2,
  },
  "matmuls inside reductions, and ops on their results": {
    shapes: [[6, 9, 8], [6, 9, 8]],
    fn: (a, b) => [
      shift(scale(sum(mul(a as Tensor, b as Tensor), [1]), 0.5), 1),
      square(mean(sub(a as Tensor, b as Tensor), [-1])),
    ],
    saves: 4,
  },
  "a modulation that is read where it was computed": {
    shapes: [[3, 5, 16], [3, 48]],
    fn: (x, m) => {
      const [both, gate] = splitModulation(m as Tensor, [2, 1]) as [Tensor, Tensor];
      return gatedAdd(x as Tensor, modulate(rmsNorm(x as Tensor), both), gate);
    },
    saves: 6,
  },
  "parts of a joint projection, rotated, in attention": {
    shapes: [[2, 6, 48], [6, 8], [6, 8]],
    fn: (x, cos, sin) => {
      const [q, k, v] = split(x as Tensor, [16, 16, 16], 2).map((p) => heads(p, 2)) as [
        Tensor,
        Tensor,
        Tensor,
      ];
      return attention(rotary(q, cos as Tensor, sin as Tensor), rotary(k, cos as Tensor, sin as Tensor), v);
    },
    saves: 4,
  },
  "parts concatenated where they are computed": {
    shapes: [[4, 8], [4, 16], [4, 8]],
    fn: (a, b, c) => concat([silu(a as Tensor), swiglu(b as Tensor), softmax(c as Tensor)], 1),
    saves: 4,
  },
  "a view of a view": {
    shapes: [[4, 6, 8], [3, 2, 4]],
    fn: (x, y) =>
      mul(
        permute(slice(slice(x as Tensor, 0, 1, 3), 2, 4, 8), [2, 0, 1]),
        permute(concat([y as Tensor, y as Tensor], 0), [2, 1, 0]),
      ),
    saves: 3,
  },
};

for (const [name, { shapes, fn, saves, epilogues = 0 }] of Object.entries(CASES)) {
  Deno.test(`${name}: fused, they give the same numbers in fewer launches`, async () => {
    for (const profile of PROFILES) {
      await testDevice(profile);
      const { worst, fused, plain } = await bothWays(shapes, fn);
      assert(worst < 1e-6, `${profile}: ${worst}`);
      const least = profile === "cpu" ? saves - epilogues : saves;
      assert(plain - fused >= least, `${profile}: ${plain} launches became ${fused}`);
      // A fused intermediate is not rounded to fp16.
      const fp16 = await bothWays(shapes, fn, "f16");
      assert(fp16.worst < 4e-3, `${profile}, fp16: ${fp16.worst}`);
    }
  });
}

Deno.test("an op is not fused across a write to its operand", async () => {
  await testDevice();
  for (const fusing of [true, false]) {
    device().fusing = fusing;
    const v = variable([8], { init: () => new Float32Array(8).fill(1) });
    const program = await capture("t", { x: input([8]) }, ({ x }) => {
      const before = scale(v, 2); // 2
      addInPlace(x, v); // v = 4
      const after = scale(v, 2); // 8
      return { y: add(before, after) };
    }).prepare().finally(() => device().fusing = true);
    program.run({ x: new Float32Array(8).fill(3) });
    assertEquals([...await program.read(program.outputs.y)], Array(8).fill(10));
    program.destroy();
    v.storage.destroy();
  }
});

Deno.test("composed views select the same elements as one view after the other", () => {
  const axes = fc.array(fc.tuple(fc.integer({ min: 1, max: 4 }), fc.integer({ min: 0, max: 9 })), {
    minLength: 1,
    maxLength: 4,
  });
  const views = fc.tuple(axes, fc.integer({ min: 0, max: 7 }));
  const list = ({ axes, offset }: View, count: number) =>
    Array.from({ length: count }, (_, i) => {
      let at = offset, rest = i;
      for (const [n, stride] of [...axes].reverse()) {
        [at, rest] = [at + rest % n * stride, Math.floor(rest / n)];
      }
      return at;
    });
  let composed = 0;
  fc.assert(
    fc.property(views, views, ([outer, outerFrom], [inner, innerFrom]) => {
      const sizeOfAxes = (a: Axis[]) => a.reduce((n, [m]) => n * m, 1);
      const a = view(outer, outerFrom), b = view(inner, innerFrom), count = sizeOfAxes(inner);
      const through = list(a, sizeOfAxes(outer));
      if (through.some((i) => i >= count)) return;
      const both = compose(a, b, count);
      if (!both) return;
      composed++;
      const beyond = list(b, count);
      assertEquals(list(both, through.length), through.map((i) => beyond[i]));
    }),
    { numRuns: 5000, seed: 1 },
  );
  assert(composed > 300, `${composed} of the views were composed`);
});

Deno.test("coalescing the axes of a view keeps its elements, padding and direction", () => {
  const axis = fc.record({
    n: fc.integer({ min: 1, max: 4 }),
    stride: fc.integer({ min: -9, max: 9 }),
    lo: fc.integer({ min: 0, max: 1 }),
    padding: fc.integer({ min: 0, max: 1 }),
  });
  const contiguousOr = fc.tuple(fc.array(axis, { minLength: 1, maxLength: 4 }), fc.boolean());
  const list = (axes: readonly Axis[], offset: number) =>
    Array.from({ length: axes.reduce((count, [n]) => count * n, 1) }, (_, i) => {
      let at: number | undefined = offset, rest = i;
      for (const [n, stride, lo = 0, hi = n] of [...axes].reverse()) {
        const index = rest % n;
        at = at === undefined || index < lo || index >= hi ? undefined : at + index * stride;
        rest = Math.floor(rest / n);
      }
      return at;
    });
  let coalesced = 0;
  fc.assert(
    fc.property(contiguousOr, ([drawn, contiguous]) => {
      let step = 1;
      const axes = drawn.reverse().map(({ n, stride, lo, padding }): Axis => {
        const from = n > 1 ? lo : 0, own = contiguous ? step : stride;
        step *= n;
        return [n, own, from, Math.max(from + 1, n - (n > 1 ? padding : 0))];
      }).reverse();
      const simple = view(axes, 3);
      coalesced += Number(simple.axes.length < axes.length);
      assertEquals(list(simple.axes, simple.offset), list(axes, 3));
    }),
    { numRuns: 2000, seed: 1 },
  );
  assert(coalesced > 300, `${coalesced} of the views had fewer axes`);
});

Deno.test("fp16 elements that would be stored one by one are not fused into a permutation", async () => {
  for (const profile of PROFILES) {
    await testDevice(profile);
    const { worst } = await bothWays([[3, 4, 5, 8]], (x) => permute(x as Tensor, [2, 0, 3, 1]), "f16");
    assert(worst < 2 ** -10, `${profile}: ${worst}`);
  }
});

/** Hyper-parameters of a step that changes no weight. */
const STILL = { lr: 0, beta1: 0.9, beta2: 0.99, eps: 1e-8, weightDecay: 0, clip: 0, emaDecay: 0.9 };

/** Gradients of a complete step from the same state, with fusion and without. */
async function wholeStep(
  set: readonly ParameterSet[],
  make: () => Program<Record<string, Tensor>, Record<string, Tensor>>,
  data: Record<string, Float32Array | Uint32Array>,
): Promise<{ worst: number; fused: number; plain: number }> {
  const found: Float32Array[][] = [], launches: number[] = [];
  for (const fusing of [true, false]) {
    device().fusing = fusing;
    const program = await make().prepare().finally(() => device().fusing = true);
    launches.push(program.plan.launches.length);
    program.run(data);
    const flats = set.flatMap((s) => s.gradients().flats);
    found.push(await Promise.all(flats.map(readTensor)));
    program.destroy();
  }
  const [fused, plain] = found as [Float32Array[], Float32Array[]];
  for (const g of plain) assert(g.some((v) => v !== 0), "there are gradients");
  return {
    worst: Math.max(...plain.map((g, i) => relativeError(fused[i] as Float32Array, g, 1e-9))),
    fused: launches[0] as number,
    plain: launches[1] as number,
  };
}

Deno.test("a fused training step of a DiT has the same gradients in two thirds of the launches", async () => {
  for (const profile of PROFILES) {
    await testDevice(profile);
    const dit = new Dit(ditConfig.parse({
      input_size: 4,
      in_channels: 8,
      hidden_size: 48,
      depth: 2,
      num_heads: 2,
      num_classes: 3,
      use_qknorm: true,
    }));
    const options = { batchSize: 3, labelDropout: 0.1, directionWeight: 1, ema: true, seed: 0 };
    const diffusion = new Diffusion(dit, options);
    diffusion.optimizer.set(STILL);
    const init = new Initializer(0);
    for (const p of diffusion.set.list) init.normal(p, 0.1); // no gradient is zero
    const { worst, fused, plain } = await wholeStep(
      [diffusion.set],
      () => diffusion.capture() as never,
      { x: randomArray(3 * 16 * 8, 1), labels: Uint32Array.of(0, 1, 2) },
    );
    assert(worst < 1e-5, `${profile}: ${worst}`);
    assert(fused < 0.667 * plain, `${profile}: ${plain} launches became ${fused}`);
    diffusion.destroy();
  }
});

Deno.test("a fused step of stage 2 has the same gradients in 85 % of the launches", async () => {
  const models = await alignment();
  const stage = new StageRun(models, {
    name: "perceptual",
    train: ["encoder", "adapter", "decoder"],
    losses: { l1: 1, perceptual: 0.01, gan: 0, semantic: 0.5 },
    steps: 1,
    lr: 1e-3,
    encoderLr: 1,
    ema: 0.98,
    ganStart: 1,
  }, { batchSize: 2, accumulate: 1, imageSize: 32, semanticLoss: "l2", semanticAt: "after" });
  stage.optimizer.set(STILL);
  const { encoder: e, adapter, decoder } = models.sets;
  const { worst, fused, plain } = await wholeStep(
    [e, adapter, decoder],
    () => stage.capture("none").parts[0]?.program as never,
    { x: Uint32Array.from({ length: 2 * 32 * wordsOf(32) }, (_, i) => Math.imul(i + 1, 2654435761)) },
  );
  assert(worst < 1e-5, `${worst}`);
  assert(fused < 0.85 * plain, `${plain} launches became ${fused}`);
  stage.destroy();
});
