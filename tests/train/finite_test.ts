// Numbers that are not finite never become images, features, scores or files: an error names the tensor, the file, the image.

import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { GpuError, UsageError } from "../../src/errors.ts";
import { LatentsWriter, openLatents } from "../../src/formats/latents.ts";
import { openSafetensors } from "../../src/formats/safetensors.ts";
import { Shapes } from "../../src/data/toy_shapes.ts";
import { imageProgram, infer } from "../../src/metrics/batched.ts";
import { scoreReconstruction } from "../../src/metrics/tokenizer.ts";
import { Initializer } from "../../src/nn/init.ts";
import type { Adapter } from "../../src/models/adapter.ts";
import { Dit, ditConfig } from "../../src/models/dit.ts";
import { Tokenizer, tokenizerConfig } from "../../src/models/tokenizer.ts";
import { saveState, snapshot, state } from "../../src/nn/layers.ts";
import { ParameterSet } from "../../src/nn/parameter_set.ts";
import { readTensor, variable } from "../../src/tensor/tensor.ts";
import { openDit, openTokenizer, saveDit, saveTokenizer } from "../../src/zoo/runs.ts";
import { openEncoder } from "../../src/zoo/encoders.ts";
import { generate } from "../../src/sampling/generate.ts";
import { encodeTo } from "../../src/train/encode_latents.ts";
import { StoredLatents } from "../../src/train/latent_source.ts";
import { updateStatistics } from "../../src/train/stage_scores.ts";
import { testDevice } from "../helpers/check.ts";

