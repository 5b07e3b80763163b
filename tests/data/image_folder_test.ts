// Folders of images, batches, and folders of latents.

import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertNotEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { ShapeError, UsageError } from "../../src/errors.ts";
import { batches } from "../../src/data/batches.ts";
import type { BadImage } from "../../src/data/images.ts";
import { openImages } from "../../src/data/open_images.ts";
import { writePng } from "../../src/image/image.ts";
import { LatentsWriter, openLatents } from "../../src/formats/latents.ts";
import { openSafetensors } from "../../src/formats/safetensors.ts";
import type { ImageSource } from "../../src/data/image_source.ts";

/** A folder with a 2 x 2 picture of one gray level for each name; the level is the name's number. */
async function folderOf(...names: string[]): Promise<string> {
  const root = await Deno.makeTempDir();
  for (const name of names) {
    const level = Number(/(\d+)\.\w+$/.exec(name)?.[1] ?? 0);
    await writePng(`${root}/${name}`, { width: 2, height: 2, data: new Uint8Array(12).fill(level) });
  }
  return root;
}

const namesOf = (source: ImageSource) => Array.from({ length: source.length }, (_, i) => source.name(i));
const labelsOf = (source: ImageSource) => Array.from({ length: source.length }, (_, i) => source.label(i));

Deno.test("openImages() finds images below a folder in name order; the first level are the classes", async () => {
  const root = await folderOf("dog/b/2.png", "dog/1.PNG", "cat/3.jpg", "Übel/4.webp");
  Deno.writeTextFileSync(`${root}/dog/notes.txt`, "");
  await writePng(`${root}/dog/.hidden.png`, { width: 1, height: 1, data: new Uint8Array(3) });
  const source = await openImages(root);
  assertEquals(namesOf(source), ["cat/3.jpg", "dog/1.PNG", "dog/b/2.png", "Übel/4.webp"]);
  assertEquals(source.classes, ["cat", "dog", "Übel"]);
  assertEquals(labelsOf(source), [0, 1, 1, 2]);
  assertThrows(() => source.name(4), RangeError);
});

Deno.test("openImages() takes a flat folder without classes, and a single file", async () => {
  const root = await folderOf("2.png", "10.png");
  const source = await openImages(root);
  assertEquals([namesOf(source), source.classes, labelsOf(source)], [["10.png", "2.png"], [], [0, 0]]);
  const single = await openImages(`${root}/2.png`);
  assertEquals([namesOf(single), single.classes], [["2.png"], []]);
  assertEquals(await single.bytes(0, 1), new Uint8Array([2, 2, 2]));
});

Deno.test("images next to class folders form a class of their own, and grid.png is skipped", async () => {
  const source = await openImages(await folderOf("cat/1.png", "2.png", "grid.png"));
  assertEquals([namesOf(source), source.classes, labelsOf(source)], [["2.png", "cat/1.png"], [".", "cat"], [
    0,
    1,
  ]]);
  assertEquals(namesOf(await openImages(await folderOf("grid.png"))), ["grid.png"]);
});

Deno.test("openImages() reports an empty folder, and one without usable files", async () => {
  await assertRejects(() => openImages("/nowhere"), UsageError, "it does not exist");
  const root = await Deno.makeTempDir();
  await assertRejects(
    () => openImages(root),
    UsageError,
    "in it or below it; choose another folder",
  );
  await Deno.mkdir(`${root}/folder.png`);
  await assertRejects(() => openImages(root), UsageError, "there is no image");
});

Deno.test("openImages() follows links except in a cycle, and skips broken ones", async () => {
  const root = await folderOf("cat/1.png");
  Deno.symlinkSync(root, `${root}/cat/again`);
  Deno.symlinkSync(`${root}/cat/1.png`, `${root}/cat/2.png`);
  Deno.symlinkSync(`${root}/nothing`, `${root}/cat/3.png`);
  Deno.symlinkSync(`${root}/cat/4.png`, `${root}/cat/4.png`);
  assertEquals(namesOf(await openImages(root)), ["cat/1.png", "cat/2.png"]);
});

