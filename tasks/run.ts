// Parses the command line, runs the command, and maps errors to exit codes.

import { Interrupted, UsageError } from "../src/errors.ts";
import { hint, type Origin, resolveOptions } from "../src/cli/flags.ts";
import { helpOf } from "../src/cli/help.ts";
import { printKernelTimes } from "../src/gpu/debug.ts";
import { closeDevice } from "../src/gpu/device.ts";
import { stopRequested } from "../src/interruption.ts";
import { Log } from "../src/run/log.ts";
import { quoted } from "../src/run/resume.ts";
import { align } from "./align.ts";
import type { Command, Context } from "./command.ts";
import { decode } from "./decode.ts";
import { doctor } from "./doctor.ts";
import { edit } from "./edit.ts";
import { encode } from "./encode.ts";
import { evaluate } from "./eval.ts";
import { features } from "./features.ts";
import { inspect } from "./inspect.ts";
import { reconstruct } from "./reconstruct.ts";
import { sample } from "./sample.ts";
import { sweep } from "./sweep.ts";
import { trainDit } from "./train_dit.ts";
import metadata from "../deno.json" with { type: "json" };

export const COMMANDS: readonly Command[] = [
  align,
  reconstruct,
  trainDit,
  sample,
  evaluate,
  sweep,
  encode,
  decode,
  edit,
  features,
  inspect,
  doctor,
];

const OVERVIEW = `tok turns a vision encoder into an image tokenizer, and trains diffusion transformers on it.

Usage: tok <command> [options]

${COMMANDS.map(({ name, purpose }) => `  ${name.padEnd(12)} ${purpose}`).join("\n")}

Without options, these five run the complete pipeline on generated images:
  tok align && tok reconstruct && tok train-dit && tok sample --cfg 4 && tok eval

"tok <command> --help" lists the options of a command, "--help all" also the advanced ones. "tok --version" prints the
version.
`;

/** Runs a command line. @returns the exit code; 1 also if stdout could not be written */
export async function run(args: readonly string[]): Promise<number> {
  const log = new Log({ json: args.includes("--json"), hold: true });
  try {
    const code = await runCommand(args, log);
    return log.lost && code === 0 ? 1 : code;
  } finally {
    await printKernelTimes();
    log.close();
    closeDevice();
  }
}

async function runCommand(args: readonly string[], log: Log): Promise<number> {
  const [name, ...rest] = args;
  if (name === undefined || name === "--help" || name === "-h" || name === "help") {
    log.output(OVERVIEW);
    return name === undefined ? 2 : 0;
  }
  if (name === "--version" || name === "-V") {
    log.output(`tok ${metadata.version}\n`);
    return 0;
  }
  const context: Context = {
    log,
    commandLine: ["tok", ...args].map(quoted).join(" "),
    stopping: () => stopRequested() !== 0,
  };
  try {
    const command = commandOf(name);
    if (rest.includes("--help") || rest.includes("-h")) {
      log.output(helpOf(command, { all: rest.includes("all"), columns: log.columns }));
      return 0;
    }
    const { config, origins } = parseCommandLine(args);
    context.origins = origins;
    const results = await command.run(config, context);
    log.begin();
    log.event("done", { command: name, interrupted: stopRequested() !== 0, ...results });
    return stopRequested();
  } catch (error) {
    if (error instanceof Interrupted) {
      log.begin();
      log.line(`stopped${context.resumeCommand ? `; go on with: ${context.resumeCommand}` : ""}`);
      log.event("done", { command: name, interrupted: true });
      return stopRequested();
    }
    return report(error, log, rest.includes("--debug"));
  }
}

/**
 * Parses a command line (without "tok"); runs nothing and opens no file but --config.
 * @throws UsageError for an unknown command, unknown options and wrong values
 */
export function parseCommandLine(
  args: readonly string[],
): { command: Command; config: never; origins: Record<string, Origin> } {
  const [name = "", ...rest] = args, command = commandOf(name);
  const { config, origins } = resolveOptions(command.schema, rest, { ...command, command: name });
  return { command, config: config as never, origins };
}

function commandOf(name: string): Command {
  const command = COMMANDS.find((c) => c.name === name);
  if (command) return command;
  const names = COMMANDS.map((c) => c.name);
  throw new UsageError(
    `Cannot run "${name}": tok has no such command${hint(name, names, "") || `; it has ${names.join(", ")}`}`,
  );
}

/** Prints an error. A UsageError discards the lines about adapter and data that are held back, so that it comes alone. */
function report(error: unknown, log: Log, debug: boolean): number {
  const usage = error instanceof UsageError;
  const message = error instanceof Error ? error.message : String(error);
  log.begin({ forget: usage });
  log.line(`tok: ${message}`);
  if (debug && error instanceof Error && error.stack) log.line(error.stack);
  log.event("error", { message, usage });
  return usage ? 2 : 1;
}
