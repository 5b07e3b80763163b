// Decoding against Pillow's pixels (fixtures/images.json says how they were made), refusals, and encoding.

import { assert, assertEquals, assertLessOrEqual, assertRejects, assertThrows } from "@std/assert";
import { ShapeError, UsageError } from "../../src/errors.ts";
import {
  decodeImage,
  encodePng,
  grid,
  pairGrid,
  readImage,
  toBytes,
  toFloat,
  writePng,
} from "../../src/image/image.ts";
import facts from "../fixtures/images.json" with { type: "json" };

const folder = new URL("../fixtures/images/", import.meta.url).pathname;
const bytesOf = (name: string) => Deno.readFileSync(folder + name);

for (const [name, { size, pixels }] of Object.entries(facts.images)) {
  // The two JPEG decoders round the inverse cosine transform differently.
  const tolerance = bytesOf(name)[0] === 0xff ? 3 : 0;
  Deno.test(`readImage() reads ${name} ${tolerance ? `within ${tolerance} levels of` : "exactly as"} Pillow`, async () => {
    const image = await readImage(folder + name);
    assertEquals([image.width, image.height], size);
    const expected = Uint8Array.fromBase64(pixels);
    assertEquals(image.data.length, expected.length);
    const worst = image.data.reduce((w, v, i) => Math.max(w, Math.abs(v - (expected[i] ?? NaN))), 0);
    assertLessOrEqual(worst, tolerance);
  });
}

/** A PNG whose header claims a size; the checksum is not looked at before the size. */
function bomb(width: number, height: number): Uint8Array<ArrayBuffer> {
  const bytes = bytesOf("rgb.png").slice();
  const view = new DataView(bytes.buffer);
  view.setUint32(16, width);
  view.setUint32(20, height);
  return bytes;
}

/** A GIF of one pixel. */
const gif = () => Uint8Array.fromBase64("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7");

/** A BMP of 12 x 2 pixels in run-length codes. */
function runs(...codes: number[]): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(58 + codes.length), view = new DataView(bytes.buffer);
  bytes.set([0x42, 0x4d]);
  for (const [at, value] of [[10, 58], [14, 40], [18, 12], [22, 2], [26, 1], [28, 8], [30, 1]] as const) {
    view.setUint16(at, value, true);
  }
  bytes.set(codes, 58);
  return bytes;
}

/** A JPEG with another kind of frame. */
function withFrame(marker: number): Uint8Array<ArrayBuffer> {
  const bytes = bytesOf("baseline.jpg");
  bytes[bytes.findIndex((byte, i) => byte === 0xff && bytes[i + 1] === 0xc0) + 1] = marker;
  return bytes;
}

const REFUSED: [string, () => Uint8Array<ArrayBuffer>, string][] = [
  ["an empty file", () => new Uint8Array(), "the file is empty"],
  [
    "a text file",
    () => new TextEncoder().encode("once upon a time"),
    "it is in none of the formats PNG, JPEG, WebP, GIF, BMP, TIFF",
  ],
  [
    "a Git LFS pointer",
    () =>
      new TextEncoder().encode("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 88283115\n"),
    'it is a Git LFS pointer, not the file itself (88,283,115 bytes); run "git lfs pull"',
  ],
  [
    "a web page",
    () => new TextEncoder().encode("\n<!DOCTYPE html><html>"),
    "it is a web page (HTML); fetch the file itself",
  ],
  ["a zip archive", () => new TextEncoder().encode("PK\x03\x04....."), "it is a zip archive; unpack it"],
  [
    "a tar archive",
    () => new TextEncoder().encode("x".repeat(257) + "ustar"),
    "it is a tar archive; unpack it",
  ],
  [
    "an AVIF image",
    () => new TextEncoder().encode("\0\0\0 ftypavif"),
    "it is an AVIF image; convert it to PNG first",
  ],
  [
    "a JPEG with arithmetic coding",
    () => withFrame(0xc9),
    "arithmetic coding is not supported; convert it to PNG first",
  ],
  ["a lossless JPEG", () => withFrame(0xc3), "lossless JPEG is not supported"],
  ["a GIF without a frame", () => gif().slice(0, 13), "the GIF data is damaged or cut off"],
  ["a GIF cut in its data", () => gif().slice(0, -8), "the GIF data is damaged or cut off"],
  ["a GIF without its header", () => gif().slice(0, 8), "the GIF header is damaged or cut off"],
  [
    "a BMP without its header",
    () => new TextEncoder().encode("BM or not to BM"),
    "the BMP header is damaged or cut off",
  ],
  [
    "a TIFF without a directory",
    () => new TextEncoder().encode("II*\0\xff\xff\0\0"),
    "the TIFF header is damaged or cut off",
  ],
  ["two bytes of a JPEG", () => new Uint8Array([0xff, 0xd8]), "the JPEG header is damaged or cut off"],
  ["a PNG without its header", () => bytesOf("rgb.png").slice(0, 20), "the PNG header is damaged or cut off"],
  [
    "a WebP without its header",
    () => bytesOf("lossy.webp").slice(0, 20),
    "the WebP header is damaged or cut off",
  ],
  ["a PNG cut in its data", () => bytesOf("rgb.png").slice(0, 400), "the PNG data is damaged or cut off"],
  ["a JPEG cut by a byte", () => bytesOf("baseline.jpg").slice(0, -1), "the JPEG data is damaged or cut off"],
  [
    "a progressive JPEG cut in half",
    () => bytesOf("progressive.jpg").slice(0, 500),
    "the JPEG data is damaged",
  ],
  ["a WebP cut in half", () => bytesOf("lossy.webp").slice(0, 150), "the WebP data is damaged or cut off"],
  [
    "a PNG of 65535 x 65535 pixels",
    () => bomb(65535, 65535),
    "65535 x 65535 pixels are more than 100 million",
  ],
  [
    "a PNG of 12000 x 12000 pixels",
    () => bomb(12000, 12000),
    "12000 x 12000 pixels are more than 100 million",
  ],
  ["a PNG that is 0 pixels wide", () => bomb(0, 7), "the PNG header is damaged"],
  ["a PNG that claims another size", () => bomb(24, 17), "damaged"],
];
for (const [what, bytes, reason] of REFUSED) {
  Deno.test(`decodeImage() refuses ${what} in one line that names it`, async () => {
    const { message } = await assertRejects(() => decodeImage(bytes(), "a/b.png"), UsageError, reason);
    assert(message.startsWith('Cannot decode the image "a/b.png": '), message);
    assert(!message.includes("\n"), message);
  });
}

