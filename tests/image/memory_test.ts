// Memory for decoding: bounded over all threads together, and small for formats that are read row by row.

import { assert, assertEquals, assertLess, assertLessOrEqual, assertRejects } from "@std/assert";
import { crc32, deflateSync } from "node:zlib";
import { UsageError } from "../../src/errors.ts";
import { encodePng, type Note, readImage, withImage } from "../../src/image/image.ts";
import { ImageMemory } from "../../src/image/memory.ts";
import { preprocess, type Preprocessor } from "../../src/data/preprocess.ts";
import { resizeRows, squareOf } from "../../src/image/resize.ts";
import { fullImage, type Image, rowsOf } from "../../src/image/rows.ts";
import { Workers } from "../../src/data/decode_pool.ts";
import { testInOwnProcess } from "../helpers/own_process.ts";

const JPEG = new URL("../fixtures/images/baseline.jpg", import.meta.url).pathname;

/** The central square of a decoded image, `size` pixels wide. */
const square = (image: Image, size: number) => resizeRows(rowsOf(image), squareOf(image, size));

/** A PNG of gray rows, each of its own level. */
function tallPng(width: number, height: number): Uint8Array {
  const chunk = (type: string, data: Uint8Array) => {
    const bytes = new Uint8Array(12 + data.length), view = new DataView(bytes.buffer);
    view.setUint32(0, data.length);
    new TextEncoder().encodeInto(type, bytes.subarray(4));
    bytes.set(data, 8);
    view.setUint32(8 + data.length, crc32(bytes.subarray(4, 8 + data.length)));
    return bytes;
  };
  const stride = 3 * width + 1, pixels = new Uint8Array(stride * height);
  for (let y = 0; y < height; y++) pixels.fill(y % 256, y * stride + 1, (y + 1) * stride);
  const header = new Uint8Array([...new Uint8Array(8), 8, 2, 0, 0, 0]);
  new DataView(header.buffer).setUint32(0, width);
  new DataView(header.buffer).setUint32(4, height);
  return new Uint8Array([
    ...[0x89, 0x50, 0x4e, 0x47, 13, 10, 26, 10],
    ...chunk("IHDR", header),
    ...chunk("IDAT", deflateSync(pixels, { level: 1 })),
    ...chunk("IEND", new Uint8Array()),
  ]);
}

Deno.test("an image downscaled row by row has the same bits as a fully decoded one", async () => {
  const width = 400, height = 900; // more than one band
  const data = Uint8Array.from({ length: 3 * width * height }, (_, i) => Math.imul(i, 2654435761) >>> 24);
  const path = `${await Deno.makeTempDir()}/1.png`;
  Deno.writeFileSync(path, await encodePng({ width, height, data }));
  using workers = new Workers(0);
  assertEquals(await readImage(path), { width, height, data });
  for (const size of [1, 32, 401]) {
    assertEquals(
      (await workers.run({ kind: "square", image: path, size })).data,
      (await square({ width, height, data }, size)).data,
    );
  }
  const preprocessor: Preprocessor = {
    resize: { shorter: 40 },
    crop: { height: 30, width: 36 },
    filter: "lanczos",
    exact: true,
    mean: [0.5, 0.4, 0.3],
    std: [0.2, 0.3, 0.4],
  };
  assertEquals(
    await workers.run({ kind: "input", image: path, view: { network: { kind: "encoder", preprocessor } } }),
    { ...await preprocess(rowsOf({ width, height, data }), preprocessor), original: { width, height } },
  );
});

testInOwnProcess(import.meta.url)(
  "a PNG of 36 million pixels is read in less than 80 MB, one of 2 x 1,000,000 too",
  async () => {
    const folder = await Deno.makeTempDir();
    for (const [width, height] of [[6000, 6000], [2, 1_000_000]] as const) {
      const path = `${folder}/${width}.png`;
      Deno.writeFileSync(path, tallPng(width, height));
      using workers = new Workers(0, 40e6);
      const before = Deno.memoryUsage().rss;
      let most = 0;
      const timer = setInterval(() => most = Math.max(most, Deno.memoryUsage().rss - before), 5);
      const { data } = await workers.run({ kind: "square", image: path, size: 8 });
      clearInterval(timer);
      assertLess(most, 80e6, `${width} x ${height}`);
      // Each output pixel is a mean over many levels: none of it is lost.
      assert(data.every((v) => Math.abs(v - 127.5) < 12.75) || width === 2, `${data}`);
    }
  },
);

Deno.test("a JPEG that does not fit in memory is decoded at reduced size, with a note", async () => {
  const whole = await withImage(JPEG, {}, fullImage);
  const read = (limit: number, least: number) => {
    const options = { memory: new ImageMemory(limit), enough: () => ({ width: least, height: least }) };
    return withImage(JPEG, options, async (image) => {
      const notes: readonly Note[] = image.notes;
      return { ...await fullImage(image), original: image.original, notes };
    });
  };
  const enough = await read(20_000, 4);
  assertEquals([enough.width, enough.height, enough.notes], [23, 17, []]);
  assertEquals(enough.data, whole.data);

  const size = Deno.statSync(JPEG).size, pixels = 23 * 17;
  const need = Math.ceil(3 * size + pixels * (1.5 + 6) + 12 * pixels);
  const half = await read(need - 1, 8);
  assertEquals([half.width, half.height, half.original], [12, 9, { width: 23, height: 17 }]);
  assertEquals(half.notes.map(({ kind }) => kind), ["reduced"]);
  assert(half.notes[0]?.text.includes("(23 x 17)"), half.notes[0]?.text);
  const [a, b] = [(await square(half, 6)).data, (await square(whole, 6)).data];
  const difference = a.reduce((sum, v, i) => sum + Math.abs(v - (b[i] ?? NaN)), 0);
  assertLessOrEqual(difference / a.length, 12);

  await assertRejects(
    () => read(need - 1, 13), // half of it would be too small for what is made of it
    UsageError,
    "23 x 17 pixels of JPEG need",
  );
  await assertRejects(
    () => read(100, 1),
    UsageError,
    "more than the 100 bytes for all images; raise --image-memory",
  );
});

Deno.test("reservations never exceed the memory limit, and every job gets one", async () => {
  const memory = new ImageMemory(100 * 4096), other = ImageMemory.of(memory.shared);
  let most = 0, held = 0;
  const hold = (bytes: number, by: ImageMemory) =>
    by.hold(bytes, async () => {
      held += bytes;
      most = Math.max(most, held);
      await new Promise((resolve) => setTimeout(resolve, 1));
      held -= bytes;
      if (bytes % 3 === 0) throw new Error("damaged");
    });
  const sizes = Array.from({ length: 60 }, (_, i) => 4096 * (1 + (i * 37) % 100));
  const results = await Promise.allSettled(sizes.map((bytes, i) => hold(bytes, i % 2 ? memory : other)));
  assertEquals(
    results.filter(({ status }) => status === "rejected").length,
    sizes.filter((n) => n % 3 === 0).length,
  );
  assertLessOrEqual(most, memory.limit);
  assertEquals([memory.used, other.used], [0, 0]);
});

Deno.test("threads whose memory holds one image at a time decode all images", async () => {
  const folder = await Deno.makeTempDir(), path = `${folder}/1.jpg`;
  Deno.copyFileSync(JPEG, path);
  using workers = new Workers(3, 12_000);
  const job = { kind: "square", image: path, size: 17 } as const;
  const made = await Promise.all(Array.from({ length: 30 }, () => workers.run(job)));
  using alone = new Workers(0);
  for (const pixels of made) assertEquals(pixels, await alone.run(job));
});
