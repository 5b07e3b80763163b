// Elementwise functions with their gradients. Each entry has the formula and the gradient formula for every input, side by side:
// a, b are the inputs, y the output, dy its gradient, s0.. constants, T the element or vector type of WGSL. The plan fuses
// chains of these into one launch.

import { differentiable } from "../tensor/autograd.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { pointwise } from "./pointwise.ts";
import { sumTo } from "./reduce.ts";

interface Formula {
  readonly forward: string;
  /** dLoss/da and dLoss/db. */
  readonly backward: readonly string[];
}

const SQRT_2_PI = 0.7978845608028654; // sqrt(2 / pi)

const FORMULAS = {
  add: { forward: "a + b", backward: ["dy", "dy"] },
  sub: { forward: "a - b", backward: ["dy", "-dy"] },
  mul: { forward: "a * b", backward: ["dy * b", "dy * a"] },
  div: { forward: "a / b", backward: ["dy / b", "-dy * y / b"] },
  scale: { forward: "a * s0", backward: ["dy * s0"] },
  shift: { forward: "a + s0", backward: ["dy"] },
  // The gradient of torch.clamp: that of the identity within the bounds, both included.
  clamp: {
    forward: "clamp(a, T(s0), T(s1))",
    backward: ["select(T(0.0), dy, (a >= T(s0)) & (a <= T(s1)))"],
  },
  exp: { forward: "exp(a)", backward: ["dy * y"] },
  sqrt: { forward: "sqrt(a)", backward: ["dy * 0.5 / y"] },
  square: { forward: "a * a", backward: ["dy * 2.0 * a"] },
  abs: { forward: "abs(a)", backward: ["dy * sign(a)"] },
  relu: { forward: "max(a, T(0.0))", backward: ["select(T(0.0), dy, a > T(0.0))"] },
  leakyRelu: { forward: "select(a * s0, a, a > T(0.0))", backward: ["select(dy * s0, dy, a > T(0.0))"] },
  sigmoid: { forward: "1.0 / (1.0 + exp(-a))", backward: ["dy * y * (1.0 - y)"] },
  // log(1 + exp(a)) without overflow.
  softplus: {
    forward: "max(a, T(0.0)) + log(1.0 + exp(-abs(a)))",
    backward: ["dy / (1.0 + exp(-a))"],
  },
  silu: {
    forward: "a / (1.0 + exp(-a))",
    backward: ["dy * (1.0 + a * (1.0 - 1.0 / (1.0 + exp(-a)))) / (1.0 + exp(-a))"],
  },
  gelu: {
    forward: "0.5 * a * (1.0 + erf(a * 0.70710678118654752))",
    backward: [
      "dy * (0.5 * (1.0 + erf(a * 0.70710678118654752)) + a * 0.39894228040143268 * exp(-0.5 * a * a))",
    ],
  },
  // tanh of a large argument overflows in some drivers; beyond 10 it is 1 in f32.
  geluTanh: {
    forward: `0.5 * a * (1.0 + tanh(clamp(${SQRT_2_PI} * (a + 0.044715 * a * a * a), T(-10.0), T(10.0))))`,
    backward: [
      `dy * (0.5 * (1.0 + tanh(clamp(${SQRT_2_PI} * (a + 0.044715 * a * a * a), T(-10.0), T(10.0))))` +
      ` + 0.5 * a * (1.0 - pow2(tanh(clamp(${SQRT_2_PI} * (a + 0.044715 * a * a * a), T(-10.0), T(10.0)))))` +
      ` * ${SQRT_2_PI} * (1.0 + 0.134145 * a * a))`,
    ],
  },
  // a sigmoid(1.702 a): CLIP's approximation of GELU.
  quickGelu: {
    forward: "a / (1.0 + exp(-1.702 * a))",
    backward: ["dy * (1.0 + 1.702 * a * (1.0 - 1.0 / (1.0 + exp(-1.702 * a)))) / (1.0 + exp(-1.702 * a))"],
  },
} as const satisfies Record<string, Formula>;

function apply(
  name: keyof typeof FORMULAS,
  inputs: readonly Tensor[],
  scalars: readonly number[] = [],
): Tensor {
  const { forward, backward }: Formula = FORMULAS[name];
  const y = pointwise([bind(forward, { a: "x0", b: "x1" })], inputs, scalars);
  return differentiable(y, inputs, (dy) =>
    backward.map((formula, i) => {
      // Only the tensors that the formula names are read.
      const named: Record<string, Tensor | undefined> = { dy, a: inputs[0], b: inputs[1], y };
      const used = Object.keys(named).filter((n) => new RegExp(`\\b${n}\\b`).test(formula));
      const names = Object.fromEntries(used.map((n, k) => [n, `x${k}`]));
      if (formula === "dy") return sumTo(dy, (inputs[i] as Tensor).shape);
      const dx = pointwise([bind(formula, names)], used.map((n) => named[n] as Tensor), scalars);
      return sumTo(dx, (inputs[i] as Tensor).shape);
    }));
}

function bind(formula: string, names: Record<string, string>): string {
  return formula.replace(/\b(a|b|y|dy)\b/g, (name) => names[name] ?? name);
}

/** a + b with broadcasting; so are the other functions of two tensors. */
export const add = (a: Tensor, b: Tensor): Tensor => apply("add", [a, b]);
export const sub = (a: Tensor, b: Tensor): Tensor => apply("sub", [a, b]);
export const mul = (a: Tensor, b: Tensor): Tensor => apply("mul", [a, b]);
export const div = (a: Tensor, b: Tensor): Tensor => apply("div", [a, b]);

/** a * factor */
export const scale = (a: Tensor, factor: number): Tensor => apply("scale", [a], [factor]);
/** a + amount */
export const shift = (a: Tensor, amount: number): Tensor => apply("shift", [a], [amount]);
/** a limited to `low`..`high` */
export const clamp = (a: Tensor, low: number, high: number): Tensor => apply("clamp", [a], [low, high]);
export const neg = (a: Tensor): Tensor => apply("scale", [a], [-1]);
export const exp = (a: Tensor): Tensor => apply("exp", [a]);
export const sqrt = (a: Tensor): Tensor => apply("sqrt", [a]);
export const square = (a: Tensor): Tensor => apply("square", [a]);
export const abs = (a: Tensor): Tensor => apply("abs", [a]);
export const relu = (a: Tensor): Tensor => apply("relu", [a]);
export const leakyRelu = (a: Tensor, slope: number): Tensor => apply("leakyRelu", [a], [slope]);
export const sigmoid = (a: Tensor): Tensor => apply("sigmoid", [a]);
/** log(1 + exp(a)) */
export const softplus = (a: Tensor): Tensor => apply("softplus", [a]);
/** a * sigmoid(a) */
export const silu = (a: Tensor): Tensor => apply("silu", [a]);
/** a * Phi(a), with the error function. */
export const gelu = (a: Tensor): Tensor => apply("gelu", [a]);
/** The tanh approximation of GELU. */
export const geluTanh = (a: Tensor): Tensor => apply("geluTanh", [a]);

/** a * sigmoid(1.702 a) */
export const quickGelu = (a: Tensor): Tensor => apply("quickGelu", [a]);

const ACTIVATIONS = { silu, gelu, geluTanh, quickGelu };
export type Activation = "none" | keyof typeof ACTIVATIONS;

/** The activation by name. */
export const activate = (a: Tensor, activation: Activation): Tensor =>
  activation === "none" ? a : ACTIVATIONS[activation](a);
