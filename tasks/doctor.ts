// tok doctor: what this machine offers, what is missing, and the command that mends it.

import { doctorConfig } from "../src/config.ts";
import { adapters, diagnose, noAdapter } from "../src/gpu/probe.ts";
import { formatBytes } from "../src/io/files.ts";
import { measureCeiling } from "../src/train/ceiling.ts";
import { command, openAdapter } from "./command.ts";

export const doctor = command({
  name: "doctor",
  purpose: "Say what adapter there is, what is missing, and how to mend it",
  schema: doctorConfig,
  examples: ["tok doctor", "tok doctor --bench"],
  async run(c, { log }) {
    const { best, software } = await adapters();
    const findings = diagnose(best);
    if (best) {
      log.line(`adapter   ${best.description}${best.software ? " (software)" : ""}`);
      log.line(`vendor    ${best.vendor || "unknown"} ${best.architecture}`.trimEnd());
      log.line(
        `features  ${
          best.features.filter((f) => /f16|timestamp|subgroup/.test(f)).join(", ") ||
          "none of those that tok uses"
        }`,
      );
      for (const [name, value] of Object.entries(best.limits)) {
        log.line(
          `  ${name.padEnd(36)} ${
            /Size/.test(name) && !/Invocations/.test(name) ? formatBytes(value) : value
          }`,
        );
      }
      if (software && !best.software) log.line(`software  ${software.description} (with --cpu)`);
    }
    log.line(`runtime   Deno ${Deno.version.deno}, ${Deno.build.os} ${Deno.build.arch}`);
    for (const { problem, remedy } of findings) {
      log.line(`${log.bold("problem")}   ${problem}\n  mend it: ${remedy}`);
    }
    log.event("doctor", { adapter: best, software, findings });
    if (!best) throw noAdapter();
    if (!findings.length) log.line("nothing is missing");
    if (!c.bench) return { adapter: best.description, findings };
    await openAdapter(c, log);
    const { fma, copy, gemm } = await measureCeiling();
    log.line(
      `multiply-adds ${fma.toFixed(1)} GFLOP/s, copy ${copy.toFixed(1)} GB/s, matrix product ${
        gemm.toFixed(1)
      } GFLOP/s`,
    );
    return { adapter: best.description, findings, gflops: fma, gbps: copy, gemm };
  },
});
