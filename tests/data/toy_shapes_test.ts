// Generated images: deterministic by seed and index, varied in colour, place and size; and batches of them.

import { assert, assertEquals } from "@std/assert";
import { batchIndices, gather, part } from "../../src/data/image_source.ts";
import { unpackImages } from "../../src/ops/pixels.ts";
import { Shapes } from "../../src/data/toy_shapes.ts";

Deno.test("image i is a function of seed and i, for any length of the set", () => {
  assertEquals(new Shapes(10, 3).bytes(7, 32), new Shapes(10_000, 3).bytes(7, 32));
  assert(new Shapes(10, 4).bytes(7, 32).some((v, k) => v !== new Shapes(10, 3).bytes(7, 32)[k]));
});

Deno.test("there are ten balanced classes, and an image has dark and light pixels", () => {
  const shapes = new Shapes(100, 1);
  assertEquals(shapes.classes.length, 10);
  assertEquals(new Set(Array.from({ length: 10 }, (_, i) => shapes.label(i))).size, 10);
  for (let i = 0; i < 30; i++) {
    const pixels = shapes.bytes(i, 24);
    assertEquals(pixels.length, 24 * 24 * 3);
    assert(Math.max(...pixels) - Math.min(...pixels) > 60, `image ${i}`);
  }
});

Deno.test("the same shape varies in colour, place and size from image to image", () => {
  const shapes = new Shapes(1000, 1), discs = [0, 10, 20, 30].map((i) => shapes.bytes(i, 32));
  for (let i = 1; i < discs.length; i++) {
    const change = (discs[i] as Uint8Array).reduce((s, v, k) =>
      s + Math.abs(v - (discs[0]?.[k] as number)), 0) / 3072;
    assert(change > 0.1 * 127.5, `images 0 and ${i} differ by ${change}`);
  }
});

Deno.test("each epoch has every image once, in another order, and any step is computed independently", () => {
  const steps = Array.from({ length: 10 }, (_, s) => batchIndices(20, 4, 5, s));
  const sorted = (list: number[]) => [...list].sort((a, b) => a - b);
  assertEquals(sorted(steps.slice(0, 5).flat()), Array.from({ length: 20 }, (_, i) => i));
  assertEquals(sorted(steps.slice(5).flat()), Array.from({ length: 20 }, (_, i) => i));
  assert(steps.slice(0, 5).flat().join() !== steps.slice(5).flat().join());
  assertEquals(batchIndices(20, 4, 5, 7), steps[7]);
});

Deno.test("gather() packs images in order, part() renumbers them", async () => {
  const shapes = new Shapes(50, 2), some = part(shapes, 10, 20);
  assertEquals(some.length, 10);
  const batch = await gather(some, [0, 3], 16);
  assertEquals(unpackImages(batch.images, 16).subarray(768), shapes.bytes(13, 16));
  assertEquals([...batch.labels], [0, 3]);
});
