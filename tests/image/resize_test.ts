// Resampling and crops against Pillow's bytes (fixtures/resize_pillow.json says how they were made).

import { assertEquals, assertRejects } from "@std/assert";
import { createHash } from "node:crypto";
import { ShapeError } from "../../src/errors.ts";
import { centerOf, type Filter, resizeRows, sizeOfShorterSide, squareOf } from "../../src/image/resize.ts";
import { type Image, rowsOf } from "../../src/image/rows.ts";
import facts from "../fixtures/resize_pillow.json" with { type: "json" };

function noise([width, height]: number[]): Image {
  const [w, h] = [width ?? 0, height ?? 0];
  const data = Uint8Array.from({ length: w * h * 3 }, (_, i) => Math.imul(i, 2654435761) >>> 24);
  return { width: w, height: h, data };
}

const sha256 = (image: Image) => createHash("sha256").update(image.data).digest("hex");

for (const filter of ["box", "bilinear", "bicubic", "lanczos"] as const satisfies Filter[]) {
  Deno.test(`resizeRows() by ${filter} gives Pillow's bytes at 12 pairs of sizes`, async () => {
    const cases = facts.resize.filter((c) => c.filter === filter);
    assertEquals(cases.length, 12);
    for (const { from, to: [width = 0, height = 0], sha256: expected } of cases) {
      const target = centerOf({ width, height }, width, height);
      const resized = await resizeRows(rowsOf(noise(from)), target, filter);
      assertEquals(sha256(resized), expected, `${from} to ${width} x ${height}`);
    }
  });
}

Deno.test("resizeRows() to a central square gives the bytes of Hugging Face's preprocessing", async () => {
  for (const { from, shorter, size, sha256: expected } of facts.crop) {
    const image = noise(from), target = centerOf(sizeOfShorterSide(image, shorter), size, size);
    assertEquals(sha256(await resizeRows(rowsOf(image), target)), expected, `${from} to ${shorter}, ${size}`);
  }
});

Deno.test("resizeRows() crops the given rectangle, and nothing beyond the image", async () => {
  const image = noise([5, 3]), size = { width: 5, height: 3 };
  const crop = (left: number, top: number, width: number, height: number) =>
    resizeRows(rowsOf(image), { size, left, top, width, height });
  assertEquals((await crop(4, 2, 1, 1)).data, image.data.subarray(3 * 14, 3 * 15));
  assertEquals(
    (await resizeRows(rowsOf(image), squareOf(image, 3))).data.subarray(0, 9),
    image.data.subarray(3, 12),
  );
  await assertRejects(() => crop(3, 0, 3, 1), ShapeError, "the resized image is 5 x 3");
  await assertRejects(() => crop(-1, 0, 1, 1), ShapeError);
  await assertRejects(() => resizeRows(rowsOf(image), centerOf(size, 6, 6)), ShapeError);
  const none = centerOf({ width: 0, height: 4 }, 0, 4);
  await assertRejects(() => resizeRows(rowsOf(image), none), ShapeError, "to 0 x 4");
});
