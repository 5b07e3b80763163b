// Images in lists of paths, tar shards and Parquet files: the same sources as folders, their indexes, and what is refused.

import { assert, assertEquals, assertNotEquals, assertRejects } from "@std/assert";
import { createHash } from "node:crypto";
import { fromFileUrl, join } from "@std/path";
import { packTar } from "modern-tar";
import { UsageError } from "../../src/errors.ts";
import { batches } from "../../src/data/batches.ts";
import { Workers } from "../../src/data/decode_pool.ts";
import { search } from "../../src/data/image_folder.ts";
import { listSet } from "../../src/data/image_list.ts";
import type { Images } from "../../src/data/images.ts";
import { expanded, openImages, type OpenOptions } from "../../src/data/open_images.ts";
import type { ImageSource } from "../../src/data/image_source.ts";
import { encodePng } from "../../src/image/image.ts";

const FIXTURES = fromFileUrl(new URL("../fixtures/data", import.meta.url));
const fixture = (name: string) => join(FIXTURES, name);
const LEVELS = Array.from({ length: 9 }, (_, i) => 20 * i + 10), LABELS = LEVELS.map((_, i) => i % 3);
const cache = Deno.makeTempDirSync({ prefix: "tok-index-" });

const open = (path: string, options: OpenOptions = {}) => openImages(path, { cache, ...options });
const numbers = ({ length }: ImageSource) => Array.from({ length }, (_, i) => i);
const labelsOf = (source: ImageSource) => numbers(source).map((i) => source.label(i));
const namesOf = (source: ImageSource) => numbers(source).map((i) => source.name(i));
const png = (level: number) => encodePng({ width: 2, height: 2, data: new Uint8Array(12).fill(level) });

/** The gray level of each image. */
async function levelsOf(source: Images): Promise<number[]> {
  return await Promise.all(numbers(source).map(async (i) => (await source.bytes(i, 4))[0] as number));
}

/** A shard of these members. */
async function shard(members: Record<string, string | Uint8Array>, name = "a.tar"): Promise<string> {
  const path = join(await Deno.makeTempDir(), name);
  const entries = Object.entries(members).map(([name, content]) => {
    const body = typeof content === "string" ? new TextEncoder().encode(content) : content;
    return { header: { name, size: body.length }, body };
  });
  Deno.writeFileSync(path, await packTar(entries));
  return path;
}

/** A list next to a.png (10), b.png (20) and "c c/d.png" (30). */
async function list(text: string, name = "list.txt"): Promise<string> {
  const folder = await Deno.makeTempDir();
  Deno.mkdirSync(join(folder, "c c"));
  for (const [i, file] of ["a.png", "b.png", "c c/d.png"].entries()) {
    Deno.writeFileSync(join(folder, file), await png(10 * i + 10));
  }
  Deno.writeTextFileSync(join(folder, name), text);
  return join(folder, name);
}

const refused = async (path: string, part: string, options: OpenOptions = {}) =>
  void await assertRejects(() => open(path, options), UsageError, part);

// What is read

Deno.test("images of tar shards and Parquet files have the pixels and labels of their files, on any thread", async () => {
  using workers = new Workers(2);
  for (
    const path of ["shard-{000..001}.tar", "snappy.parquet", "zstd.parquet", "plain.parquet"].map(fixture)
  ) {
    for (const from of [undefined, workers]) {
      const source = await open(path, { workers: from });
      assertEquals([await levelsOf(source), labelsOf(source)], [LEVELS, LABELS], path);
      assertEquals(source.classes, path.endsWith(".tar") ? ["0", "1", "2"] : ["ant", "bee", "cat"]);
    }
  }
});

Deno.test("a folder of shards is a set of all of them, whose images are named below their shard", async () => {
  const root = await Deno.makeTempDir();
  for (const name of ["shard-000.tar", "shard-001.tar"]) Deno.copyFileSync(fixture(name), join(root, name));
  const source = await open(root), names = namesOf(source);
  assertEquals([names[0], names[8]], ["shard-000/0000.png", "shard-001/0008.png"]);
  assert((names[7] as string).startsWith("shard-001/ddd") && (names[7] as string).endsWith("/0007.png"));
  assertEquals(`${source.leftOut}`.startsWith("9 .txt files (shard-000/0000.txt, "), true);
  assertEquals(namesOf(await open(fixture("shard-000.tar")))[1], "0001.png");
  assertEquals(namesOf(await open(fixture("snappy.parquet")))[8], "000008");
  const tables = await Deno.makeTempDir();
  Deno.mkdirSync(join(tables, "data"));
  for (const i of [0, 1]) {
    Deno.copyFileSync(fixture("zstd.parquet"), join(tables, `data/train-0000${i}-of-00002.parquet`));
  }
  const both = await open(tables);
  assertEquals([both.length, both.name(17), both.label(10)], [18, "train-00001-of-00002/000008", 1]);
});

