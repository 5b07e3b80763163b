// How an option is declared: a schema with its default and range, and what help and resuming know about it.

import { z } from "zod";

/** What help and resuming know about an option. */
export interface About {
  group: string;
  /** A noun phrase or an imperative; a boolean that is on by default says what its `--no-` form does. */
  help: string;
  unit?: string;
  /** The flag's name in this command, where the option has a longer one in others; that one is taken, too. */
  flag?: string;
  /** Name of the value in help, such as DIR; by default it follows from the type. */
  value?: string;
  /** What applies without the option, where that is no fixed default. */
  otherwise?: string;
  /** Whether the values of the list may follow as separate arguments. */
  words?: true;
  /** Only in `--help all`. */
  advanced?: true;
  /** May change when a run is resumed: it does not decide the result. */
  free?: true;
}

const registry = z.registry<About>();

/** Declares options of a group of the help: each is a field of a command's config, a flag and a key of a --config file. */
const group =
  (group: string) =>
  <T extends z.ZodType>(type: T, help: string, more: Omit<About, "group" | "help"> = {}): T => {
    registry.add(type, { group, help, ...more });
    return type;
  };
export const GROUPS = {
  input: group("Input"),
  output: group("Output"),
  data: group("Data"),
  model: group("Model"),
  training: group("Training"),
  losses: group("Losses"),
  optimizer: group("Optimizer"),
  metrics: group("Metrics"),
  sample: group("Sampling"),
  common: group("General"),
};

export const aboutOption = (schema: z.ZodType): About | undefined => registry.get(schema);

/** The options of a command that may change when its run is resumed. */
export function freeOptions({ shape }: z.ZodObject<z.ZodRawShape>): ReadonlySet<string> {
  return new Set(Object.keys(shape).filter((name) => aboutOption(shape[name] as z.ZodType)?.free));
}
