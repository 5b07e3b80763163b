// Stopping a command between batches: Ctrl-C, SIGTERM, or a condition such as a deleted output folder. The command runs on
// its own thread because waiting for the device can block a thread for minutes. The main thread writes the signal into
// shared memory and ends the process after GRACE, unless the command holds it off to save work that is only in memory.

import { Interrupted } from "./errors.ts";

/** Milliseconds from a signal to the end of the process, unless held off. */
export const GRACE = 3500;

/** Cells of the shared state: exit code of the received signal or 0; number of active holds. */
const SIGNAL = 0, HOLDS = 1;
let cells = new Int32Array(new SharedArrayBuffer(8));

/** Uses the state of another thread. Call before anything else. */
export function connect(buffer: SharedArrayBuffer): void {
  cells = new Int32Array(buffer);
}

/** The shared memory for {@link connect} in another thread. */
export const sharedState = (): SharedArrayBuffer => cells.buffer as SharedArrayBuffer;

/** Asks the command to stop. @param code exit code: 130 or 143 */
export const requestStop = (code: number): void => void Atomics.store(cells, SIGNAL, code);

/** Exit code of the received signal; 0 without one. */
export const stopRequested = (): number => Atomics.load(cells, SIGNAL);

/** Whether ending the process now would lose work. */
export const isHeld = (): boolean => Atomics.load(cells, HOLDS) > 0;

/** Delays the end of the process until disposed, to save state that is only in memory. */
export function holdOff(): Disposable {
  const own = cells;
  Atomics.add(own, HOLDS, 1);
  return { [Symbol.dispose]: () => void Atomics.sub(own, HOLDS, 1) };
}

const conditions = new Set<() => void>();

/** Calls `check` between batches until disposed; `check` throws to end the command. */
export function endIf(check: () => void): Disposable {
  conditions.add(check);
  return { [Symbol.dispose]: () => void conditions.delete(check) };
}

/** Number of active {@link uninterrupted}. */
let complete = 0;

/** Runs work that must not be left half done, such as an exchange of weights; signals and conditions take effect after it. */
export async function uninterrupted<T>(work: () => Promise<T>): Promise<T> {
  complete++;
  try {
    return await work();
  } finally {
    complete--;
  }
}

/**
 * Call between batches and other units of work.
 * @throws Interrupted after a signal
 */
export function throwIfStopped(): void {
  if (complete > 0) return;
  if (stopRequested()) throw new Interrupted();
  checkConditions();
}

/** Checks only the conditions, for work that continues after a signal. */
export function checkConditions(): void {
  for (const check of conditions) check();
}
