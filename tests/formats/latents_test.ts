// Folders of latents: interrupted encodings resume to the same bytes; incomplete and mixed folders are refused.

import { assertEquals, assertNotEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { Interrupted, UsageError } from "../../src/errors.ts";
import { LatentsWriter, openLatents } from "../../src/formats/latents.ts";
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
