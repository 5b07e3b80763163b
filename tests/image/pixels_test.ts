// One rule for the pixels of all formats: a matrix of files against Pillow's convert("RGB"), which
// fixtures/make_pixels.py made.

import { assert, assertEquals, assertGreaterOrEqual, assertLessOrEqual } from "@std/assert";
import { gunzipSync } from "node:zlib";
import { decodeImage } from "../../src/image/image.ts";

interface Cell {
  size: [number, number];
  file: string;
  pixels: string;
}

const { cells }: { cells: Record<string, Cell> } = JSON.parse(
  new TextDecoder().decode(
    gunzipSync(Deno.readFileSync(new URL("../fixtures/pixels.json.gz", import.meta.url))),
  ),
);

Deno.test("the pixel fixture has at least 200 cells with different pixels", () => {
  assertGreaterOrEqual(Object.keys(cells).length, 200);
  assertGreaterOrEqual(new Set(Object.values(cells).map(({ pixels }) => pixels)).size, 50);
});

for (const [name, { size, file, pixels }] of Object.entries(cells)) {
  // The two decoders of JPEG round the inverse cosine transform differently.
  const tolerance = name.startsWith("jpeg") ? 3 : 0;
  Deno.test(`pixels of "${name}" are Pillow's${tolerance ? ` within ${tolerance} levels` : ""}`, async () => {
    const { width, height, data } = await decodeImage(Uint8Array.fromBase64(file), name);
    assertEquals([width, height], size);
    const expected = Uint8Array.fromBase64(pixels);
    assertEquals(data.length, expected.length);
    const worst = data.reduce((w, v, i) => Math.max(w, Math.abs(v - (expected[i] as number))), 0);
    assertLessOrEqual(worst, tolerance);
    assert(new Set(data).size > 1, "one colour proves nothing");
  });
}
