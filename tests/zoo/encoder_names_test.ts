// Every naming of published encoders: the authors' fused projections, wrapped models, text towers next to the encoder,
// both namings of DINOv3; and the names that a tokenizer keeps.

import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { UsageError } from "../../src/errors.ts";
import { capture } from "../../src/gpu/program.ts";
import { writeSafetensors } from "../../src/formats/safetensors.ts";
import { Tokenizer, tokenizerConfig } from "../../src/models/tokenizer.ts";
import { Vit } from "../../src/models/vit.ts";
import { architectureOf } from "../../src/models/vit_families.ts";
import { fileShape, parameters, type SavedTensor, saveState, state } from "../../src/nn/layers.ts";
import { ParameterSet } from "../../src/nn/parameter_set.ts";
import { Initializer } from "../../src/nn/init.ts";
import { input, type Tensor } from "../../src/tensor/tensor.ts";
import { Alignment } from "../../src/train/alignment.ts";
import { openTokenizer, saveTokenizer } from "../../src/zoo/runs.ts";
import { openEncoder } from "../../src/zoo/encoders.ts";
import { randomArray, testDevice } from "../helpers/check.ts";
import { inFolder, weightsOf, writeJson } from "../helpers/encoder_files.ts";

/** One model under two names. */
async function sameWeights(a: Vit, b: Vit): Promise<void> {
  assertEquals(await saveState(a), await saveState(b));
}

/** The model with its parameters in one buffer, which is read back at once. */
function placed<M extends object>(model: M): M {
  new ParameterSet("test", model);
  return model;
}

/** A model with other values everywhere. */
function filled(config: Record<string, unknown>): Vit {
  const vit = placed(new Vit(architectureOf(config, "config.json")));
  [...state(vit).values()].forEach((t, i) => t.storage.write(randomArray(t.size, i)));
  return vit;
}

Deno.test("MAE's own file, with fused projections and a decoder, gives the model of Hugging Face's names", async () => {
  await testDevice();
  await inFolder(async (folder) => {
    const config = {
      model_type: "vit_mae",
      hidden_size: 64,
      intermediate_size: 72,
      num_hidden_layers: 2,
      num_attention_heads: 1,
      patch_size: 2,
      image_size: 6,
      layer_norm_eps: 1e-6,
    };
    const vit = filled(config), saved = new Map((await saveState(vit)).map((t) => [t.name, t]));
    const own: SavedTensor[] = [];
    const give = (name: string, from: string) =>
      own.push({ ...saved.get(from) as SavedTensor, name: `model.${name}` });
    give("cls_token", "embeddings.cls_token");
    give("pos_embed", "embeddings.position_embeddings");
    const pairs = [["patch_embed.proj", "embeddings.patch_embeddings.projection"], ["norm", "layernorm"]];
    for (const n of [0, 1]) {
      const [to, from] = [`blocks.${n}`, `encoder.layer.${n}`];
      pairs.push([`${to}.norm1`, `${from}.layernorm_before`], [`${to}.norm2`, `${from}.layernorm_after`]);
      pairs.push([`${to}.attn.proj`, `${from}.attention.output.dense`]);
      pairs.push([`${to}.mlp.fc1`, `${from}.intermediate.dense`], [`${to}.mlp.fc2`, `${from}.output.dense`]);
      for (const kind of ["weight", "bias"]) {
        const parts = ["query", "key", "value"].map((p) =>
          (saved.get(`${from}.attention.attention.${p}.${kind}`) as SavedTensor).data
        );
        const data = Float32Array.from(parts.flatMap((part) => [...part]));
        own.push({ name: `model.${to}.attn.qkv.${kind}`, shape: kind === "bias" ? [192] : [192, 64], data });
      }
    }
    for (const [to, from] of pairs) {
      for (const kind of ["weight", "bias"]) give(`${to}.${kind}`, `${from}.${kind}`);
    }
    for (const name of ["mask_token", "decoder_embed.weight", "decoder_blocks.0.norm1.weight"]) {
      own.push({ name: `model.${name}`, shape: [1], data: new Float32Array(1) });
    }
    const path = join(folder, "mae_pretrain_vit_base.safetensors");
    await writeSafetensors(path, own);
    const encoder = await openEncoder(path), again = placed(new Vit(encoder.config));
    await encoder.load(again);
    assertEquals(encoder.config.image_size, 6);
    assertEquals(encoder.config.intermediate_size, 72);
    assertEquals(encoder.config.num_attention_heads, 1);
    await sameWeights(vit, again);
  });
});

