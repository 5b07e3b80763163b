// checkOp: one call that proves an op. Every element of the forward pass against f64 loops; gradients against central
// differences of those loops, at single elements and along a direction in which every element moves; the same bits twice;
// wrong shapes refused. All of it in both kernel profiles.

import { assert, assertEquals, AssertionError, assertThrows } from "@std/assert";
import { grad } from "../../src/tensor/autograd.ts";
import { ShapeError } from "../../src/errors.ts";
import { closeDevice, type Device, device, openDevice, type Profile } from "../../src/gpu/device.ts";
import { capture } from "../../src/gpu/program.ts";
import { findMatrices } from "../../src/ops/gemm_matrices.ts";
import { type GemmBackend, useMatrices } from "../../src/ops/gemm_tiles.ts";
import { input, type Tensor } from "../../src/tensor/tensor.ts";
import { type Nd, size } from "./reference.ts";

export const PROFILES: readonly Profile[] = ["cpu", "gpu"];

/** The profiles that GEMMs of fp16 operands have: "matrix" is gpu with subgroup matrices, where the device has them. */
export async function fp16Profiles(): Promise<readonly GemmBackend[]> {
  await testDevice();
  return findMatrices() ? [...PROFILES, "matrix"] : PROFILES;
}

let opened: Promise<Device> | undefined;
// A device that outlives its test file can end the process while the driver's threads still run; so can a promise of it that
// settles after the file (Dawn).
Deno.test.afterAll(async () => {
  closeDevice();
  await new Promise((resolve) => setTimeout(resolve));
});

/** The device of this test process, opened once, with the kernels of `profile`. */
export async function testDevice(profile: GemmBackend = "cpu"): Promise<Device> {
  opened ??= openDevice();
  await opened;
  device().profile = profile === "matrix" ? "gpu" : profile;
  useMatrices(profile === "matrix" ? findMatrices() : undefined);
  return device();
}

/** Reproducible numbers in about -1.5..1.5, a different sequence for each seed. */
export function randomArray(n: number, seed: number): Float32Array {
  let state = (seed * 2654435761 + 12345) >>> 0;
  const values = new Float32Array(n);
  for (let i = 0; i < n; i++) {
    state = (Math.imul(state ^ (state >>> 15), 2246822519) + 3266489917) >>> 0;
    values[i] = ((state ^ (state >>> 13)) >>> 0) / 2 ** 32 * 3 - 1.5;
  }
  return values;
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
  /** Allowed errors of elements of the forward pass (2e-6) and of the gradients (1e-5); see {@link assertClose}. */
  tolerance?: number;
  gradientTolerance?: number;
  /** Whether an element is a sum of many terms, so that a small one carries the rounding of large terms. */
  accumulates?: boolean;
  profiles?: readonly Profile[];
}

