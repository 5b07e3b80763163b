// The settings that hold while a function runs, such as where launches are recorded. `within` changes some of them for one
// call; nothing else does.

import type { Launch } from "./launch.ts";

export interface Scope {
  /** Takes each launch of the program that is being captured; undefined outside capture(). */
  readonly record: ((launch: Launch) => void) | undefined;
  /** How often the program will run, about. */
  readonly runs: number;
  /** Whether results must have the same bits in a batch of any size. */
  readonly batchInvariant: boolean;
}

/** The runs of a training program, and of any program whose capture does not say otherwise. */
export const MANY_RUNS = 1000;

let current: Scope = { record: undefined, runs: MANY_RUNS, batchInvariant: false };

/** The settings that hold here. */
export function scope(): Scope {
  return current;
}

/** Runs `fn` with some settings changed. `fn` must be synchronous: the settings are restored when it returns. */
export function within<T>(changes: Partial<Scope>, fn: () => T): T {
  const before = current;
  current = { ...before, ...changes };
  try {
    return fn();
  } finally {
    current = before;
  }
}

/** Batch size that batch-invariant programs are tuned for: about the default batch of every command. */
const NOMINAL_IMAGES = 32;

/** Batch size to choose by where the choice changes bits (splits of K or of a sum): constant in batch-invariant programs. */
export function nominalImages(images: number): number {
  return current.batchInvariant ? NOMINAL_IMAGES : images;
}
