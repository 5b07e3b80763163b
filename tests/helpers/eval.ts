// Runs `tok eval` in this process: what it says, its scores and its error.

import { join } from "@std/path";
import { evalConfig } from "../../src/cli/config.ts";
import { Log } from "../../src/run/log.ts";
import { evaluate } from "../../tasks/eval.ts";

export async function evalScores(options: Record<string, unknown>) {
  const lines: string[] = [];
  const log = new class extends Log {
    override line(text = "") {
      lines.push(text);
    }
    override warn(text: string) {
      lines.push(text);
    }
  }({ json: false, terminal: { stdout: false, stderr: false } });
  const config = evalConfig.parse({ cpu: true, workers: 0, ...options });
  const run = evaluate.run(config as never, { log, commandLine: "", stopping: () => false });
  let result: Record<string, unknown> = {};
  const error = await run.then((all) => void (result = all), (error) => error as Error);
  const scores: Record<string, number> = error || options.out === undefined ? {} : JSON.parse(
    await Deno.readTextFile(join(`${options.out}`, "metrics.json")),
  );
  return { lines, error, scores, result };
}
