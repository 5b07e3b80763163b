// Parquet files as pyarrow writes them: images and labels of every layout, and files that cannot be used.

import { assert, assertEquals, assertRejects } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { UsageError } from "../../src/errors.ts";
import { openParquet, pageAt, parquetValues } from "../../src/formats/parquet.ts";
import { decodeImage } from "../../src/image/image.ts";

const table = (name: string) => fromFileUrl(new URL(`../fixtures/data/${name}.parquet`, import.meta.url));
const LEVELS = Array.from({ length: 9 }, (_, i) => 20 * i + 10), LABELS = LEVELS.map((_, i) => i % 3);

/** The gray level of each image, page by page. */
async function levels(path: string): Promise<number[]> {
  const { layout, pages } = await openParquet(path, {}), found: number[] = [];
  for (const i of pages.row.keys()) {
    for (const bytes of parquetValues(path, layout, pageAt(pages, i))) {
      const { data } = await decodeImage(bytes as Uint8Array<ArrayBuffer>, path);
      assertEquals(new Set(data).size, 1);
      found.push(data[0] as number);
    }
  }
  return found;
}

Deno.test("images and labels are read from pages of every kind: compressed or not, dictionaries, several row groups", async () => {
  const pages = { snappy: [3, true], zstd: [5, false], plain: [1, true] };
  for (const [name, [count, dictionary]] of Object.entries(pages)) {
    const found = await openParquet(table(name), {});
    assertEquals([found.rows, found.classes, [...found.labels ?? []]], [9, ["ant", "bee", "cat"], LABELS]);
    assertEquals([found.pages.row.length, found.pages.dictionarySize.some(Boolean)], [count, dictionary]);
    assertEquals(await levels(table(name)), LEVELS, name);
  }
});

Deno.test("the only binary column holds the images; labels may be texts, and no label is guessed", async () => {
  const path = table("binary");
  assertEquals((await openParquet(path, {})).labels, undefined);
  assertEquals(await levels(path), LEVELS);
  assertEquals([...(await openParquet(path, { label: "fine" })).labels ?? []], LABELS);
  const named = await openParquet(path, { image: "img", label: "name" });
  assertEquals([named.classes, [...named.labels ?? []]], [["ant", "bee", "cat"], LABELS]);
});

Deno.test("a table that cannot be used is an error that names the row, or lists the columns", async () => {
  const refused = async (name: string, part: string, columns = {}) =>
    void await assertRejects(() => openParquet(table(name), columns), UsageError, part);
  await refused(
    "no_image",
    'it has no column of images (binary, or a struct with "bytes"); its columns are "text", "label"',
  );
  await refused("null", 'row 6 has no image ("image.bytes" is null)');
  await refused("no_bytes", 'row 3 has no image ("image.bytes" is null)');
  await refused("no_label", 'row 3 has the label -1 in "label"');
  await refused("snappy", 'it has no column "img" of images', { image: "img" });
  await refused("snappy", 'it has no column "class"; its columns are "image", "label"', { label: "class" });
});

Deno.test("a truncated table, or one with a wrong byte in its pages, is an error", async () => {
  const bytes = Deno.readFileSync(table("plain")), path = await Deno.makeTempFile();
  for (const length of [0, 3, 8, 200, bytes.length - 100, bytes.length - 1]) {
    Deno.writeFileSync(path, bytes.subarray(0, length));
    await assertRejects(() => openParquet(path, {}), UsageError, `Cannot read "${path}": it`);
  }
  Deno.writeTextFileSync(path, "version https://git-lfs.github.com/spec/v1\nsize 12\n");
  await assertRejects(() => openParquet(path, {}), UsageError, 'run "git lfs pull"');
  const snappy = Deno.readFileSync(table("snappy")),
    { layout, pages } = await openParquet(table("snappy"), {});
  const { dictionaryOffset } = pageAt(pages, 0);
  snappy.fill(0xff, dictionaryOffset + 30, dictionaryOffset + 60);
  Deno.writeFileSync(path, snappy);
  let refused = false;
  try {
    refused = parquetValues(path, layout, pageAt(pages, 0)).length !== 4;
  } catch (error) {
    refused = error instanceof UsageError && error.message.includes(path);
  }
  assert(refused);
});
