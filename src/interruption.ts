// What may end a command between two batches: Ctrl-C, SIGTERM, or a condition such as an output folder that is gone. The
// command runs on a thread of its own, because a wait for the device or a long computation blocks its thread for minutes;
// the main thread writes the signal into shared memory, and ends the process where the command does not come to an end
// within GRACE. Work that lives only in memory holds that off until it is saved.

import { Interrupted } from "./errors.ts";

/** Milliseconds from a signal to the end of the process, where nothing holds it off. */
export const GRACE = 3500;

/** Exit code of the signal that came, or 0; and how many parts of the program hold off the end. */
const SIGNAL = 0, HOLDS = 1;
let cells = new Int32Array(new SharedArrayBuffer(8));

/** Shares the state with another thread. Called once, before anything else. */
export function connect(buffer: SharedArrayBuffer): void {
  cells = new Int32Array(buffer);
}

/** The memory behind the state, for {@link connect} in another thread. */
export const sharedState = (): SharedArrayBuffer => cells.buffer as SharedArrayBuffer;

/** Asks the command to stop. @param code exit code: 130 or 143 */
export const requestStop = (code: number): void => void Atomics.store(cells, SIGNAL, code);

/** The exit code of the signal that came; 0 when none did. */
export const stopRequested = (): number => Atomics.load(cells, SIGNAL);

/** Whether there is something that would be lost if the process ended now. */
export const isHeld = (): boolean => Atomics.load(cells, HOLDS) > 0;

/** Holds off the end of the process until it is disposed: state in memory is worth more than an end within seconds. */
export function holdOff(): Disposable {
  const own = cells;
  Atomics.add(own, HOLDS, 1);
  return { [Symbol.dispose]: () => void Atomics.sub(own, HOLDS, 1) };
}

const conditions = new Set<() => void>();

/** Has `check` run between batches, until the result is disposed; it throws to end the command. */
export function endIf(check: () => void): Disposable {
  conditions.add(check);
  return { [Symbol.dispose]: () => void conditions.delete(check) };
}

/**
 * Called between batches and other pieces of work, as often as is cheap.
 * @throws Interrupted when the command is to stop
 */
export function throwIfStopped(): void {
  if (stopRequested()) throw new Interrupted();
  checkConditions();
}

/** The conditions alone, for work that is finished even after a signal. */
export function checkConditions(): void {
  for (const check of conditions) check();
}
