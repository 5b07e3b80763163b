// tok eval --compare: finished evaluations side by side, as a table, as JSON, and as a page.

import { join } from "@std/path";
import type { EvalConfig } from "../src/cli/eval_config.ts";
import { kebab } from "../src/cli/flags.ts";
import { general } from "../src/cli/options.ts";
import { UsageError } from "../src/errors.ts";
import { writeJson } from "../src/formats/files.ts";
import { compare, openRuns } from "../src/metrics/comparison.ts";
import { comparisonJson, comparisonLines, comparisonSections } from "../src/metrics/comparison_report.ts";
import { refuseOthers } from "../src/run/existing_output.ts";
import { writeReport } from "../src/run/report.ts";
import { type Context, openOutput } from "./command.ts";

/** The options that have an effect. */
const OPTIONS = ["compare", "metrics", "out", ...Object.keys(general)];
/** What config.json says made the folder. */
const COMMAND = "eval --compare";

/** @throws UsageError for other options, and for figures that do not compare */
export async function compareRuns(
  c: Pick<EvalConfig, "metrics" | "out" | "seed"> & { compare: readonly string[] },
  { log, origins = {}, commandLine }: Pick<Context, "log" | "origins" | "commandLine">,
): Promise<Record<string, unknown>> {
  const other = Object.keys(origins).find((name) =>
    origins[name] === "command line" && !OPTIONS.includes(name)
  );
  if (other !== undefined) {
    const flag = `--${kebab(other)}`;
    throw new UsageError(`Cannot use ${flag}: --compare reads finished evaluations; leave ${flag} out`);
  }
  const { compare: paths, metrics, seed, out } = c;
  const comparison = compare(openRuns(paths), { metrics, seed }), json = comparisonJson(comparison);
  if (out !== undefined) {
    using output = openOutput(out, "compare");
    const { folder } = output;
    refuseOthers(folder, COMMAND);
    writeJson(join(folder, "config.json"), { command: COMMAND, compare: paths, metrics, seed });
    writeJson(join(folder, "compare.json"), json);
    const sections = comparisonSections(comparison);
    await writeReport(folder, {
      title: "Comparison of evaluations",
      line: commandLine,
      sections,
      file: "compare.html",
    });
  }
  log.begin();
  comparisonLines(comparison).forEach((line) => log.line(line));
  if (out === undefined) return json;
  log.line(`page: ${join(out, "compare.html")}`);
  return { out, ...json };
}
