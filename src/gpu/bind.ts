// Binding makes a launch of a kernel, its buffers and its scalars, by name; recording adds it to the program that is being
// captured. Planning binds without recording.

import { GpuError } from "../errors.ts";
import { type ArrayForm, isF16, seesBits } from "./accessors.ts";
import { device } from "./device.ts";
import { MAX_ITERATIONS } from "./iterations.ts";
import type { Kernel } from "./kernel.ts";
import type { Fusion, Launch } from "./launch.ts";
import { scope } from "./scope.ts";
import type { Bindable } from "./storage.ts";

export interface LaunchOptions {
  /** Floating-point operations of this launch, for plans and benchmarks. */
  flops?: number;
  /** Upper bound of the loop iterations of one thread; required where the text has open loops (iterations.ts). */
  iterations?: number;
  /** How the launch can be fused with others. */
  fusion?: Fusion | undefined;
}

/**
 * The launch of a kernel. Pure: records nothing.
 * @param operands every array of the entry point, by name: a tensor, or a number for an operand that is absent, which reads as
 *   that constant and ignores stores
 * @param params every field of `struct Params`, by name
 * @param grid workgroups in x, y, z (at most 65,535 each; see {@link fold})
 * @throws GpuError where a name is unknown or missing, or the grid or the iterations are out of bounds
 */
export function bind(
  kernel: Kernel,
  operands: Readonly<Record<string, Bindable | number>>,
  params: Readonly<Record<string, number>>,
  [x, y = 1, z = 1]: readonly [number, number?, number?],
  { flops = 0, iterations = kernel.hasOpenLoop ? undefined : 0, fusion }: LaunchOptions = {},
): Launch {
  const action = `Cannot launch "${kernel.label}"`;
  const { arrays } = kernel.reach;
  const unknown = Object.keys(operands).filter((name) => !arrays.some((array) => array.name === name));
  if (unknown.length) {
    throw new GpuError(`${action}: unknown arrays ${unknown.map((name) => `"${name}"`).join(", ")}`);
  }
  const forms = new Map<string, ArrayForm>();
  const storages = arrays.flatMap((array) => {
    const operand = operands[array.name];
    if (operand === undefined) throw new GpuError(`${action}: array "${array.name}" is missing`);
    if (typeof operand === "number") {
      forms.set(array.name, operand);
      return [];
    }
    if (isF16(array)) {
      if (!operand.storage.half) {
        throw new GpuError(`${action}: array "${array.name}" is f16, its buffer f32`);
      }
    } else if (operand.storage.half && !seesBits(array)) forms.set(array.name, "fp16");
    return operand.storage;
  });
  const limit = device().limits.maxComputeWorkgroupsPerDimension;
  if (![x, y, z].every((n) => Number.isInteger(n) && n >= 1 && n <= limit)) {
    throw new GpuError(`${action}: the grid [${x}, ${y}, ${z}] is outside 1..${limit}`);
  }
  if (iterations === undefined) {
    throw new GpuError(
      `${action}: it has a loop whose length its text does not fix, and the launch does not say how many iterations a thread runs`,
    );
  }
  if (!(iterations <= MAX_ITERATIONS)) {
    const [found, max] = [iterations, MAX_ITERATIONS].map((n) => n.toLocaleString("en"));
    throw new GpuError(
      `${action}: a thread would run ${found} loop iterations, and ${max} are the most; split the work`,
    );
  }
  return {
    kernel: kernel.withForms(forms),
    storages,
    params: kernel.pack(params),
    grid: [x, y, z],
    flops,
    iterations,
    fusion,
  };
}

/** Adds a launch to the program that is being captured. @throws GpuError outside capture() */
export function record(launch: Launch): void {
  const { recording } = scope();
  if (!recording) {
    throw new GpuError(
      `Cannot launch "${launch.kernel.label}": nothing is being captured; wrap the call in capture()`,
    );
  }
  recording.launches.push(launch);
}

/** Records the launch of a kernel; see {@link bind} for the arguments. */
export function launch(...launch: Parameters<typeof bind>): void {
  record(bind(...launch));
}
