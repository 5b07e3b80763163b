// What a dry run prints: parameters, FLOPs and device memory of each recipe, whether it fits, and how long the run takes.

import { GpuError, UsageError } from "../errors.ts";
import { formatBytes } from "../formats/files.ts";
import { device } from "../gpu/device.ts";
import { largestBinding, type Plan } from "../gpu/plan.ts";
import { adapterKey } from "../bench/gemm_tuning.ts";
import { rememberedRates } from "../bench/remembered_peaks.ts";
import type { Log } from "../run/log.ts";
import type { Recipe } from "./recipe.ts";

/**
 * Prints parameters, FLOPs and bytes of a run, and its time at the rate that `tok doctor --bench` measured. Nothing is allocated.
 * @param options.remedies what makes a step smaller, for the message
 * @param options.target whether the run is planned for a memory of its own, which it fits
 * @throws UsageError where it does not fit into memory
 */
export function planTable(
  parameters: Record<string, number>,
  recipes: readonly Recipe[],
  log: Log,
  { recompute, remedies, target }: { recompute: boolean; remedies: readonly string[]; target: boolean },
): Record<string, unknown> {
  log.begin();
  for (const [name, n] of Object.entries(parameters)) {
    log.line(`${name.padEnd(16)} ${(n / 1e6).toFixed(2)} M parameters`);
  }
  const { facts, profile, limits: { maxStorageBufferBindingSize: limit } } = device();
  const advice = [...recompute ? [] : ["--recompute"], ...remedies].join(", or ");
  const rows = recipes.map((recipe) => {
    const { flops, launches, bytes, totalBytes, unpooledBytes, ...plan } = planOf(recipe, remedies);
    const binding = largestBinding(plan), { name, steps } = recipe;
    log.line(
      `${log.bold(name)}: ${steps} steps of ${
        (flops / 1e9).toFixed(2)
      } GFLOP in ${launches.length} launches, ${formatBytes(totalBytes)}`,
    );
    for (const [category, n] of Object.entries(bytes)) {
      const share = category === "activations" && unpooledBytes > 0
        ? `, ${(100 * n / unpooledBytes).toFixed(0)} % of keeping every intermediate`
        : "";
      if (n > 0) log.line(`  ${category.padEnd(14)} ${formatBytes(n)}${share}`);
    }
    if (binding) log.line(`  ${"largest buffer".padEnd(14)} ${formatBytes(binding.bytes)}`);
    return {
      name,
      steps,
      flops,
      launches: launches.length,
      bytes,
      totalBytes,
      unpooledBytes,
      largestBinding: binding?.bytes ?? 0,
    };
  });
  if (recompute) log.line("blocks are recomputed in the backward pass; their FLOP are counted");
  if (profile === "cpu") {
    log.line(`planned with the kernels of a software adapter; --kernels gpu plans for a GPU`);
  }
  const unbindable = rows.filter((row) => row.largestBinding > limit);
  if (unbindable.length) {
    const most = Math.max(...unbindable.map((row) => row.largestBinding));
    log.warn(
      `this adapter cannot run ${unbindable.map(({ name }) => `"${name}"`).join(", ")}: it binds at most ` +
        `${formatBytes(limit)} at once, a buffer needs ${formatBytes(most)}; use ${remedies.join(", or ")}`,
    );
  }
  const flops = rows.reduce((sum, row) => sum + row.steps * row.flops, 0);
  const rate = rememberedRates(adapterKey(facts, profile))?.gemm, seconds = rate && flops / rate / 1e9;
  log.line(
    `complete run: ${flops.toExponential(1).replace("+", "")} FLOP` +
      (rate
        ? `, ${spelled(seconds as number)} at the ${
          formatRate(rate)
        } of a large GEMM measured here (${facts.description})`
        : `; after "tok doctor --bench" also the time at the rate of this adapter`),
  );
  const most = Math.max(...rows.map((r) => r.totalBytes));
  // A GPU does not say how much memory it has.
  const available = target || !facts.software ? Infinity : Deno.systemMemoryInfo().available;
  if (most > available) {
    throw new UsageError(
      `Cannot fit the run: it needs ${formatBytes(most)}, ${formatBytes(available)} are free; use ${advice}`,
    );
  }
  return { parameters, recompute, plans: rows, flops, ...seconds === undefined ? {} : { seconds } };
}

/** @throws UsageError where a tensor has more elements than a kernel can address, 2^32, on any adapter */
function planOf(recipe: Recipe, remedies: readonly string[]): Plan {
  try {
    return recipe.plan();
  } catch (error) {
    if (!(error instanceof GpuError)) throw error;
    throw new UsageError(
      `Cannot plan "${recipe.name}": its tensors are too large for any adapter (${error.message}); use ` +
        remedies.join(", or "),
    );
  }
}

const formatRate = (gflops: number) =>
  gflops >= 1000 ? `${(gflops / 1000).toFixed(1)} TFLOP/s` : `${gflops.toFixed(1)} GFLOP/s`;

const UNITS = [["years", 365.25 * 86400], ["days", 86400], ["hours", 3600], ["minutes", 60]] as const;

/** 15000 -> "4.2 hours" */
export function spelled(seconds: number): string {
  const [unit, length] = UNITS.find(([, length]) => seconds >= 1.5 * length) ?? ["seconds", 1] as const;
  return `${(seconds / length).toFixed(1)} ${unit}`;
}
