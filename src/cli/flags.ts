// From argv to a command's config: flags over --config FILE over --preset over defaults. Everything that is wrong is said in
// one line that names the flag, and the nearest valid one where it is unknown.

import { parseArgs } from "@std/cli/parse-args";
import { z } from "zod";
import { about } from "./options.ts";
import { PRESETS } from "./presets.ts";
import { UsageError } from "../errors.ts";
import { readJson } from "../formats/files.ts";

export type Schema = z.ZodObject<z.ZodRawShape>;

export const kebab = (name: string): string => name.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`);
const camel = (flag: string): string => flag.replace(/-([a-z0-9])/g, (_, c: string) => c.toUpperCase());

/** The type inside defaults and optionals. */
function inner(type: z.ZodType): z.ZodType {
  if (type instanceof z.ZodDefault || type instanceof z.ZodOptional) return inner(type.unwrap() as z.ZodType);
  return type;
}

/** A field's default, if it has one. */
export function defaultOf(type: z.ZodType): unknown {
  const result = type.safeParse(undefined);
  return result.success ? result.data : undefined;
}

/** What a flag takes, for help and messages. */
export function placeholder(type: z.ZodType): string {
  const t = inner(type);
  if (t instanceof z.ZodBoolean) return "";
  if (t instanceof z.ZodEnum) return t.options.join("|");
  if (t instanceof z.ZodNumber) return "N";
  if (t instanceof z.ZodArray) {
    return inner(t.element as z.ZodType) instanceof z.ZodNumber ? "a,b,..." : "NAME,...";
  }
  if (t instanceof z.ZodUnion) {
    return t.options.map((o) => o instanceof z.ZodLiteral ? String(o.value) : "N").join("|");
  }
  return "TEXT";
}

/**
 * The config of a command.
 * @param argument field that takes the word behind the command, where it has one
 * @throws UsageError for unknown flags, missing or wrong values
 */
export function resolveConfig<S extends Schema>(
  schema: S,
  args: readonly string[],
  { command, argument }: { command: string; argument?: string | undefined },
): z.infer<S> {
  const fields = Object.entries(schema.shape) as [string, z.ZodType][];
  const booleans = fields.filter(([, t]) => inner(t) instanceof z.ZodBoolean).map(([name]) => kebab(name));
  const strings = fields.map(([name]) => kebab(name)).filter((flag) => !booleans.includes(flag));
  const known = [...booleans, ...strings, "help"];
  const lists = fields.filter(([, t]) => inner(t) instanceof z.ZodArray).map(([name]) => kebab(name));
  const joined = withListsJoined(args, lists);
  const seen = new Set<string>();
  for (const arg of joined) {
    const flag = /^--(?:no-)?([^=]+)/.exec(arg)?.[1];
    if (flag === undefined) continue;
    if (seen.has(flag)) throw new UsageError(`Cannot use --${flag} twice`);
    seen.add(flag);
  }
  const parsed = parseArgs(joined, {
    string: strings,
    boolean: booleans,
    negatable: booleans,
    unknown: (arg, key) => {
      if (key !== undefined) {
        throw new UsageError(
          `Cannot use ${arg}: "tok ${command}" has no such option${hint(key, known, "--")}`,
        );
      }
      return true;
    },
  });
  const flags: Record<string, unknown> = {};
  for (const [name, type] of fields) {
    const flag = kebab(name), value = parsed[flag];
    const given = joined.some((a) => a === `--${flag}` || a.startsWith(`--${flag}=`) || a === `--no-${flag}`);
    if (given) flags[name] = valueOf(type, value, flag);
  }
  const [word, ...more] = parsed._.map(String);
  if (word !== undefined && (argument === undefined || more.length)) {
    throw new UsageError(
      `Cannot use "${argument === undefined ? word : more[0]}": "tok ${command}" takes no such argument`,
    );
  }
  if (word !== undefined && argument !== undefined) flags[argument] = word;

  const file = typeof flags.config === "string" ? readConfig(flags.config, fields.map(([name]) => name)) : {};
  for (const [name, type] of fields) {
    // A list may be written as on the command line, "0,1".
    if (inner(type) instanceof z.ZodArray && typeof file[name] === "string") {
      file[name] = valueOf(type, file[name], kebab(name));
    }
  }
  const name = String(flags.preset ?? file.preset ?? "tiny");
  const preset = Object.fromEntries(
    Object.entries(PRESETS[name] ?? {}).filter(([field]) =>
      "preset" in schema.shape && field in schema.shape
    ),
  );
  const result = schema.safeParse({ ...preset, ...file, ...flags });
  if (result.success) return result.data as z.infer<S>;
  const issue = result.error.issues[0] as z.core.$ZodIssue;
  const field = String(issue.path[0] ?? "");
  const value = ({ ...preset, ...file, ...flags } as Record<string, unknown>)[field];
  throw new UsageError(`Cannot use --${kebab(field)} ${show(value)}: ${issue.message.toLowerCase()}`);
}

/**
 * A value that begins with a minus sign must not look like a flag (`--cfg -1`), and a list that was typed with spaces at its
 * commas (`--classes 0, 1`) is one value.
 * @param lists flags that take a list
 */
function withListsJoined(args: readonly string[], lists: readonly string[]): string[] {
  const joined: string[] = [];
  /** The list flag whose value is the latest argument. */
  let list = false;
  for (const arg of args) {
    const before = joined.at(-1), bare = before?.startsWith("--") && !before.includes("=");
    const append = list && !bare && !arg.startsWith("--") && (before?.endsWith(",") || arg.startsWith(","));
    if (append) joined[joined.length - 1] = before + arg;
    else if (/^-\d/.test(arg) && bare) joined[joined.length - 1] = `${before}=${arg}`;
    else {
      joined.push(arg);
      const flag = /^--([^=]+)/.exec(arg)?.[1];
      list = flag === undefined ? list && bare === true : lists.includes(flag);
    }
  }
  return joined;
}

const show = (value: unknown) => Array.isArray(value) ? value.join(",") : String(value);

/** A flag's text as the type wants it; what does not fit stays text, and zod says so. */
function valueOf(type: z.ZodType, value: unknown, flag: string): unknown {
  const t = inner(type);
  if (t instanceof z.ZodBoolean || typeof value !== "string") return value;
  if (value === "" && flag !== "resume") {
    throw new UsageError(`Cannot use --${flag}: it needs a value (${placeholder(type)})`);
  }
  const number = (text: string) => text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
  if (t instanceof z.ZodNumber) return number(value);
  if (t instanceof z.ZodUnion) return number(value);
  if (t instanceof z.ZodArray) {
    const parts = value.split(",").map((part) => part.trim());
    if (parts.includes("")) {
      throw new UsageError(`Cannot use --${flag} ${value}: a value is missing before or after a comma`);
    }
    return parts.map(inner(t.element as z.ZodType) instanceof z.ZodNumber ? number : String);
  }
  return value;
}

/** A JSON file with keys in camelCase or kebab-case. */
function readConfig(path: string, names: readonly string[]): Record<string, unknown> {
  const json = readJson(path);
  if (typeof json !== "object" || json === null || Array.isArray(json)) {
    throw new UsageError(`Cannot read the config "${path}": it must be one JSON object`);
  }
  return Object.fromEntries(
    Object.entries(json).map(([key, value]) => {
      const name = camel(key);
      if (!names.includes(name)) {
        throw new UsageError(
          `Cannot use "${key}" in "${path}": there is no such option${hint(name, names, "")}`,
        );
      }
      return [name, value];
    }),
  );
}

/** Options of earlier versions, and what they are called now. */
const RENAMED: Readonly<Record<string, string>> = { checkpoint: "recompute" };

/** `; did you mean ...?` for the nearest of `known`, if one is near; the new name of a renamed option. */
export function hint(word: string, known: readonly string[], prefix: string): string {
  const renamed = RENAMED[word];
  if (renamed !== undefined && known.includes(renamed)) return `; it is called ${prefix}${renamed} now`;
  const [best] = known.map((k) => [distance(word, k), k] as const).sort((a, b) => a[0] - b[0]);
  return best && best[0] <= Math.max(2, word.length / 3) ? `; did you mean ${prefix}${best[1]}?` : "";
}

/** Edit distance in which two exchanged letters count once (Damerau and Levenshtein). */
function distance(a: string, b: string): number {
  const d = Array.from(
    { length: a.length + 1 },
    (_, i) => Array.from({ length: b.length + 1 }, (_, j) => i === 0 ? j : i),
  );
  const at = (i: number, j: number) => d[i]?.[j] ?? 0;
  for (let i = 1; i <= a.length; i++) {
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1] ? 0 : 1;
      let best = Math.min(at(i - 1, j) + 1, at(i, j - 1) + 1, at(i - 1, j - 1) + same);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
        best = Math.min(best, at(i - 2, j - 2) + 1);
      }
      (d[i] as number[])[j] = best;
    }
  }
  return at(a.length, b.length);
}

/** Help of a command: purpose, usage, options by group with default and unit, examples. */
export function helpOf(
  command: string,
  purpose: string,
  schema: Schema,
  examples: readonly string[],
  argument?: string,
): string {
  const groups = new Map<string, string[]>();
  for (const [name, type] of Object.entries(schema.shape) as [string, z.ZodType][]) {
    const info = about.get(type);
    if (!info) continue;
    const value = defaultOf(type);
    const shown = value === undefined || value === false
      ? ""
      : ` [${show(value)}${info.unit ? ` ${info.unit}` : ""}]`;
    const no = value === true ? "no-" : "";
    const flag = `  --${no}${kebab(name)} ${placeholder(type)}`.trimEnd();
    const lines = groups.get(info.group) ?? [];
    lines.push(
      `${flag.padEnd(34)}${flag.length > 33 ? `\n${" ".repeat(34)}` : ""}${info.help}${
        value === true ? "" : shown
      }`,
    );
    groups.set(info.group, lines);
  }
  const sections = [...groups].map(([group, lines]) => `${group}:\n${lines.join("\n")}`);
  return `${purpose}\n\nUsage: tok ${command}${argument ? ` [${argument.toUpperCase()}]` : ""} [options]\n\n${
    sections.join("\n\n")
  }\n\nExamples:\n${examples.map((e) => `  ${e}`).join("\n")}\n`;
}
