// When Dawn's binding polls, with a clock and classes in place of real ones. Functions that resolve a promise look like its polls.

import { assertEquals, assertStrictEquals } from "@std/assert";
import { type Clock, pollRarely, Polls } from "../../src/gpu/polling.ts";

const scope = globalThis as unknown as { setImmediate(fn: (...x: unknown[]) => void, ...x: unknown[]): void };

/** An iteration of the event loop takes 0.5 ms; timers are exact. */
class FakeClock implements Clock {
  time = 0;
  readonly #queue = new Map<number, { at: number; callback: () => void }>();
  #last = 0;
  now = () => this.time;
  immediate = (callback: () => void) => this.timeout(callback, 0.5);
  timeout(callback: () => void, ms: number): number {
    this.#queue.set(++this.#last, { at: this.time + ms, callback });
    return this.#last;
  }
  clear = (timer: unknown) => void this.#queue.delete(timer as number);
  /** Runs what is due up to a time, the earliest first. */
  runTo(end: number): void {
    for (;;) {
      const [next] = [...this.#queue].sort(([a, x], [b, y]) => x.at - y.at || a - b);
      if (!next || next[1].at > end) break;
      this.#queue.delete(next[0]);
      this.time = next[1].at;
      next[1].callback();
    }
    this.time = end;
  }
}

/** A new class each time: its methods are replaced. */
const classOfBuffers = () =>
  class GPUBuffer {
    mapped = 0;
    mapAsync(mode: number): number {
      return this.mapped += mode;
    }
  };

function fakePolls() {
  const clock = new FakeClock(), polls = new Polls(clock), GPUBuffer = classOfBuffers();
  assertEquals(polls.watch({ GPUBuffer }), true);
  return { clock, polls, buffer: new GPUBuffer(), GPUBuffer };
}

Deno.test("a wait is polled for in each iteration for 2 ms, then after a sixteenth of it, at least each 10 ms", () => {
  for (
    const [waited, delay] of [[0, 0.5], [1.9, 0.5], [2, 0.125], [32, 2], [80, 5], [160, 10], [
      6e4,
      10,
    ]] as const
  ) {
    const { clock, polls, buffer } = fakePolls();
    clock.time = 1000;
    assertEquals(buffer.mapAsync(1), 1);
    clock.time += waited;
    const due = clock.time + delay, ran: number[] = [];
    polls.schedule(() => ran.push(clock.time));
    clock.runTo(1e6);
    assertEquals(ran, [due], `after ${waited} ms`);
  }
});

Deno.test("a wait of a minute takes 6,060 polls", () => {
  const { clock, polls, buffer } = fakePolls();
  let count = 0;
  const poll = () => {
    count++;
    polls.schedule(poll);
  };
  buffer.mapAsync(1);
  polls.schedule(poll);
  clock.runTo(60_000);
  assertEquals(count, 6060);
});

Deno.test("a new wait is polled for at once, and each delayed poll runs once", () => {
  const { clock, polls, buffer } = fakePolls(), ran: [string, number][] = [];
  clock.time = 1000;
  polls.schedule(() => ran.push(["a", clock.time]));
  clock.runTo(1004);
  polls.schedule(() => ran.push(["b", clock.time]));
  clock.runTo(1005);
  buffer.mapAsync(1);
  clock.runTo(2000);
  assertEquals(ran, [["a", 1005.5], ["b", 1005.5]]);
});

Deno.test("methods that wait are replaced once, requestAdapter() among them", () => {
  const { polls, GPUBuffer } = fakePolls();
  assertEquals(polls.watch({ GPUBuffer }), false);
  class GPU {
    requestAdapter() {}
  }
  assertEquals(polls.watch({ GPUBuffer, GPU }), true);
  assertEquals(polls.watch({}), false);
});

Deno.test("setImmediate() is replaced where a binding has methods that wait, and keeps arguments", async () => {
  const before = scope.setImmediate;
  pollRarely({});
  pollRarely({ GPUBuffer: class {} });
  assertStrictEquals(scope.setImmediate, before);
  pollRarely({ GPUBuffer: classOfBuffers() });
  const replacement = scope.setImmediate;
  assertEquals(replacement === before, false);
  pollRarely({ GPUBuffer: classOfBuffers() });
  assertStrictEquals(scope.setImmediate, replacement);
  assertEquals(await new Promise((resolve) => scope.setImmediate((...x) => resolve(x), 1, 2)), [1, 2]);
  assertEquals(await new Promise((resolve) => scope.setImmediate(resolve, 3)), 3);
  assertEquals(await new Promise((resolve) => scope.setImmediate(resolve)), undefined);
});