Deno.test("samples of a shard are grouped by name up to the first dot, and their class is .cls, .json or the folder", async () => {
  const image = await png(50);
  const source = await open(
    await shard({
      "x.v1.png": image,
      "x.jpg": image,
      "x.png": image,
      "x.cls": "dog",
      "y.PNG": image,
      "y.json": '{"cls":"cat"}',
    }),
  );
  assertEquals([namesOf(source), source.classes, labelsOf(source)], [["x.jpg", "y.PNG"], ["cat", "dog"], [
    1,
    0,
  ]]);
  assertEquals(`${source.leftOut}`, "1 .png file (x.png), 1 .v1.png file (x.v1.png)");
  const folders = await open(await shard({ "./10/a.png": image, "./9/b.png": image, "9/.b.png": image }));
  assertEquals([folders.classes, labelsOf(folders), `${folders.leftOut}`], [
    ["10", "9"],
    [0, 1],
    "1 hidden image (9/.b.png)",
  ]);
  const flat = await open(await shard({ "a.png": image, "../../b.png": image, "/etc/c.png": image }));
  assertEquals([flat.classes, namesOf(flat)], [[".", "etc"], ["a.png", "b.png", "etc/c.png"]]);
  assertEquals((await open(await shard({ "a.png": image, "b.png": image }))).classes, []);
});

Deno.test("a list has its paths in order, relative to its folder, with classes behind tabs", async () => {
  const source = await open(await list("# images\nc c/d.png\tcat\r\n\n./a.png\tant\n"));
  assertEquals([namesOf(source), source.classes, labelsOf(source)], [["c c/d.png", "a.png"], ["ant", "cat"], [
    1,
    0,
  ]]);
  assertEquals(await levelsOf(source), [30, 10]);
  const path = await list("", "list.lst"), elsewhere = await list("");
  Deno.writeTextFileSync(path, `${join(elsewhere, "../b.png")}\t7\na.png\t2`);
  const numbered = await open(path);
  assertEquals([numbered.classes.length, labelsOf(numbered), await levelsOf(numbered)], [8, [7, 2], [
    20,
    10,
  ]]);
  assert(namesOf(numbered).every((name) => !name.startsWith("/") && !name.includes("..")));
  assertEquals((await open(await list("a.png\nb.png"))).classes, []);
});

Deno.test("patterns stand for ranges and lists of files", () => {
  assertEquals(expanded("a-{08..11}.tar"), ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]);
  assertEquals(expanded("a-{8..11}.tar"), ["a-8.tar", "a-9.tar", "a-10.tar", "a-11.tar"]);
  assertEquals(expanded("{a,b}/{0..1}.tar"), ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]);
  assertEquals([expanded("a.tar"), expanded("{x}.tar")], [undefined, undefined]);
});

// What is refused

Deno.test("bad lists are errors that name the line", async () => {
  await refused(
    await list("a.png\n\nc c/e.png\n"),
    'line 3 names "c c/e.png", which does not exist; correct the path',
  );
  await refused(await list("a.png\nc c\n"), 'line 2 names "c c", which is a folder; name an image');
  await refused(await list("# none\n\n"), "it lists no image; write one path a line");
  await refused(await list(""), "it lists no image; write one path a line");
  await refused(
    await list("a.png\t1\nb.png\n"),
    "line 2 has no class, and line 1 has one; give every line a class, or none",
  );
  await refused(await list("#\na.png\nb.png\t1\n"), "line 2 has no class, and line 3 has one");
  await refused(await list("a.png\t1\t2\n"), "line 1 has two tabs");
  for (const label of ["", "-1", "1000000", "1.5"]) {
    await refused(await list(`a.png\t${label}\n`), `line 1 has the class "${label}"`);
  }
});

