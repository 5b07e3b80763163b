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
  GPUAdapter: ["requestDevice"],
  GPUBuffer: ["mapAsync"],
  GPUDevice: ["popErrorScope", "createComputePipelineAsync"],
  GPUQueue: ["onSubmittedWorkDone"],
  GPUShaderModule: ["getCompilationInfo"],
};

const patched = new WeakSet<object>();

/** Makes the polls of a binding rarer. @param classes the classes of WebGPU that it made, by name */
export function pollRarely(classes: Readonly<Record<string, unknown>>): void {
  const polls = POLLS ??= new Polls();
  for (const [name, methods] of Object.entries(WAITS)) {
    const prototype = (classes[name] as { prototype?: Record<string, Method> } | undefined)?.prototype;
    if (!prototype || patched.has(prototype)) continue;
    patched.add(prototype);
    for (const method of methods) {
      const original = prototype[method];
      if (!original) continue;
      prototype[method] = function (...args) {
        const result = original.apply(this, args);
        polls.restart();
        return result;
      };
    }
  }
}

type Method = (this: object, ...args: unknown[]) => unknown;
type Callback = (...args: unknown[]) => void;

/** What N-API's functions look like; others run as before. */
const isNative = (callback: Callback) =>
  callback.name === "" && /^function \(\) \{\s*\[native code\]\s*\}$/.test(`${callback}`);

/** Replaces the global setImmediate(), which the binding looks up for each poll. */
class Polls {
  #since = 0;
  /** The poll that waits for a timer. */
  #delayed: { poll: Callback; timer: ReturnType<typeof setTimeout> } | undefined;

  constructor() {
    const replacement = (callback: Callback, ...args: unknown[]) =>
      isNative(callback) ? this.#schedule(callback) : setImmediate(callback, ...args);
    Object.assign(replacement, setImmediate); // its property for util.promisify()
    Object.assign(globalThis, { setImmediate: replacement });
  }

  /** A new wait begins: the next poll is at once. */
  restart(): void {
    this.#since = performance.now();
    if (!this.#delayed) return;
    const { poll, timer } = this.#delayed;
    this.#delayed = undefined;
    clearTimeout(timer);
    setImmediate(poll);
  }

  #schedule(poll: Callback): unknown {
    const waited = performance.now() - this.#since;
    if (waited < EAGER) return setImmediate(poll);
    const timer = setTimeout(() => {
      this.#delayed = undefined;
      poll();
    }, Math.min(MAX_DELAY, waited * SHARE));
    this.#delayed = { poll, timer };
    return timer;
  }
}

let POLLS: Polls | undefined;
