// `--explain`: the value of each option that decides the result, where it comes from, and how sure it is.

import type { z } from "zod";
import { aboutOption } from "./about.ts";
import { kebab, type Origin, type Schema, show } from "./flags.ts";
import { breakable, wrapped } from "./help.ts";
import type { Evidence, Grade } from "./grades.ts";

export interface Explained {
  name: string;
  /** Undefined where the option has no fixed default. */
  value: unknown;
  /** The value as text, or what applies without one. */
  text: string;
  from: Origin;
  /** "tok": tok's own choice. */
  grade: Grade | "tok";
  source: string;
}

/** The options that `grades` names, in the order of the schema. */
export function explain<C extends Record<string, unknown>>(
  schema: Schema,
  config: C,
  origins: Readonly<Record<string, Origin>>,
  grades: Readonly<Record<string, readonly Evidence<C>[]>>,
): Explained[] {
  return Object.entries(schema.shape).flatMap(([name, type]) => {
    const known = grades[name], value = config[name];
    if (!known) return [];
    const found = known.find((e) => e.holds ? e.holds(config) : same(e.value, value)), [first] = known;
    const otherwise = aboutOption(type as z.ZodType)?.otherwise;
    return [{
      name,
      value,
      text: value === undefined ? otherwise ?? "none" : breakable(show(value)),
      from: origins[name] ?? "default",
      grade: found?.grade ?? "tok",
      source: found?.source ?? (first ? `recipe: ${show(first.value)} (${first.grade})` : ""),
    }];
  });
}

const same = (a: unknown, b: unknown) => JSON.stringify(a) === JSON.stringify(b);

const HEADER = { name: "option", text: "value", from: "from", grade: "grade", source: "source" };
const LEGEND =
  "S stated by the authors, N independent notes that agree, C one note, I inferred from the code that the " +
  "paper builds on, tok tok's own choice";
/** Width of the column of values, unless one of their words is longer. */
const VALUE = 20;
/** Minimum width of a column of sources; on narrower terminals they have lines of their own. */
const MIN_SOURCE = 28;

/** The rows as a table that is at most `columns` wide where the values' words allow it. */
export function explainTable(rows: readonly Explained[], columns: number): string[] {
  const cells = [HEADER, ...rows.map((row) => ({ ...row, name: `--${kebab(row.name)}` }))];
  const words = rows.flatMap(({ text }) => text.split(" ").map(({ length }) => length));
  const width = (key: keyof typeof HEADER) => Math.max(...cells.map((row) => row[key].length));
  const [name, text, from] = [width("name"), Math.max(VALUE, ...words), width("from")];
  const left = name + text + from + HEADER.grade.length + 8, inline = columns - left >= MIN_SOURCE;
  const lines = cells.flatMap((row) => {
    const [value, ...more] = wrapped(row.text, text), pad = " ".repeat(name + 2);
    const head = `${row.name.padEnd(name)}  ${value?.padEnd(text)}  ${row.from.padEnd(from)}  ${
      row.grade.padEnd(5)
    }`;
    const source = wrapped(row.source, Math.max(24, inline ? columns - left : columns - 4));
    const rest = more.map((part) => pad + part);
    if (!inline) {
      return [
        head.trimEnd(),
        ...rest,
        ...row === HEADER || !row.source ? [] : source.map((part) => `    ${part}`),
      ];
    }
    const first = `${head}  ${source[0]}`;
    const below = Array.from(
      { length: Math.max(rest.length, source.length - 1) },
      (_, i) => `${(rest[i] ?? "").padEnd(left)}${source[i + 1] ?? ""}`.trimEnd(),
    );
    return [first, ...below];
  });
  return [...lines, ...wrapped(LEGEND, columns)];
}