Deno.test("skipped files of a folder are counted by reason, with the first names", async () => {
  const root = await folderOf("cat/1.png", "cat/2.jfif", "dog/3.JPEG", "dog/4.jpe", "grid.png");
  for (const n of [1, 2, 3, 4]) Deno.writeTextFileSync(`${root}/cat/${n}.heic`, "");
  Deno.writeTextFileSync(`${root}/cat/._1.png`, "");
  Deno.writeTextFileSync(`${root}/README`, "");
  Deno.symlinkSync("nothing", `${root}/dog/5.png`);
  await new Deno.Command("mkfifo", { args: [`${root}/dog/6.png`] }).output();
  const folder = await openImages(root);
  assertEquals(namesOf(folder), ["cat/1.png", "cat/2.jfif", "dog/3.JPEG", "dog/4.jpe"]);
  assertEquals(
    `${folder.leftOut}`,
    "4 .heic files (cat/1.heic, cat/2.heic, cat/3.heic, ...), 1 file without an extension (README), " +
      "1 link to nothing (dog/5.png), 1 hidden image (cat/._1.png), 1 overview that tok made (grid.png), " +
      "1 pipe, socket or device (dog/6.png)",
  );
  assertEquals(`${(await openImages(await folderOf("1.png"))).leftOut}`, "");
});

Deno.test("a class folder without images is an error that lists its contents", async () => {
  const root = await folderOf("a/1.png", "c/2.png");
  Deno.mkdirSync(`${root}/b`);
  await assertRejects(
    () => openImages(root),
    UsageError,
    `Cannot use "${root}": the class folder "b" has no image (`,
  );
  Deno.writeFileSync(`${root}/b/1.heic`, new TextEncoder().encode("\0\0\0 ftypheic"));
  Deno.mkdirSync(`${root}/d/e`, { recursive: true });
  await assertRejects(
    () => openImages(root),
    UsageError,
    '), and 1 more (d), but 1 .heic file (b/1.heic); "b/1.heic" is a HEIC image: convert it to PNG first, ' +
      "or remove the folder, or put its images there",
  );
});

Deno.test("a folder of archives is an error that names them and a remedy", async () => {
  const root = await Deno.makeTempDir();
  Deno.mkdirSync(`${root}/data`);
  Deno.writeFileSync(`${root}/data/train.zip`, new TextEncoder().encode("PK\x03\x04 and so on"));
  await assertRejects(
    () => openImages(root),
    UsageError,
    'in it or below it, but 1 .zip file (data/train.zip); "data/train.zip" is a zip archive: ' +
      "unpack it into a folder of images, one folder for each class",
  );
});

Deno.test("a file whose name is not UTF-8 is skipped with that reason, such a folder is an error", async () => {
  const root = await folderOf("a/1.png", "b/2.png");
  const make = (command: string) =>
    new Deno.Command("sh", { args: ["-c", `cd "$1" && ${command}`, "sh", root] }).output();
  await make("cp a/1.png \"$(printf 'a/\\351.png')\"");
  const folder = await openImages(root);
  assertEquals(
    [folder.length, `${folder.leftOut}`],
    [2, "1 file whose name is not UTF-8 (rename it) (a/\ufffd.png)"],
  );
  await make("mkdir \"$(printf '\\351')\"");
  await assertRejects(
    () => openImages(root),
    UsageError,
    "is not UTF-8, so that it cannot be opened; rename it",
  );
});

Deno.test("folders that link to each other are read once, under their real path", async () => {
  const names = Array.from({ length: 9 }, (_, i) => `${i}`);
  const root = await folderOf(...names.map((i) => `x/${i}/${i}.png`));
  for (const i of names) for (const j of names) Deno.symlinkSync(`../${j}`, `${root}/x/${i}/a${j}`);
  const folder = await openImages(root);
  assertEquals(namesOf(folder), names.map((i) => `x/${i}/${i}.png`));
  assert(
    `${folder.leftOut}`.startsWith("81 links to folders that are read already (x/0/a0, "),
    `${folder.leftOut}`,
  );

  const linked = await folderOf("b/1.png");
  Deno.symlinkSync("b", `${linked}/a`);
  await assertRejects(() => openImages(linked), UsageError, 'the class folder "a" has no image');
  Deno.removeSync(`${linked}/a`);
  Deno.symlinkSync(root, `${linked}/a`);
  assertEquals((await openImages(linked)).classes, ["a", "b"]);
});

Deno.test("only regular files, and links to them, are images", async () => {
  const root = await folderOf("1.png");
  await new Deno.Command("mkfifo", { args: [`${root}/2.png`] }).output();
  Deno.symlinkSync("/dev/zero", `${root}/3.png`);
  assertEquals((await openImages(root)).length, 1);
  await assertRejects(() => openImages(`${root}/2.png`), UsageError, "it is a named pipe (FIFO)");
  await assertRejects(() => openImages(`${root}/3.png`), UsageError, "it is a device");
  const folder = await openImages(root);
  Deno.removeSync(`${root}/1.png`); // and then something else takes its name
  await new Deno.Command("mkfifo", { args: [`${root}/1.png`] }).output();
  await assertRejects(() => folder.bytes(0, 2), UsageError, "it is a named pipe (FIFO)");
});

