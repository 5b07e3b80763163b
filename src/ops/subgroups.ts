// Subgroups of the open device: whether reductions can use them, and whether they then compute right. Kernels in which threads
// share a row use them once prepareSubgroups() says so; see row_kernel.ts.

import source from "../../kernels/subgroup_check.wgsl" with { type: "text" };
import { launch } from "../gpu/bind.ts";
import { device } from "../gpu/device.ts";
import { fold, kernel } from "../gpu/kernel.ts";
import { capture } from "../gpu/program.ts";
import { within } from "../gpu/scope.ts";
import { empty, input } from "../tensor/tensor.ts";
import { rowsPrelude, rowThreads } from "./row_kernel.ts";

/** The largest that prelude_subgroups.wgsl has levels for. */
const MAX_SUBGROUP = 64;

/** Threads of the smallest subgroup of the open device; 0 where it has none, or does not say how large they are. */
export function findSubgroups(): number {
  const { simdWidth } = device().facts; // the subgroup of a pipeline may be larger
  const usable = device().has("subgroups") && simdWidth > 1 && Number.isInteger(Math.log2(simdWidth));
  return usable ? Math.min(MAX_SUBGROUP, simdWidth) : 0;
}

/**
 * Lets reductions of the gpu profile use the subgroups of the open device where it has them and their self-test passes.
 * @returns why they are not used although the device has them
 */
export async function prepareSubgroups(threads: number = findSubgroups()): Promise<string | undefined> {
  device().subgroups = threads;
  if (!threads) return undefined;
  const failure = await selfTest().catch((error) => error instanceof Error ? error.message : String(error));
  if (failure !== undefined) device().subgroups = 0;
  return failure;
}

/** Numbers of threads that share a row; see sharing(). */
const THREADS = [4, 8, 16, 64, 256];

/** Sums and maxima of rows of whole numbers, which are exact, as each thread gets them. @returns what is wrong */
async function selfTest(): Promise<string | undefined> {
  const before = device().profile;
  device().profile = "gpu";
  try {
    const rowsOf = (threads: number) => Math.max(1, 64 / threads);
    // Two workgroups, and a part of one.
    const cases = THREADS.map((threads) => {
      const rows = 2 * rowsOf(threads) + 1;
      const data = Float32Array.from({ length: rows * threads }, (_, i) => i * 89 % 251 - 125);
      return { name: `rows of ${threads} threads`, threads, rows, data };
    });
    const inputs = Object.fromEntries(cases.map(({ name, data }) => [name, input([data.length])]));
    const program = await within(
      { precision: "f32" },
      () =>
        capture(
          "self-test of subgroups",
          inputs,
          (x) =>
            Object.fromEntries(cases.map(({ name, threads, rows, data }) => {
              const y = empty([data.length, 3]), ROWS = rowsOf(threads);
              const check = kernel(rowsPrelude() + source, "subgroup_check", rowThreads(threads, ROWS));
              launch(check, { x: x[name] as typeof y, y }, { rows }, fold(Math.ceil(rows / ROWS)));
              return [name, y];
            })),
        ),
    ).prepare();
    try {
      program.run(Object.fromEntries(cases.map(({ name, data }) => [name, data])));
      for (const { name, threads, data } of cases) {
        const y = await program.read(program.outputs[name] as ReturnType<typeof empty>);
        for (let i = 0; i < data.length; i++) {
          const first = i - i % threads, row = data.subarray(first, first + threads);
          const sums = [row.reduce((sum, v) => sum + v, 0), row.reduce((sum, v) => sum + v * v, 0)];
          for (const [k, expected] of [...sums, Math.max(...row)].entries()) {
            const got = y[3 * i + k], what = ["sum", "sum of squares", "maximum"][k];
            if (got !== expected) return `the ${what} of ${name} is ${got} instead of ${expected}`;
          }
        }
      }
    } finally {
      program.destroy();
    }
    return undefined;
  } finally {
    device().profile = before;
  }
}
