// Options that have an effect only with certain others: one that has none is refused where the command line names it.

import { UsageError } from "../errors.ts";
import { kebab, type Origin } from "./flags.ts";

/** A condition of an option, and why the option has no effect where it does not hold. */
export type Condition<C> = readonly [holds: (c: C) => boolean, otherwise: string];

export type Conditions<C> = Readonly<Partial<Record<keyof C & string, readonly Condition<C>[]>>>;

/** @throws UsageError for an option of the command line without effect */
export function refuseWithoutEffect<C>(
  c: C,
  conditions: Conditions<C>,
  origins: Readonly<Record<string, Origin>> = {},
): void {
  for (const [option, needed] of Object.entries<readonly Condition<C>[] | undefined>(conditions)) {
    const failed = needed?.find(([holds]) => !holds(c));
    if (origins[option] !== "command line" || !failed) continue;
    throw new UsageError(`Cannot use --${kebab(option)}: ${failed[1]}; leave it out`);
  }
}
