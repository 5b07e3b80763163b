// train-dit --online: the step encodes the images that the batches of (seed, step) name, with fresh crops and flips; statistics are
// measured once; a run resumes to the same bits.

import { assert, assertEquals, assertNotEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { type TrainDitConfig, trainDitConfig } from "../../src/cli/config.ts";
import { batches } from "../../src/data/batches.ts";
import { openImages } from "../../src/data/open_images.ts";
import { UsageError } from "../../src/errors.ts";
import { readStatistics } from "../../src/formats/latents.ts";
import type { Provenance } from "../../src/formats/provenance.ts";
import { openCheckpoint } from "../../src/run/checkpoint.ts";
import { measureStatistics } from "../../src/train/encode_latents.ts";
import { capture } from "../../src/gpu/program.ts";
import { pixels } from "../../src/ops/pixels.ts";
import { noGrad } from "../../src/tensor/autograd.ts";
import { diffusionRecipe, ditOf, repaOf } from "../../src/train/dit_training.ts";
import { EncodedImages, type LatentBatch, StoredLatents } from "../../src/train/latent_source.ts";
import type { RepaBatch } from "../../src/train/repa.ts";
import { openEncoder } from "../../src/zoo/encoders.ts";
import { state } from "../../src/nn/layers.ts";
import { openTokenizer } from "../../src/zoo/runs.ts";
import { randomArray, testDevice } from "../helpers/check.ts";
import { changed, ENCODES, inFolder, quietLog, run } from "../helpers/commands.ts";
import { exists, makeFolder } from "../../src/formats/files.ts";
import { writePng } from "../../src/image/image.ts";
import { fixturePath } from "../helpers/published.ts";

const VAE = fixturePath("vavae_tiny.pt");

/** `n` images of 20 x 12 pixels, of which a square is a crop. */
async function writeWide(folder: string, n: number): Promise<void> {
  makeFolder(folder);
  for (let i = 0; i < n; i++) {
    const data = Uint8Array.from(randomArray(20 * 12 * 3, i + 1), (v) => 128 + 80 * v);
    await writePng(join(folder, `${i}.png`), { width: 20, height: 12, data });
  }
}

Deno.test("the latents of a step are those of its images as its crops and flips make them", async () => {
  await testDevice();
  await inFolder(async (folder) => {
    await writeWide(folder, 5);
    const tokenizer = await openTokenizer(VAE), images = await openImages(folder, {});
    const options = { size: 8, seed: 3, flip: true, crop: "random" } as const, B = 4;
    const source = new EncodedImages(tokenizer, images, options);
    const program = await capture(
      "latents",
      source.inputs(B),
      (x) => noGrad(() => ({ z: source.latents(x) })),
    )
      .prepare();
    const encode = await capture(
      "encode",
      source.inputs(B),
      ({ images }) => noGrad(() => ({ z: tokenizer.encode(pixels(images!)) })),
    ).prepare();
    let n = 0, flipped = 0;
    const seen = new Set<string>();
    const expected = batches(images, {
      batchSize: B,
      imageSize: 8,
      seed: 3,
      step: 2,
      end: 4,
      flip: true,
      crop: "random",
    });
    for await (const { labels, ...data } of source.batches(B, 2, 4)) {
      program.run(data);
      const z = await program.read(program.outputs.z);
      const { value } = await expected.next(), mirrored = (value as { images: Uint32Array }).images.slice();
      const bytes = new Uint8Array(mirrored.buffer), flips = (value as { flips: Float32Array }).flips;
      flips.forEach((flip, i) => {
        if (!flip) return;
        flipped++;
        for (let y = 0; y < 8; y++) {
          const row = bytes.subarray((i * 8 + y) * 24, (i * 8 + y + 1) * 24), was = row.slice();
          for (let x = 0; x < 24; x++) row[x] = was[21 - 3 * Math.floor(x / 3) + x % 3] as number;
        }
      });
      encode.run({ images: mirrored });
      const want = await encode.read(encode.outputs.z);
      assertEquals(z, want);
      assertEquals(labels.length, B);
      seen.add(String(z.subarray(0, 4)));
      n++;
    }
    assertEquals([n, seen.size], [2, 2]);
    assert(flipped > 0 && flipped < 8, `${flipped} of 8 are mirrored`);
    // Statistics over 40 images, 32 at a time, in f64.
    await source.measureStatistics(40);
    const all: number[][] = Array.from({ length: tokenizer.channels }, () => []);
    let count = 0;
    for await (const { labels: _, ...data } of source.batches(32, 0, 2)) {
      for (let at = 0; at < 32 && count < 40; at += B) {
        const part = (x: Uint32Array | Float32Array) => x.slice(at * x.length / 32, (at + B) * x.length / 32);
        program.run({ images: part(data.images as Uint32Array), flips: part(data.flips as Float32Array) });
        (await program.read(program.outputs.z)).forEach((v, i) => all[i % tokenizer.channels]?.push(v));
        count += B;
      }
    }
    assertEquals(count, 40);
    all.forEach((values, c) => {
      const mean = values.reduce((a, b) => a + b) / values.length;
      const variance = values.reduce((a, b) => a + (b - mean) ** 2, 0) / (values.length - 1);
      const scale = Math.sqrt(variance);
      assert(Math.abs((source.mean[c] as number) - mean) < 1e-5 * scale, `mean of ${c}`);
      assert(Math.abs((source.std[c] as number) / scale - 1) < 1e-4, `deviation of ${c}`);
    });
    program.destroy();
    encode.destroy();
  });
});

Deno.test("an online training has the losses of one on cached latents where neither crops nor flips, and resumes to the same bits", async () => {
  await inFolder(async (folder) => {
    const at = (...names: string[]) => join(folder, ...names);
    await writeWide(at("data"), 5);
    const common = [
      "--image-size",
      "8",
      "--batch-size",
      "4",
      "--log-every",
      "1",
      "--workers",
      "0",
    ];
    const trainOn = (tokenizer: string, out: string, ...args: string[]) =>
      run(
        "train-dit",
        ...common,
        "--data",
        at("data"),
        "--steps",
        "3",
        "--out",
        at(out),
        "--tokenizer",
        tokenizer,
        ...args,
      );
    const train = (out: string, ...args: string[]) => trainOn(VAE, out, ...args);
    const model = (name: string) => Deno.readFileSync(at(name, "model/model.safetensors"));
    const online = ["--online", "--crop", "random", "--flip", "--stat-images", "5", "--save-every", "2"];
    await train("whole", ...online);
    const whole = model("whole"), statistics = await readStatistics(at("whole"));
    assertEquals(statistics?.count, 5);
    assertEquals(statistics?.record?.made_from.crop, "random");
    const config = JSON.parse(Deno.readTextFileSync(at("whole/model/config.json")));
    assertEquals(config.latent_mean, [...statistics?.mean ?? []]);
    const checkpoint = await openCheckpoint(at("whole/checkpoints/step_00000002.safetensors"));
    checkpoint.file.close();
    Deno.removeSync(at("whole/checkpoints/step_00000003.safetensors"));
    // The checkpoint has the statistics: those of the folder may be missing, and other options do not replace them.
    const stats = at("whole/latents_stats.safetensors"), bytes = Deno.readFileSync(stats);
    const fewer = online.map((arg) => arg === "5" ? "4" : arg);
    await assertRejects(
      () => train("whole", ...fewer, "--resume"),
      UsageError,
      "--stat-images was 5 and is 4",
    );
    assertEquals(Deno.readFileSync(stats), bytes);
    Deno.removeSync(stats);
    await train("whole", ...online, "--resume");
    assertEquals(model("whole"), whole);
    assertEquals(Deno.readFileSync(stats), bytes);
    assertEquals(config.made_from.latents["statistics of latents"].name, "over 5 images");
    const source = new EncodedImages(await openTokenizer(VAE), await openImages(at("data")), {
      ...{ size: 8, seed: 0, flip: true, crop: "random" as const },
    });
    await source.measureStatistics(5);
    assertEquals([statistics?.mean, statistics?.std], [source.mean, source.std], "--crop and --flip count");

    const resumed = { ...checkpoint, elsewhere: true }, out = at("new");
    const measure = async (from: typeof resumed) => {
      const images = await openImages(at("data")), tokenizer = await openTokenizer(VAE);
      const options = { size: 8, crop: "center", flip: false, statImages: 3 } as const;
      const other = new EncodedImages(tokenizer, images, { ...options, seed: 1 });
      return await measureStatistics(out, other, tokenizer, images, options, quietLog().log, from);
    };
    const { mean, std, count } = (await measure(resumed)).statistics;
    assertEquals([mean, std, count], [config.latent_mean, config.latent_std, 5], "in another folder, too");
    const record = resumed.config as { made_from: Provenance };
    const made_from = { ...record.made_from, tokenizer: { name: "other", fingerprint: "1" } };
    const anew = await measure({ ...resumed, config: { ...record, made_from } });
    assertEquals(anew.statistics.count, 3, "of another tokenizer");
    assertNotEquals(anew.statistics.mean, mean);
    assert(!exists(out), "nothing is written before the checks");

    // Neither crops nor flips: the latents, statistics and losses of a cached training.
    const losses = (out: string) =>
      Deno.readTextFileSync(at(out, "log.jsonl")).trim().split("\n").map((line) => JSON.parse(line))
        .filter(({ event }) => event === "step").map(({ loss }) => loss as number);
    await train("cached");
    await train("online", "--online");
    const [a, b] = [losses("cached"), losses("online")];
    assertNotEquals(model("online"), whole);
    assertEquals([a.length, b.length], [3, 3]);
    a.forEach((loss, n) =>
      assert(Math.abs(loss / (b[n] as number) - 1) < 1e-4, `step ${n}: ${loss}, ${b[n]}`)
    );

    const other = await changed(at("other.safetensors"), ENCODES);
    const error = await assertRejects(
      () => trainOn(other, "whole", ...online, "--resume"),
      UsageError,
      `Cannot train on the statistics "${
        at("whole/latents_stats.safetensors")
      }": the tokenizer was "${VAE}" (`,
    );
    assert(error.message.includes(other));
  });
});

Deno.test("a plan of an online training counts the tokenizer's weights and activations", async () => {
  await testDevice();
  const tokenizer = await openTokenizer(VAE), c = trainDitConfig.parse({ batchSize: 2 });
  const side = tokenizer.side(8), shape = [tokenizer.channels, side, side] as const;
  const plan = (source: StoredLatents | EncodedImages) =>
    diffusionRecipe(c, ditOf(c, shape, 2), source).plan();
  const stored = plan(new StoredLatents(shape, undefined, c));
  const online = plan(new EncodedImages(tokenizer, undefined, { ...c, size: 8 }));
  const encoder = [...state(tokenizer)].filter(([key]) => key.startsWith("encoder."));
  const weights = encoder.reduce((sum, [, { size }]) => sum + 4 * size, 0);
  const more = online.bytes.parameters + online.bytes.state - stored.bytes.parameters - stored.bytes.state;
  assert(weights > 0 && more >= weights, `${more} bytes, the encoder has ${weights}`);
  assert(online.flops > stored.flops);
  assert(online.totalBytes > stored.totalBytes + more / 2);
});

Deno.test("REPA sees the images of the latents: the crops and flips of the step, or the crop of the encoded ones", async () => {
  await testDevice();
  await inFolder(async (folder) => {
    await writeWide(folder, 3);
    const images = await openImages(folder),
      tokenizer = await openTokenizer(VAE),
      encoder = await openEncoder();
    const step = async (options: Partial<TrainDitConfig>) => {
      const c = trainDitConfig.parse({ repa: "embedded", repaHidden: 8, batchSize: 2, ...options });
      const dit = ditOf(c, [tokenizer.channels, tokenizer.side(8)], 1),
        repa = repaOf(c, dit.config, encoder, images, 8);
      const source = new EncodedImages(tokenizer, images, { ...c, size: 8 });
      const recipe = diffusionRecipe(c, dit, source, undefined, repa);
      const { value } = await recipe.data(1, 2).next(), own = (await source.batches(2, 1, 2).next()).value;
      const again = (await repa?.batches(2, 1, 2).next())?.value as RepaBatch;
      recipe.destroy();
      return { value: value as LatentBatch, own: own as LatentBatch, again };
    };
    const random = await step({ online: true, crop: "random", flip: true });
    assertEquals(random.value, random.own);
    const resized = await step({ crop: "resize", flip: true }), center = await step({ flip: true });
    assertEquals([resized.again.images, resized.again.flips], [resized.own.images, resized.own.flips]);
    assertNotEquals(resized.again.images, center.again.images);
  });
});

Deno.test("options of images without effect are refused", async () => {
  const cases = [
    [
      ["--crop", "random", "--data", "x"],
      "Cannot use --crop random: images are encoded once, with one crop; add --online",
    ],
    [["--crop", "adm", "--latents", "x"], "Cannot use --crop: --latents are encoded already"],
    [["--online", "--latents", "x"], "Cannot use --online: --latents are encoded already"],
    [
      ["--stat-images", "9"],
      "Cannot use --stat-images: it needs --online; add it, or leave --stat-images out",
    ],
  ] as const;
  for (const [args, message] of cases) {
    await assertRejects(() => run("train-dit", ...args, "--dry-run"), UsageError, message);
  }
  await assertRejects(
    () => run("train-dit", "--online", "--crop", "adm"),
    UsageError,
    "Cannot use --crop: generated shapes are squares already",
  );
});
