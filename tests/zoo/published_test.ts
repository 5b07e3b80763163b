// Published checkpoints as files: detection, latent statistics, one-line errors, and the commands that use them.

import { assert, assertEquals, assertRejects } from "@std/assert";
import { fromFileUrl, join } from "@std/path";
import { UsageError } from "../../src/errors.ts";
import { readStatistics } from "../../src/formats/latents.ts";
import { openModel } from "../../src/formats/shards.ts";
import { ditConfig, inferDit } from "../../src/models/dit_config.ts";
import { state } from "../../src/nn/layers.ts";
import { readTensor } from "../../src/tensor/tensor.ts";
import { openDit, openTokenizer } from "../../src/zoo/runs.ts";
import { openGenerator } from "../../src/zoo/generator.ts";
import { randomArray, relativeError, testDevice } from "../helpers/check.ts";
import { run } from "../helpers/commands.ts";
import {
  fixture,
  fixturePath,
  ldmKey,
  made,
  memoryStore,
  rename,
  type Weights,
  write,
  writeDiffusers,
} from "../helpers/published.ts";

async function inFolder(test: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await test(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** The weights of an existing LightningDiT fixture under their own names. */
async function ditWeights(name: string): Promise<{ config: unknown; weights: Weights }> {
  const file = await fixture(name);
  const weights: Weights = new Map();
  for (const [key, shape] of file.shapes) {
    if (key.startsWith("weights.")) weights.set(key.slice(8), { shape, data: await file.read(key) });
  }
  const config = JSON.parse(file.metadata.get("config") as string);
  file.close();
  return { config, weights };
}

/** @throws when `open` does not refuse with a UsageError of one line that has all of `parts` */
async function refuses(open: () => Promise<unknown>, ...parts: string[]): Promise<void> {
  const { message } = await assertRejects(open, UsageError);
  assert(message.startsWith("Cannot") && !message.includes("\n"), message);
  for (const part of parts) assert(message.includes(part), `${message} does not have ${part}`);
}

for (const name of ["lightningdit", "lightningdit_qknorm"]) {
  Deno.test(`a checkpoint's architecture is inferred from its tensors (${name}), and its EMA is preferred`, async () => {
    await testDevice();
    const { config, weights } = await ditWeights(name);
    assertEquals(inferDit(name, memoryStore(weights).shapes), ditConfig.parse(config));
    await inFolder(async (folder) => {
      const path = join(folder, "dit.safetensors");
      const zeros = [...weights].map(([key, { shape, data }]) =>
        [`model.module.${key}`, { shape, data: new Float32Array(data.length) }] as const
      );
      await write(path, new Map([...zeros, ...rename(weights, (key) => `ema.${key}`)]));
      const { dit, config: found } = await openDit(path);
      assertEquals(found, {
        dit: dit.config as typeof found.dit,
        classes: Array.from({ length: 10 }, (_, i) => String(i)),
      });
      for (const key of ["pos_embed", "blocks.1.mlp.w12.weight", "final_layer.linear.bias"]) {
        assertEquals(await readTensor(state(dit).get(key) as never), weights.get(key)?.data, key);
      }
    });
  });
}

Deno.test("torch files open as tokenizer and diffusion model, with or without wrappers, losses and optimizer", async () => {
  await testDevice();
  const base = Float32Array.from(Float16Array.from(randomArray(13824, 1).map((v) => v / 16)));
  const tokenizer = await openTokenizer(fixturePath("vavae_tiny.pt"));
  const { dit, config } = await openDit(fixturePath("lightningdit_tiny.pt"));
  assertEquals([tokenizer.channels, tokenizer.factor, tokenizer.config.image_size], [8, 2, 256]);
  assertEquals([dit.config.depth, config.dit.num_heads, dit.config.input_size], [1, 3, 4]);
  for (
    const [model, key] of [
      [tokenizer, "quant_conv.bias"],
      [tokenizer, "decoder.mid.attn_1.norm.weight"],
      [dit, "blocks.0.attn.qkv.weight"],
      [dit, "y_embedder.embedding_table.weight"],
    ] as const
  ) {
    const got = await readTensor(state(model).get(key) as never);
    assertEquals(got, base.slice(0, got.length), key);
  }
  const { model, origin } = await openGenerator(fixturePath("lightningdit_tiny.pt"), {
    tokenizer: fixturePath("vavae_tiny.pt"),
  });
  assert(origin.includes("latents_stats.pt"), origin);
  assertEquals(model.config.latent_mean, [...randomArray(8, 3)]);
  assertEquals(model.config.latent_std, [...randomArray(8, 4).map((v) => Math.abs(v) + 0.5)]);
});

Deno.test("latents are normalised by the file next to the tokenizer, else by its configuration", async () => {
  await testDevice();
  const [first, bare] = [await made("autoencoder_diffusers"), await made("autoencoder_diffusers_bare")];
  await inFolder(async (folder) => {
    const one = await writeDiffusers(join(folder, "pipeline", "vae"), first.weights, first.config);
    const statistics = async (path: string) => await (await openTokenizer(path)).statistics();
    const scaled = await statistics(join(folder, "pipeline"));
    assertEquals(scaled?.origin.startsWith("scaling_factor 0.3611 of"), true);
    assert(relativeError(scaled?.mean ?? [], Array(4).fill(0.1159)) < 1e-6);
    assert(relativeError(scaled?.std ?? [], Array(4).fill(1 / 0.3611)) < 1e-6);
    const channels = await statistics(
      await writeDiffusers(join(folder, "bare"), bare.weights, bare.config),
    );
    assert(relativeError(channels?.mean ?? [], Array.from({ length: 8 }, (_, i) => 0.1 * i)) < 1e-6);
    assert(
      relativeError(channels?.std ?? [], Array.from({ length: 8 }, (_, i) => (1 + 0.1 * i) / 0.18215)) < 1e-6,
    );
    const ldm = join(folder, "sd.safetensors");
    await write(ldm, rename((await made("autoencoder_diffusers")).weights, (key) => ldmKey(key, 2)));
    assert(relativeError((await statistics(ldm))?.std ?? [], Array(4).fill(1 / 0.18215)) < 1e-6);
    const four = (data: number[]) => ({ shape: [1, data.length, 1, 1], data: Float32Array.from(data) });
    const stats = join(one, "latents_stats.safetensors");
    await write(stats, new Map([["mean", four([1, 2, 3, 4])], ["std", four([5, 6, 7, 8])]]));
    const measured = await statistics(one);
    assertEquals([measured?.mean, measured?.std].map((v) => [...v ?? []]), [[1, 2, 3, 4], [5, 6, 7, 8]]);
    await write(stats, new Map([["mean", four([1, 2])], ["std", four([1, 2])]]));
    await refuses(() => openTokenizer(one), "2 channels", "has 4");
    await write(stats, new Map([["mean", four([1, 2])], ["std", four([1, -1])]]));
    await refuses(() => readStatistics(one), "the standard deviation of channel 1 is -1");
  });
});

Deno.test("an unsupported tokenizer is refused by name", async () => {
  await testDevice();
  const { config, weights } = await made("autoencoder_diffusers");
  const ldm = rename(weights, (key) => ldmKey(key, 2));
  const tensor = (...shape: number[]) => ({ shape, data: new Float32Array(shape.reduce((a, b) => a * b)) });
  const changed = (key: string, value?: ReturnType<typeof tensor>) => {
    const other = new Map(ldm);
    if (value) other.set(key, value);
    else other.delete(key);
    return other;
  };
  await inFolder(async (folder) => {
    let n = 0;
    const file = async (tensors: Weights) => {
      const path = join(folder, `${n++}.safetensors`);
      await write(path, tensors);
      return path;
    };
    const cases: [Weights, ...string[]][] = [
      [new Map([["layer.weight", tensor(2)]]), "decoder.conv_in.weight", "SD-VAE"],
      [changed("quantize.embedding.weight", tensor(8, 4)), "vector-quantised"],
      [changed("encoder.conv_in.weight", tensor(32, 1, 3, 3)), "1 channels"],
      [
        changed("encoder.mid.block_1.temb_proj.weight", tensor(2)),
        'unexpected "encoder.mid.block_1.temb_proj',
      ],
      [changed("decoder.norm_out.bias"), 'missing "decoder.norm_out.bias"'],
      [changed("encoder.down.1.block.0.conv2.weight", tensor(2, 2, 3, 3)), "[2, 2, 3, 3] instead of"],
      [changed("encoder.conv_out.weight", tensor(5, 64, 3, 3)), "ends in 5 channels"],
    ];
    for (const [tensors, ...parts] of cases) {
      const path = await file(tensors);
      await refuses(() => openTokenizer(path), path, ...parts);
    }
    const diffusers = async (other: Record<string, unknown>) =>
      await writeDiffusers(join(folder, `${n++}`), weights, { ...config, ...other });
    const wrong: [Record<string, unknown>, ...string[]][] = [
      [{ _class_name: "VQModel" }, '"VQModel"', '"AutoencoderKL"'],
      [{ block_out_channels: [32, 32] }, "block_out_channels [32,32]", "[32,64]"],
      [{ layers_per_block: 2 }, "layers_per_block 2"],
      [{ use_quant_conv: false }, "use_quant_conv false"],
      [{ act_fn: "gelu" }, "act_fn"],
      [{ norm_num_groups: 24 }, "not a multiple of 24 groups"],
      [{ latents_mean: [1, 2] }, "latents_mean for 4"],
    ];
    for (const [other, ...parts] of wrong) {
      const path = await diffusers(other);
      await refuses(() => openTokenizer(path), ...parts);
    }
    await refuses(() => openTokenizer(folder), folder, "tok align", "diffusers");
    await refuses(() => openTokenizer(undefined), "--tokenizer");
  });
});

Deno.test("an unsupported diffusion model, or one that does not fit its tokenizer, is refused by name", async () => {
  await testDevice();
  const { weights } = await ditWeights("lightningdit");
  const tensor = (...shape: number[]) => ({ shape, data: new Float32Array(shape.reduce((a, b) => a * b)) });
  const cases: [Record<string, ReturnType<typeof tensor> | undefined>, string][] = [
    [{ "x_embedder.proj.weight": undefined }, "x_embedder.proj.weight"],
    [{ "x_embedder.proj.weight": tensor(48, 8, 2, 2) }, "8 values a token instead of 32"],
    [{ "blocks.0.mlp.fc1.weight": tensor(192, 48) }, 'missing "blocks.0.mlp.fc1.bias"'],
    [{ "blocks.0.norm1.weight": undefined }, 'unexpected "blocks.0.norm2.weight"'],
    [{ "feat_rope.freqs_cos": undefined }, "how many heads"],
    [{ "blocks.0.adaLN_modulation.1.weight": tensor(240, 48) }, "5 values a channel"],
    [{ "final_layer.linear.weight": tensor(16, 48) }, '"final_layer.linear.bias" is [8] instead of [16]'],
    [{ "pos_embed": tensor(1, 15, 48) }, "15 positions"],
    [{ "blocks.1.attn.qkv.bias": tensor(3) }, '"blocks.1.attn.qkv.bias" is [3] instead of [144]'],
  ];
  await inFolder(async (folder) => {
    const path = join(folder, "dit.safetensors");
    for (const [changes, part] of cases) {
      const other = new Map(weights);
      for (const [key, value] of Object.entries(changes)) {
        if (value) other.set(key, value);
        else other.delete(key);
      }
      await write(path, other);
      await refuses(() => openDit(path), path, part);
    }
    await write(path, weights);
    await refuses(() => openDit(folder), "tok train-dit", "LightningDiT");
    await refuses(() => openGenerator(path), "--tokenizer");
    const vae = join(folder, "vae.safetensors");
    await write(vae, rename((await made("autoencoder_diffusers")).weights, (key) => ldmKey(key, 2)));
    await refuses(() => openGenerator(path, { tokenizer: vae }), "8 channels", "have 4");
    const store = await openModel(fixturePath("vavae_tiny.pt"));
    const eight: Weights = new Map();
    for (const [key, shape] of store.shapes) {
      if (key.startsWith("state_dict.")) eight.set(key, { shape, data: await store.read(key) });
    }
    store.close();
    await write(vae, eight);
    await refuses(() => openGenerator(path, { tokenizer: vae }), "latents_stats.pt", "--latents");
    await refuses(() => openGenerator(path, { tokenizer: vae, latents: folder }), folder, "latents_stats");
    const latents = fromFileUrl(new URL("../fixtures", import.meta.url));
    const { origin } = await openGenerator(path, { tokenizer: vae, latents });
    assert(origin.includes("latents_stats.pt"), origin);
  });
});

const MAIN = fromFileUrl(new URL("../../main.ts", import.meta.url));
const CONFIG = fromFileUrl(new URL("../../deno.json", import.meta.url));

/** Runs a command in `cwd`. @throws when it does not end with 0 */
async function tok(cwd: string, ...args: string[]): Promise<void> {
  const { code, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-check", "-A", "--config", CONFIG, MAIN, ...args],
    stdout: "piped",
    stderr: "piped",
    cwd,
    env: { HF_HUB_CACHE: "hub" },
  }).output();
  assertEquals(code, 0, `${args.join(" ")}: ${new TextDecoder().decode(stderr)}`);
}

Deno.test("reconstruct writes the same images from LDM's file, diffusers' folder and its name in the cache", async () => {
  const { config, weights } = await made("autoencoder_diffusers");
  await inFolder(async (folder) => {
    // LDM's norms always have 32 groups.
    const model = join("hub", "models--some--vae"), snapshot = join(model, "snapshots", "0a1b");
    await writeDiffusers(join(folder, snapshot), weights, {
      ...config,
      norm_num_groups: 32,
      sample_size: 32,
    });
    await Deno.mkdir(join(folder, model, "refs"));
    await Deno.writeTextFile(join(folder, model, "refs", "main"), "0a1b");
    await write(join(folder, "ldm.safetensors"), rename(weights, (key) => ldmKey(key, 2)));
    const size = ["--image-size", "32", "--num", "3"], at = (name: string) => join(folder, name);
    await run("reconstruct", "--tokenizer", at("ldm.safetensors"), "--out", at("a"), ...size);
    await run("reconstruct", "--tokenizer", at(snapshot), "--out", at("b"), ...size);
    await tok(folder, "reconstruct", "--tokenizer", "some/vae", "--out", "c", ...size);
    const names = [...Deno.readDirSync(join(folder, "a"))].map(({ name }) => name).sort();
    assertEquals(names.filter((name) => name.endsWith(".png")).length, 4);
    for (const name of names.filter((name) => name !== "config.json")) { // which names the tokenizer
      for (const other of ["b", "c"]) {
        assertEquals(Deno.readFileSync(at(join("a", name))), Deno.readFileSync(at(join(other, name))), name);
      }
    }
  });
});

Deno.test("sample generates from a LightningDiT and a VA-VAE in torch files", async () => {
  await inFolder(async (folder) => {
    const models = [
      "--model",
      fixturePath("lightningdit_tiny.pt"),
      "--tokenizer",
      fixturePath("vavae_tiny.pt"),
    ];
    const few = ["--num", "3", "--classes", "7,2", "--steps", "2", "--batch-size", "2"];
    await run("sample", ...models, ...few, "--out", join(folder, "out"));
    const names = [...Deno.readDirSync(join(folder, "out"))].map(({ name }) => name).sort();
    assertEquals(names, ["000000.png", "000001.png", "000002.png", "config.json", "grid.png"]);
  });
});

Deno.test("encode, train-dit and sample work on a published autoencoder", async () => {
  const { config, weights } = await made("autoencoder_diffusers_bare");
  await inFolder(async (folder) => {
    const at = (name: string) => join(folder, name);
    await writeDiffusers(at("vae"), weights, config);
    const common = ["--tokenizer", at("vae"), "--image-size", "32", "--images", "4"];
    await run("encode", ...common, "--batch-size", "4", "--out", at("latents"));
    const latents = await openModel(join(folder, "latents", "latents_00000.safetensors"));
    assertEquals(latents.shapes.get("latents"), [4, 8, 8, 8]);
    latents.close();
    await run("train-dit", ...common, "--steps", "1", "--batch-size", "2", "--out", at("dit"));
    const sampling = ["--num", "1", "--steps", "1", "--batch-size", "1", "--out", at("pictures")];
    await run("sample", "--model", at("dit"), "--latents", at("latents"), ...sampling);
    assert(Deno.statSync(join(folder, "pictures", "000000.png")).isFile);
  });
});
