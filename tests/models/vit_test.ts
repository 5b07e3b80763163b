// Vision transformers of every family against transformers, of MAE against the authors' code, too, on random weights: outputs and
// all gradients, with interpolated positions where the family has positions. The metadata of each fixture say how it was made.

import { assertEquals } from "@std/assert";
import { PUBLISHED } from "../../src/models/sizes.ts";
import { Vit } from "../../src/models/vit.ts";
import { architectureOf, publishedKeys } from "../../src/models/vit_families.ts";
import { concat, reshape } from "../../src/ops/layout.ts";
import { PROFILES, testDevice } from "../helpers/check.ts";
import { compare, nhwc, open } from "../helpers/compare.ts";

const CASES = [
  "dinov2",
  "dinov2_registers",
  "dinov2_patch14",
  "dinov3",
  "dinov3_gated",
  "siglip",
  "clip",
  "vit",
  "vit_mae",
  "vit_mae_authors",
];

for (const name of CASES) {
  for (const profile of PROFILES) {
    Deno.test(`Vit equals the official ${name} off the native grid, gradients too (${profile} kernels)`, async () => {
      await testDevice(profile);
      const file = await open(name);
      const config = architectureOf(JSON.parse(file.metadata.get("config") as string), name);
      const output = file.shapes.has("output") ? "output" : "output.last_hidden_state";
      file.close();
      const vit = new Vit(config);
      const tokens = (x: Parameters<Vit["forward"]>[0]) => {
        const { patches, cls, registers } = vit.forward(nhwc(x));
        const token = cls && reshape(cls, [x.dim(0), 1, config.hidden_size]);
        return concat([token, registers, patches].filter((t) => t !== undefined), 1);
      };
      await compare(
        name,
        output,
        vit,
        ["input.pixel_values"],
        tokens,
        (keys) => publishedKeys(config.model_type, keys),
      );
    });
  }
}

/** Parameters of a ViT with patches of 16 and feed-forwards of 4 C. @param rows position embeddings and CLS token */
function vitParameters(C: number, layers: number, rows: number): number {
  const block = 4 * (C * C + C) + 2 * 4 * C * C + 5 * C + 4 * C;
  return layers * block + 2 * C + C * 3 * 16 ** 2 + C + rows * C;
}

Deno.test("published sizes have the numbers of parameters of transformers' models", async () => {
  await testDevice();
  // Counted on PyTorch's meta device, transformers 5.18.0: tensors with requires_grad, without poolers and heads.
  const expected = {
    "dinov2-s": 22056576,
    "dinov2-b": 86580480,
    "dinov2-l": 304368640,
    "dinov2-g": 1136480768,
    "dinov2-s-reg": 22058112,
    "dinov2-b-reg": 86583552,
    "dinov2-l-reg": 304372736,
    "dinov2-g-reg": 1136486912,
    "dinov3-s": 21596544,
    "dinov3-s-plus": 28692864,
    "dinov3-b": 85660416,
    "dinov3-l": 303129600,
    "dinov3-h-plus": 840592640,
    "dinov3-7b": 6716035072,
    "siglip-b16-224": 85797120,
    "siglip-so400m-14-384": 412987248,
    "clip-l14": 303179776,
    "vit-b16": 85798656,
    "mae-b16": 85647360,
    // The formula of a ViT: it gives the counts above of SigLIP and MAE at B/16.
    "siglip2-b16-256": vitParameters(768, 12, 16 * 16),
    "siglip2-l16-256": vitParameters(1024, 24, 16 * 16),
    "siglip2-l16-512": vitParameters(1024, 24, 32 * 32),
    "mae-l16": vitParameters(1024, 24, 1),
  };
  assertEquals(vitParameters(768, 12, 14 * 14), expected["siglip-b16-224"]);
  assertEquals(vitParameters(768, 12, 1), expected["mae-b16"]);
  const names = Object.keys(expected);
  assertEquals(
    Object.fromEntries(names.map((name) => [name, PUBLISHED.get(name)?.parameters()])),
    expected,
  );
});
