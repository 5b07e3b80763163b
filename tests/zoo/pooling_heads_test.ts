// CLIP's projection, SigLIP's attention pooling and ConvNeXt V2, from image files to `tok features`, against an independent PyTorch
// implementation (fixtures/make_pooling_heads.py).

import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { UsageError } from "../../src/errors.ts";
import { openImages } from "../../src/data/open_images.ts";
import { described } from "../../src/data/network_input.ts";
import { preprocessorOf } from "../../src/data/preprocess.ts";
import { EncoderFeatures, inputOfCmmd } from "../../src/metrics/encoder_features.ts";
import { openSafetensors, writeSafetensors } from "../../src/formats/safetensors.ts";
import { writePng } from "../../src/image/image.ts";
import { openEncoder, openFeatureEncoder } from "../../src/zoo/encoders.ts";
import { PROFILES, relativeError, testDevice } from "../helpers/check.ts";
import { assertClaim } from "../helpers/claims.ts";
import { run } from "../helpers/commands.ts";
import { open } from "../helpers/compare.ts";
import { formulaWeights } from "../helpers/formula.ts";
import { checkpoint, inFolder, type Model, writeJson } from "../helpers/encoder_files.ts";

for (const name of ["clip", "siglip", "convnextv2"]) {
  Deno.test(`tok features writes the pooled features of ${name} that PyTorch computes, in both kernel profiles`, async () => {
    await inFolder(async (folder) => {
      const fixture = await open("pooling_heads"), images = await fixture.read("images");
      const model = JSON.parse(fixture.metadata.get(name) as string) as Model;
      const [B, S] = fixture.shapes.get("images") as [number, number], each = images.length / B;
      await Deno.mkdir(join(folder, "images"));
      for (let i = 0; i < B; i++) {
        const data = Uint8Array.from(images.subarray(i * each, (i + 1) * each));
        await writePng(join(folder, "images", `${i}.png`), { width: S, height: S, data });
      }
      const path = join(folder, "model"), keys = [...fixture.shapes.keys()];
      await checkpoint(path, model);
      let output = 0;
      for (const profile of PROFILES) {
        const out = join(folder, `${profile}.safetensors`);
        const { result } = await run(
          ...["features", "--encoder", path, "--input", join(folder, "images"), "--out", out] as const,
          ...["--batch-size", "2", "--kernels", profile],
        );
        const file = await openSafetensors(out);
        const expected: Record<string, string> = {
          patches: "patch_tokens",
          cls: "cls_token",
          pooled: "pooled",
        };
        const named = keys.filter((key) => key.startsWith(`${name}.`));
        assertEquals(file.shapes.size, named.length);
        for (const key of named) {
          const ours = expected[key.slice(name.length + 1)] as string;
          assertEquals(file.shapes.get(ours), fixture.shapes.get(key), ours);
          output = Math.max(output, relativeError(await file.read(ours), await fixture.read(key)));
        }
        assertEquals(result.pooled, file.shapes.get("pooled")?.[1]);
        file.close();
      }
      fixture.close();
      assertClaim(`${name}_pooled`, { output });
    });
  });
}

Deno.test("the fingerprint of a pooling head is of its weights; statistics of another head are refused", async () => {
  await inFolder(async (folder) => {
    const fixture = await open("pooling_heads"), path = join(folder, "clip");
    const model = JSON.parse(fixture.metadata.get("clip") as string) as Model,
      head = "visual_projection.weight";
    fixture.close();
    await checkpoint(path, model);
    const prints = async (path: string) => {
      const encoder = await openFeatureEncoder(path);
      return [await encoder.fingerprint(), await encoder.headFingerprint()];
    };
    const [tower, own] = await prints(path), file = join(path, "model.safetensors");
    const set = join(folder, "set"),
      sets = ["--fake", set, "--metrics", "fd-pooled", "--encoder", path] as const;
    await Deno.mkdir(set);
    for (const v of [10, 200]) {
      await writePng(join(set, `${v}.png`), { width: 8, height: 8, data: new Uint8Array(192).fill(v) });
    }
    const stats = join(folder, "stats.npz"), out = ["--out", join(folder, "out")] as const;
    await run("eval", "--real", set, ...sets, ...out, "--save-stats", stats);

    const tensors = Object.entries(model.shapes).map(([name, shape]) => {
      const data = formulaWeights(name, shape);
      return { name, shape, data: name === head ? data.map((v) => 2 * v) : data };
    });
    await writeSafetensors(file, tensors);
    const [same, other] = await prints(path);
    assertEquals(same, tower);
    assert(own !== undefined && other !== undefined && own !== other);
    await assertRejects(
      () => run("eval", "--real", stats, ...sets, ...out),
      UsageError,
      `the pooling head was "${path}" (${own}) and is "${path}" (${other})`,
    );
    await writeSafetensors(file, tensors.filter(({ name }) => name !== head));
    assertEquals(await prints(path), [tower, undefined]);
  });
});

