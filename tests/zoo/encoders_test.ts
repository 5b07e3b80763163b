// Published encoders: complete feature extractions against transformers' processor and model, the authors' files against
// the authors' code, and one-line errors for unusable files.

import { assert, assertEquals, assertRejects } from "@std/assert";
import { fromFileUrl, join } from "@std/path";
import { featuresConfig } from "../../src/cli/config.ts";
import { UsageError } from "../../src/errors.ts";
import { resolveConfig } from "../../src/cli/flags.ts";
import { capture } from "../../src/gpu/program.ts";
import { writePng } from "../../src/image/image.ts";
import { Log } from "../../src/run/log.ts";
import type { Image } from "../../src/image/rows.ts";
import { openSafetensors, writeSafetensors } from "../../src/formats/safetensors.ts";
import { Vit } from "../../src/models/vit.ts";
import { input, type Tensor } from "../../src/tensor/tensor.ts";
import { openEncoder } from "../../src/zoo/encoders.ts";
import { features } from "../../tasks/features.ts";
import { relativeError, testDevice } from "../helpers/check.ts";
import { assertClaim } from "../helpers/claims.ts";
import { nhwc, open } from "../helpers/compare.ts";
import { encoderFolder, inFolder, weightsOf, writeJson } from "../helpers/encoder_files.ts";

/** The images of the fixture "features"; the formula stands in its metadata. */
function image(i: number, width: number, height: number): Image {
  const data = Uint8Array.from({ length: 3 * width * height }, (_, at) => {
    const c = at % 3, x = Math.floor(at / 3) % width, y = Math.floor(at / (3 * width));
    return (x * (7 + i) + y * (13 - i) + c * 29 + Math.floor(x * y / 3) +
      17 * Math.floor(x / 5) * Math.floor(y / 4)) % 256;
  });
  return { width, height, data };
}

/** Runs `tok features` in this process. */
async function run(args: string[]): Promise<Map<string, Float32Array>> {
  const log = new Log({ json: true, terminal: { stdout: false, stderr: false } });
  Object.assign(log, { line() {}, event() {}, progress: () => ({ update() {}, end() {} }) });
  const out = join(await Deno.makeTempDir(), "f.safetensors");
  await features.run(resolveConfig(featuresConfig, [...args, "--out", out], { command: "features" }), {
    log,
    commandLine: "",
    stopping: () => false,
  });
  const file = await openSafetensors(out), found = new Map<string, Float32Array>();
  for (const key of file.shapes.keys()) found.set(key, await file.read(key));
  file.close();
  return found;
}

Deno.test("tok features equals transformers' processor and model, on the native grid and others", async () => {
  await inFolder(async (folder) => {
    const fixture = await open("features");
    const preprocessors = JSON.parse(fixture.metadata.get("preprocessors") as string) as Record<
      string,
      unknown
    >;
    await Deno.mkdir(join(folder, "mixed"));
    const sizes = [[40, 30], [33, 47], [28, 28]] as const;
    for (const [i, [w, h]] of sizes.entries()) await writePng(join(folder, `mixed/${i}.png`), image(i, w, h));
    const natives: Record<string, [number, number]> = {
      dinov2: [28, 12],
      siglip: [42, 28],
      dinov3: [32, 48],
    };
    for (const [name, preprocessor] of Object.entries(preprocessors)) {
      const encoder = await encoderFolder(folder, name, preprocessor);
      const cases = [...fixture.shapes.keys()].filter((key) =>
        key.startsWith(`${name}.`) && key.endsWith("patches")
      );
      assert(cases.length > 0, name);
      for (const key of cases) {
        const size = key.split(".")[1] as string, native = natives[name];
        let images = join(folder, "mixed");
        if (size === "native" && native) {
          images = join(folder, `native_${name}`);
          await Deno.mkdir(images);
          for (const i of [3, 4]) await writePng(join(images, `${i}.png`), image(i, ...native));
        }
        const tokens = await run([
          ...["--encoder", encoder, "--input", images],
          ...size === "default" ? [] : ["--image-size", size],
        ]);
        const expected = await fixture.read(key);
        const error = relativeError(tokens.get("patch_tokens") as Float32Array, expected);
        assert(error < 1e-4, `${key}: ${error}`);
        const cls = `${name}.${size}.cls`;
        assertEquals(tokens.has("cls_token"), fixture.shapes.has(cls), cls);
        if (!fixture.shapes.has(cls)) continue;
        const other = relativeError(tokens.get("cls_token") as Float32Array, await fixture.read(cls));
        assert(other < 1e-4, `${cls}: ${other}`);
      }
    }
    fixture.close();
  });
});

