// The settings that hold while a function runs: where launches are recorded, whether gradients are, in which precision
// activations are stored. `within` changes some of them for one call; nothing else does.

import type { Launch } from "./launch.ts";
import type { Storage } from "./storage.ts";

/** What capture() collects while it runs its function. */
export interface Recording {
  readonly launches: Launch[];
  /** Constants that the function made: they belong to the program. */
  readonly constants: Storage[];
}

export interface Scope {
  /** The program that is being captured; undefined outside capture(). */
  readonly recording: Recording | undefined;
  /** How often the program will run, about. */
  readonly runs: number;
  /** Whether results must have the same bits in a batch of any size. */
  readonly batchInvariant: boolean;
  /** Whether ops attach backward closures to their outputs; see noGrad(). */
  readonly tape: boolean;
  /** How activations, and later their gradients, are stored. Arithmetic is always in fp32. */
  readonly precision: "f32" | "f16";
  /** Whether models recompute the activations of their blocks in the backward pass; see nn/recompute.ts. */
  readonly recompute: boolean;
}

/** The runs of a training program, and of any program whose capture does not say otherwise. */
export const MANY_RUNS = 1000;

let current: Scope = {
  recording: undefined,
  runs: MANY_RUNS,
  batchInvariant: false,
  tape: true,
  precision: "f32",
  recompute: false,
};

/** The settings that hold here. */
export function scope(): Scope {
  return current;
}

/**
 * Runs `fn` with some settings changed, for example `within({ precision: "f16" }, () => model.forward(x))`.
 * @param fn must be synchronous: the settings are restored when it returns
 */
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
