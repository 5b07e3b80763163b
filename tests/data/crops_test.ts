// Crops of training images against Pillow's bytes (fixtures/make_crops.py), and their random numbers.

import { assert, assertEquals, assertNotEquals, assertThrows } from "@std/assert";
import { createHash } from "node:crypto";
import { alignConfig } from "../../src/cli/config.ts";
import { type Crop, croppedSquare, cropsAt } from "../../src/data/crops.ts";
import { batches } from "../../src/data/batches.ts";
import { Workers } from "../../src/data/decode_pool.ts";
import { openImages } from "../../src/data/open_images.ts";
import { UsageError } from "../../src/errors.ts";
import { writePng } from "../../src/image/image.ts";
import { resizeRows, squareOf } from "../../src/image/resize.ts";
import { type Image, type Rows, rowsOf } from "../../src/image/rows.ts";
import { checkOptions } from "../../src/train/align_config.ts";
import facts from "../fixtures/crops.json" with { type: "json" };

function noise(width: number, height: number): Image {
  const data = Uint8Array.from({ length: width * height * 3 }, (_, i) => Math.imul(i, 2654435761) >>> 24);
  return { width, height, data };
}

/** The same image in bands of `n` rows. */
function inBands({ width, height, data }: Image, n: number): Rows {
  return {
    width,
    height,
    async *bands() {
      for (let y = 0; y < height; y += n) yield await data.subarray(3 * width * y, 3 * width * (y + n));
    },
  };
}

Deno.test("ADM's center and random crop, and a plain resize, give Pillow's bytes for 8 sizes", async () => {
  assertEquals(facts.crops.length, 88);
  for (const { from: [width = 0, height = 0], size, crop, sha256 } of facts.crops) {
    for (const rows of [rowsOf(noise(width, height)), inBands(noise(width, height), 5)]) {
      const { data } = await croppedSquare(rows, crop as Crop, size);
      const label = `${width} x ${height} to ${size}, ${JSON.stringify(crop)}`;
      assertEquals(createHash("sha256").update(data).digest("hex"), sha256, label);
    }
  }
});

Deno.test('the crop "center" is one bicubic resize and the central square', async () => {
  const image = noise(131, 75), { data } = await croppedSquare(rowsOf(image), "center", 16);
  assertEquals(data, (await resizeRows(rowsOf(image), squareOf(image, 16))).data);
  assertNotEquals(data, (await croppedSquare(rowsOf(image), "adm", 16)).data);
});

Deno.test("random crops have ADM's distribution: sides from size to size / 0.8, uniform places", () => {
  const count = 4000, sides = new Map<number, number>(), places = new Float64Array(2);
  for (const crop of cropsAt("random", 32, count, 7, 3)) {
    if (typeof crop === "string") throw new Error(crop);
    const { shorter, x, y } = crop;
    sides.set(shorter, (sides.get(shorter) ?? 0) + 1);
    assert(x > 0 && x <= 1 && y > 0 && y <= 1);
    places[0] = (places[0] as number) + x / count;
    places[1] = (places[1] as number) + y / count;
  }
  assertEquals([...sides.keys()].sort((a, b) => a - b), [32, 33, 34, 35, 36, 37, 38, 39, 40]);
  // Five standard deviations.
  for (const n of sides.values()) assert(Math.abs(n - count / 9) < 5 * Math.sqrt(count * 8) / 9, `${n}`);
  for (const mean of places) assert(Math.abs(mean - 0.5) < 5 / Math.sqrt(12 * count), `${mean}`);
});

Deno.test("random crops are a function of seed, step and place in the batch", () => {
  const crops = cropsAt("random", 32, 8, 7, 3);
  assertEquals(new Set(crops.map((crop) => JSON.stringify(crop))).size, 8);
  assertEquals(cropsAt("random", 32, 4, 7, 3), crops.slice(0, 4));
  assertNotEquals(cropsAt("random", 32, 8, 7, 4), crops);
  assertNotEquals(cropsAt("random", 32, 8, 8, 3), crops);
});

Deno.test("batches() applies each crop, the same on other threads and in a resumed run", async () => {
  const folder = await Deno.makeTempDir();
  for (let i = 0; i < 3; i++) await writePng(`${folder}/${i}.png`, noise(40 + i, 21));
  const take = async (crop: "center" | "adm" | "random" | "resize", step: number, workers?: Workers) => {
    const taken = [], options = { batchSize: 2, imageSize: 8, seed: 5, step, end: 5, crop };
    for await (const batch of batches(await openImages(folder, { workers }), options)) taken.push(batch);
    return taken;
  };
  using workers = new Workers(2);
  const all = await take("random", 0);
  assertEquals(await take("random", 2, workers), all.slice(2));
  const kinds = [all, ...await Promise.all((["center", "adm", "resize"] as const).map((c) => take(c, 0)))];
  assertEquals(new Set(kinds.map((batches) => `${batches[0]?.images}`)).size, 4);
});

Deno.test("--crop is refused for generated shapes", () => {
  for (const crop of ["adm", "random", "resize"] as const) {
    assertThrows(
      () => checkOptions(alignConfig.parse({ crop })),
      UsageError,
      `Cannot use --crop ${crop} with generated`,
    );
    checkOptions(alignConfig.parse({ crop, data: "photos" }));
  }
});