Deno.test("metrics read ConvNeXt's mean pixel and pooled features; it is refused where an encoder is trained", async () => {
  await testDevice();
  await inFolder(async (folder) => {
    const fixture = await open("pooling_heads"), path = join(folder, "model");
    await checkpoint(path, JSON.parse(fixture.metadata.get("convnextv2") as string));
    const [B, S] = fixture.shapes.get("images") as [number, number], data = await fixture.read("images");
    await Deno.mkdir(join(folder, "images"));
    for (let i = 0; i < B; i++) {
      const image = Uint8Array.from(data.subarray(i * S * S * 3, (i + 1) * S * S * 3));
      await writePng(join(folder, "images", `${i}.png`), { width: S, height: S, data: image });
    }
    const encoder = await openFeatureEncoder(path), images = await openImages(join(folder, "images"));
    const patches = await fixture.read("convnextv2.patches"),
      pooled = await fixture.read("convnextv2.pooled");
    const C = pooled.length / B, T = patches.length / B / C;
    const norm = (b: number) => Math.hypot(...pooled.subarray(b * C, (b + 1) * C));
    const expected = {
      patches: Float64Array.from(pooled, (_, i) => {
        const b = Math.floor(i / C);
        let sum = 0;
        for (let t = 0; t < T; t++) sum += patches[(b * T + t) * C + i % C] as number;
        return sum / T;
      }),
      pooled: Float64Array.from(pooled),
      embedding: Float64Array.from(pooled, (v, i) => v / norm(Math.floor(i / C))),
    };
    for (const space of ["patches", "pooled", "embedding"] as const) {
      const features = await EncoderFeatures.open(encoder, { batchSize: 2, n: B, space });
      const { features: rows } = await features.extract(images);
      features.destroy();
      assert(relativeError(rows.data, expected[space]) < 2e-6, space);
    }
    const clip = join(folder, "clip");
    await checkpoint(clip, JSON.parse(fixture.metadata.get("clip") as string), "visual_projection.weight");
    const headless = await openFeatureEncoder(clip), options = { batchSize: 2, n: B };
    const tokens = await EncoderFeatures.open(headless, { ...options, space: "cls" });
    const { features: rows } = await tokens.extract(images);
    tokens.destroy();
    assert(relativeError(rows.data, await fixture.read("clip.cls")) < 2e-6, "cls");
    const embedding = await EncoderFeatures.open(headless, { ...options, space: "embedding" });
    embedding.destroy();
    const preprocessor = inputOfCmmd(headless.preprocessor);
    assertEquals(embedding.view.network, { kind: "encoder", preprocessor }, "cmmd resizes as its authors do");
    assertStringIncludes(described(embedding.view), "stretched to 8 x 8 without antialias");
    await assertRejects(
      () => EncoderFeatures.open(headless, { ...options, space: "pooled" }),
      UsageError,
      "its file has no pooling head",
    );
    fixture.close();
    const set = join(folder, "images"), out = join(folder, "out");
    const sets = ["eval", "--real", set, "--fake", set, "--out", out] as const;
    const score = (...metrics: string[]) => run(...sets, "--encoder", path, "--metrics", metrics.join());
    await assertRejects(
      () => run(...sets, "--metrics", "fd-pooled"),
      UsageError,
      "has no pooling head, as CLIP",
    );
    const scores = (await score("fd-encoder", "fd-pooled", "cmmd")).result;
    for (const key of ["fd_encoder", "fd_pooled", "cmmd"]) {
      assert(Math.abs(scores[key] as number) < 1e-6, `${key} of equal sets: ${scores[key]}`);
    }
    await assertRejects(() => score("fd-cls"), UsageError, "has no CLS token");
    await assertRejects(() => openEncoder(path), UsageError, "a ConvNeXt is for features and metrics only");
    const offset = { interpolateOffset: 0.1 };
    await assertRejects(() => openFeatureEncoder(path, offset), UsageError, "it has no positions");
    writeJson(join(path, "config.json"), { model_type: "convnextv2", depths: [1] });
    await assertRejects(() => openFeatureEncoder(path), UsageError, "another number of stages");
  });
});

Deno.test("ConvNeXt's processor crops below 384 pixels by crop_pct, and stretches from there on", () => {
  const sizes = (fields: Record<string, unknown>) => {
    const { resize, crop } = preprocessorOf(
      { image_processor_type: "ConvNextImageProcessor", ...fields },
      "",
      "file",
    );
    return [resize, crop];
  };
  const square = (side: number) => ({ height: side, width: side });
  assertEquals(sizes({ size: { shortest_edge: 224 }, crop_pct: 0.875 }), [{ shorter: 256 }, square(224)]);
  assertEquals(sizes({ size: 224 }), [{ shorter: 256 }, square(224)]);
  assertEquals(sizes({ size: 224, crop_pct: 0.95 }), [{ shorter: 235 }, square(224)]);
  assertEquals(sizes({}), [square(384), undefined]);
});

Deno.test("an encoder without its head has no pooled features; an incomplete head is refused by the missing key", async () => {
  await testDevice();
  await inFolder(async (folder) => {
    const fixture = await open("pooling_heads");
    const [clip, siglip] = ["clip", "siglip"].map((name) =>
      JSON.parse(fixture.metadata.get(name) as string)
    ) as [Model, Model];
    fixture.close();
    await checkpoint(join(folder, "a"), clip, "visual_projection.weight");
    assertEquals(await (await openEncoder(join(folder, "a"))).head(), undefined);
    await checkpoint(join(folder, "b"), siglip, "vision_model.head.probe");
    assertEquals(await (await openEncoder(join(folder, "b"))).head(), undefined);
    await checkpoint(join(folder, "c"), siglip, "vision_model.head.attention.in_proj_bias");
    const { head } = await openEncoder(join(folder, "c"));
    await assertRejects(head, UsageError, 'missing "query.bias", missing "key.bias", missing "value.bias"');
  });
});
