// tok inspect --ema: the snapshots of averages in a run, and the model with an average that is rebuilt from them.

import { dirname, join } from "@std/path";
import type { z } from "zod";
import type { inspectConfig } from "../src/cli/config.ts";
import { UsageError } from "../src/errors.ts";
import { exists, formatBytes, readJson, writeJson } from "../src/formats/files.ts";
import { WeightsFingerprint } from "../src/formats/provenance.ts";
import { writeSafetensors } from "../src/formats/safetensors.ts";
import type { Log } from "../src/run/log.ts";
import { Output } from "../src/run/output.ts";
import { rebuiltEma } from "../src/run/power_ema.ts";

/**
 * Lists the snapshots of a run, and writes the model with the average that --ema asks for to --out.
 * @throws UsageError where the options do not go together, or there are no snapshots
 */
export async function inspectEma(
  { path, ema, out, convert, preset }: z.output<typeof inspectConfig>,
  log: Log,
): Promise<Record<string, unknown>> {
  if (ema === undefined) {
    throw new UsageError("Cannot use --out: it needs --ema; add it, or convert a file with --convert");
  }
  if (path === undefined || convert !== undefined || preset !== undefined) {
    throw new UsageError(
      "Cannot inspect: --ema needs a run, without --preset and --convert; name its file with --out",
    );
  }
  const file = out?.endsWith(".safetensors");
  if (out !== undefined && !file && exists(join(out, "config.json"))) {
    throw new UsageError(`Cannot write to "${out}": it holds a model or a run already; choose another --out`);
  }
  const average = await rebuiltEma(path, ema);
  try {
    const { snapshots, error, about } = average;
    log.line(log.bold(dirname(snapshots[0]?.path ?? path)));
    for (const { step, applied, widths, bytes } of snapshots) {
      const skipped = applied < step ? `, ${step - applied} skipped` : "";
      log.line(`  after ${step} steps${skipped}: sigma_rel ${widths.join(" and ")}, ${formatBytes(bytes)}`);
    }
    log.line(about);
    const result = { path, ema, error, snapshots };
    if (out === undefined) return result;
    using _output = file ? Output.file(out) : Output.folder(out);
    const weights = new WeightsFingerprint(), { shapes, read } = weights.through(average);
    const tensors = [...shapes].map(([name, shape]) => ({
      name,
      shape,
      dtype: "F32",
      data: async () => await read(name) as Float32Array<ArrayBuffer>,
    }));
    await writeSafetensors(file ? out : join(out, "model.safetensors"), tensors, { format: "pt" });
    if (!file) {
      const config = readJson(average.config) as Record<string, unknown>;
      writeJson(join(out, "config.json"), { ...config, fingerprint: weights.value() });
    }
    log.line(`written: ${out}${file ? "" : ", a model for --model"}`);
    return { ...result, written: out };
  } finally {
    average.close();
  }
}
