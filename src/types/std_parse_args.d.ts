// Types of @std/cli/parse-args as far as tok uses it; the npm edition has none. Simpler than the original: values are
// `unknown` and the caller parses them, because every flag is validated against a command's schema anyway.

export interface ParseOptions {
  string?: readonly string[];
  boolean?: readonly string[];
  collect?: readonly string[];
  negatable?: readonly string[];
  alias?: Record<string, string | readonly string[]>;
  default?: Record<string, unknown>;
  stopEarly?: boolean;
  "--"?: boolean;
  /** Called for each argument that no list above names; returning false drops it. Unknown flags pass without it. */
  unknown?: (arg: string, key?: string, value?: unknown) => unknown;
}

export type Args = { _: (string | number)[]; "--"?: string[] } & Record<string, unknown>;

export function parseArgs(args: readonly string[], options?: ParseOptions): Args;