Deno.test("bad shards are errors that name the shard and the place", async () => {
  const image = await png(50), cut = await shard({});
  Deno.writeFileSync(cut, Deno.readFileSync(fixture("shard-000.tar")).subarray(0, 12_850));
  await refused(cut, `Cannot use "${cut}": it is cut off: "./0003.png" at byte 12288 has 77 bytes`);
  await refused(
    await shard({ "a.txt": "a", "b.txt": "b" }),
    "there is no image in it, but 2 .txt files (a.txt, b.txt)",
  );
  await refused(
    await shard({ "a.png": image, "a.cls": "1", "b.png": image }),
    '"b.png" has no class, and "a.png" has one',
  );
  await refused(await shard({ "a.png": image, "a.cls": "-1" }), '"a.cls" has the class "-1"');
  await refused(await shard({ "a.png": image, "a.json": "{" }), '"a.json" is not JSON');
  await refused(fixture("shard-{000..002}.tar"), "shard-002.tar");
  await refused(fixture("shard-{001..000}.tar"), "counts downwards");
  await refused(fixture("{shard-000.tar,snappy.parquet}"), "it has both .tar and .parquet files");
  await refused(fixture("{make_data.py,snappy.parquet}"), "a pattern stands for .tar or .parquet files");
  const root = await Deno.makeTempDir();
  Deno.copyFileSync(await shard({ "a.png": image, "a.cls": "dog" }), join(root, "a.tar"));
  Deno.copyFileSync(await shard({ "b.png": image }), join(root, "b.tar"));
  await refused(root, `"${join(root, "b.tar")}" has no class, and "${join(root, "a.tar")}" has one`);
  Deno.copyFileSync(await shard({ "b.png": image, "b.cls": "3" }), join(root, "b.tar"));
  await refused(root, "has class names and");
  const splits = await Deno.makeTempDir();
  for (const name of ["train-0.tar", "test-0.tar"]) {
    Deno.copyFileSync(fixture("shard-000.tar"), join(splits, name));
  }
  await refused(splits, 'its files are of several splits ("test", "train")');
});

Deno.test("bad tables are errors, and columns are for tables only", async () => {
  await refused(
    fixture("no_image.parquet"),
    'it has no column of images (binary, or a struct with "bytes"); its columns are "text", "label"',
  );
  await refused(fixture("null.parquet"), 'row 6 has no image ("image.bytes" is null)');
  await refused(fixture("snappy.parquet"), 'it has no column "img"', { columns: { image: "img" } });
  await refused(fixture("shard-000.tar"), "Cannot use --label-column", { columns: { label: "cls" } });
  const named = await open(fixture("binary.parquet"), { columns: { label: "name" } });
  assertEquals([named.classes, labelsOf(named), await levelsOf(named)], [
    ["ant", "bee", "cat"],
    LABELS,
    LEVELS,
  ]);
});

Deno.test("a damaged image in a shard is refused, or replaced by another of its class", async () => {
  const path = await shard({
    "a.png": await png(10),
    "a.cls": "0",
    "b.png": "nothing",
    "b.cls": "1",
    "c.png": await png(30),
    "c.cls": "1",
  });
  await assertRejects(
    async () => await levelsOf(await open(path)),
    UsageError,
    `Cannot decode the image "${path}/b.png"`,
  );
  const told: string[] = [],
    source = await open(path, { badImage: "skip", onBad: (text) => told.push(text) });
  assertEquals([await levelsOf(source), told.length, [...source.bad]], [[10, 30, 30], 1, ["b.png"]]);
});

// Indexes

Deno.test("a second opening reads the index, and a changed shard, table or list is read anew", async () => {
  const cache = await Deno.makeTempDir(), members = { "a.png": await png(10), "a.cls": "0", "b.txt": "text" };
  const path = await shard(members), table = join(await Deno.makeTempDir(), "a.parquet");
  const state = async (path: string) => {
    const source = await open(path, { cache });
    return [
      namesOf(source),
      labelsOf(source),
      source.classes,
      `${source.leftOut}`,
      source.fingerprint(),
      await levelsOf(source),
    ];
  };
  Deno.copyFileSync(fixture("zstd.parquet"), table);
  for (const path_ of [path, table]) {
    const first = await state(path_),
      { mtime, size } = Deno.statSync(path_),
      bytes = Deno.readFileSync(path_);
    assertEquals(await state(path_), first);
    // The index counts for the same size and time, so this damage goes unseen until the image is read.
    Deno.writeFileSync(path_, new Uint8Array(size));
    Deno.utimeSync(path_, mtime as Date, mtime as Date);
    assertEquals(namesOf(await open(path_, { cache })), first[0]);
    Deno.utimeSync(path_, new Date(0), new Date(0));
    await refused(path_, path_, { cache });
    Deno.writeFileSync(path_, bytes);
    assertEquals(await state(path_), first);
  }
  Deno.writeFileSync(
    path,
    Deno.readFileSync(await shard({ ...members, "c.png": await png(30), "c.cls": "1" })),
  );
  assertEquals((await state(path))[0], ["a.png", "c.png"]);
  for (const { name } of Deno.readDirSync(join(cache, "index"))) {
    Deno.writeTextFileSync(join(cache, "index", name), "damaged");
  }
  assertEquals((await state(path))[0], ["a.png", "c.png"]);
});

