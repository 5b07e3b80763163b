// compare: one call that proves a model against its official implementation or, for dit_*, an independent one. A fixture holds weights (`weights.*`, or names for
// helpers/formula.ts), inputs, the output and the gradients of a loss, mean(output * loss.weight), for all parameters (`gradients.*`) or 64 samples of
// a large one (`sampled.*`); how it was made stands in its metadata.

import { assert } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { grad } from "../../src/tensor/autograd.ts";
import { capture } from "../../src/gpu/program.ts";
import { openSafetensors, type SafetensorsFile } from "../../src/formats/safetensors.ts";
import { fileShape, loadState, parameters, type TensorSource } from "../../src/nn/layers.ts";
import { ParameterSet } from "../../src/nn/parameter_set.ts";
import { mul } from "../../src/ops/math.ts";
import { mean } from "../../src/ops/reduce.ts";
import { permute } from "../../src/ops/layout.ts";
import { constant, input, type Shape, type Tensor } from "../../src/tensor/tensor.ts";
import { relativeError } from "./check.ts";
import { assertClaim } from "./claims.ts";
import { formulaSource } from "./formula.ts";

export const open = (name: string) =>
  openSafetensors(fromFileUrl(new URL(`../fixtures/${name}.safetensors`, import.meta.url)));

/**
 * Largest error relative to the largest element. Gradients that are zero but for rounding (of biases of keys, and of channels
 * that are a norm's group of their own) must be it here too; they have no relative error.
 */
export function gradientError(got: ArrayLike<number>, expected: ArrayLike<number>): number {
  const largest = (x: ArrayLike<number>) => Array.from(x).reduce((a, b) => Math.max(a, Math.abs(b)), 0);
  if (largest(expected) > ZERO) return relativeError(got, expected, ZERO);
  assert(largest(got) <= ZERO, `a gradient is ${largest(got)} instead of 0`);
  return 0;
}

/** Rounding of fixtures' gradients: where they are not zero, the largest of a tensor is 1e-4 to 1. */
const ZERO = 1e-7;

/** The keys below a prefix, as a source for loadState. */
export function below(file: SafetensorsFile, prefix: string): TensorSource {
  const shapes = new Map(
    [...file.shapes].filter(([k]) => k.startsWith(prefix)).map(([k, s]) => [k.slice(prefix.length), s]),
  );
  return { name: file.name, shapes, read: (key) => file.read(prefix + key) };
}

/** The weights of a fixture: stored, or by the formula for the shapes in its metadata. */
function weightsIn(file: SafetensorsFile): TensorSource {
  const stored = below(file, "weights."),
    named: Record<string, Shape> = JSON.parse(file.metadata.get("formula") ?? "{}");
  const formula = formulaSource(new Map(Object.entries(named)));
  return {
    name: file.name,
    shapes: new Map([...formula.shapes, ...stored.shapes]),
    read: (key) => (stored.shapes.has(key) ? stored : formula).read(key),
  };
}

/** [N,C,H,W] of a fixture as a channels-last input. */
export const nhwc = (x: Tensor) => permute(x, [0, 2, 3, 1]);
export const nchw = (x: Tensor) => permute(x, [0, 3, 1, 2]);

/**
 * Loads the fixture's weights, runs `forward` on its inputs and holds output and gradients to the model's claim.
 * @param keysOf the model's keys to the fixture's, where they differ
 */
export async function compare(
  name: string,
  output: string,
  model: object,
  inputs: readonly string[],
  forward: (...x: Tensor[]) => Tensor,
  keysOf: (keys: Iterable<string>) => ReadonlyMap<string, string> = (keys) =>
    new Map([...keys].map((k) => [k, k])),
): Promise<void> {
  const file = await open(name);
  try {
    new ParameterSet(name, model);
    const weights = weightsIn(file), keys = keysOf(weights.shapes.keys());
    const inFile = (key: string) => keys.get(key) ?? key;
    const shapes = new Map([...keys].map(([key, k]) => [key, weights.shapes.get(k) as Shape]));
    await loadState(model, { name, shapes, read: (key) => weights.read(inFile(key)) }, { ignore: /^$/ });
    const own = parameters(model);
    const tensors: Record<string, Tensor> = {};
    const data: Record<string, Float32Array | Uint32Array> = {};
    for (const key of inputs) {
      const integers = file.tensors.get(key)?.dtype === "I32";
      tensors[key] = input(file.shapes.get(key) ?? [], integers ? "u32" : "f32", key);
      data[key] = integers ? Uint32Array.from(await file.readIntegers(key)) : await file.read(key);
    }
    const weight = constant(await file.read("loss.weight"), file.shapes.get("loss.weight") ?? []);
    const program = await capture(name, tensors, (t) => {
      const first = t[inputs[0] as string] as Tensor;
      first.requiresGrad = true;
      const y = forward(...inputs.map((key) => t[key] as Tensor));
      const wrt = [first, ...own.values()];
      const gradients = grad(mean(mul(y, weight)), wrt);
      return { y, ...Object.fromEntries(gradients.map((g, i) => [`g${i}`, g])) };
    }).prepare();
    program.run(data);
    const outputs = program.outputs as unknown as Record<string, Tensor>;
    const error = relativeError(await program.read(program.outputs.y), await file.read(output));
    let compared = 0, worst = 0;
    for (const [i, key] of ["input", ...[...own.keys()].map(inFile)].entries()) {
      const tensor = [...own.values()][i - 1];
      let got = await program.read(outputs[`g${i}`] as Tensor);
      if (tensor && fileShape(tensor) !== tensor.shape) got = toFileOrder(got, tensor.shape);
      if (file.shapes.has(`gradients.${key}`)) {
        const expected = await file.read(`gradients.${key}`);
        worst = Math.max(worst, gradientError(got, expected));
        compared++;
      } else if (file.shapes.has(`sampled.${key}`)) {
        const expected = await file.read(`sampled.${key}`);
        const sampled = Array.from(expected, (_, k) => got[Math.trunc(k * (got.length - 1) / 63)] as number);
        worst = Math.max(worst, gradientError(sampled, expected));
        compared++;
      }
    }
    assert(compared >= own.size, `${compared} of ${own.size} gradients were compared`);
    assertClaim(name, { output: error, gradients: worst });
    program.destroy();
  } finally {
    file.close();
  }
}

/** [O,H,W,I] -> [O,I,H,W] */
function toFileOrder(data: Float32Array, shape: readonly number[]): Float32Array {
  const [O, H, W, I] = shape as [number, number, number, number], P = H * W;
  const out = new Float32Array(data.length);
  for (let o = 0; o < O; o++) {
    for (let p = 0; p < P; p++) {
      for (let i = 0; i < I; i++) out[(o * I + i) * P + p] = data[(o * P + p) * I + i] as number;
    }
  }
  return out;
}
