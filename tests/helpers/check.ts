// checkOp: one call that proves an op. Forward against f64 loops, gradients against central differences of those
// loops, the same bits twice, wrong shapes refused; all of it in both kernel profiles.

import { assert, assertEquals, assertThrows } from "@std/assert";
import { grad } from "../../src/tensor/autograd.ts";
import { ShapeError } from "../../src/errors.ts";
import { closeDevice, type Device, device, openDevice, type Profile } from "../../src/gpu/device.ts";
import { capture } from "../../src/gpu/program.ts";
import { input, type Tensor } from "../../src/tensor/tensor.ts";
import { type Nd, size } from "./reference.ts";

export const PROFILES: readonly Profile[] = ["cpu", "gpu"];

let opened: Promise<Device> | undefined;
// A device that outlives its test file can end the process while the driver's threads still run.
globalThis.addEventListener("unload", closeDevice);

/** The device of this test process, opened once, with the kernels of `profile`. */
export async function testDevice(profile: Profile = "cpu"): Promise<Device> {
  opened ??= openDevice();
  await opened;
  device().profile = profile;
  return device();
}

/** Reproducible numbers in about -1.5..1.5, a different sequence for each seed. */
export function randomArray(n: number, seed: number): Float32Array {
  let state = (seed * 2654435761 + 12345) >>> 0;
  return Float32Array.from({ length: n }, () => {
    state = (Math.imul(state ^ (state >>> 15), 2246822519) + 3266489917) >>> 0;
    return ((state ^ (state >>> 13)) >>> 0) / 2 ** 32 * 3 - 1.5;
  });
}

/** Records `fn`, runs it once on the given inputs and reads all its outputs. */
export async function evaluate<O extends Record<string, Tensor>>(
  inputs: Record<string, { shape: readonly number[]; data: Float32Array | Uint32Array }>,
  fn: (inputs: Record<string, Tensor>) => O,
): Promise<{ [K in keyof O]: Float32Array }> {
  const tensors = Object.fromEntries(
    Object.entries(inputs).map((
      [k, { shape, data }],
    ) => [k, input(shape, data instanceof Uint32Array ? "u32" : "f32", k)]),
  );
  const program = await capture("test", tensors, fn).prepare();
  try {
    program.run(Object.fromEntries(Object.entries(inputs).map(([k, v]) => [k, v.data])));
    const results: Record<string, Float32Array> = {};
    for (const [name, output] of Object.entries(program.outputs)) results[name] = await program.read(output);
    return results as { [K in keyof O]: Float32Array };
  } finally {
    program.destroy();
  }
}

/** Largest difference relative to the largest magnitude of the expected values (at least `floor`). */
export function relativeError(got: ArrayLike<number>, expected: ArrayLike<number>, floor = 1e-3): number {
  assertEquals(got.length, expected.length, "the number of elements");
  let scale = floor, worst = 0;
  for (let i = 0; i < expected.length; i++) scale = Math.max(scale, Math.abs(expected[i] as number));
  for (let i = 0; i < expected.length; i++) {
    const difference = Math.abs((got[i] as number) - (expected[i] as number));
    if (!(difference <= worst)) worst = difference; // NaN counts as the worst
  }
  return worst / scale;
}

export interface OpCheck {
  op: (...inputs: Tensor[]) => Tensor;
  reference: (...inputs: Nd[]) => Nd;
  /** One list of input shapes for each case. */
  shapes: readonly (readonly (readonly number[])[])[];
  /** Input shapes that must be refused with a ShapeError. */
  wrong?: readonly (readonly (readonly number[])[])[];
  /** Changes the random inputs in place, for example to keep them positive. */
  prepare?: (inputs: Float32Array[]) => void;
  /** Which inputs have gradients (all). */
  differentiable?: readonly boolean[];
  /** Allowed relative error of the forward pass and of the gradients. */
  tolerance?: number;
  gradientTolerance?: number;
  profiles?: readonly Profile[];
}

/** Proves an op; see the header. Gradients of at most 24 elements of each input are compared, spread over it. */
export async function checkOp(c: OpCheck): Promise<void> {
  const { tolerance = 2e-6, gradientTolerance = 2e-5 } = c;
  for (const shapes of c.shapes) {
    const arrays = shapes.map((shape, i) => randomArray(size(shape), i + 1));
    c.prepare?.(arrays);
    const nds = (): Nd[] =>
      shapes.map((shape, i) => ({ shape: [...shape], data: Float64Array.from(arrays[i] as Float32Array) }));
    const expected = c.reference(...nds());
    const dy = randomArray(expected.data.length, 99);
    const differences = centralDifferences(c, nds(), dy);
    for (const profile of c.profiles ?? PROFILES) {
      await testDevice(profile);
      const where = `${JSON.stringify(shapes)} in profile ${profile}`;
      const inputs = Object.fromEntries(
        shapes.map((shape, i) => [`x${i}`, { shape, data: arrays[i] as Float32Array }]),
      );
      const run = () =>
        evaluate({ ...inputs, dy: { shape: expected.shape, data: dy } }, (tensors) => {
          const xs = shapes.map((_, i) => tensors[`x${i}`] as Tensor);
          xs.forEach((x, i) => x.requiresGrad = c.differentiable?.[i] ?? true);
          const y = c.op(...xs);
          assertEquals([...y.shape], expected.shape, `shape of the result for ${where}`);
          const wanted = xs.filter((x) => x.requiresGrad);
          const dxs = wanted.length ? grad(y, wanted, tensors.dy) : [];
          return {
            y,
            ...Object.fromEntries(dxs.map((dx, i) => [`d${xs.indexOf(wanted[i] as Tensor)}`, dx])),
          };
        });
      const first = await run() as Record<string, Float32Array>;
      const second = await run() as Record<string, Float32Array>;
      for (const [name, values] of Object.entries(first)) {
        const again = new Uint32Array((second[name] as Float32Array).buffer);
        assertEquals(new Uint32Array(values.buffer), again, `"${name}" differs between two runs of ${where}`);
      }
      const error = relativeError(first.y as Float32Array, expected.data);
      assert(error <= tolerance, `forward of ${where}: relative error ${error} > ${tolerance}`);
      differences.forEach((difference, i) => {
        if (!difference) return;
        const dx = first[`d${i}`] as Float32Array;
        const got = difference.indices.map((k) => dx[k] as number);
        const worst = relativeError(got, difference.values, 1e-2);
        assert(
          worst <= gradientTolerance,
          `gradient ${i} of ${where}: relative error ${worst} > ${gradientTolerance}`,
        );
      });
    }
  }
  for (const shapes of c.wrong ?? []) {
    await testDevice();
    assertThrows(
      () => capture("test", {}, () => ({ y: c.op(...shapes.map((shape) => input(shape))) })),
      ShapeError,
    );
  }
}

function centralDifferences(c: OpCheck, inputs: Nd[], dy: Float32Array) {
  const loss = () => c.reference(...inputs).data.reduce((sum, y, i) => sum + y * (dy[i] as number), 0);
  return inputs.map((x, i) => {
    if (c.differentiable?.[i] === false) return undefined;
    const count = Math.min(24, x.data.length);
    const indices = Array.from({ length: count }, (_, k) => Math.floor((k + 0.5) * x.data.length / count));
    const values = indices.map((k) => {
      const before = x.data[k] as number;
      const h = 1e-5;
      x.data[k] = before + h;
      const up = loss();
      x.data[k] = before - h;
      const down = loss();
      x.data[k] = before;
      return (up - down) / (2 * h);
    });
    return { indices, values };
  });
}
