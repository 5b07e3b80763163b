// Resampling and crops against Pillow's bytes (fixtures/resize_pillow.json says how they were made).

import { assertEquals, assertThrows } from "@std/assert";
import { createHash } from "node:crypto";
import { ShapeError } from "../../src/errors.ts";
import {
  centerCropAdm,
  centerCropSquare,
  crop,
  type Filter,
  resizeAndCrop,
  resizeImage,
} from "../../src/image/resize.ts";
import type { Image } from "../../src/image/rows.ts";
import facts from "../fixtures/resize_pillow.json" with { type: "json" };

function noise([width, height]: number[]): Image {
  const [w, h] = [width ?? 0, height ?? 0];
  const data = Uint8Array.from({ length: w * h * 3 }, (_, i) => Math.imul(i, 2654435761) >>> 24);
  return { width: w, height: h, data };
}

const sha256 = (image: Image) => createHash("sha256").update(image.data).digest("hex");

for (const filter of ["box", "bilinear", "bicubic", "lanczos"] as const satisfies Filter[]) {
  Deno.test(`resizeImage() by ${filter} gives Pillow's bytes at 12 pairs of sizes`, () => {
    const cases = facts.resize.filter((c) => c.filter === filter);
    assertEquals(cases.length, 12);
    for (const { from, to, sha256: expected } of cases) {
      const [width = 0, height = 0] = to;
      assertEquals(sha256(resizeImage(noise(from), width, height, filter)), expected, `${from} to ${to}`);
    }
  });
}

Deno.test("centerCropAdm() gives the bytes of ADM's crop", () => {
  for (const { from, size, sha256: expected } of facts.adm) {
    assertEquals(sha256(centerCropAdm(noise(from), size)), expected, `${from} to ${size}`);
  }
});

Deno.test("resizeAndCrop() gives the bytes of Hugging Face's preprocessing", () => {
  for (const { from, shorter, size, sha256: expected } of facts.crop) {
    assertEquals(
      sha256(resizeAndCrop(noise(from), shorter, size)),
      expected,
      `${from} to ${shorter}, ${size}`,
    );
  }
});

Deno.test("crop() and centerCropSquare() cut out what they say, and nothing beyond the image", () => {
  const image = noise([5, 3]);
  assertEquals(crop(image, 4, 2, 1, 1).data, image.data.subarray(3 * 14, 3 * 15));
  assertEquals(centerCropSquare(image).data.subarray(0, 9), image.data.subarray(3, 12));
  assertThrows(() => crop(image, 3, 0, 3, 1), ShapeError, "the image is 5 x 3");
  assertThrows(() => crop(image, -1, 0, 1, 1), ShapeError);
  assertThrows(() => resizeAndCrop(image, 4, 5), ShapeError);
  assertThrows(() => resizeImage(image, 0, 4), ShapeError, "to 0 x 4");
});