const SMALL = {
  hidden_size: 8,
  intermediate_size: 12,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  patch_size: 4,
  image_size: 8,
};

/** Writes a folder whose tensors go by other names and have strangers among them, and loads it. */
async function loadedAs(
  folder: string,
  config: Record<string, unknown>,
  tensors: readonly SavedTensor[],
  rename: (name: string) => string,
  strangers: readonly string[] = [],
): Promise<Vit> {
  const path = await Deno.makeTempDir({ dir: folder });
  writeJson(join(path, "config.json"), config);
  await writeSafetensors(join(path, "model.safetensors"), [
    ...tensors.map((t) => ({ ...t, name: rename(t.name) })),
    ...strangers.map((name) => ({ name, shape: [2], data: new Float32Array(2) })),
  ]);
  const encoder = await openEncoder(path), vit = placed(new Vit(encoder.config));
  await encoder.load(vit);
  return vit;
}

Deno.test("wrapped encoders, both namings of DINOv3, and vision towers next to a text tower are found; others are refused", async () => {
  await testDevice();
  await inFolder(async (folder) => {
    const cases: [Record<string, unknown>, (name: string) => string, string[]][] = [
      [{ model_type: "dinov2", ...SMALL }, (n) => `dinov2.${n}`, ["classifier.weight"]],
      [
        { model_type: "dinov2_with_registers", ...SMALL, num_register_tokens: 1 },
        (n) => `dinov2_with_registers.${n}`,
        ["classifier.bias"],
      ],
      [{ model_type: "vit", ...SMALL }, (n) => `vit.${n}`, ["classifier.weight", "vit.pooler.dense.weight"]],
      [{ model_type: "vit_mae", ...SMALL }, (n) => `vit.${n}`, [
        "decoder.mask_token",
        "decoder.decoder_norm.bias",
      ]],
      [
        { model_type: "dinov3_vit", ...SMALL, num_register_tokens: 1 },
        (n) =>
          n.replace(
            /\.([qkv])_proj/,
            (_, p) => `.attention.${{ q: "query", k: "key", v: "value" }[p as "q"]}`,
          )
            .replace("o_proj", "output.dense").replace("up_proj", "fc1").replace("down_proj", "fc2"),
        [],
      ],
      [{ model_type: "dinov3_vit", ...SMALL }, (n) => n.replace(/^layer\./, "model.layer."), []],
      [{ model_type: "siglip_vision_model", ...SMALL }, (n) => n.replace("vision_model.", ""), [
        "head.probe",
      ]],
    ];
    for (const [config, rename, strangers] of cases) {
      const vit = filled(config), tensors = await saveState(vit);
      await sameWeights(vit, await loadedAs(folder, config, tensors, rename, strangers));
      await assertRejects(
        () => loadedAs(folder, config, tensors, rename, [...strangers, "stranger.weight"]),
        UsageError,
        "stranger.weight",
      );
    }
    const text = ["text_model.embeddings.token_embedding.weight", "logit_scale"];
    const both: [string, string, string[]][] = [
      ["siglip", "siglip_vision_model", ["logit_bias", "vision_model.head.probe"]],
      ["clip", "clip_vision_model", ["visual_projection.weight", "vision_model.embeddings.position_ids"]],
    ];
    for (const [type, tower, strangers] of both) {
      const vit = filled({ model_type: tower, ...SMALL });
      const config = { model_type: type, text_config: { hidden_size: 4 }, vision_config: SMALL };
      const loaded = await loadedAs(folder, config, await saveState(vit), (n) => n, [...text, ...strangers]);
      await sameWeights(vit, loaded);
    }
  });
});

