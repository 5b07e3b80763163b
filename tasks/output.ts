// What several commands show in the same way: progress through stages and of encoding, and the table of --dry-run.

import { UsageError } from "../src/errors.ts";
import type { Plan } from "../src/gpu/plan.ts";
import { formatBytes } from "../src/formats/files.ts";
import type { Log, Progress } from "../src/run/log.ts";
import type { ImageSource } from "../src/data/image_source.ts";
import type { ImageTokenizer } from "../src/models/tokenizer.ts";
import { type EncodeOptions, encodeTo } from "../src/train/encode_latents.ts";
import type { LogRow } from "../src/train/loop.ts";

/** Progress over named parts of known length. */
export function progressOf(log: Log, parts: readonly (readonly [string, number])[]) {
  let current: Progress | undefined, note = "";
  let part = parts[0];
  return {
    begin(name: string): void {
      part = parts.find(([n]) => n === name);
      current = undefined;
      note = "";
    },
    /** While kernels are compiled: the first time takes a while on a software adapter. */
    compile(done: number, total: number): void {
      current ??= log.progress(`${part?.[0]}: compiling`, total, "kernels");
      // The last line of a count is always shown, and this one says nothing.
      if (done < total) current.update(done);
      else {
        current.end();
        current = undefined;
      }
    },
    step(n: number): void {
      current ??= log.progress(part?.[0] ?? "", part?.[1] ?? n, "steps", n - 1);
      current.update(n, note);
    },
    /** What the loop logs: how long steps waited for data is shown from now on. */
    row(row: LogRow): void {
      note = `waiting for data ${percent(row.data_wait ?? 0)}`;
    },
    end(): void {
      current?.end();
      current = undefined;
    },
  };
}

/**
 * Prints what a run would need.
 * @param options whether blocks are recomputed, and what else would make it need less, for the message
 * @throws UsageError where it does not fit into memory
 */
export function planTable(
  parameters: Record<string, number>,
  plans: readonly { name: string; steps: number; plan: Plan }[],
  log: Log,
  { recompute, remedies }: { recompute: boolean; remedies: readonly string[] },
): Record<string, unknown> {
  for (const [name, n] of Object.entries(parameters)) {
    log.line(`${name.padEnd(16)} ${(n / 1e6).toFixed(2)} M parameters`);
  }
  const rows = plans.map(({ name, steps, plan }) => ({
    name,
    steps,
    flops: plan.flops,
    launches: plan.launches.length,
    bytes: plan.bytes,
    totalBytes: plan.totalBytes,
    unpooledBytes: plan.unpooledBytes,
  }));
  for (const row of rows) {
    log.line(
      `${log.bold(row.name)}: ${row.steps} steps of ${
        (row.flops / 1e9).toFixed(2)
      } GFLOP in ${row.launches} launches, ${formatBytes(row.totalBytes)}`,
    );
    for (const [category, bytes] of Object.entries(row.bytes)) {
      const { unpooledBytes: all } = row;
      const share = category === "activations" && all > 0
        ? `, ${(100 * bytes / all).toFixed(0)} % of keeping every intermediate`
        : "";
      if (bytes > 0) log.line(`  ${category.padEnd(14)} ${formatBytes(bytes)}${share}`);
    }
  }
  if (recompute) log.line("blocks are recomputed in the backward pass; their FLOP are counted");
  const most = Math.max(...rows.map((r) => r.totalBytes));
  const { available } = Deno.systemMemoryInfo();
  if (most > available) {
    throw new UsageError(
      `Cannot fit the run: it needs ${formatBytes(most)}, ${formatBytes(available)} are free; use ${
        [...recompute ? [] : ["--recompute"], ...remedies].join(", or ")
      }`,
    );
  }
  return { parameters, recompute, plans: rows };
}

/** 0.125 -> "13%" */
export const percent = (share: number): string => `${Math.round(100 * share)}%`;

/** encodeTo() with a progress line, which counts from what an interrupted run has left. */
export async function encodeShown(
  folder: string,
  tokenizer: ImageTokenizer,
  source: ImageSource,
  options: EncodeOptions,
  log: Log,
): Promise<void> {
  let progress: Progress | undefined;
  await encodeTo(folder, tokenizer, source, {
    ...options,
    onStart(known) {
      if (known) log.line(`${known} of ${source.length} latents are there already: going on`);
      progress = log.progress("encoding", source.length, "images", known);
    },
    onProgress: (done) => progress?.update(done),
  });
  progress?.end();
}
