// The tok executable: picks the command, reads its flags, runs it, and turns what went wrong into an exit code.
// The only file that reads the command line, listens to signals and exits.

import { helpOf, hint, resolveConfig } from "./src/flags.ts";
import { UsageError } from "./src/errors.ts";
import { closeDevice } from "./src/gpu/device.ts";
import { Log } from "./src/io/log.ts";
import { align } from "./tasks/align.ts";
import type { Command } from "./tasks/command.ts";
import { doctor } from "./tasks/doctor.ts";
import { encode } from "./tasks/encode.ts";
import { evaluate } from "./tasks/eval.ts";
import { features } from "./tasks/features.ts";
import { inspect } from "./tasks/inspect.ts";
import { reconstruct } from "./tasks/reconstruct.ts";
import { sample } from "./tasks/sample.ts";
import { trainDit } from "./tasks/train_dit.ts";
import metadata from "./deno.json" with { type: "json" };

const COMMANDS: readonly Command[] = [
  align,
  reconstruct,
  trainDit,
  sample,
  evaluate,
  encode,
  features,
  inspect,
  doctor,
];

const OVERVIEW = `tok turns a vision encoder into an image tokenizer, and trains diffusion transformers on it.

Usage: tok <command> [options]

${COMMANDS.map(({ name, purpose }) => `  ${name.padEnd(12)} ${purpose}`).join("\n")}

Bare, these five run the whole pipeline on generated images:
  tok align && tok reconstruct && tok train-dit && tok sample --cfg 4 && tok eval

"tok <command> --help" lists a command's options. "tok --version" prints the version.
`;

async function main(args: readonly string[]): Promise<number> {
  const [name, ...rest] = args;
  if (name === undefined || name === "--help" || name === "-h" || name === "help") {
    console.log(OVERVIEW.trimEnd());
    return name === undefined ? 2 : 0;
  }
  if (name === "--version" || name === "-V") {
    console.log(`tok ${metadata.version}`);
    return 0;
  }
  const json = rest.includes("--json"), debug = rest.includes("--debug");
  const log = new Log({ json });
  let signal = 0;
  const stop = (code: number) => () => {
    if (signal) Deno.exit(signal);
    signal = code;
    log.line("stopping: the state is saved first; once more stops at once");
  };
  const handlers = [["SIGINT", stop(130)], ["SIGTERM", stop(143)]] as const;
  try {
    const command = COMMANDS.find((c) => c.name === name);
    if (!command) {
      const names = COMMANDS.map((c) => c.name);
      throw new UsageError(
        `Cannot run "${name}": tok has no such command${
          hint(name, names, "") || `; it has ${names.join(", ")}`
        }`,
      );
    }
    if (rest.includes("--help") || rest.includes("-h")) {
      console.log(
        helpOf(command.name, command.purpose, command.schema, command.examples, command.argument).trimEnd(),
      );
      return 0;
    }
    const config = resolveConfig(command.schema, rest, { command: name, argument: command.argument });
    for (const [event, handler] of handlers) {
      if (event === "SIGINT" || Deno.build.os !== "windows") Deno.addSignalListener(event, handler);
    }
    const line = ["tok", ...args].map((a) => /^[\w./:=,+-]+$/.test(a) ? a : `'${a}'`).join(" ");
    const results = await command.run(config, { log, line, stopping: () => signal !== 0 });
    log.event("done", { command: name, interrupted: signal !== 0, ...results });
    return signal;
  } catch (error) {
    const usage = error instanceof UsageError;
    const message = error instanceof Error ? error.message : String(error);
    log.line(`tok: ${message}`);
    if (debug && error instanceof Error && error.stack) log.line(error.stack);
    log.event("error", { message, usage });
    return usage ? 2 : 1;
  } finally {
    for (const [event, handler] of handlers) {
      if (event === "SIGINT" || Deno.build.os !== "windows") Deno.removeSignalListener(event, handler);
    }
    log.close();
    closeDevice();
  }
}

if (import.meta.main) Deno.exit(await main(Deno.args));