/** Proves an op; see the header. */
export async function checkOp(c: OpCheck): Promise<void> {
  const { tolerance = 2e-6, gradientTolerance = 1e-5, accumulates = false } = c;
  const bounds = { tolerance, accumulates, floor: 1e-3 };
  const gradientBounds = { tolerance: gradientTolerance, accumulates, floor: 1e-2 };
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
      const tensors = Object.fromEntries(shapes.map((shape, i) => [`x${i}`, input(shape)]));
      const program = await capture("test", { ...tensors, dy: input(expected.shape) }, (inputs) => {
        const xs = shapes.map((_, i) => inputs[`x${i}` as "dy"]);
        xs.forEach((x, i) => x.requiresGrad = c.differentiable?.[i] ?? true);
        const y = c.op(...xs);
        assertEquals([...y.shape], expected.shape, `shape of the result for ${where}`);
        const wanted = xs.filter((x) => x.requiresGrad);
        const dxs = wanted.length ? grad(y, wanted, inputs.dy) : [];
        return { y, ...Object.fromEntries(dxs.map((dx, i) => [`d${xs.indexOf(wanted[i] as Tensor)}`, dx])) };
      }).prepare();
      const data = { ...Object.fromEntries(arrays.map((array, i) => [`x${i}`, array])), dy };
      const run = async () => {
        program.run(data);
        const values: Record<string, Float32Array> = {};
        for (const [name, output] of Object.entries(program.outputs)) {
          values[name] = await program.read(output);
        }
        return values;
      };
      const first = await run(), second = await run();
      program.destroy();
      for (const [name, values] of Object.entries(first)) {
        assertSameBits(second[name] as Float32Array, values, `"${name}" of two runs of ${where}`);
      }
      assertClose(first.y as Float32Array, expected.data, bounds, `forward of ${where}`);
      differences.forEach((difference, i) => {
        if (!difference) return;
        const dx = first[`d${i}`] as Float32Array, { indices, values, direction, slope } = difference;
        const what = `gradient ${i} of ${where}`;
        assertClose(indices.map((k) => dx[k] as number), values, gradientBounds, what, indices);
        let along = 0, spread = 0, length = 0;
        dx.forEach((d, k) => {
          const product = d * (direction[k] as number);
          along += product;
          spread += product * product;
          length += (direction[k] as number) ** 2;
        });
        const allowed = gradientTolerance * Math.sqrt(Math.max(spread, 1e-4 * length));
        assert(
          Math.abs(along - slope) <= allowed,
          `${what}: its product with a direction is ${along} instead of ${slope}, more than ${allowed} away`,
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

/** Asserts the same bits, and names the first element that differs: the text of assertEquals() takes minutes for large arrays. */
export function assertSameBits(got: Float32Array, expected: Float32Array, what: string): void {
  assertEquals(got.length, expected.length, `number of elements, ${what}`);
  const bits = (x: Float32Array) => new Uint32Array(x.buffer, x.byteOffset, x.length);
  const a = bits(got), b = bits(expected), different = a.reduce((n, v, i) => n + Number(v !== b[i]), 0);
  if (different === 0) return;
  const at = a.findIndex((v, i) => v !== b[i]);
  throw new AssertionError(
    `${different} of ${a.length} elements differ, ${what}: first element ${at}, ${got[at]} and ${
      expected[at]
    }`,
  );
}

/** How exact an element must be; see {@link assertClose}. */
interface Bounds {
  tolerance: number;
  accumulates?: boolean;
  floor?: number;
}

/**
 * Asserts |got - expected| <= tolerance (|expected| + scale) for every element. `scale` is the root mean square of `expected`,
 * at least `floor` (1e-3) and, unless it `accumulates`, at most 1.
 * @param indices what to call the elements
 */
export function assertClose(
  got: ArrayLike<number>,
  expected: ArrayLike<number>,
  { tolerance, accumulates = false, floor = 1e-3 }: Bounds,
  what: string,
  indices?: readonly number[],
): void {
  assertEquals(got.length, expected.length, `number of elements, ${what}`);
  let squares = 0;
  for (let i = 0; i < expected.length; i++) squares += (expected[i] as number) ** 2;
  const rms = Math.max(floor, Math.sqrt(squares / expected.length));
  const scale = accumulates ? rms : Math.min(1, rms);
  let worst = 0, at = -1;
  for (let i = 0; i < expected.length; i++) {
    const e = expected[i] as number, error = Math.abs((got[i] as number) - e) / (Math.abs(e) + scale);
    if (!(error <= worst)) [worst, at] = [error, i]; // NaN counts as the worst
    if (Number.isNaN(error)) break;
  }
  assert(
    worst <= tolerance,
    `${what}: element ${indices?.[at] ?? at} is ${got[at]} instead of ${
      expected[at]
    }, error ${worst} > ${tolerance}`,
  );
}

/** Elements of each input's gradient, the first and the last included, that are compared one by one. */
const SAMPLES = 8;

/** Central differences of <y, dy>: along single elements, and along a direction in which every element moves. */
function centralDifferences(c: OpCheck, inputs: Nd[], dy: Float32Array) {
  const loss = () => c.reference(...inputs).data.reduce((sum, y, i) => sum + y * (dy[i] as number), 0);
  return inputs.map((x, i) => {
    if (c.differentiable?.[i] === false) return undefined;
    const before = x.data.slice(), n = before.length;
    const difference = (h: number, move: (distance: number) => void) => {
      move(h);
      const up = loss();
      move(-h);
      const down = loss();
      x.data.set(before);
      return (up - down) / (2 * h);
    };
    const count = Math.min(SAMPLES, n);
    const indices = Array.from({ length: count }, (_, k) => Math.round(k * (n - 1) / Math.max(1, count - 1)));
    const values = indices.map((k) =>
      difference(1e-5, (distance) => x.data[k] = (before[k] as number) + distance)
    );
    const direction = randomArray(n, 70 + i).map((v) => v + Math.sign(v) / 2);
    const slope = difference(
      1e-6,
      (distance) => before.forEach((v, k) => x.data[k] = v + distance * (direction[k] as number)),
    );
    return { indices, values, direction, slope };
  });
}