Deno.test("a folder returns images as bytes of the requested size", async () => {
  const source = await openImages(await folderOf("255.png"));
  assertEquals(await source.bytes(0, 8), new Uint8Array(8 * 8 * 3).fill(255));
  const fixture = await openImages(new URL("../fixtures/images/rgb.png", import.meta.url).pathname);
  assertEquals((await fixture.bytes(0, 16)).length, 16 * 16 * 3);
});

Deno.test("a damaged image is an error in a small set, else replaced by another image of its class", async () => {
  const root = await folderOf("a/1.png", "a/2.png", "b/3.png", "b/4.png");
  Deno.writeTextFileSync(`${root}/a/2.png`, "");
  const load = async (badImage?: BadImage) => {
    const told: string[] = [];
    const source = await openImages(root, { badImage, onBad: (message) => told.push(message) });
    const [pixel] = await source.bytes(1, 1);
    await source.bytes(1, 1);
    return { pixel, told, bad: [...source.bad] };
  };
  await assertRejects(() => load(), UsageError, "the file is empty");
  const { pixel, told, bad } = await load("skip");
  assertEquals(pixel, 1); // a/1.png, not the next in the list
  assertEquals([told.length, bad], [1, ["a/2.png"]]);
  assertStringIncludes(told[0] ?? "", "the file is empty; another image of its class stands in for it");
  Deno.writeTextFileSync(`${root}/a/1.png`, "no image");
  await assertRejects(() => load("skip"), UsageError, 'no image of the class "a" can be decoded');
});

Deno.test("fingerprint() changes with names and sizes only", async () => {
  const root = await folderOf("1.png", "2.png");
  const print = async () => (await openImages(root)).fingerprint();
  const first = await print();
  assertEquals(await print(), first);
  Deno.renameSync(`${root}/1.png`, `${root}/3.png`);
  const renamed = await print();
  assertNotEquals(renamed, first);
  Deno.writeTextFileSync(`${root}/2.png`, "x");
  assertNotEquals(await print(), renamed);
});

// Batches

/** Image i has the bytes i and i + 100 in its columns. */
const numbers: ImageSource = {
  length: 10,
  classes: ["even", "odd"],
  label: (i) => i % 2,
  name: (i) => `${i}`,
  bytes: (i) => Uint8Array.from({ length: 12 }, (_, k) => i + (k % 6 < 3 ? 0 : 100)),
};

async function take(count: number, step: number, seed: number, flip = false) {
  const taken = [];
  for await (const batch of batches(numbers, { batchSize: 4, imageSize: 2, seed, step, flip })) {
    taken.push(batch);
    if (taken.length === count) break;
  }
  return taken;
}

Deno.test("batches() gives a resumed run the batches of the uninterrupted run", async () => {
  const uninterrupted = await take(9, 0, 5, true);
  for (const step of [1, 2, 3, 7]) {
    assertEquals(await take(2, step, 5, true), uninterrupted.slice(step, step + 2));
  }
  assertNotEquals(await take(9, 0, 6, true), uninterrupted);
});