/** Writes `value` over number `at` of a tensor in a safetensors file of f32. */
function poison(path: string, key: string, at: number, value: number): void {
  const bytes = Deno.readFileSync(path), view = new DataView(bytes.buffer);
  const length = Number(view.getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
  view.setFloat32(8 + length + header[key].data_offsets[0] + 4 * at, value, true);
  Deno.writeFileSync(path, bytes);
}

async function withFolder(fn: (folder: string) => Promise<void>): Promise<void> {
  const folder = Deno.makeTempDirSync();
  try {
    await fn(folder);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

async function refuses(
  fn: () => Promise<unknown>,
  kind: typeof UsageError | typeof GpuError,
  ...parts: string[]
) {
  const { message } = await assertRejects(fn, kind);
  for (const part of parts) assert(message.includes(part), `"${part}" is not in: ${message}`);
  assert(!message.includes("--lr"), message);
}

async function tokenizer(): Promise<Tokenizer> {
  await testDevice();
  const made = new Tokenizer(tokenizerConfig.parse({
    image_size: 8,
    encoder: { hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, patch_size: 2, image_size: 8 },
    image_mean: [0.5, 0.5, 0.5],
    image_std: [0.5, 0.5, 0.5],
    adapter_hidden: 16,
    decoder: {
      ch: 8,
      ch_mult: [1, 1],
      num_res_blocks: 0,
      attn_resolutions: [],
      resolution: 8,
      z_channels: 4,
      groups: 2,
    },
  }));
  const init = new Initializer(0);
  made.encoder.init(init);
  made.init(init);
  for (const tensor of state(made).values()) await tensor.storage.materialise();
  return made;
}

/** Every number of the weight times `factor`: finite, but what is made with it overflows. */
async function enlarge(weight: Parameters<typeof readTensor>[0], factor: number): Promise<void> {
  weight.storage.write((await readTensor(weight)).map((v) => v * factor));
}

async function dit(): Promise<{ dit: Dit; config: Parameters<typeof saveDit>[2] }> {
  await testDevice();
  const made = new Dit(ditConfig.parse({
    input_size: 4,
    in_channels: 4,
    hidden_size: 16,
    depth: 1,
    num_heads: 2,
    num_classes: 2,
  }));
  made.init(new Initializer(0));
  await new ParameterSet("model", made).materialise();
  const statistics = { latent_mean: [0, 0, 0, 0], latent_std: [1, 1, 1, 1] };
  return { dit: made, config: { dit: made.config, classes: ["a", "b"], ...statistics } };
}

const SAMPLING = {
  batchSize: 3,
  steps: 2,
  sampler: "euler",
  shift: 1,
  cfg: 2,
  cfgInterval: [0, 1],
  seed: 0,
  labels: [0, 1, 0, 1],
} as const;

Deno.test("weights with a NaN or an infinity are refused with the names of tensor and file", async () => {
  const made = await tokenizer(), model = await dit();
  await withFolder(async (folder) => {
    await saveTokenizer(folder, made);
    await saveDit(folder, model.dit, model.config);
    const tokenizerFile = join(folder, "tokenizer", "model.safetensors"),
      good = Deno.readFileSync(tokenizerFile);
    for (const [key, value] of [["decoder.conv_in.weight", NaN], ["latent_mean", -Infinity]] as const) {
      Deno.writeFileSync(tokenizerFile, good);
      poison(tokenizerFile, key, 3, value);
      await refuses(
        () => openTokenizer(folder),
        UsageError,
        `"${key}" holds ${value}`,
        join(folder, "tokenizer"),
      );
    }
    poison(join(folder, "model", "model.safetensors"), "blocks.0.attn.qkv.bias", 5, Infinity);
    await refuses(
      () => openDit(folder),
      UsageError,
      '"blocks.0.attn.qkv.bias" holds Infinity (number 5 of 48)',
      folder,
    );
  });
});

Deno.test("an encoder with a NaN is refused by name", async () => {
  await testDevice();
  await withFolder(async (folder) => {
    const embedded = await openEncoder();
    for (const { name } of Deno.readDirSync(embedded.path)) {
      Deno.copyFileSync(join(embedded.path, name), join(folder, name));
    }
    const file = await openSafetensors(join(folder, "model.safetensors"));
    const [key, { dtype }] = [...file.tensors].find(([name]) => name.includes("fc1.weight")) as [
      string,
      { dtype: string },
    ];
    file.close();
    const bytes = Deno.readFileSync(join(folder, "model.safetensors"));
    if (dtype === "F32") poison(join(folder, "model.safetensors"), key, 0, NaN);
    else { // F16 or BF16: all bits of the exponent and one more are a NaN
      const length = Number(new DataView(bytes.buffer).getBigUint64(0, true));
      const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
      bytes.set([0xff, 0x7f], 8 + length + header[key].data_offsets[0]);
      Deno.writeFileSync(join(folder, "model.safetensors"), bytes);
    }
    const encoder = await openEncoder(folder), { Vit } = await import("../../src/models/vit.ts");
    await refuses(() => encoder.load(new Vit(encoder.config)), UsageError, "fc1.weight", "holds NaN", folder);
  });
});

Deno.test("statistics that are not finite or not above zero are refused with their channel", async () => {
  const made = await tokenizer();
  await withFolder(async (folder) => {
    for (const [name, value] of [["latent_std", 0], ["latent_std", -2]] as const) {
      const run = join(folder, `${name}${value}`);
      made.latent_std.storage.write(new Float32Array([1, value, 1, 1]));
      await saveTokenizer(run, made);
      await refuses(() => openTokenizer(run), UsageError, `the standard deviation of channel 1 is ${value}`);
    }
    const writer = new LatentsWriter(join(folder, "latents"), [2, 1, 2]);
    for (let i = 0; i < 20; i++) {
      const z = Float32Array.from({ length: 4 }, (_, k) => i + k);
      await writer.add(z, z, [0]);
    }
    await writer.close();
    const stats = join(folder, "latents", "latents_stats.safetensors"), good = Deno.readFileSync(stats);
    for (
      const [key, value, text] of [["std", 0, "standard deviation"], ["std", NaN, "standard deviation"], [
        "mean",
        Infinity,
        "mean",
      ]] as const
    ) {
      Deno.writeFileSync(stats, good);
      poison(stats, key, 1, value);
      await refuses(
        () => openLatents(join(folder, "latents")),
        UsageError,
        `the ${text} of channel 1 is ${value}`,
        stats,
      );
    }
    Deno.writeFileSync(stats, good);
    const shard = join(folder, "latents", "latents_00000.safetensors");
    poison(shard, "latents", 17 * 4 + 2, NaN);
    const latents = await openLatents(join(folder, "latents"));
    assertEquals([...await latents.latent(16)], [16, 17, 18, 19]);
    assertEquals([...await latents.latent(17, true)], [17, 18, 19, 20]); // the mirrored one is undamaged
    await refuses(() => latents.latent(17), UsageError, "latent 17 holds NaN", "latents_00000.safetensors");
    const batches = new StoredLatents(latents.shape, latents, { seed: 0, flip: false }).batches(20, 0, 3);
    await refuses(() => batches.next(), UsageError, "latent 17 holds NaN");
    latents.close();
  });
});

Deno.test("latents and reconstructions that overflow are refused by image, and leave the statistics unchanged", async () => {
  const made = await tokenizer(), source = new Shapes(3, 0);
  await enlarge((made.adapter as Adapter).fc1.weight, 1e38);
  await enlarge((made.adapter as Adapter).fc2.weight, 1e38);
  const before = await readTensor(made.latent_mean);
  await refuses(
    () => scoreReconstruction(made, source, { size: 8, batchSize: 2 }),
    UsageError,
    "image 0 (",
    "holds",
  );
  await refuses(
    () => updateStatistics(made, source, { size: 8, batchSize: 2, images: 3 }),
    UsageError,
    "image 0 (",
  );
  assertEquals(await readTensor(made.latent_mean), before);
  await withFolder(async (folder) => {
    const options = { size: 8, batchSize: 2, mirrored: false };
    await refuses(
      () => encodeTo(join(folder, "z"), made, source, options),
      UsageError,
      `of "encode" for image 0`,
    );
    assertEquals(
      [...Deno.readDirSync(join(folder, "z"))].filter(({ name }) => name.endsWith(".safetensors")),
      [],
    );
  });
});

Deno.test("the error of an output that is not finite names its image", async () => {
  const made = await tokenizer();
  const floats = (i: number) => new Float32Array(8 * 8 * 3).fill(i === 4 ? NaN : 0.1 * i);
  const source = {
    length: 5,
    classes: [],
    label: () => 0,
    name: (i: number) => `image-${i}.png`,
    floats,
  };
  const program = await imageProgram("tokenize", (x) => ({ y: made.decode(made.encode(x)) }), {
    batchSize: 3,
    size: 8,
    n: 5,
    floats: true,
  });
  const seen: number[] = [];
  await refuses(
    async () => {
      for await (const { first, count } of infer(program, source)) seen.push(first, count);
    },
    UsageError,
    'image 4 ("image-4.png")',
    `"y" of "tokenize"`,
  );
  assertEquals(seen, [0, 3]);
  program.destroy();
});

Deno.test("a latent or an image that overflows ends sampling with the index of the image", async () => {
  const made = await tokenizer(), model = await dit();
  const draw = async () => {
    for await (const _ of generate(model, made, SAMPLING)) assert(false, "a picture was drawn");
  };
  await enlarge(made.decoder.conv_in.weight, 1e38);
  await enlarge(made.decoder.conv_out.weight, 1e38);
  await enlarge(made.post_quant_conv.weight, 1e38);
  await refuses(draw, UsageError, "Cannot generate image 0: the picture that the tokenizer decodes holds");
  model.dit.final_layer.linear.bias?.storage.write(new Float32Array(4).fill(3e38));
  model.dit.final_layer.linear.weight.storage.write(new Float32Array(64).fill(3e38));
  await refuses(draw, UsageError, "Cannot generate image 0: the latent holds");
});

Deno.test("weights and states that are not finite are not saved", async () => {
  const made = await tokenizer();
  await enlarge((made.adapter as Adapter).fc1.weight, NaN);
  await refuses(() => saveState(made), GpuError, '"adapter.fc1.weight"', "holds NaN");
  const v = variable([3], { init: () => new Float32Array([1, Infinity, 2]) });
  await v.storage.materialise();
  await refuses(() => snapshot(new Map([["m", v]])), GpuError, '"m"', "Infinity (number 1 of 3)");
});
