// How often Dawn's binding for Node looks for finished work. It does so in each iteration of the event loop, by setImmediate() with a
// new native function: up to 35,000 times a second, which takes a processor. Deno 2.9 keeps these functions in a list, and searches
// it for each that is collected: 0.7 s for 22,000, quadratic in their number, so that a process seems to hang after a wait of a
// minute. Here polls become rarer the longer they wait.

import { setImmediate } from "node:timers";

/** Milliseconds of a wait in which each iteration polls: reads of finished work take less. */
const EAGER = 2;
/** The time between polls: this share of the wait so far, and its maximum in milliseconds. */
const SHARE = 1 / 16, MAX_DELAY = 10;

/** Methods that wait for the device; the binding polls while one of them is pending. */
const WAITS: Readonly<Record<string, readonly string[]>> = {
  GPU: ["requestAdapter"],
  GPUAdapter: ["requestDevice"],
  GPUBuffer: ["mapAsync"],
  GPUDevice: ["popErrorScope", "createComputePipelineAsync"],
  GPUQueue: ["onSubmittedWorkDone"],
  GPUShaderModule: ["getCompilationInfo"],
};

type Method = (this: object, ...args: unknown[]) => unknown;
type Callback = (...args: unknown[]) => void;
type Timer = ReturnType<typeof setTimeout> | number;

/** Time in milliseconds, and what runs a callback later. */
export interface Clock {
  now(): number;
  /** Runs `callback` in the next iteration of the event loop. */
  immediate(callback: () => void): unknown;
  timeout(callback: () => void, ms: number): Timer;
  clear(timer: Timer): void;
}

const CLOCK: Clock = {
  now: () => performance.now(),
  immediate: (callback) => setImmediate(callback),
  timeout: (callback, ms) => setTimeout(callback, ms),
  clear: (timer) => clearTimeout(timer),
};

/** When the polls of a binding run; all its waits share one schedule, that of the latest. */
export class Polls {
  readonly #clock: Clock;
  readonly #patched = new WeakSet<object>();
  #since = 0;
  /** Polls that wait for their timers; each instance of a binding has its own. */
  readonly #delayed = new Map<Timer, () => void>();

  constructor(clock: Clock = CLOCK) {
    this.#clock = clock;
  }

  /** Makes methods that wait restart the schedule. @returns whether `classes` has such methods that did not do so yet */
  watch(classes: Readonly<Record<string, unknown>>): boolean {
    let found = false;
    for (const [name, methods] of Object.entries(WAITS)) {
      const prototype = (classes[name] as { prototype?: Record<string, Method> } | undefined)?.prototype;
      if (!prototype || this.#patched.has(prototype)) continue;
      this.#patched.add(prototype);
      for (const method of methods) {
        const original = prototype[method];
        if (!original) continue;
        found = true;
        const restart = () => this.#restart();
        prototype[method] = function (...args) {
          const result = original.apply(this, args);
          restart();
          return result;
        };
      }
    }
    return found;
  }

  /** Runs `poll` in the next iteration, or later where the wait is long. */
  schedule(poll: () => void): unknown {
    const waited = this.#clock.now() - this.#since;
    if (waited < EAGER) return this.#clock.immediate(poll);
    const timer = this.#clock.timeout(() => {
      this.#delayed.delete(timer);
      poll();
    }, Math.min(MAX_DELAY, waited * SHARE));
    this.#delayed.set(timer, poll);
    return timer;
  }

  /** A new wait begins: the next polls are at once. */
  #restart(): void {
    this.#since = this.#clock.now();
    for (const [timer, poll] of this.#delayed) {
      this.#clock.clear(timer);
      this.#clock.immediate(poll);
    }
    this.#delayed.clear();
  }
}

const polls = new Polls();
let replaced = false;

/**
 * Makes the polls of a binding rarer: replaces the global setImmediate(), which the binding looks up for each poll. A binding
 * without methods that wait polls as before.
 * @param classes the classes of WebGPU that it made, by name
 */
export function pollRarely(classes: Readonly<Record<string, unknown>>): void {
  if (!polls.watch(classes) || replaced) return;
  replaced = true;
  const replacement = (callback: Callback, ...args: unknown[]) =>
    args.length === 0 && isNative(callback) ? polls.schedule(callback) : setImmediate(callback, ...args);
  Object.assign(replacement, setImmediate); // its property for util.promisify()
  Object.assign(globalThis, { setImmediate: replacement });
}

/**
 * Whether a function looks like N-API's, which polls are. Of other code, only functions that resolve a promise do; without an
 * argument they run at most MAX_DELAY late, and clearImmediate() does not stop them.
 */
const isNative = (callback: Callback) =>
  callback.name === "" && /^function \(\) \{\s*\[native code\]\s*\}$/.test(`${callback}`);
