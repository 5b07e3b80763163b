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
  maximum: {
    forward: "max(a, b)",
    backward: [
      "dy * select(select(T(0.0), T(0.5), a == b), T(1.0), a > b)",
      "dy * select(select(T(0.0), T(0.5), a == b), T(1.0), b > a)",
    ],
  },
  minimum: {
    forward: "min(a, b)",
    backward: [
      "dy * select(select(T(0.0), T(0.5), a == b), T(1.0), a < b)",
      "dy * select(select(T(0.0), T(0.5), a == b), T(1.0), b < a)",
    ],
  },
  scale: { forward: "a * s0", backward: ["dy * s0"] },
  shift: { forward: "a + s0", backward: ["dy"] },
  exp: { forward: "exp(a)", backward: ["dy * y"] },
  log: { forward: "log(a)", backward: ["dy / a"] },
  sqrt: { forward: "sqrt(a)", backward: ["dy * 0.5 / y"] },
  square: { forward: "a * a", backward: ["dy * 2.0 * a"] },
  abs: { forward: "abs(a)", backward: ["dy * sign(a)"] },
  clamp: {
    forward: "clamp(a, s0, s1)",
    backward: ["select(T(0.0), dy, (a >= s0) & (a <= s1))"],
  },
  relu: { forward: "max(a, T(0.0))", backward: ["select(T(0.0), dy, a > T(0.0))"] },
  leakyRelu: { forward: "select(a * s0, a, a > T(0.0))", backward: ["select(dy * s0, dy, a > T(0.0))"] },
  sigmoid: { forward: "1.0 / (1.0 + exp(-a))", backward: ["dy * y * (1.0 - y)"] },
  // tanh of a large argument overflows in some drivers; beyond 10 it is 1 in f32.
  tanh: { forward: "tanh(clamp(a, T(-10.0), T(10.0)))", backward: ["dy * (1.0 - y * y)"] },
  silu: {
    forward: "a / (1.0 + exp(-a))",
    backward: ["dy * (1.0 + a * (1.0 - 1.0 / (1.0 + exp(-a)))) / (1.0 + exp(-a))"],
  },
  // log(1 + e^a) without overflow for large a.
  softplus: {
    forward: "max(a, T(0.0)) + log(1.0 + exp(-abs(a)))",
    backward: ["dy / (1.0 + exp(-a))"],
  },
  gelu: {
    forward: "0.5 * a * (1.0 + erf(a * 0.70710678118654752))",
    backward: [
      "dy * (0.5 * (1.0 + erf(a * 0.70710678118654752)) + a * 0.39894228040143268 * exp(-0.5 * a * a))",
    ],
  },
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

export type Activation =
  | "none"
  | "relu"
  | "leakyRelu"
  | "silu"
  | "gelu"
  | "geluTanh"
  | "quickGelu"
  | "sigmoid"
  | "tanh";

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
export const maximum = (a: Tensor, b: Tensor): Tensor => apply("maximum", [a, b]);
export const minimum = (a: Tensor, b: Tensor): Tensor => apply("minimum", [a, b]);

/** a * factor */
export const scale = (a: Tensor, factor: number): Tensor => apply("scale", [a], [factor]);
/** a + amount */
export const shift = (a: Tensor, amount: number): Tensor => apply("shift", [a], [amount]);
export const neg = (a: Tensor): Tensor => apply("scale", [a], [-1]);
export const exp = (a: Tensor): Tensor => apply("exp", [a]);
export const log = (a: Tensor): Tensor => apply("log", [a]);
export const sqrt = (a: Tensor): Tensor => apply("sqrt", [a]);
export const square = (a: Tensor): Tensor => apply("square", [a]);
export const abs = (a: Tensor): Tensor => apply("abs", [a]);
/** a limited to low..high; the gradient is zero outside. */
export const clamp = (a: Tensor, low: number, high: number): Tensor => apply("clamp", [a], [low, high]);
export const relu = (a: Tensor): Tensor => apply("relu", [a]);
export const leakyRelu = (a: Tensor, slope = 0.2): Tensor => apply("leakyRelu", [a], [slope]);
export const sigmoid = (a: Tensor): Tensor => apply("sigmoid", [a]);
export const tanh = (a: Tensor): Tensor => apply("tanh", [a]);
/** a * sigmoid(a) */
export const silu = (a: Tensor): Tensor => apply("silu", [a]);
/** log(1 + exp(a)) */
export const softplus = (a: Tensor): Tensor => apply("softplus", [a]);
/** a * Phi(a), with the error function. */
export const gelu = (a: Tensor): Tensor => apply("gelu", [a]);
/** The tanh approximation of GELU. */
export const geluTanh = (a: Tensor): Tensor => apply("geluTanh", [a]);

/** a * sigmoid(1.702 a) */
export const quickGelu = (a: Tensor): Tensor => apply("quickGelu", [a]);

/** The activation by name. */
export function activate(a: Tensor, activation: Activation): Tensor {
  if (activation === "none") return a;
  return { relu, leakyRelu, silu, gelu, geluTanh, quickGelu, sigmoid, tanh }[activation](a);
}
