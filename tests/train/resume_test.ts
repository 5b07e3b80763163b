// A run that is killed resumes to the same bits: alignment on tar shards across its stages, and diffusion training in fp16.

import { assertEquals, assertRejects } from "@std/assert";
import { fromFileUrl, join } from "@std/path";
import { UsageError } from "../../src/errors.ts";
import { inFolder, killAt, run } from "../helpers/commands.ts";

/** Nine images in two shards. */
const SHARDS = fromFileUrl(new URL("../fixtures/data/", import.meta.url)) + "shard-{000..001}.tar";

const SMALL = [
  "--data",
  SHARDS,
  "--steps",
  "6,6,4",
  "--held-out",
  "16",
  "--log-every",
  "1",
  "--save-every",
  "2",
  "--gan-start",
  "6,6,1",
  "--batch-size",
  "2",
  // A small decoder of the same number of levels.
  ...["--decoder-multiples", "1,1,1,1", "--decoder-channels", "4"],
];

Deno.test("a run killed in any stage, or in fp16, resumes to the bits of the run that was never killed", async () => {
  await inFolder(async (folder) => {
    const at = (path: string) => join(folder, path), killed = at("killed");
    const bytes = (run: string, model: string) => Deno.readFileSync(at(`${run}/${model}/model.safetensors`));
    await run("align", "--out", at("whole"), ...SMALL);
    // In the middle of stages 1, 2 and 3, between two checkpoints.
    for (const step of [3, 9, 15]) {
      // Where images are made, what is recomputed, and what is validated changes nothing.
      const more = ["--val-every", "4", "--tensorboard"];
      if (step > 3) more.push("--resume", "--workers", "0", "--recompute");
      await killAt(step, killed, "align", "--out", killed, ...SMALL, ...more);
    }
    await run("align", "--out", killed, ...SMALL, "--resume");
    assertEquals(bytes("killed", "tokenizer"), bytes("whole", "tokenizer"));
    await assertRejects(
      () => run("align", "--out", killed, ...SMALL, "--resume", "--w-semantic", "3"),
      UsageError,
      "--w-semantic was 0.2 and is 3",
    );

    const dit = [
      ...["--tokenizer", at("whole"), "--images", "60", "--steps", "12", "--log-every", "1"],
      ...["--save-every", "4", "--precision", "f16"],
    ];
    await run("train-dit", "--out", at("dit"), ...dit);
    await killAt(7, at("dit2"), "train-dit", "--out", at("dit2"), ...dit);
    await run("train-dit", "--out", at("dit2"), ...dit, "--resume");
    assertEquals(bytes("dit2", "model"), bytes("dit", "model"));
  });
});
