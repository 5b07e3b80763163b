// Provenance: fingerprints, classes of latents, and models that identify their tokenizer. Commands run inside this process,
// on a tokenizer of a few thousand weights.

import { assert, assertEquals, assertMatch, assertNotEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { UsageError } from "../../src/errors.ts";
import { differences, fingerprintOf, WeightsFingerprint } from "../../src/formats/provenance.ts";
import { openModel } from "../../src/formats/shards.ts";
import { Shapes } from "../../src/data/toy_shapes.ts";
import { Initializer } from "../../src/nn/init.ts";
import { Dit, ditConfig } from "../../src/models/dit.ts";
import { Tokenizer, tokenizerConfig } from "../../src/models/tokenizer.ts";
import { architectureOf } from "../../src/models/vit_families.ts";
import { type ModelConfig, openTokenizer, saveDit, saveTokenizer } from "../../src/zoo/runs.ts";
import { openGenerator, placesOf } from "../../src/zoo/generator.ts";
import { encodeTo, latentsRecord } from "../../src/train/encode_latents.ts";
import { testDevice } from "../helpers/check.ts";
import { changed, DECODES, ENCODES, inFolder, run, writeImages } from "../helpers/commands.ts";
import { testInOwnProcess } from "../helpers/own_process.ts";
import { fixturePath, type Weights, write } from "../helpers/published.ts";

Deno.test("a fingerprint of weights depends on names, shapes and values, not on their order or file", async () => {
  const one = new WeightsFingerprint(), two = new WeightsFingerprint();
  one.add("a", [2], Float32Array.of(1, 2));
  one.add("b", [1], Float32Array.of(3));
  two.add("b", [1], Float32Array.of(3));
  two.add("a", [2], Float32Array.of(1, 2));
  assertEquals(one.value(), two.value());
  assertMatch(one.value(), /^[0-9a-f]{16}$/);
  const others = [
    [["a", [2], [1, 2.0000002]], ["b", [1], [3]]],
    [["a", [1, 2], [1, 2]], ["b", [1], [3]]],
    [["b", [2], [1, 2]], ["a", [1], [3]]],
    [["a", [2], [1, 2]]],
  ] as const;
  for (const tensors of others) {
    const other = new WeightsFingerprint();
    for (const [name, shape, data] of tensors) other.add(name, shape, Float32Array.from(data));
    assertNotEquals(other.value(), one.value(), JSON.stringify(tensors));
  }

  await testDevice();
  await inFolder(async (folder) => {
    const torch = (await openTokenizer(fixturePath("vavae_tiny.pt"))).identity;
    const same = await changed(join(folder, "same.safetensors"));
    assertEquals((await openTokenizer(same)).identity, { ...torch, name: same });
    const decoder = (await openTokenizer(await changed(join(folder, "d.safetensors"), DECODES))).identity;
    assertEquals(decoder.latents, torch.latents, "another decoder makes the same latents");
    assertNotEquals(decoder.fingerprint, torch.fingerprint);
    const encoder = (await openTokenizer(await changed(join(folder, "e.safetensors"), ENCODES))).identity;
    assertNotEquals(encoder.latents, torch.latents);
  });
});

Deno.test("differences() names both sides, and ignores names and entries of one side only", () => {
  const before = { tokenizer: { name: "a", fingerprint: "11" }, "image size": 32, flip: true };
  assertEquals(differences(before, { ...before, tokenizer: { name: "moved/a", fingerprint: "11" } }), []);
  assertEquals(differences(before, { tokenizer: { name: "a", fingerprint: "22" }, "image size": 64 }), [
    'the tokenizer was "a" (11) and is "a" (22)',
    "the image size was 32 and is 64",
  ]);
  assertNotEquals(fingerprintOf("a", "b"), fingerprintOf("ab"));
});

Deno.test("class names and labels are the same through encode and --latents as through --data", async () => {
  await inFolder(async (folder) => {
    const names = Array.from({ length: 12 }, (_, i) => String(i)), sorted = [...names].sort();
    for (const name of names) await writeImages(join(folder, "data", name), 1);
    const vae = fixturePath("vavae_tiny.pt"), latents = join(folder, "latents"), out = join(folder, "dit");
    const common = ["--tokenizer", vae, "--image-size", "8"];
    await run("encode", ...common, "--data", join(folder, "data"), "--out", latents);
    const train = ["--latents", latents, "--steps", "1", "--batch-size", "2", "--model", "tiny"];
    await run("train-dit", ...common, ...train, "--out", out);
    const sample = ["--model", out, "--classes", "2, 10", "--num", "2", "--steps", "1"];
    await run("sample", ...sample, "--out", join(folder, "samples"));
    const config = (path: string) => JSON.parse(Deno.readTextFileSync(join(folder, path, "config.json")));
    assertEquals(config("dit/model").classes, sorted);
    assertEquals(config("samples").imageClasses, [sorted.indexOf("2"), sorted.indexOf("10")]);
    assertEquals(config("samples").imageClasses, [4, 2]);
  });
});

Deno.test("train-dit refuses latents of another tokenizer, given or in its run, with both names", async () => {
  await testDevice();
  await inFolder(async (folder) => {
    const other = await changed(join(folder, "other.safetensors"), ENCODES);
    const vae = fixturePath("vavae_tiny.pt"), out = join(folder, "run"), latents = join(out, "latents");
    const options = { size: 8, batchSize: 5, mirrored: false };
    await encodeTo(latents, await openTokenizer(other), new Shapes(20, 1), options);
    const common = ["--tokenizer", vae, "--image-size", "8", "--out", out];
    for (
      const args of [
        ["--images", "20", "--resume"],
        ["--images", "20"],
        ["--latents", latents],
      ]
    ) {
      const error = await assertRejects(() => run("train-dit", ...common, ...args), UsageError);
      for (const name of [vae, other]) assert(error.message.includes(name), error.message);
      assertMatch(error.message, /^Cannot train on the latents .+ the tokenizer was .+ and is .+; .+$/);
    }
    // The same for what lies there half finished.
    Deno.removeSync(join(latents, "latents_stats.safetensors"));
    const half = () => run("train-dit", ...common, "--images", "20", "--resume");
    await assertRejects(half, UsageError, "Cannot go on with the unfinished latents");
    // Flipped copies that were never made.
    await encodeTo(latents, await openTokenizer(other), new Shapes(20, 1), options);
    const flip = () =>
      run("train-dit", "--tokenizer", other, "--latents", latents, "--flip", "--out", join(folder, "x"));
    await assertRejects(flip, UsageError, "the flip was false and is true");
    const two = () => run("train-dit", ...common, "--data", folder, "--latents", latents);
    await assertRejects(two, UsageError, "--data and --latents at once");
  });
});

/** An AlignTok tokenizer on a DINOv2 of one layer, with random weights. */
function smallTokenizer(): Tokenizer {
  const encoder = {
    hidden_size: 8,
    num_hidden_layers: 1,
    num_attention_heads: 2,
    image_size: 8,
    patch_size: 2,
  };
  const decoder = {
    ch: 4,
    ch_mult: [1, 1],
    num_res_blocks: 0,
    attn_resolutions: [],
    z_channels: 8,
    groups: 2,
  };
  const tokenizer = new Tokenizer(tokenizerConfig.parse({
    image_size: 8,
    encoder: architectureOf({ model_type: "dinov2", ...encoder }, "config.json"),
    image_mean: [0.5, 0.5, 0.5],
    image_std: [0.5, 0.5, 0.5],
    adapter_hidden: 8,
    decoder: { ...decoder, resolution: 8 },
  }));
  tokenizer.encoder.init(new Initializer(1));
  tokenizer.init(new Initializer(2));
  return tokenizer;
}

/** A diffusion model in RUN/model as train-dit leaves it, on latents of `tokenizer`. */
async function modelOf(run: string, tokenizer: string, change: (config: ModelConfig) => void = () => {}) {
  const opened = await openTokenizer(tokenizer);
  const dit = new Dit(ditConfig.parse({
    ...{ input_size: 4, in_channels: 8, hidden_size: 12, depth: 1, num_heads: 1, num_classes: 2 },
  }));
  dit.init(new Initializer(0));
  const latents = await latentsRecord(opened, new Shapes(20, 1), { size: 8, mirrored: false });
  const config: ModelConfig = {
    dit: dit.config,
    tokenizer,
    classes: ["a", "b"],
    latent_mean: Array(8).fill(0),
    latent_std: Array(8).fill(1),
    made_from: {
      tokenizer: { ...opened.identity, places: placesOf(tokenizer, join(run, "model")) },
      latents: latents.made_from,
    },
  };
  change(config);
  await saveDit(run, dit, config);
  return opened.identity;
}

testInOwnProcess(import.meta.url)(
  "a model finds its tokenizer by the fingerprint of its weights, in any folder and under any name",
  async () => {
    await testDevice();
    await inFolder(async (folder) => {
      const here = Deno.cwd();
      Deno.mkdirSync(join(folder, "one/runs"), { recursive: true });
      Deno.mkdirSync(join(folder, "two/runs"), { recursive: true });
      try {
        await changed(join(folder, "two/tokenizer.safetensors"), ENCODES);
        await changed(join(folder, "one/tokenizer.safetensors"), DECODES);
        Deno.chdir(join(folder, "one"));
        const identity = await modelOf("runs/dit", "tokenizer.safetensors");
        const opened = async (path: string, tokenizer?: string) => {
          const lines: string[] = [];
          const generator = await openGenerator(path, { tokenizer, say: (line) => lines.push(line) });
          return [generator.tokenizer.identity.fingerprint, lines.join()];
        };
        const right = (path: string) => [identity.fingerprint, `tokenizer: ${path}`];
        // From another folder, where something else has the tokenizer's name.
        Deno.chdir(join(folder, "two"));
        const first = join(folder, "one/tokenizer.safetensors");
        assertEquals(await opened("../one/runs/dit"), right(first));
        // The run is copied, then run and tokenizer are moved together.
        Deno.mkdirSync("runs/copy/model", { recursive: true });
        for (const name of ["config.json", "model.safetensors"]) {
          Deno.copyFileSync(`../one/runs/dit/model/${name}`, `runs/copy/model/${name}`);
        }
        assertEquals(await opened("runs/copy"), right(first));
        Deno.renameSync(join(folder, "one"), join(folder, "three"));
        Deno.chdir(join(folder, "three/runs"));
        assertEquals(await opened("dit"), right("../tokenizer.safetensors"));
        // Moved next to another tokenizer of that name: refused with both.
        Deno.chdir(folder);
        const alone = await assertRejects(() => opened("two/runs/copy"), UsageError);
        assertMatch(
          alone.message,
          new RegExp(
            `^Cannot find the tokenizer of "two/runs/copy": it was "tokenizer.safetensors" \\(${identity.fingerprint}\\), ` +
              `and "two/tokenizer.safetensors" is another one \\([0-9a-f]{16}\\); name it with --tokenizer$`,
          ),
        );
        Deno.renameSync("two/tokenizer.safetensors", "two/other.safetensors");
        await assertRejects(() => opened("two/runs/copy"), UsageError, 'and there is nothing at "');
        // A tokenizer of tok is found under another name next to the run.
        await saveTokenizer("two/runs/align", smallTokenizer());
        const own = await modelOf("two/runs/dit", "two/runs/align");
        Deno.renameSync("two/runs/align", "two/runs/photos");
        assertEquals(await opened("two/runs/dit"), [
          own.fingerprint,
          `tokenizer: ${join(Deno.cwd(), "two/runs/photos")}`,
        ]);
        // What is named must make the same latents; its decoder is its own affair, and said.
        const wrong = await assertRejects(() => opened("two/runs/copy", "two/other.safetensors"), UsageError);
        assertMatch(
          wrong.message,
          /the tokenizer was "tokenizer.safetensors" \(.+\) and is "two\/other.safetensors" \(.+\); leave/,
        );
        const decoder = fixturePath("vavae_tiny.pt");
        const [fingerprint, line] = await opened("two/runs/copy", decoder);
        assertNotEquals(fingerprint, identity.fingerprint);
        assertEquals(line, `tokenizer: ${decoder}, with another decoder than "tokenizer.safetensors"`);
      } finally {
        Deno.chdir(here);
      }
    });
  },
);

Deno.test("a model of tok 0.2.0 uses the tokenizer at its path, and reports it", async () => {
  await testDevice();
  await inFolder(async (folder) => {
    const vae = fixturePath("vavae_tiny.pt"), model = join(folder, "dit");
    await modelOf(model, vae, (config) => delete config.made_from);
    const lines: string[] = [];
    await openGenerator(model, { say: (line) => lines.push(line) });
    assertEquals(lines.length, 1);
    assertMatch(
      lines[0] as string,
      /^tokenizer: .+vavae_tiny.pt, as seen from this folder: .+ \(tok 0\.2\.0\)$/,
    );
    for (const name of ["../nowhere", "align-001"]) {
      await modelOf(model, vae, (config) => {
        delete config.made_from;
        config.tokenizer = name;
      });
      await assertRejects(
        () => openGenerator(model),
        UsageError,
        `the model only says "${name}" (tok 0.2.0)`,
      );
    }
  });
});

Deno.test("a model refuses statistics of other latents or of another length", async () => {
  await testDevice();
  await inFolder(async (folder) => {
    const vae = fixturePath("vavae_tiny.pt"), model = join(folder, "dit");
    const other = await changed(join(folder, "other.safetensors"), ENCODES);
    await modelOf(model, vae);
    const options = { size: 8, batchSize: 5, mirrored: false };
    const encoded = async (name: string, tokenizer: string, images: number) => {
      const latents = join(folder, name);
      await encodeTo(latents, await openTokenizer(tokenizer), new Shapes(images, 1), options);
      return latents;
    };
    const own = await encoded("own", vae, 20);
    assertEquals((await openGenerator(model, { latents: own })).origin, `"${own}/latents_stats.safetensors"`);
    const foreign = await encoded("foreign", other, 20), more = await encoded("more", vae, 25);
    for (const [latents, parts] of [[foreign, [vae, other]], [more, ["20 gen", "25 gen"]]] as const) {
      const error = await assertRejects(() => openGenerator(model, { latents }), UsageError);
      for (const part of parts) assert(error.message.includes(part), error.message);
    }
    // Beside a checkpoint that others' tools call the statistics of its latents.
    Deno.mkdirSync(join(folder, "vae"));
    Deno.copyFileSync(vae, join(folder, "vae/vae.pt"));
    Deno.copyFileSync(
      join(foreign, "latents_stats.safetensors"),
      join(folder, "vae/latents_stats.safetensors"),
    );
    await assertRejects(() => openTokenizer(join(folder, "vae/vae.pt")), UsageError, "the tokenizer was");

    await modelOf(model, vae, (config) => config.latent_std = Array(5).fill(1));
    await assertRejects(
      () => openGenerator(model),
      UsageError,
      "it makes latents of 8 channels, and the statistics (the model's own) are 8 means and 5 deviations",
    );
  });
});

Deno.test("weights that do not match the fingerprint in config.json are refused", async () => {
  await testDevice();
  await inFolder(async (folder) => {
    const vae = fixturePath("vavae_tiny.pt");
    await modelOf(join(folder, "a"), vae);
    await modelOf(join(folder, "b"), vae);
    const store = await openModel(join(folder, "b/model")), weights: Weights = new Map();
    for (const [name, shape] of store.shapes) {
      weights.set(name, { shape, data: (await store.read(name)).fill(1) });
    }
    store.close();
    await write(join(folder, "a/model/model.safetensors"), weights);
    await assertRejects(() => openGenerator(join(folder, "a")), UsageError, "are not those that config.json");
  });
});