/** A small tokenizer on an encoder of this family. */
function tokenizerOf(model_type: string): Tokenizer {
  return new Tokenizer(tokenizerConfig.parse({
    image_size: 8,
    encoder: architectureOf({ model_type, ...SMALL, patch_size: 2 }, "config.json"),
    image_mean: [0.5, 0.5, 0.5],
    image_std: [0.5, 0.5, 0.5],
    adapter_hidden: 8,
    decoder: {
      ch: 4,
      ch_mult: [1, 1],
      num_res_blocks: 0,
      attn_resolutions: [],
      resolution: 8,
      z_channels: 4,
      groups: 2,
    },
  }));
}

Deno.test("every family works in a tokenizer, which keeps its published names and is equal when opened again", async () => {
  await testDevice();
  const folder = await Deno.makeTempDir();
  const names: Record<string, string> = {
    dinov2: "encoder.layer.0.attention.attention.query.weight",
    dinov2_with_registers: "embeddings.register_tokens",
    dinov3_vit: "layer.0.attention.q_proj.weight",
    siglip_vision_model: "vision_model.encoder.layers.0.self_attn.q_proj.weight",
    clip_vision_model: "vision_model.pre_layrnorm.weight",
    vit: "encoder.layer.0.intermediate.dense.weight",
    vit_mae: "embeddings.position_embeddings",
  };
  for (const [model_type, name] of Object.entries(names)) {
    const tokenizer = placed(tokenizerOf(model_type));
    const init = new Initializer(0);
    tokenizer.init(init);
    tokenizer.encoder.init(init);
    assert(
      state(tokenizer).has(`encoder.${name}`),
      `${model_type}: ${[...state(tokenizer).keys()].slice(0, 40)}`,
    );
    const x = input([1, 8, 8, 3]);
    const program = await capture(model_type, { x }, ({ x }) => ({ z: tokenizer.encode(x) })).prepare();
    program.run({ x: randomArray(192, 1) });
    const z = await program.read(program.outputs.z);
    assert(z.length === 4 * 4 * 4 && z.every(Number.isFinite) && z.some((v) => v !== 0), model_type);
    program.destroy();
    if (!["siglip_vision_model", "vit_mae"].includes(model_type)) continue;
    await saveTokenizer(join(folder, model_type), tokenizer);
    const again = await openTokenizer(join(folder, model_type));
    assertEquals(again.config, tokenizer.config);
    assertEquals(await saveState(again), await saveState(tokenizer));
  }
  await Deno.remove(folder, { recursive: true });
});

Deno.test("an authors' file with missing and unknown keys is refused with their names", async () => {
  await testDevice();
  await inFolder(async (folder) => {
    const { tensors } = await weightsOf("dinov2_authors_registers"), path = join(folder, "cut.safetensors");
    const stranger = { name: "stranger", shape: [1], data: new Float32Array(1) };
    await writeSafetensors(path, [...tensors.filter((t) => t.name !== "blocks.0.attn.qkv.bias"), stranger]);
    const encoder = await openEncoder(path), vit = new Vit(encoder.config);
    const { message } = await assertRejects(() => encoder.load(vit), UsageError);
    for (const part of ["query.bias", "key.bias", "value.bias", 'unexpected "stranger"']) {
      assert(message.includes(part), message);
    }
    await writeSafetensors(path, tensors.filter((t) => !t.name.startsWith("blocks.")));
    await assertRejects(() => openEncoder(path), UsageError, "no known architecture");
  });
});

Deno.test("a fixed position table is no parameter, and is saved", async () => {
  await testDevice();
  const vit = filled({ model_type: "vit_mae", ...SMALL });
  assert(!parameters(vit).has("embeddings.position_embeddings"));
  const table = state(vit).get("embeddings.position_embeddings") as Tensor;
  assertEquals([...fileShape(table)], [1, 5, 8]);
});

Deno.test("the frozen copy of an encoder has its fixed positions", async () => {
  await testDevice();
  const tokenizer = tokenizerOf("vit_mae"), alignment = new Alignment(tokenizer, undefined);
  [...state(tokenizer.encoder).values()].forEach((t, i) =>
    t.storage.initialise(() => randomArray(t.size, i))
  );
  await alignment.setReference();
  assertEquals(await saveState(alignment.reference?.vit as Vit), await saveState(tokenizer.encoder));
});
