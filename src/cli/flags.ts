// From argv to a command's config: flags over --config FILE over --recipe over --preset over defaults. Every error is one line
// that names the flag, and for an unknown one the nearest valid one.

import { parseArgs } from "@std/cli/parse-args";
import { levenshteinDistance } from "@std/text/levenshtein-distance";
import { z } from "zod";
import { UsageError } from "../errors.ts";
import { readJson } from "../formats/files.ts";
import { aboutOption } from "./about.ts";

export type Schema = z.ZodObject<z.ZodRawShape>;

export const kebab = (name: string): string => name.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`);
const camel = (flag: string): string => flag.replace(/-([a-z0-9])/g, (_, c: string) => c.toUpperCase());

/** The name of an option's flag. */
export const flagOf = (name: string, type: z.ZodType): string => aboutOption(type)?.flag ?? kebab(name);

/** Former names of options. */
const RENAMED: Readonly<Record<string, string>> = { checkpoint: "recompute" };

/** The type inside defaults and optionals. */
export function inner(type: z.ZodType): z.ZodType {
  if (type instanceof z.ZodDefault || type instanceof z.ZodOptional) return inner(type.unwrap() as z.ZodType);
  return type;
}

/** The type of a list's elements. */
export const elementOf = (type: z.ZodArray): z.ZodType => inner(type.element as z.ZodType);

/** What a flag takes, for messages and help. */
export function placeholder(type: z.ZodType): string {
  const t = inner(type), value = aboutOption(type)?.value;
  if (value !== undefined) return value;
  if (t instanceof z.ZodBoolean) return "";
  if (t instanceof z.ZodEnum) return t.options.join("|");
  if (t instanceof z.ZodNumber) return "N";
  if (t instanceof z.ZodArray) return `${elementOf(t) instanceof z.ZodNumber ? "N" : "NAME"},...`;
  if (t instanceof z.ZodUnion) {
    return t.options.map((o) => o instanceof z.ZodLiteral ? String(o.value) : "N").join("|");
  }
  return "TEXT";
}

/** Where the value of an option comes from. */
export type Origin = "default" | "preset" | "recipe" | "config file" | "command line";

/** The config of a command; arguments as {@link resolveOptions}. */
export function resolveConfig<S extends Schema>(
  ...args: Parameters<typeof resolveOptions<S>>
): z.infer<S> {
  return resolveOptions(...args).config;
}

/** Defaults that depend on other options, in place of those of the schema. @param given options that are set anywhere */
export type DependentDefaults = (given: Readonly<Record<string, unknown>>) => Record<string, unknown>;

/** A method of a command, chosen by --recipe: other defaults, and options that do nothing in it. */
export interface RecipeOptions {
  /** Values in place of those of the preset. @param preset all options as the preset has them */
  options(preset: never): Readonly<Record<string, unknown>>;
  /** Options that are refused, with the reason. */
  without: Readonly<Record<string, string>>;
}

/**
 * The config of a command, and where each value comes from.
 * @param options.argument field of the positional argument, if the command has one
 * @param options.defaults defaults that depend on other options
 * @param options.presets values by the name of the preset
 * @param options.recipes methods by name
 * @throws UsageError for unknown flags, missing or wrong values, and options that the recipe does not have
 */
export function resolveOptions<S extends Schema>(
  schema: S,
  args: readonly string[],
  { command, argument, defaults, presets = {}, recipes = {} }: {
    command: string;
    argument?: string | undefined;
    defaults?: DependentDefaults | undefined;
    presets?: Readonly<Record<string, object>> | undefined;
    recipes?: Readonly<Record<string, RecipeOptions>> | undefined;
  },
): { config: z.infer<S>; origins: Record<string, Origin> } {
  const fields = Object.entries(schema.shape) as [string, z.ZodType][];
  const flagsOf = (test: (type: z.ZodType) => boolean) =>
    fields.filter(([, type]) => test(inner(type))).map(([name, type]) => flagOf(name, type));
  const booleans = flagsOf((t) => t instanceof z.ZodBoolean), known = [...flagsOf(() => true), "help"];
  const lists = flagsOf((t) => t instanceof z.ZodArray);
  const paths = fields.filter(([, type]) => aboutOption(type)?.words).map(([name, type]) =>
    flagOf(name, type)
  );
  const words = withListsJoined(withOwnFlags(args, fields), lists, paths);
  const named = words.map((arg) => /^--(?:no-)?([^=]+)/.exec(arg)?.[1]).filter((flag) => flag !== undefined);
  const twice = named.find((flag, i) => named.includes(flag, i + 1));
  if (twice !== undefined) throw new UsageError(`Cannot use --${twice} twice`);
  const parsed = parseArgs(words, {
    string: known.filter((flag) => !booleans.includes(flag)),
    boolean: booleans,
    negatable: booleans,
    unknown(arg, key) {
      if (key === undefined) return true;
      throw new UsageError(
        `Cannot use ${arg}: ${unknown(key, known, "--", `"tok ${command}" has no such option`)}`,
      );
    },
  });
  const flags: Record<string, unknown> = {};
  for (const [name, type] of fields) {
    const flag = flagOf(name, type);
    if (named.includes(flag)) flags[name] = valueOf(type, parsed[flag], flag);
  }
  const [word, ...more] = parsed._.map(String);
  if (word !== undefined && (argument === undefined || more.length)) {
    throw new UsageError(
      `Cannot use "${argument === undefined ? word : more[0]}": "tok ${command}" takes no such argument`,
    );
  }
  if (word !== undefined && argument !== undefined) flags[argument] = word;

  const file = typeof flags.config === "string" ? readConfig(flags.config, fields) : {};
  for (const [name, type] of fields) {
    // A list may be written as on the command line, "0,1".
    if (inner(type) instanceof z.ZodArray && typeof file[name] === "string") {
      file[name] = valueOf(type, file[name], flagOf(name, type));
    }
  }
  const name = String(flags.preset ?? file.preset ?? "tiny"), preset = presets[name] ?? {};
  if (schema.shape.preset && Object.keys(presets).length && !Object.hasOwn(presets, name)) {
    throw new UsageError(`Cannot use --preset ${name}: ${unknownPreset(name, Object.keys(presets))}`);
  }
  const recipe = recipeValues(recipes, { ...file, ...flags }, () => schema.parse(preset));
  const layers = { preset, recipe, "config file": file, "command line": flags };
  const given: Record<string, unknown> = Object.assign({}, ...Object.values(layers));
  const values = { ...defaults?.(given), ...given };
  const result = schema.safeParse(values, { error: () => "" }); // the schema's own messages stay, refusal() has the others
  if (result.success) {
    const origins: Record<string, Origin> = Object.fromEntries(
      Object.entries(layers).flatMap(([origin, set]) =>
        Object.keys(set).map((name) => [name, origin as Origin])
      ),
    );
    return { config: result.data as z.infer<S>, origins };
  }
  const issue = result.error.issues[0] as z.core.$ZodIssue, field = String(issue.path[0] ?? "");
  const type = schema.shape[field] as z.ZodType;
  const reason = issue.message || refusal(issue, type, values[field]);
  throw new UsageError(`Cannot use --${flagOf(field, type)} ${show(values[field])}: ${reason}`);
}

/** The JSON schema of a value, as far as options have it. */
type Form =
  & Partial<Record<"minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum", number>>
  & { type?: string; const?: unknown; enum?: readonly unknown[]; anyOf?: readonly Form[]; default?: unknown }
  & { items?: Form; minItems?: number; maxItems?: number };

/** Why the value of an option is refused and what to give, from an issue that zod found. */
function refusal(issue: z.core.$ZodIssue, type: z.ZodType, value: unknown): string {
  const form = z.toJSONSchema(type) as Form, { items } = form, [, index] = issue.path;
  if (issue.code === "too_big" && issue.maximum === Number.MAX_SAFE_INTEGER) {
    return `at most ${issue.maximum.toLocaleString("en-US")} is supported`;
  }
  const part = Array.isArray(value) && typeof index === "number" ? value[index] : undefined;
  const near = issue.code === "invalid_value" ? hint(show(part ?? value), issue.values.map(String), "") : "";
  if (part === undefined || !items) {
    const example = items && form.default !== undefined ? `, such as ${show(form.default)}` : "";
    return `give ${described(form)}${example}${near}`;
  }
  if (!items.items) return `"${show(part)}" is not ${described(items, true)}${near}`;
  const [each] = placeholder(type).split(","), [example] = form.default as unknown[][];
  return `"${show(part)}" is not ${each}, each ${described(items.items)}, such as ${
    example?.join("-")
  }; a comma separates values`;
}

/** What an option takes, such as "a number from 0 to 1". @param listed whether it is an element of a list */
function described(form: Form, listed = false): string {
  const { type, anyOf, items, minItems, maxItems } = form;
  if (anyOf) return anyOf.map((one) => described(one)).join(listed ? " or " : ", or ");
  if (form.const !== undefined) return String(form.const);
  if (form.enum) return `${form.enum.length > 1 ? "one of " : ""}${form.enum.join(", ")}`;
  if (items) return `${minItems === maxItems ? minItems : "one or more"} values, each ${described(items)}`;
  if (type === "boolean") return listed ? "off or on" : "true or false";
  return type === "number" || type === "integer" ? numberDescribed(form) : "a text";
}

/** A number with its bounds, of which the safe integers are none. */
function numberDescribed(form: Form): string {
  const { minimum, exclusiveMinimum: above, maximum, exclusiveMaximum: below } = form;
  const written = (bound: number) => bound.toLocaleString("en-US"), whole = form.type === "integer";
  const safe = (bound = NaN) => Math.abs(bound) < Number.MAX_SAFE_INTEGER ? bound : undefined;
  const from = whole && above !== undefined ? above + 1 : safe(minimum), to = safe(maximum);
  const noun = whole ? "a whole number" : "a number", closed = from !== undefined;
  if (!closed && above === undefined) return noun;
  const low = closed ? `from ${written(from)}` : `above ${written(above as number)}`;
  if (to !== undefined) return `${noun} ${low} ${closed ? "to" : "and at most"} ${written(to)}`;
  if (below !== undefined) return `${noun} ${low} ${closed ? "to" : "and"} below ${written(below)}`;
  return `${noun} ${low}${closed ? " on" : ""}`;
}

/**
 * What the chosen recipe sets.
 * @param preset makes all options as the preset has them
 * @throws UsageError for an option that it does not have
 */
function recipeValues(
  recipes: Readonly<Record<string, RecipeOptions>>,
  given: Readonly<Record<string, unknown>>,
  preset: () => Record<string, unknown>,
): Readonly<Record<string, unknown>> {
  const [standard = ""] = Object.keys(recipes), name = String(given.recipe ?? standard);
  const recipe = Object.hasOwn(recipes, name) ? recipes[name] : undefined;
  if (!recipe) return {}; // there are none, or the schema refuses the name
  const wrong = Object.keys(given).find((option) => Object.hasOwn(recipe.without, option));
  if (wrong !== undefined) {
    throw new UsageError(
      `Cannot use --${kebab(wrong)} with --recipe ${name}: ${
        recipe.without[wrong]
      }; choose another --recipe, or leave ` +
        `--${kebab(wrong)} out`,
    );
  }
  return recipe.options(preset() as never);
}

/** The names that may be meant, such as those with the former "dinov2-l" in them, else all. */
const unknownPreset = (name: string, known: readonly string[]): string =>
  `there is no such preset${hint(name, known, "") || `; choose one of ${known.join(", ")}`}`;

/** Why a name is unknown, and which one was meant. */
function unknown(name: string, known: readonly string[], prefix: string, reason: string): string {
  const renamed = RENAMED[name];
  return renamed !== undefined && known.includes(renamed)
    ? `it is called ${prefix}${renamed} now, since a checkpoint is a file`
    : `${reason}${hint(name, known, prefix)}`;
}

/** Arguments with a command's own flags in place of the names that other commands have for them. */
function withOwnFlags(args: readonly string[], fields: readonly [string, z.ZodType][]): string[] {
  const own = new Map(fields.map(([name, type]) => [kebab(name), flagOf(name, type)]));
  return args.map((arg) => arg.replace(/(?<=^--)[^=]+/, (flag) => own.get(flag) ?? flag));
}

/** Between values of a list that are separate arguments; no argument can hold it. */
const SEPARATOR = "\0";

/**
 * Joins what parseArgs would take apart: a negative number (`--cfg -1`) is a value and no flag, and a list with spaces at its
 * commas (`--classes 0, 1`) is one value.
 * @param lists flags that take a list
 * @param spaced those whose values may also follow without commas (`--compare A B`); commas in such values are their own
 */
function withListsJoined(
  args: readonly string[],
  lists: readonly string[],
  spaced: readonly string[],
): string[] {
  const joined: string[] = [];
  /** Whether the last argument belongs to a list, and whether to one whose values need no commas. */
  let list = false, open = false;
  for (const arg of args) {
    const before = joined.at(-1), bare = before?.startsWith("--") && !before.includes("=");
    const append = list && !bare && !arg.startsWith("--") && (before?.endsWith(",") || arg.startsWith(","));
    if (append) joined[joined.length - 1] = before + arg;
    else if (open && !bare && !arg.startsWith("--")) joined[joined.length - 1] = before + SEPARATOR + arg;
    else if (/^-\d/.test(arg) && bare) joined[joined.length - 1] = `${before}=${arg}`;
    else {
      joined.push(arg);
      const flag = /^--([^=]+)/.exec(arg)?.[1];
      list = flag === undefined ? list && bare === true : lists.includes(flag);
      open = flag === undefined ? open : spaced.includes(flag);
    }
  }
  return joined;
}

/** A value as it is written on the command line. */
export const show = (value: unknown) => Array.isArray(value) ? value.join(",") : String(value);

/** A flag's text in the type's form; text that does not fit is left for zod to refuse. */
function valueOf(type: z.ZodType, value: unknown, flag: string): unknown {
  const t = inner(type);
  if (t instanceof z.ZodBoolean || typeof value !== "string") return value;
  if (value === "" && flag !== "resume") {
    throw new UsageError(`Cannot use --${flag}: it needs a value (${placeholder(type)})`);
  }
  const number = (text: string) => text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
  const numeric = (t: z.ZodType) => t instanceof z.ZodNumber || t instanceof z.ZodUnion;
  const list = t instanceof z.ZodUnion && value.includes(",") &&
    t.options.find((o) => o instanceof z.ZodArray);
  if (list) return valueOf(list, value, flag);
  if (numeric(t)) return number(value);
  if (t instanceof z.ZodArray) {
    const parts = value.split(value.includes(SEPARATOR) ? SEPARATOR : ",").map((part) => part.trim());
    if (parts.includes("")) {
      throw new UsageError(`Cannot use --${flag} ${parts}: a value is missing before or after a comma`);
    }
    return numeric(elementOf(t)) ? parts.map(number) : parts;
  }
  return value;
}

/** A JSON file with keys in camelCase or kebab-case. */
function readConfig(path: string, fields: readonly [string, z.ZodType][]): Record<string, unknown> {
  const names = new Map(fields.flatMap(([name, type]) => [[name, name], [camel(flagOf(name, type)), name]]));
  const json = readJson(path);
  if (typeof json !== "object" || json === null || Array.isArray(json)) {
    throw new UsageError(`Cannot read the config "${path}": it must be one JSON object`);
  }
  return Object.fromEntries(
    Object.entries(json).map(([key, value]) => {
      const word = camel(key), name = names.get(word);
      if (name !== undefined) return [name, value];
      throw new UsageError(
        `Cannot use "${key}" in "${path}": ${
          unknown(word, [...names.keys()], "", "there is no such option")
        }`,
      );
    }),
  );
}

/** `; did you mean ...?` for up to five of `known` that begin with the word, else for the nearest, else for those with it in them. */
export function hint(word: string, known: readonly string[], prefix: string): string {
  const [nearest] = known.map((name) => ({ name, distance: distance(word, name) }))
    .sort((a, b) => a.distance - b.distance);
  const near = nearest && nearest.distance <= Math.max(2, word.length / 3);
  const long = word.length >= 3 ? known : [], begun = long.filter((name) => name.startsWith(word));
  const longer = long.filter((name) => `-${name}-`.includes(`-${word}-`));
  const meant = begun.length ? begun.slice(0, 5) : near ? [nearest.name] : longer.slice(0, 5);
  return meant.length ? `; did you mean ${meant.map((name) => prefix + name).join(", ")}?` : "";
}

/** Levenshtein's distance; swapped letters count once. */
function distance(a: string, b: string): number {
  const letters = (word: string) => [...word].sort().join("");
  return levenshteinDistance(a, b) - (a !== b && letters(a) === letters(b) ? 1 : 0);
}
