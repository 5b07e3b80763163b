// Help of a command: purpose, usage, options by group with their defaults, examples. Wrapped to the width of the terminal; the
// advanced options are shown by `--help all` only.

import type { z } from "zod";
import { type About, aboutOption } from "./about.ts";
import { flagOf, inner, placeholder, type Schema, show } from "./flags.ts";

/** Columns of the flags, the first indent included. */
const FLAGS = 30;

export interface HelpOptions {
  /** Whether advanced options are shown. */
  all: boolean;
  /** Width of the terminal, columns. */
  columns: number;
}

export function helpOf(
  command: { name: string; purpose: string; schema: Schema; examples: readonly string[]; argument?: string },
  { all, columns }: HelpOptions,
): string {
  const { name, purpose, schema, examples, argument } = command;
  const groups = new Map<string, string[]>();
  let hidden = 0;
  for (const [field, type] of Object.entries(schema.shape) as [string, z.ZodType][]) {
    const about = aboutOption(type);
    if (!about) continue;
    if (about.advanced && !all) {
      hidden++;
      continue;
    }
    groups.set(about.group, [...groups.get(about.group) ?? [], entry(field, type, about, columns)]);
  }
  const usage = `Usage: tok ${name}${argument ? ` [${argument.toUpperCase()}]` : ""} [options]`;
  return [
    wrapped(purpose, columns).join("\n"),
    usage,
    ...[...groups].map(([group, entries]) => `${group}:\n${entries.join("\n")}`),
    ...hidden > 0 ? [`"tok ${name} --help all" lists ${hidden} more options.`] : [],
    `Examples:\n${examples.map((line) => exampleOf(line, columns)).join("\n")}`,
  ].join("\n\n") + "\n";
}

/** One option: the flag on the left, its help wrapped on the right. */
function entry(
  field: string,
  type: z.ZodType,
  { help, unit, otherwise }: About,
  columns: number,
): string {
  const standard = inner(type) === type ? undefined : type.safeParse(undefined).data;
  const on = standard === true; // help is about the flag that changes something
  const flag = `  --${on ? "no-" : ""}${flagOf(field, type)} ${placeholder(type)}`.trimEnd();
  const shown = otherwise ??
    (standard === undefined || typeof standard === "boolean"
      ? undefined
      : `${breakable(show(standard))}${unit ? ` ${unit}` : ""}`);
  const said = otherwise !== undefined && unit ? `${help}, ${unit}` : help;
  const lines = wrapped(
    `${said}${shown === undefined ? "" : ` [${shown}]`}`,
    Math.max(24, columns - FLAGS - 1),
  );
  const flags = flag.length > columns ? alternativesWrapped(flag, columns) : [flag];
  if (flag.length < FLAGS) flags[0] = `${flag.padEnd(FLAGS)}${lines.shift()}`;
  return [...flags, ...lines.map((line) => " ".repeat(FLAGS) + line)].join("\n");
}

/** A long list with spaces after its commas, so that it can be wrapped. */
export const breakable = (list: string): string => list.length > 40 ? list.replaceAll(",", ", ") : list;

/** An example that can be pasted: a long one continues after a backslash. */
function exampleOf(line: string, columns: number): string {
  return `  ${wrapped(line, Math.max(24, columns - 9), / (?=--)/).join(" \\\n      ")}`;
}

/** `--flag a|b|c` in lines of at most `columns`, broken after a "|". */
function alternativesWrapped(flag: string, columns: number): string[] {
  const start = flag.lastIndexOf(" ") + 1, name = flag.slice(0, start), indent = " ".repeat(start);
  return wrapped(flag.slice(start), columns - start, /(?<=\|)/, "").map((line, i) =>
    (i ? indent : name) + line
  );
}

/** Words, split at `space`, in lines of at most `width` columns; longer words get lines of their own. */
export function wrapped(text: string, width: number, space = / /, joint = " "): string[] {
  const lines: string[] = [];
  for (const word of text.split(space)) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + joint.length + word.length <= width) {
      lines[lines.length - 1] = last + joint + word;
    } else lines.push(word);
  }
  return lines;
}
