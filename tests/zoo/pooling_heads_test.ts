// CLIP's projection and SigLIP's attention pooling, from image files to `tok features`, against an independent PyTorch
// implementation (fixtures/make_pooling_heads.py).

import { assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { UsageError } from "../../src/errors.ts";
import { openSafetensors, writeSafetensors } from "../../src/formats/safetensors.ts";
import { writePng } from "../../src/image/image.ts";
import { openEncoder } from "../../src/zoo/encoders.ts";
import { PROFILES, relativeError, testDevice } from "../helpers/check.ts";
import { assertClaim } from "../helpers/claims.ts";
import { run } from "../helpers/commands.ts";
import { open } from "../helpers/compare.ts";
import { inFolder, writeJson } from "../helpers/encoder_files.ts";
import { formulaWeights } from "../helpers/formula.ts";

interface Model {
  shapes: Record<string, number[]>;
  config: Record<string, unknown>;
  preprocessor: Record<string, unknown>;
}

/** A two-tower checkpoint in Hugging Face layout. @param without a tensor that it lacks */
async function checkpoint(path: string, { shapes, config, preprocessor }: Model, without?: string) {
  await Deno.mkdir(path);
  writeJson(join(path, "config.json"), config);
  writeJson(join(path, "preprocessor_config.json"), preprocessor);
  const text = { "text_model.final_layer_norm.weight": [4], "text_projection.weight": [12, 4] };
  const tensors = Object.entries({ ...shapes, ...text }).filter(([name]) => name !== without);
  await writeSafetensors(
    join(path, "model.safetensors"),
    tensors.map(([name, shape]) => ({ name, shape, data: formulaWeights(name, shape) })),
  );
}

for (const name of ["clip", "siglip"]) {
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
