// tok doctor: reports the adapter, problems and the commands that fix them.

import { doctorConfig } from "../src/cli/config.ts";
import {
  adapters,
  diagnose,
  matricesOf,
  noAdapter,
  otherProvider,
  subgroupsOf,
  usedFeatures,
} from "../src/gpu/diagnose.ts";
import { driverOf } from "../src/gpu/driver.ts";
import { openProvider } from "../src/gpu/provider.ts";
import { formatBytes } from "../src/formats/files.ts";
import { measurePeaks } from "../src/bench/peak.ts";
import { rememberRates } from "../src/bench/remembered_peaks.ts";
import {
  adapterKey,
  describeTiles,
  prepareTiles,
  rememberedTiles,
  tilesFile,
} from "../src/bench/gemm_tuning.ts";
import { command, openAdapter } from "./command.ts";

export const doctor = command({
  name: "doctor",
  purpose: "Report the adapter, what is missing, and how to fix it",
  schema: doctorConfig,
  examples: ["tok doctor", "tok doctor --bench", "tok doctor --tune"],
  async run(c, { log }) {
    log.begin();
    const provider = await openProvider(c.gpu), { best, software } = await adapters(provider);
    const findings = diagnose(best), driver = best && driverOf(best, provider);
    if (best) {
      log.line(`adapter   ${best.description}${best.software ? " (software)" : ""}`);
      if (driver !== undefined) log.line(`driver    ${driver}`);
      log.line(`vendor    ${best.vendor || "unknown"} ${best.architecture}`.trimEnd());
      log.line(`features  ${usedFeatures(best)}`);
      log.line(`subgroups ${subgroupsOf(best)}`);
      if (best.matrices.length) log.line(`matrices  ${matricesOf(best)}`);
      for (const [name, value] of Object.entries(best.limits)) {
        log.line(
          `  ${name.padEnd(36)} ` +
            `${/Size/.test(name) && !/Invocations/.test(name) ? formatBytes(value) : value}`,
        );
      }
      if (software && !best.software) log.line(`software  ${software.description} (with --cpu)`);
    }
    log.line(`runtime   Deno ${Deno.version.deno}, ${Deno.build.os} ${Deno.build.arch}`);
    log.line(`webgpu    ${provider.title}`);
    const other = best ? await otherProvider(provider, best) : [];
    other.forEach((line, i) => log.line(`${i ? "" : "  or"}`.padEnd(10) + line));
    for (const { problem, remedy } of findings) {
      log.line(`${log.bold("problem")}   ${problem}\n  fix:      ${remedy}`);
    }
    log.event("doctor", { adapter: best, driver, software, findings, gpu: provider.name, other });
    if (!best) throw noAdapter(provider);
    if (!findings.length) log.line("nothing is missing");
    const facts = c.cpu && software ? software : best;
    const profile = c.kernels === "matrix"
      ? "gpu"
      : c.kernels !== "auto"
      ? c.kernels
      : facts.software
      ? "cpu"
      : "gpu";
    const say = { line: (text: string) => log.line(text), warn: (text: string) => log.warn(text) };
    // In fp16 the adapter opens with its subgroup matrices, so that they are measured too.
    if (c.bench || c.tune) await openAdapter({ ...c, ...c.tune ? { precision: "f16" } : {} }, log);
    const tiles = c.tune
      ? await prepareTiles("again", say)
      : rememberedTiles(tilesFile(), adapterKey(facts, profile), say.warn);
    const measured = tiles && describeTiles(tiles);
    log.line(
      measured
        ? `tiles     measured on this adapter: ${measured.tiles}`
        : `tiles     by the built-in cost model; "tok doctor --tune" measures this adapter${
          facts.software ? " in about 30 s" : ""
        }`,
    );
    if (measured?.fp16) log.line(`fp16      faster ${measured.fp16}`);
    const result = { adapter: best.description, driver: driver ?? null, findings, tiles: tiles ?? null };
    if (!c.bench) return result;
    const { fma, copy, gemm } = await measurePeaks();
    rememberRates(adapterKey(facts, profile), { gemm, fma }, say.warn);
    log.line(`FMA ${fma.toFixed(1)} GFLOP/s, copy ${copy.toFixed(1)} GB/s, GEMM ${gemm.toFixed(1)} GFLOP/s`);
    return { ...result, gflops: fma, gbps: copy, gemm };
  },
});
