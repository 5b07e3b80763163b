// One list of wrappers for every loader: tensors are found under any prefix that training scripts add to a model's names.

import { assertEquals, assertThrows } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { UsageError } from "../../src/errors.ts";
import { renamed } from "../../src/formats/mapped_store.ts";
import { openBytes } from "../../src/formats/bytes.ts";
import { readTorch } from "../../src/formats/torch.ts";
import { authorsModel } from "../../src/models/vit_authors.ts";
import { publishedKeys } from "../../src/models/vit_families.ts";
import { underNote, wrapperOf } from "../../src/models/wrappers.ts";

const AUTHORS = fromFileUrl(new URL("../fixtures/dinov2_authors.pth", import.meta.url));

/** A chunk for each block. */
const chunked = (key: string) => key.replace(/^blocks\.(\d+)\./, "blocks.$1.$1.");
const below = (prefix: string) => (key: string) => `${prefix}${key}`;

/** How a training script spells a name, and what else lies in its file. */
const SPELLINGS: [what: string, spell: (key: string) => string, others: (key: string) => string[]][] = [
  ["DINOv2's teacher", below("teacher.backbone."), () => ["teacher.dino_head.mlp.0.weight"]],
  [
    "DINOv2's teacher in chunks",
    (k) => `teacher.backbone.${chunked(k)}`,
    () => ["teacher.dino_head.mlp.0.weight"],
  ],
  ["teacher and student", below("model.teacher.backbone."), (k) => [`model.student.backbone.${k}`]],
  ["student before teacher", below("teacher.backbone."), (k) => [`student.${k}`]],
  ["chunks alone", chunked, () => []],
  ["DataParallel", below("module."), () => []],
  ["torch.compile", below("_orig_mod."), () => []],
  ["both", below("module._orig_mod."), () => []],
  ["FSDP", below("_fsdp_wrapped_module."), () => []],
  ["a backbone", below("backbone."), () => ["head.weight"]],
  ["Lightning", below("state_dict.model."), () => []],
  ["an average of the weights next to them", below("ema."), (k) => [`model.${k}`]],
  ["timm's average", below("state_dict_ema."), (k) => [`state_dict.${k}`]],
  ["I-JEPA's target", below("target_encoder.module."), (k) => [`encoder.module.${k}`]],
];

for (const [what, spell, others] of SPELLINGS) {
  Deno.test(`an authors' encoder is found as ${what}`, async () => {
    const file = readTorch(openBytes(AUTHORS)), plain = authorsModel(file);
    try {
      // The file's tensors under the names of the training script; the others are another model's.
      const origin = new Map([...file.shapes.keys()].map((key) => [spell(key), key]));
      const extra = [...file.shapes.keys()].flatMap(others).map((key) => [key, [1]] as const);
      const shapes = new Map([
        ...extra,
        ...[...origin].map(([key, k]) => [key, file.shapes.get(k) ?? []] as const),
      ]);
      const found = authorsModel({ name: "file", shapes });
      assertEquals(found?.config, plain?.config);
      // Each of the encoder's tensors comes from the same tensor and rows of the file.
      const entries = [...found?.entries ?? []].map(([name, from]) =>
        typeof from === "string"
          ? [name, origin.get(from)]
          : [name, { key: origin.get(from.key), rows: from.rows }]
      );
      assertEquals(entries, [...plain?.entries ?? []]);
      assertEquals(renamed(file, plain?.entries ?? new Map()).shapes.size, entries.length);
    } finally {
      file.close();
    }
  });
}

Deno.test("Hugging Face's names are found below any wrapper, with the family's prefix inside it", () => {
  const names = ["embeddings.patch_embeddings.projection.weight", "encoder.layer.0.norm1.weight"];
  for (const prefix of ["", "module.", "model.module.", "module.dinov2.", "student.dinov2."]) {
    const keys = names.map((name) => `${prefix}${name}`);
    assertEquals([...publishedKeys("dinov2", keys)], names.map((name, i) => [name, keys[i]]));
  }
  const siglip = ["embeddings.patch_embedding.weight", "encoder.layers.0.layer_norm1.weight"];
  for (const prefix of ["vision_model.", "module.vision_model.", "model."]) {
    const keys = siglip.map((name) => `${prefix}${name}`);
    assertEquals(
      [...publishedKeys("siglip_vision_model", [...keys, "module.text_model.x"])].slice(0, 2).map(([, k]) =>
        k
      ),
      keys,
    );
  }
});

Deno.test("two blocks with one index in different chunks are refused with both names", () => {
  const keys = ["patch_embed.proj.weight", "blocks.0.1.norm1.weight", "blocks.1.1.norm1.weight"];
  assertThrows(
    () => authorsModel({ name: "x.pth", shapes: new Map(keys.map((key) => [key, [64, 3, 8, 8]])) }),
    UsageError,
    'Cannot load "x.pth": "blocks.1.1.norm1.weight" and "blocks.0.1.norm1.weight" are the same tensor of the encoder',
  );
});

Deno.test("prefixes that are no wrappers are not removed, and errors name them", () => {
  assertEquals(wrapperOf(["optimizer.patch_embed.proj.weight"], "patch_embed.proj.weight"), undefined);
  assertEquals(
    underNote(["optimizer.patch_embed.proj.weight"], "patch_embed.proj.weight"),
    ' (but below the prefix "optimizer.", which is not a known wrapper: remove it)',
  );
  assertEquals(underNote(["other"], "patch_embed.proj.weight"), "");
});