Deno.test("batches() shows every image once in each epoch, in another order, with its label", async () => {
  const taken = await take(5, 0, 1),
    numbersOf = ({ images }: typeof taken[number]) => [0, 4, 8, 12].map((k) => (images[k] ?? NaN) & 255);
  const indices = taken.flatMap(numbersOf);
  const epochs = [indices.slice(0, 10), indices.slice(10, 20)];
  for (const epoch of epochs) assertEquals(epoch.toSorted((a, b) => a - b), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  assertNotEquals(epochs[0], epochs[1]);
  for (const batch of taken) assertEquals([...batch.labels], numbersOf(batch).map((i) => i % 2));
});

Deno.test("batches() mirrors about half of the images with flip", async () => {
  let mirrored = 0;
  for (const { flips } of await take(50, 0, 3, true)) {
    assertEquals(flips?.length, 4);
    for (const flip of flips ?? []) mirrored += flip;
  }
  assert(mirrored > 70 && mirrored < 130, `${mirrored} of 200`);
});

Deno.test("batches() throws an image's error at its step", async () => {
  const broken = { ...numbers, bytes: () => Promise.reject(new UsageError("broken")) };
  await assertRejects(
    async () => await batches(broken, { batchSize: 2, imageSize: 2, seed: 0 }).next(),
    UsageError,
    "broken",
  );
});

// Latents

Deno.test("latents are read from their shards in order, with the statistics of all", async () => {
  const folder = `${await Deno.makeTempDir()}/latents`;
  const writer = new LatentsWriter(folder, [2, 1, 2], 3);
  const values = Float32Array.from({ length: 7 * 4 }, (_, i) => Math.sin(i) * 3 + i / 7);
  const flipped = values.map((v) => -v);
  await writer.add(values.subarray(0, 8), flipped.subarray(0, 8), [0, 1]);
  await writer.add(values.subarray(8), flipped.subarray(8), [2, 3, 4, 5, 6]);
  await assertRejects(() => openLatents(folder), UsageError, 'there is no "latents_stats.safetensors"');
  await writer.close();
  assertEquals([...Deno.readDirSync(folder)].map(({ name }) => name).sort(), [
    "latents_00000.safetensors",
    "latents_00001.safetensors",
    "latents_00002.safetensors",
    "latents_stats.safetensors",
  ]);
  const shard = await openSafetensors(`${folder}/latents_00002.safetensors`);
  assertEquals([...shard.shapes], [["labels", [1]], ["latents", [1, 2, 1, 2]], ["latents_flip", [
    1,
    2,
    1,
    2,
  ]]]);
  assertEquals(shard.tensors.get("labels")?.dtype, "I64");
  shard.close();

  const latents = await openLatents(folder);
  assertEquals([latents.length, latents.shape, [...latents.labels]], [7, [2, 1, 2], [0, 1, 2, 3, 4, 5, 6]]);
  for (const i of [6, 0, 3, 2, 5]) {
    assertEquals(await latents.latent(i), values.slice(4 * i, 4 * i + 4));
    assertEquals(await latents.latent(i, true), flipped.slice(4 * i, 4 * i + 4));
  }
  await assertRejects(() => latents.latent(7), RangeError);
  for (const c of [0, 1]) {
    const channel = [...values].filter((_, i) => Math.floor(i / 2) % 2 === c);
    const mean = channel.reduce((a, b) => a + b) / 14;
    const variance = channel.reduce((sum, v) => sum + (v - mean) ** 2, 0) / 13;
    assertAlmostEquals(latents.mean[c] ?? NaN, mean, 1e-6);
    assertAlmostEquals(latents.std[c] ?? NaN, Math.sqrt(variance), 1e-6);
  }
  latents.close();
});

Deno.test("LatentsWriter removes the files of an interrupted run, and refuses finished latents and wrong sizes", async () => {
  const folder = await Deno.makeTempDir();
  const value = new Float32Array(2);
  const interrupted = new LatentsWriter(folder, [2, 1, 1], 1);
  for (const label of [0, 1]) await interrupted.add(value, value, [label]);
  const writer = new LatentsWriter(folder, [2, 1, 1], 1);
  await assertRejects(() => writer.close(), UsageError, "there are none");
  await assertRejects(
    () => writer.add(value, value, [1, 2]),
    ShapeError,
    "2 labels, and 2 and 2 elements of [2,1,1]",
  );
  await writer.add(Float32Array.of(0, 0, 1, 2), new Float32Array(4), [9, 9]);
  await writer.close();
  const latents = await openLatents(folder);
  assertEquals([...latents.labels], [9, 9]);
  latents.close();
  assertThrows(() => new LatentsWriter(folder, [2, 1, 1]), UsageError, "it holds latents already");
});

Deno.test("openLatents() refuses shards that do not fit together", async () => {
  const folder = await Deno.makeTempDir();
  for (const [n, shape] of ([[2, 1, 1], [1, 2, 1]] as [number, number, number][]).entries()) {
    const writer = new LatentsWriter(`${folder}/${n}`, shape);
    await writer.add(new Float32Array(2), new Float32Array(2), [n]);
    await writer.close();
  }
  Deno.copyFileSync(`${folder}/1/latents_00000.safetensors`, `${folder}/0/latents_00001.safetensors`);
  await assertRejects(
    () => openLatents(`${folder}/0`),
    UsageError,
    'the shapes in "latents_00001.safetensors" do not fit',
  );
  Deno.copyFileSync(`${folder}/1/latents_stats.safetensors`, `${folder}/0/latents_stats.safetensors`);
  Deno.removeSync(`${folder}/0/latents_00001.safetensors`);
  await assertRejects(() => openLatents(`${folder}/0`), UsageError, "is for 1 channels, the latents have 2");
});