Deno.test("large folders and lists are remembered until a folder, the list or a file changes", async () => {
  const cache = await Deno.makeTempDir(),
    path = await list("a.png\t1\nc c/d.png\t0\n"),
    root = join(path, "..");
  const old = new Date(Date.now() - 60_000);
  const age = () => [root, join(root, "c c")].forEach((folder) => Deno.utimeSync(folder, old, old));
  const found = async () => {
    const { names, sizes } = await search(root, cache, 1);
    return Array.from(sizes, (size, i) => [names.at(i), size]);
  };
  age();
  const first = await found();
  assertEquals([first.length, (await search(root, cache, 1)).leftOut.names], [3, ["list.txt"]]);
  Deno.writeFileSync(join(root, "e.png"), await png(1));
  age(); // the folder has its old time again, so the list of files is the old one
  assertEquals(await found(), first);
  Deno.utimeSync(root, new Date(), new Date());
  assertEquals((await found()).length, 4);
  Deno.writeTextFileSync(join(root, "c c/d.png"), "of another size");
  age();
  assertEquals((await found()).find(([name]) => name === "c c/d.png"), ["c c/d.png", 15]);
  // An index has the first names only of what is left out; next to images, shards are left out.
  for (let k = 0; k < 4; k++) Deno.writeTextFileSync(join(root, `${k}.tar`), "");
  Deno.utimeSync(root, new Date(Date.now() - 30_000), new Date(Date.now() - 30_000));
  const [once, twice] = [await search(root, cache, 1), await search(root, cache, 1)];
  assertEquals([once, twice].map(({ leftOut }) => leftOut.names.length), [5, 4]);
  assertEquals((await openImages(root, { cache })).length, 4);

  const listed = async () => (await listSet(path, cache, 1)).fingerprint();
  const before = await listed();
  assertEquals(await listed(), before);
  Deno.writeTextFileSync(join(root, "a.png"), "x");
  assertNotEquals(await listed(), before);
  Deno.removeSync(join(root, "a.png"));
  await assertRejects(listed, UsageError, "line 1");
});

Deno.test("fingerprints change with names, sizes, labels and columns, and stay those of folders", async () => {
  const print = async (path: string, options: OpenOptions = {}) => (await open(path, options)).fingerprint();
  const folder = await Deno.makeTempDir();
  Deno.writeFileSync(join(folder, "2.png"), await png(1));
  Deno.writeFileSync(join(folder, "1.png"), await png(1));
  const { size } = Deno.statSync(join(folder, "1.png"));
  const expected = createHash("sha256").update(`1.png\0${size}\n2.png\0${size}\n`).digest("hex").slice(0, 16);
  assertEquals(await print(folder), expected);
  const image = await png(50), other = await png(200);
  const prints = [
    await print(await shard({ "a.png": image, "a.cls": "1" })),
    await print(await shard({ "a.png": image, "a.cls": "0" })),
    await print(await shard({ "b.png": image, "b.cls": "1" })),
    await print(await shard({ "a.png": new Uint8Array([...other, 0]), "a.cls": "1" })),
    await print(await list("a.png\t1\n")),
    await print(await list("a.png\t0\n")),
    await print(await list("b.png\t1\n")),
    await print(fixture("zstd.parquet")),
    await print(fixture("snappy.parquet")),
    await print(fixture("binary.parquet")),
    await print(fixture("binary.parquet"), { columns: { label: "name" } }),
  ];
  assertEquals(new Set(prints).size, prints.length);
  assertEquals(await print(await shard({ "a.png": image, "a.cls": "1" })), prints[0]);
});

Deno.test("a resumed run sees the batches of an uninterrupted one, from shards, tables and lists", async () => {
  const paths = ["shard-{000..001}.tar", "zstd.parquet"].map(fixture);
  const listed = await list("a.png\t0\nb.png\t1\nc c/d.png\t0\n"),
    options = { batchSize: 4, imageSize: 8, seed: 3, flip: true };
  for (const path of [...paths, listed]) {
    const take = async (step: number, workers?: Workers) => {
      const taken = [], source = await open(path, { workers, cache: await Deno.makeTempDir() });
      for await (const batch of batches(source, { ...options, step, end: 6 })) taken.push(batch);
      return taken;
    };
    const all = await take(0);
    assert(new Set(all.flatMap(({ images }) => [...images])).size > 2);
    using workers = new Workers(2);
    for (const step of [2, 5]) assertEquals(await take(step, workers), all.slice(step));
  }
});
