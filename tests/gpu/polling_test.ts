// How often Dawn's binding polls, with a class of its kind in its place. Functions that resolve a promise look like its polls.

import { assert, assertEquals } from "@std/assert";
import { pollRarely } from "../../src/gpu/polling.ts";

const scope = globalThis as unknown as { setImmediate(fn: (...x: unknown[]) => void, ...x: unknown[]): void };
const poll = () => new Promise<unknown>((resolve) => scope.setImmediate(resolve));

class GPUBuffer {
  mapAsync(mode: number): string {
    return `${this.constructor.name} ${mode}`;
  }
}

Deno.test("polls become rarer the longer they wait, and a new wait is polled for at once", async () => {
  pollRarely({ GPUBuffer });
  const buffer = new GPUBuffer(), began = performance.now();
  const waited = () => performance.now() - began;
  assertEquals(buffer.mapAsync(1), "GPUBuffer 1");
  while (waited() < 20) await poll();
  let polls = 0;
  for (; waited() < 200; polls++) await poll();
  assert(polls >= 2 && polls <= 16 * Math.log(200 / 20) + 1, `${polls} polls`); // each a sixteenth of the wait later
  const order: string[] = [];
  const timer = new Promise<void>((resolve) => setTimeout(resolve, 2)).then(() => order.push("2 ms"));
  const delayed = poll().then(() => order.push("poll"));
  buffer.mapAsync(1);
  await Promise.all([timer, delayed]);
  assertEquals(order, ["poll", "2 ms"]);
});

Deno.test("callbacks of other code run in the next iteration, with their arguments", async () => {
  pollRarely({ GPUBuffer });
  const order: unknown[] = [];
  const timer = new Promise<void>((resolve) => setTimeout(() => resolve(void order.push("5 ms")), 5));
  scope.setImmediate((...values) => order.push(...values), 1, 2);
  await timer;
  assertEquals(order, [1, 2, "5 ms"]);
});
