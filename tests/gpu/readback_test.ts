// Readback: reads that complete as soon as the device is done.

import { assert, assertEquals } from "@std/assert";
import { capture } from "../../src/gpu/program.ts";
import { readBuffer } from "../../src/gpu/readback.ts";
import { addInPlace } from "../../src/gpu/memory.ts";
import { readTensor, variable } from "../../src/tensor/tensor.ts";
import { testDevice } from "../helpers/check.ts";

Deno.test("each read sees all earlier runs, at every size", async () => {
  await testDevice();
  for (const n of [1, 3, 1024, 1025, 70_000, 1_500_000]) {
    const sum = variable([n], { init: () => new Float32Array(n) });
    const one = variable([n], { init: () => Float32Array.from({ length: n }, (_, i) => i % 7) });
    const program = await capture("t", {}, () => (addInPlace(one, sum), {})).prepare();
    for (let k = 1; k <= 12; k++) {
      program.run();
      const values = await readTensor(sum);
      assertEquals(values.length, n);
      assertEquals([values[0], values[n - 1], values[n >> 1]], [0, n - 1, n >> 1].map((i) => k * (i % 7)));
    }
    program.destroy();
    for (const { storage } of [sum, one]) storage.destroy();
  }
});

Deno.test("concurrent reads do not interfere", async () => {
  await testDevice();
  const parts = Array.from(
    { length: 20 },
    (_, k) => variable([500 + k], { init: () => new Float32Array(500 + k).fill(k) }),
  );
  for (let round = 0; round < 3; round++) {
    const read = await Promise.all(parts.map(readTensor));
    read.forEach((values, k) => assertEquals(values, new Float32Array(500 + k).fill(k)));
  }
  for (const { storage } of parts) storage.destroy();
});

Deno.test("timers run between reads", async () => {
  await testDevice();
  const x = variable([4], { init: () => new Float32Array(4) });
  await readTensor(x);
  let ticks = 0;
  const tick = () => void (ticks++, timer = setTimeout(tick, 0));
  let timer = setTimeout(tick, 0);
  for (let i = 0; i < 500; i++) await readTensor(x);
  clearTimeout(timer);
  assert(ticks > 5, `${ticks} ticks`);
  x.storage.destroy();
});

Deno.test("a range of a buffer is read, at any length", async () => {
  await testDevice();
  const x = variable([8], { init: () => Float32Array.of(1, 2, 3, 4, 5, 6, 7, 8) });
  await x.storage.materialise();
  assertEquals(new Float32Array(await readBuffer(x.storage.buffer, 8, 12)), Float32Array.of(3, 4, 5));
  assertEquals((await readBuffer(x.storage.buffer, 4, 10)).byteLength, 10);
  x.storage.destroy();
});