Deno.test("a run-length BMP whose codes fill it is read", async () => {
  assertEquals(
    await decodeImage(runs(12, 0, 0, 0, 12, 0, 0, 1), "runs.bmp").then(({ data }) => data.length),
    72,
  );
});

Deno.test("decodeImage() works again after a damaged file, a thousand times over", async () => {
  await assertRejects(() => decodeImage(bytesOf("baseline.jpg").slice(0, 300), "cut.jpg"), UsageError);
  await assertRejects(() => decodeImage(bytesOf("rgb.png").slice(0, 400), "cut.png"), UsageError);
  const first = await decodeImage(bytesOf("baseline.jpg"), "whole.jpg");
  for (let i = 0; i < 1000; i++) {
    assertEquals((await decodeImage(bytesOf("baseline.jpg"), "it")).data, first.data);
  }
});

Deno.test("readImage() reports what is wrong with the path", async () => {
  await assertRejects(() => readImage(folder), UsageError, "it is a folder and not a file");
  await assertRejects(() => readImage(folder + "none.png"), UsageError, "it does not exist");
});

Deno.test("encodePng() and decodeImage() round-trip every byte", async () => {
  for (const [width, height] of [[1, 1], [7, 3], [256, 64]] as const) {
    const data = Uint8Array.from({ length: 3 * width * height }, (_, i) => Math.imul(i, 2654435761) >>> 24);
    const png = await encodePng({ width, height, data });
    assertEquals(await decodeImage(new Uint8Array(png), "it"), { width, height, data });
  }
  await assertRejects(
    () => encodePng({ width: 2, height: 2, data: new Uint8Array(11) }),
    ShapeError,
    "2 x 2",
  );
});

Deno.test("writePng() leaves one complete file", async () => {
  const path = `${await Deno.makeTempDir()}/a/1.png`;
  const image = { width: 2, height: 1, data: new Uint8Array([1, 2, 3, 4, 5, 6]) };
  await writePng(path, image);
  assertEquals(await readImage(path), image);
});

Deno.test("toBytes() inverts toFloat(), rounds, clamps and maps NaN to 0", () => {
  const all = Uint8Array.from({ length: 256 }, (_, i) => i);
  assertEquals(toBytes(toFloat(all)), all);
  assertEquals([...toFloat(new Uint8Array([0, 255]))], [-1, 1]);
  assertEquals([...toBytes(new Float32Array([-9, 9, -0.001, 0.001, NaN, Infinity]))], [
    0,
    255,
    127,
    128,
    0,
    255,
  ]);
});

Deno.test("pairGrid() keeps second images below first ones in a short last row", () => {
  const pairs = [10, 20, 30].map((v) => [new Uint8Array(3).fill(v), new Uint8Array(3).fill(v + 1)] as const);
  const white = new Uint8Array(3).fill(255), images = [10, 20, 11, 21, 30, 255, 31, 255];
  const expected = grid(images.map((v) => v === 255 ? white : new Uint8Array(3).fill(v)), 1, 2);
  assertEquals(pairGrid(pairs, 1, 2), expected);
});

Deno.test("grid() puts enlarged images side by side with white lines between", () => {
  const [red, blue] = [new Uint8Array([255, 0, 0]), new Uint8Array([0, 0, 255])];
  const { width, height, data } = grid([red, blue, red], 1, 2, 2, 1);
  const rows = Array.from({ length: height }, (_, y) =>
    Array.from(
      { length: width },
      (_, x) =>
        ({ "255,0,0": "r", "0,0,255": "b", "255,255,255": "." })[
          data.slice(3 * (y * width + x)).slice(0, 3).join()
        ],
    ).join(""));
  assertEquals(rows, [".......", ".rr.bb.", ".rr.bb.", ".......", ".rr....", ".rr....", "......."]);
  assertThrows(() => grid([], 1, 2), ShapeError, "there are no images");
  assertThrows(() => grid([red, new Uint8Array(6)], 1, 2), ShapeError, "image 1 is not 1 x 1");
});
