// What a dry run prints: parameters, FLOPs and device memory of each recipe, and whether it fits.

import { UsageError } from "../errors.ts";
import { formatBytes } from "../formats/files.ts";
import { device } from "../gpu/device.ts";
import { largestBinding } from "../gpu/plan.ts";
import type { Log } from "../run/log.ts";
import type { Recipe } from "./recipe.ts";

/**
 * Prints parameters, FLOPs and bytes of a run.
 * @param options.remedies what makes a step smaller, for the message
 * @throws UsageError where it does not fit into memory
 */
export function planTable(
  parameters: Record<string, number>,
  recipes: readonly Recipe[],
  log: Log,
  { recompute, remedies }: { recompute: boolean; remedies: readonly string[] },
): Record<string, unknown> {
  log.begin();
  for (const [name, n] of Object.entries(parameters)) {
    log.line(`${name.padEnd(16)} ${(n / 1e6).toFixed(2)} M parameters`);
  }
  const plans = recipes.map((recipe) => ({ name: recipe.name, steps: recipe.steps, plan: recipe.plan() }));
  const rows = plans.map(({ name, steps, plan: { flops, launches, bytes, totalBytes, unpooledBytes } }) => (
    { name, steps, flops, launches: launches.length, bytes, totalBytes, unpooledBytes }
  ));
  for (const row of rows) {
    log.line(
      `${log.bold(row.name)}: ${row.steps} steps of ${
        (row.flops / 1e9).toFixed(2)
      } GFLOP in ${row.launches} launches, ${formatBytes(row.totalBytes)}`,
    );
    for (const [category, bytes] of Object.entries(row.bytes)) {
      const share = category === "activations" && row.unpooledBytes > 0
        ? `, ${(100 * bytes / row.unpooledBytes).toFixed(0)} % of keeping every intermediate`
        : "";
      if (bytes > 0) log.line(`  ${category.padEnd(14)} ${formatBytes(bytes)}${share}`);
    }
  }
  if (recompute) log.line("blocks are recomputed in the backward pass; their FLOP are counted");
  const advice = [...recompute ? [] : ["--recompute"], ...remedies].join(", or ");
  const limit = device().limits.maxStorageBufferBindingSize;
  for (const { name, plan } of plans) {
    const largest = largestBinding(plan);
    if (!largest || largest.bytes <= limit) continue;
    log.warn(
      `"${name}" cannot run on this adapter: it binds at most ${
        formatBytes(limit)
      } at once, and "${largest.label}" needs ` +
        `${formatBytes(largest.bytes)}; use ${remedies.join(", or ")}`,
    );
  }
  const most = Math.max(...rows.map((r) => r.totalBytes));
  const { available } = Deno.systemMemoryInfo();
  if (most > available) {
    throw new UsageError(
      `Cannot fit the run: it needs ${formatBytes(most)}, ${formatBytes(available)} are free; use ${advice}`,
    );
  }
  return { parameters, recompute, plans: rows };
}
