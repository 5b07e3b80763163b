// What TOK_DEBUG prints on stderr. 1: the plan of each program; 2: also a table of kernel times for each program, at the end;
// 3: also the WGSL of each kernel.

import type { Kernel } from "./kernel.ts";
import type { Launch } from "./launch.ts";
import type { Plan } from "./plan.ts";
import { type KernelTime, timesByKernel } from "./profile.ts";

let level: number | undefined;

/** The value of TOK_DEBUG when it was first asked for; 0 where it is not set. */
export function debugLevel(): number {
  return level ??= Number(Deno.env.get("TOK_DEBUG")) || 0;
}

const mib = (bytes: number) => `${(bytes / 2 ** 20).toFixed(2)} MiB`;

/** Prints the launches and the bytes of a program by category. */
export function printPlan(label: string, plan: Plan): void {
  const { launches, recorded, flops, totalBytes, bytes, unpooledBytes } = plan;
  const used = Object.entries(bytes).filter(([, n]) => n > 0).sort(([, a], [, b]) => b - a);
  console.error([
    `tok: plan "${label}": ${launches.length} launches of ${recorded} recorded, ` +
    `${(flops / 1e9).toPrecision(3)} GFLOP, ${mib(totalBytes)}`,
    ...used.map(([category, n]) =>
      `  ${category.padEnd(12)} ${mib(n).padStart(12)}` +
      (category === "activations" ? ` (${mib(unpooledBytes)} without reuse)` : "")
    ),
  ].join("\n"));
}

const printed = new WeakSet<Kernel>();

/** Prints the WGSL of kernels that were not printed before. */
export function printWgsl(launches: readonly Launch[]): void {
  for (const { kernel } of launches) {
    if (printed.has(kernel)) continue;
    printed.add(kernel);
    console.error(`tok: kernel "${kernel.label}"\n${kernel.wgsl}\n`);
  }
}

/** Numbers of runs and kernel times of programs, by the program's label. */
const tables = new Map<string, { runs: number; kernels: Map<string, KernelTime> }>();
let added = Promise.resolve();

/** Adds a run of a program to its table. @param milliseconds of each launch */
export function addRun(label: string, launches: readonly Launch[], milliseconds: Promise<number[]>): void {
  if (tables.size === 0) globalThis.addEventListener("unload", print, { once: true });
  const table = tables.get(label) ?? { runs: 0, kernels: new Map<string, KernelTime>() };
  tables.set(label, table);
  const add = async () => {
    const times = await milliseconds.catch(() => undefined); // who reads the results is told why a run failed
    if (!times) return;
    timesByKernel(launches, times, table.kernels);
    table.runs++;
  };
  added = added.then(add);
}

/** Prints the table of each program that ran since the last call; so does the end of the process. */
export async function printKernelTimes(): Promise<void> {
  await added;
  print();
}

function print(): void {
  for (const [label, { runs, kernels }] of tables) {
    const times = [...kernels.values()].sort((a, b) => b.milliseconds - a.milliseconds);
    const total = times.reduce((sum, { milliseconds }) => sum + milliseconds, 0);
    console.error([
      `tok: kernel times of "${label}": ${runs} runs, ${(total / runs).toFixed(3)} ms a run`,
      "      ms/run   share  launches    GFLOP/s  kernel",
      ...times.map(({ label, launches, milliseconds, flops }) =>
        [
          (milliseconds / runs).toFixed(3).padStart(12),
          `${(100 * milliseconds / total).toFixed(1)}%`.padStart(7),
          `${launches / runs}`.padStart(9),
          (flops / milliseconds / 1e6).toFixed(1).padStart(10),
          ` ${label}`,
        ].join(" ")
      ),
    ].join("\n"));
  }
  tables.clear();
}
