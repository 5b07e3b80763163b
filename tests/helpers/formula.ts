// Weights that a formula fills, so that networks of published size are compared without storing them: a 32-bit hash of the
// parameter's name and the element's number (FNV-1a, then MurmurHash3's finaliser), as u in [0, 1), scaled by what the
// parameter is. Whoever makes a fixture runs the same formula in f64 and rounds to f32.

import { writeSafetensors } from "../../src/formats/safetensors.ts";
import { Inception } from "../../src/models/inception.ts";
import { fileShape, state, type TensorSource } from "../../src/nn/layers.ts";
import { type Shape, sizeOf } from "../../src/tensor/tensor.ts";

/** u(name, 0), u(name, 1), ... */
export function units(name: string, count: number): Float64Array {
  let start = 2166136261;
  for (const byte of new TextEncoder().encode(name)) start = Math.imul(start ^ byte, 16777619);
  const u = new Float64Array(count);
  for (let i = 0; i < count; i++) {
    let h = Math.imul(i, 0x9e3779b9) + start;
    h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
    h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
    u[i] = ((h ^ (h >>> 16)) >>> 0) / 2 ** 32;
  }
  return u;
}

/**
 * A parameter's values with r = 2 u - 1: weights of several axes r sqrt(6 / fan in), LPIPS's linear layers (1 + r) / 2,
 * variances 1 + r / 2, weights of norms 1 + r / 4, biases and means r / 10.
 */
export function formulaWeights(name: string, shape: Shape): Float32Array<ArrayBuffer> {
  const n = sizeOf(shape), spread = Math.sqrt(6 * (shape[0] ?? 1) / n);
  const value = name.startsWith("lin")
    ? (r: number) => 0.5 * (1 + r)
    : name.endsWith("running_var")
    ? (r: number) => 1 + 0.5 * r
    : shape.length > 1
    ? (r: number) => r * spread
    : name.endsWith("weight")
    ? (r: number) => 1 + 0.25 * r
    : (r: number) => 0.1 * r;
  const u = units(name, n), values = new Float32Array(n);
  for (let i = 0; i < n; i++) values[i] = value(2 * (u[i] as number) - 1);
  return values;
}

/** Parameters of these shapes, filled by the formula, as a file would give them. */
export function formulaSource(shapes: ReadonlyMap<string, Shape>): TensorSource {
  return {
    name: "formula",
    shapes,
    read: (name) => Promise.resolve(formulaWeights(name, shapes.get(name) ?? [])),
  };
}

/** Names and shapes of a model's tensors as files have them. */
export function shapesOf(model: object): Map<string, Shape> {
  return new Map([...state(model)].map(([key, tensor]) => [key, fileShape(tensor)]));
}

/** The published form of Inception's tensors: every convolution with its batch norm. */
export function inceptionShapes(): Map<string, Shape> {
  const shapes = new Map<string, Shape>();
  for (const [key, shape] of shapesOf(new Inception())) {
    const conv = /^(?!fc)(.+)\.weight$/.exec(key)?.[1];
    if (key.startsWith("fc.")) shapes.set(key, shape);
    else if (conv !== undefined) {
      shapes.set(`${conv}.conv.weight`, shape);
      for (const part of ["weight", "bias", "running_mean", "running_var"]) {
        shapes.set(`${conv}.bn.${part}`, [shape[0] as number]);
      }
    }
  }
  return shapes;
}

/** Writes such parameters to a file. @param nameOf the name by which the formula knows a key of the file */
export async function writeFormula(
  path: string,
  shapes: ReadonlyMap<string, Shape>,
  nameOf: (key: string) => string = (key) => key,
): Promise<void> {
  const tensors = [...shapes].map(([name, shape]) => ({
    name,
    shape,
    data: formulaWeights(nameOf(name), shape),
  }));
  await writeSafetensors(path, tensors, {});
}
