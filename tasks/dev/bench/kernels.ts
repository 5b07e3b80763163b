// Programs of the kernel cases: each op with random inputs of the case's sizes.

import { grad } from "../../../src/tensor/autograd.ts";
import { within } from "../../../src/gpu/scope.ts";
import { capture } from "../../../src/gpu/program.ts";
import { adamw, hyperVariable, packHyper, progressVariable, squaredNorm } from "../../../src/ops/adamw.ts";
import { attention } from "../../../src/ops/attention.ts";
import { conv2d } from "../../../src/ops/conv.ts";
import { add, silu } from "../../../src/ops/math.ts";
import { matmul } from "../../../src/ops/matmul.ts";
import { groupNorm, layerNorm, rmsNorm } from "../../../src/ops/norm.ts";
import { softmax } from "../../../src/ops/softmax.ts";
import { input, type Precision, type Shape, type Tensor, variable } from "../../../src/tensor/tensor.ts";
import type { Case, Sizes } from "./cases.ts";
import type { Measurable } from "./measure.ts";

interface OpCase {
  /** Shapes of the inputs. Operands are stored in the case's precision, weights of norms in fp32. */
  operands: readonly Shape[];
  weights?: readonly Shape[];
  fn: (...x: Tensor[]) => Tensor | readonly Tensor[];
}

/** `fn`, followed by the gradients of its inputs if the pass asks for them. */
function passOf(
  pass: "forward" | "gradients",
  y: Shape,
  operands: readonly Shape[],
  fn: (...x: Tensor[]) => Tensor,
) {
  if (pass === "forward") return { operands, fn };
  const through = (...x: Tensor[]) => {
    const dy = x.pop() as Tensor;
    const leaves = x.map((t) => Object.assign(t, { requiresGrad: true }));
    return grad(fn(...leaves), leaves, dy);
  };
  return { operands: [...operands, y], fn: through };
}

function opCase(c: Exclude<Sizes, { op: "adamw" }>): OpCase {
  switch (c.op) {
    case "gemm": {
      const { M, N, K, layout } = c, [a, b] = [...layout].map((l) => l === "T");
      const options = { transposeA: a === true, transposeB: b === true };
      return {
        operands: [a ? [K, M] : [M, K], b ? [N, K] : [K, N]],
        fn: (x, y) => matmul(x as Tensor, y as Tensor, options),
      };
    }
    case "conv": {
      const x = [c.B, c.H, c.W, c.C], w = [c.Co, 3, 3, c.C], y = [c.B, c.H, c.W, c.Co];
      const conv = (x?: Tensor, w?: Tensor) => conv2d(x as Tensor, w as Tensor, undefined, { padding: 1 });
      if (c.wrt === "y") return { operands: [x, w], fn: conv };
      const at = c.wrt === "x" ? 0 : 1;
      const fn = (...t: Tensor[]) => {
        const leaf = Object.assign(t[at] as Tensor, { requiresGrad: true });
        return grad(conv(t[0], t[1]), [leaf], t[2] as Tensor);
      };
      return { operands: [x, w, y], fn };
    }
    case "attention": {
      const shape = [c.B, c.T, c.NH, c.HS], y = [c.B, c.T, c.NH * c.HS];
      return passOf(
        c.pass,
        y,
        [shape, shape, shape],
        (q, k, v) => attention(q as Tensor, k as Tensor, v as Tensor),
      );
    }
    case "group norm": {
      const fn = (x?: Tensor, w?: Tensor, b?: Tensor) =>
        groupNorm(x as Tensor, c.groups, w as Tensor, b as Tensor, 1e-6, { silu: true });
      return { operands: [[c.B, c.H, c.W, c.C]], weights: [[c.C], [c.C]], fn };
    }
    default: {
      const x = [c.R, c.C];
      if (c.op === "add") return passOf(c.pass, x, [x, x], (a, b) => add(a as Tensor, b as Tensor));
      const ops = { "layer norm": layerNorm, "rms norm": rmsNorm, softmax, silu };
      const weights = { "layer norm": 2, "rms norm": 1, softmax: 0, silu: 0 }[c.op];
      const op = ops[c.op] as (...x: Tensor[]) => Tensor;
      if (c.pass === "forward") return { operands: [x], weights: Array(weights).fill([c.C]), fn: op };
      return {
        operands: [x, x],
        weights: Array(weights).fill([c.C]),
        fn: (x, dy, ...w) => {
          const leaves = [x as Tensor, ...w].map((t) => Object.assign(t, { requiresGrad: true }));
          return grad(op(...leaves), leaves, dy as Tensor);
        },
      };
    }
  }
}

/** Random numbers per operand; larger operands repeat them. */
const DISTINCT = 1 << 18;

/** Uniform in -0.5..0.5. */
function draw<A extends Float32Array<ArrayBuffer> | Float16Array<ArrayBuffer>>(values: A): A {
  for (let i = 0; i < Math.min(values.length, DISTINCT); i++) values[i] = Math.random() - 0.5;
  for (let n = DISTINCT; n < values.length; n *= 2) values.copyWithin(n, 0, n);
  return values;
}

/** Fills the storage with random numbers once it is allocated. */
function fill({ storage }: Tensor): void {
  const { elements, half } = storage;
  storage.initialise(() =>
    half ? new Uint16Array(draw(new Float16Array(elements)).buffer) : draw(new Float32Array(elements))
  );
}

const stored = (shape: Shape, precision: Precision) =>
  input(shape, precision === "f16" && (shape.at(-1) ?? 1) % 4 === 0 ? "f16" : "f32");

/** Captures a case. `bytes` is its minimum traffic: inputs plus outputs. */
export function kernelOf(c: Case): Measurable {
  if (c.op === "adamw") return updates(c.n);
  const { operands, weights = [], fn } = opCase(c);
  const tensors = [...operands.map((s) => stored(s, c.precision)), ...weights.map((s) => stored(s, "f32"))];
  for (const t of tensors) fill(t);
  const inputs = Object.fromEntries(tensors.map((t, i) => [`x${i}`, t]));
  const program = capture(c.name, inputs, () => {
    const y = within({ precision: c.precision }, () => fn(...tensors));
    return Object.fromEntries([y].flat().map((v, i) => [`y${i}`, v as Tensor]));
  });
  const outputs = Object.values(program.outputs);
  return {
    program,
    bytes: [...tensors, ...outputs].reduce((sum, { storage }) => sum + storage.bytes, 0),
    destroy: () => program.destroy(),
  };
}

/** AdamW with gradient clipping and EMA: six values read and four written per parameter. */
function updates(n: number): Measurable {
  const make = () => variable([n], { init: () => draw(new Float32Array(n)).map(Math.abs) });
  const [parameters, gradients, m, v, ema] = [make(), make(), make(), make(), make()];
  const hyper = hyperVariable(), progress = progressVariable(false);
  hyper.storage.write(
    packHyper({ lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0.01, clip: 1, emaDecay: 0.99 }),
  );
  const program = capture("adamw", {}, () => {
    const norm2 = squaredNorm([gradients]);
    adamw([{ parameters, gradients, m, v, ema, lrFactor: 1 }], hyper, norm2, progress);
    return { norm2 };
  });
  return {
    program,
    bytes: 4 * n * 10,
    destroy() {
      program.destroy();
      for (const t of [parameters, gradients, m, v, ema, hyper, progress]) t.storage.destroy();
    },
  };
}
