// Options that have an effect only with certain others: one that has none is refused where the command line names it, and counts
// as its default where a config file does.

import { UsageError } from "../errors.ts";
import { kebab, type Origin } from "./flags.ts";

/** A condition of an option, why the option has no effect where it does not hold, and what would change that. */
export type Condition<C> = readonly [holds: (c: C) => boolean, reason: string, remedy?: string];

/** The conditions of options by name. */
export type Conditions<C> = Readonly<Partial<Record<keyof C & string, readonly Condition<C>[]>>>;

export type Origins = Readonly<Record<string, Origin>>;

/** The condition that another option is given. @param option as on the command line, such as "--apg" */
export const needs = <C>(option: string, holds: (c: C) => boolean): Condition<C> => [
  holds,
  `it needs ${option}`,
  "add it",
];

/** The options without effect, each with the condition that does not hold. */
function failures<C>(c: C, conditions: Conditions<C>): [option: string, Condition<C>][] {
  return Object.entries<readonly Condition<C>[] | undefined>(conditions).flatMap(([option, needed]) => {
    const failed = needed?.find(([holds]) => !holds(c));
    return failed ? [[option, failed]] : [];
  });
}

/** The options without effect. */
export const idleOptions = <C>(c: C, conditions: Conditions<C>): Set<string> =>
  new Set(failures(c, conditions).map(([option]) => option));

/** @throws UsageError for an option of the command line without effect */
export function refuseWithoutEffect<C>(c: C, conditions: Conditions<C>, origins: Origins = {}): void {
  const failed = failures(c, conditions).find(([option]) => origins[option] === "command line");
  if (!failed) return;
  const [option, [, reason, remedy]] = failed, flag = `--${kebab(option)}`;
  throw new UsageError(
    `Cannot use ${flag}: ${reason}; ${remedy === undefined ? "" : `${remedy}, or `}leave ${flag} out`,
  );
}
