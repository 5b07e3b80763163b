// The vision transformers of every family against transformers on random weights: outputs and all gradients, positions
// interpolated where there are any. How each fixture was made stands in its metadata.

import { assertEquals } from "@std/assert";
import { Vit } from "../src/models/vit.ts";
import { architectureOf, publishedKeys } from "../src/models/vit_families.ts";
import { countParameters } from "../src/nn.ts";
import { concat, reshape } from "../src/ops/shape.ts";
import { PROFILES, testDevice } from "./check.ts";
import { compare, nhwc, open } from "./compare.ts";

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
];

for (const name of CASES) {
  for (const profile of PROFILES) {
    Deno.test(`Vit equals transformers' ${name} off the native grid, gradients too (${profile} kernels)`, async () => {
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
        1e-4,
        (keys) => publishedKeys(config.model_type, keys),
      );
    });
  }
}
