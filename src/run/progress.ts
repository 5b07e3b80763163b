// Progress of a training run on the terminal: compilation of kernels, then steps, recipe after recipe.

import type { Log, Progress } from "./log.ts";

/** Progress over named parts of known length. */
export function progressOf(log: Log, parts: readonly (readonly [string, number])[]) {
  let current: Progress | undefined, note = "", scores = "";
  let part = parts[0];
  return {
    begin(name: string): void {
      part = parts.find(([n]) => n === name);
      current = undefined;
      note = "";
    },
    /** Shows the compilation of kernels. */
    compile(done: number, total: number): void {
      current ??= log.progress(`${part?.[0]}: compiling`, total, "kernels");
      // The last update of a counter is always printed: skip it.
      if (done < total) current.update(done);
      else {
        current.end();
        current = undefined;
      }
    },
    step(n: number): void {
      current ??= log.progress(part?.[0] ?? "", part?.[1] ?? n, "steps", n - 1);
      current.update(n, [scores, note].filter(Boolean).join("  "));
    },
    /** Shows from now on which share of the time steps have waited for data. */
    row(row: Record<string, number>): void {
      note = `waiting for data ${percent(row.data_wait ?? 0)}`;
    },
    /** Shows the latest validation from now on. */
    validation(text: string): void {
      scores = text;
      current?.end();
    },
    end(): void {
      current?.end();
      current = undefined;
    },
  };
}

/** 0.125 -> "13%" */
export const percent = (share: number): string => `${Math.round(100 * share)}%`;
