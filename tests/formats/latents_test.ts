// Folders of latents: interrupted encodings resume to the same bytes; incomplete and mixed folders are refused.

import { assert, assertEquals, assertNotEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { Interrupted, UsageError } from "../../src/errors.ts";
import { LatentsWriter, openLatents } from "../../src/formats/latents.ts";
import { openSafetensors, writeSafetensors } from "../../src/formats/safetensors.ts";
import { openModel } from "../../src/formats/shards.ts";
import { writePng } from "../../src/image/image.ts";
import { openImages } from "../../src/data/open_images.ts";
import { Shapes } from "../../src/data/toy_shapes.ts";
import type { ImageSource } from "../../src/data/image_source.ts";
import { openTokenizer } from "../../src/zoo/runs.ts";
import { encodeTo } from "../../src/train/encode_latents.ts";
import { testDevice } from "../helpers/check.ts";
import { changed, DECODES, ENCODES, inFolder, run } from "../helpers/commands.ts";
import { fixturePath } from "../helpers/published.ts";

const files = (folder: string) =>
  [...Deno.readDirSync(folder)].map(({ name }) => name).sort()
    .map((name) => [name, Deno.readFileSync(join(folder, name))] as const);

Deno.test("an encoding that is stopped or killed resumes to the bytes of an uninterrupted one", async () => {
  await testDevice();
  await inFolder(async (folder) => {
    const tokenizer = await openTokenizer(fixturePath("vavae_tiny.pt")), shapes = new Shapes(23, 7);
    let images = 0;
    const source: ImageSource = {
      length: shapes.length,
      classes: shapes.classes,
      identity: () => shapes.identity(),
      label: (i) => shapes.label(i),
      name: (i) => shapes.name(i),
      bytes: (i, size) => (images++, shapes.bytes(i, size)),
    };
    const options = { size: 8, batchSize: 5, mirrored: true, perShard: 6 };
    const whole = join(folder, "whole");
    await encodeTo(whole, tokenizer, source, options);
    const all = images;
    for (const [name, end] of [["stopped", "stop"], ["killed", "kill"]] as const) {
      for (const batches of [1, 3]) {
        const out = join(folder, `${name}${batches}`);
        let left = batches;
        const partly = {
          ...options,
          onProgress: () => {
            if (--left === 0) throw end === "kill" ? new Error("killed") : new Interrupted();
          },
        };
        const message = end === "kill" ? "killed" : "stopped";
        await assertRejects(() => encodeTo(out, tokenizer, source, partly), Error, message);
        await assertRejects(() => openLatents(out), UsageError, "latents_stats.safetensors");
        images = 0;
        await encodeTo(out, tokenizer, source, options);
        // What is in full shards after a kill, and everything after a stop, is not encoded again.
        const saved = end === "stop" ? 5 * batches : 6 * Math.floor(5 * batches / 6);
        assertEquals(images, all - 5 * Math.floor(saved / 5), `${name} after ${batches} batches`);
        assertEquals(files(out), files(whole), `${name} after ${batches} batches`);
      }
    }
    // All shards, but no statistics yet.
    Deno.removeSync(join(whole, "latents_stats.safetensors"));
    await encodeTo(whole, tokenizer, source, options);
    assertEquals(files(whole), files(join(folder, "stopped1")));
  });
});

Deno.test("the mirrored latents of an encoding are the latents of the mirrored images", async () => {
  await testDevice();
  await inFolder(async (folder) => {
    const tokenizer = await openTokenizer(fixturePath("vavae_tiny.pt")), shapes = new Shapes(6, 7), size = 16;
    const mirrored: ImageSource = {
      length: shapes.length,
      classes: shapes.classes,
      label: (i) => shapes.label(i),
      name: (i) => shapes.name(i),
      bytes: (i, size) => {
        const image = shapes.bytes(i, size), row = 3 * size;
        return image.map((_, k) => image[k - k % row + row - 3 - (k % row - k % 3) + k % 3] as number);
      },
    };
    const options = { size, batchSize: 4, mirrored: true };
    const latentsOf = async (name: string, source: ImageSource) => {
      await encodeTo(join(folder, name), tokenizer, source, options);
      const latents = await openLatents(join(folder, name));
      const read = (flip: boolean) =>
        Promise.all(Array.from({ length: shapes.length }, (_, i) => latents.latent(i, flip)));
      const [plain, flipped] = [await read(false), await read(true)];
      latents.close();
      return { plain, flipped };
    };
    const [a, b] = [await latentsOf("a", shapes), await latentsOf("b", mirrored)];
    assertEquals(a.flipped, b.plain);
    assertEquals(a.plain, b.flipped);
    assertNotEquals(a.plain, a.flipped);
  });
});

Deno.test("unfinished latents of another tokenizer, other images or other settings are refused with both names", async () => {
  await testDevice();
  await inFolder(async (folder) => {
    const a = await openTokenizer(fixturePath("vavae_tiny.pt"));
    const b = await openTokenizer(await changed(join(folder, "b.safetensors"), ENCODES));
    const decoder = await openTokenizer(await changed(join(folder, "d.safetensors"), DECODES));
    const out = join(folder, "latents"), options = { size: 8, batchSize: 5, mirrored: true };
    const onProgress = () => {
      throw new Interrupted();
    };
    await assertRejects(() => encodeTo(out, a, new Shapes(20, 1), { ...options, onProgress }), Interrupted);
    const before = files(out);
    const cases = [
      [b, new Shapes(20, 1), options, `the tokenizer was "${a.identity.name}" (`],
      [b, new Shapes(20, 1), options, `and is "${b.identity.name}" (`],
      [a, new Shapes(30, 1), options, "20 generated shapes of seed 1"],
      [a, new Shapes(20, 2), options, "20 generated shapes of seed 2"],
      [a, new Shapes(20, 1), { ...options, size: 16 }, "the image size was 8 and is 16"],
      [a, new Shapes(20, 1), { ...options, mirrored: false }, "the flip was true and is false"],
    ] as const;
    for (const [tokenizer, source, settings, part] of cases) {
      await assertRejects(() => encodeTo(out, tokenizer, source, settings), UsageError, part);
      assertEquals(files(out), before);
    }
    await encodeTo(out, decoder, new Shapes(20, 1), options);
    assertEquals((await openLatents(out)).length, 20);
  });
});

Deno.test("latents with LightningDiT's file names are read, which train-dit reports once", async () => {
  await inFolder(async (folder) => {
    const latents = join(folder, "latents"), writer = new LatentsWriter(latents, [8, 4, 4], 2);
    const values = (n: number) => Float32Array.from({ length: n * 128 }, (_, i) => Math.sin(i));
    await writer.add(values(3), values(3), [4, 0, 9]);
    await writer.close();
    for (const n of [0, 1]) {
      Deno.renameSync(
        `${latents}/latents_0000${n}.safetensors`,
        `${latents}/latents_rank0${n}_shard000.safetensors`,
      );
    }
    const opened = await openLatents(latents);
    assertEquals([...opened.labels], [4, 0, 9]);
    assertEquals(await opened.latent(2), values(3).slice(256));
    opened.close();
    const vae = fixturePath("vavae_tiny.pt");
    const { lines } = await run("train-dit", "--tokenizer", vae, "--latents", latents, "--dry-run");
    assertEquals(lines.filter((line) => line.includes(`"${latents}" does not name the tokenizer`)).length, 1);
  });
});

Deno.test("latents with a missing shard, a missing class or a shard of another folder are refused", async () => {
  await inFolder(async (folder) => {
    const value = Float32Array.of(1, 2);
    const make = async (name: string, labels: number[], print: string) => {
      const record = { made_from: { data: { name, fingerprint: print } }, classes: ["a", "b"] };
      const writer = await LatentsWriter.open(join(folder, name), [2, 1, 1], record, 1);
      for (const label of labels) await writer.add(value, value, [label]);
      await writer.close();
      return join(folder, name);
    };
    const one = await make("one", [0, 1], "11"), two = await make("two", [0, 1], "22");
    const shard = "latents_00001.safetensors";
    Deno.removeSync(join(one, shard));
    await assertRejects(() => openLatents(one), UsageError, "its shards hold 1 latents of 2");
    Deno.copyFileSync(join(two, shard), join(one, shard));
    await assertRejects(() => openLatents(one), UsageError, 'the data was "one" (11) and is "two" (22)');
    const three = await make("three", [0, 2], "33");
    await assertRejects(
      () => openLatents(three),
      UsageError,
      "latent 1 has the label 2, which is not a class",
    );
  });
});

/** Pixels of an 8 x 8 image in a file of the same name and size, whatever they are: BMP has a fixed length. */
function bmp(value: number): Uint8Array {
  const bytes = new Uint8Array(54 + 8 * 8 * 3).fill(value), view = new DataView(bytes.buffer);
  bytes.fill(0, 0, 54);
  bytes.set([0x42, 0x4d]);
  const fields = [[2, bytes.length], [10, 54], [14, 40], [18, 8], [22, 8]] as const;
  for (const [at, v] of fields) view.setUint32(at, v, true);
  view.setUint16(26, 1, true);
  view.setUint16(28, 24, true);
  return bytes;
}

Deno.test("latents of images that were overwritten, of a tokenizer retrained in place and of another crop are refused by name", async () => {
  await testDevice();
  await inFolder(async (folder) => {
    const at = (name: string) => join(folder, name), data = at("data"), vae = at("vae.safetensors");
    Deno.mkdirSync(data);
    for (let i = 0; i < 5; i++) Deno.writeFileSync(join(data, `${i}.bmp`), bmp(10 * i));
    await changed(vae);
    const common = ["--tokenizer", vae, "--image-size", "8", "--data", data, "--workers", "0"];
    const encode = (...args: string[]) => run("encode", ...common, "--out", at("latents"), ...args);
    const train = (...args: string[]) =>
      run("train-dit", ...common, "--out", at("run"), "--steps", "1", "--batch-size", "2", ...args);
    await encode();
    await train();
    assertEquals(
      (await encode()).lines.at(-1),
      `5 latents of these images are there already: ${at("latents")}`,
    );

    const refused = async (part: string) => {
      const encoded = await assertRejects(encode, UsageError, part);
      assert(encoded.message.startsWith("Cannot write latents to"), encoded.message);
      const trained = await assertRejects(() => train("--resume"), UsageError, part);
      assert(trained.message.startsWith("Cannot train on the latents"), trained.message);
    };
    await assertRejects(
      () => encode("--crop", "resize"),
      UsageError,
      'the crop was "center" and is "resize"',
    );
    await assertRejects(
      () => train("--crop", "resize", "--resume"),
      UsageError,
      '--crop was "center" and is "resize"',
    );
    Deno.writeFileSync(join(data, "3.bmp"), bmp(99)); // of the same size
    await refused(`the image content was "5 of ${data}" (`);
    Deno.writeFileSync(join(data, "3.bmp"), bmp(30));
    await changed(vae, ENCODES);
    await refused(`the tokenizer was "${vae}" (`);
    // The complete latents of before this check know no crop: it was the center.
    await changed(vae);
    const stats = join(at("latents"), "latents_stats.safetensors"), file = await openSafetensors(stats);
    const record = JSON.parse(file.metadata.get("tok_latents") as string);
    delete record.made_from.crop;
    delete record.made_from["image content"];
    const tensors = await Promise.all(["mean", "std"].map(async (name) => ({
      name,
      shape: file.shapes.get(name) as number[],
      data: await file.read(name),
    })));
    file.close();
    await writeSafetensors(stats, tensors, { tok_latents: JSON.stringify(record), tok_count: "5" });
    await encode();
    await assertRejects(() => encode("--crop", "adm"), UsageError, 'the crop was "center" and is "adm"');
  });
});

Deno.test("--crop of encode is the crop of its images", async () => {
  await testDevice();
  await inFolder(async (folder) => {
    const data = join(folder, "data");
    Deno.mkdirSync(data);
    const pixels = Uint8Array.from({ length: 33 * 20 * 3 }, (_, i) => i * i % 251);
    await writePng(join(data, "wide.png"), { width: 33, height: 20, data: pixels });
    const all = [];
    for (const crop of ["center", "adm", "resize"] as const) {
      const out = join(folder, crop),
        args = ["--data", data, "--image-size", "8", "--workers", "0", "--no-flip"];
      await run("encode", "--tokenizer", fixturePath("vavae_tiny.pt"), ...args, "--out", out, "--crop", crop);
      const latents = await openLatents(out), images = await openImages(data);
      all.push(await latents.latent(0));
      latents.close();
      // The latent of the crop that images.bytes() makes.
      const square = await images.bytes(0, 8, crop), expected = join(folder, `${crop} expected`);
      const shapes = new Shapes(1, 0);
      const source = { ...shapes, length: 1, classes: [], label: () => 0, name: String, bytes: () => square };
      await encodeTo(expected, await openTokenizer(fixturePath("vavae_tiny.pt")), source, {
        ...{ size: 8, batchSize: 1, mirrored: false },
      });
      const same = await openLatents(expected);
      assertEquals(await same.latent(0), all.at(-1), crop);
      same.close();
    }
    assertNotEquals(all[0], all[1]);
    assertNotEquals(all[0], all[2]);
  });
});

Deno.test("a folder as LightningDiT's tools write it is read as it is, statistics in a .pt included", async () => {
  await inFolder(async (folder) => {
    const latents = join(folder, "imagenet_train_256"), C = 8;
    Deno.mkdirSync(latents);
    Deno.copyFileSync(fixturePath("latents_stats.pt"), join(latents, "latents_stats.pt"));
    // Two processes; the second one has fewer images. Labels are int64, metadata is about the tensors.
    const values = (seed: number, n: number) =>
      Float32Array.from({ length: n * C * 4 }, (_, i) => Math.sin(seed + i));
    for (const [rank, labels] of [[0, [7, 999, 0]], [1, [3]]] as const) {
      const n = labels.length, shape = [n, C, 2, 2];
      await writeSafetensors(join(latents, `latents_rank0${rank}_shard000.safetensors`), [
        { name: "labels", shape: [n], data: BigInt64Array.from(labels, BigInt) },
        { name: "latents", shape, data: values(rank, n) },
        { name: "latents_flip", shape, data: values(rank + 10, n) },
      ], { total_size: `${n}`, dtype: "torch.float32", device: "cuda:0" });
    }
    const opened = await openLatents(latents), size = C * 4;
    assertEquals([opened.length, ...opened.labels], [4, 7, 999, 0, 3]);
    assertEquals([opened.shape, opened.record], [[C, 2, 2], undefined]);
    assertEquals(await opened.latent(1), values(0, 3).slice(size, 2 * size));
    assertEquals(await opened.latent(3, true), values(11, 1));
    const stats = await openModel(join(latents, "latents_stats.pt"));
    assertEquals([opened.mean, opened.std], [await stats.read("mean"), await stats.read("std")]);
    stats.close();
    opened.close();
  });
});