Deno.test("the authors' files give the outputs of the authors' code, with their interpolation of positions", async () => {
  await testDevice();
  await inFolder(async (folder) => {
    const heads = { num_hidden_layers: 1, num_attention_heads: 1, hidden_size: 64 };
    const expected: Record<string, Record<string, unknown>> = {
      dinov2_authors: { model_type: "dinov2", patch_size: 7, image_size: 35, interpolate_offset: 0.1 },
      dinov2_authors_registers: {
        model_type: "dinov2_with_registers",
        patch_size: 7,
        image_size: 28,
        num_register_tokens: 2,
        use_swiglu_ffn: true,
        interpolate_offset: 0,
      },
      dinov3_authors: {
        model_type: "dinov3_vit",
        patch_size: 8,
        num_register_tokens: 2,
        use_gated_mlp: true,
        intermediate_size: 64,
        key_bias: false,
        layer_norm_eps: 1e-5,
      },
    };
    for (const [name, fields] of Object.entries(expected)) {
      let path = fromFileUrl(new URL(`../fixtures/${name}.pth`, import.meta.url));
      if (name !== "dinov2_authors") {
        path = join(folder, `${name}.safetensors`);
        await writeSafetensors(path, (await weightsOf(name)).tensors);
      }
      const encoder = await openEncoder(path);
      for (const [key, value] of Object.entries({ ...heads, ...fields })) {
        assertEquals((encoder.config as Record<string, unknown>)[key], value, `${name}: ${key}`);
      }
      const vit = new Vit(encoder.config);
      await encoder.load(vit);
      const file = await open(name);
      let output = 0;
      for (const key of [...file.shapes.keys()].filter((k) => k.startsWith("input."))) {
        const x = input(file.shapes.get(key) as number[], "f32", key);
        const program = await capture(name, { x }, ({ x }) => {
          const { patches, cls } = vit.forward(nhwc(x));
          return { patches, cls: cls as Tensor };
        }).prepare();
        program.run({ x: await file.read(key) });
        for (const part of ["patches", "cls"] as const) {
          const reference = await file.read(key.replace("input", part));
          const error = relativeError(await program.read(program.outputs[part]), reference);
          output = Math.max(output, error);
        }
        program.destroy();
      }
      file.close();
      assertClaim(name, { output });
    }
  });
});

Deno.test("unusable encoders are refused in one line that says what and why", async () => {
  await inFolder(async (folder) => {
    const refused = async (config: unknown, ...parts: string[]) => {
      const path = await Deno.makeTempDir({ dir: folder });
      writeJson(join(path, "config.json"), config);
      const error = await assertRejects(() => openEncoder(path), UsageError);
      for (const part of parts) assert(error.message.includes(part), error.message);
      assert(!error.message.includes("\n"));
    };
    await refused({ model_type: "swin" }, '"swin"', "dinov2", "siglip", "vit_mae");
    await refused({ model_type: "siglip2_vision_model" }, '"siglip2_vision_model"', "not supported");
    await refused({ model_type: "dinov2", hidden_act: "relu" }, "hidden_act");
    await refused({ model_type: "vit", qkv_bias: false }, "qkv_bias");
    await refused({ model_type: "vit", patch_size: [16, 8] }, "patch_size");
    const path = await encoderFolder(folder, "dinov2");
    const preprocessor = async (fields: unknown, part: string) => {
      writeJson(join(path, "preprocessor_config.json"), fields);
      const error = await assertRejects(() => openEncoder(path), UsageError);
      assert(error.message.includes(part), error.message);
    };
    await preprocessor({ image_processor_type: "SwinImageProcessor" }, "SwinImageProcessor");
    await preprocessor({ resample: 0 }, "resample filter 0");
    await preprocessor({ do_pad: true }, "do_pad");
    await preprocessor({ size: { longest_edge: 224 } }, "size");
    writeJson(join(path, "preprocessor_config.json"), {});
    writeJson(join(path, "config.json"), {
      model_type: "dinov2",
      hidden_size: 8,
      num_attention_heads: 2,
      image_size: 20,
      patch_size: 4,
    });
    await testDevice();
    const encoder = await openEncoder(path), vit = new Vit(encoder.config);
    const error = await assertRejects(() => encoder.load(vit), UsageError);
    assert(
      error.message.includes('"embeddings.cls_token" is [1, 1, 24] instead of [1, 1, 8]'),
      error.message,
    );
    assert(error.message.includes("more"), error.message);
    const file = join(folder, "dinov2/model.safetensors");
    assert((await assertRejects(() => openEncoder(file), UsageError)).message.includes("config.json"));
    const absent = await assertRejects(() => openEncoder(join(folder, "absent")), UsageError);
    assert(absent.message.includes("no such file or folder"), absent.message);
  });
});

Deno.test("an interpolation offset is accepted for stored positions only", async () => {
  await inFolder(async (folder) => {
    const path = await encoderFolder(folder, "dinov2");
    assertEquals((await openEncoder(path)).config.interpolate_offset, 0);
    assertEquals((await openEncoder(path, { interpolateOffset: 0.1 })).config.interpolate_offset, 0.1);
    const rotary = await encoderFolder(folder, "dinov3");
    await assertRejects(() => openEncoder(rotary, { interpolateOffset: 0.1 }), UsageError, "rotations");
  });
});
