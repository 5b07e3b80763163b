// A run that is killed resumes to the same bits: alignment on tar shards across its stages, and diffusion training in fp16.

import { assert, assertEquals } from "@std/assert";
import { fromFileUrl, join } from "@std/path";

const MAIN = fromFileUrl(new URL("../../main.ts", import.meta.url));
const CONFIG = fromFileUrl(new URL("../../deno.json", import.meta.url));

function tok(folder: string, ...args: string[]): Deno.Command {
  return new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-check", "-A", "--config", CONFIG, MAIN, ...args],
    cwd: folder,
    stdout: "null",
    stderr: "piped",
  });
}

async function finish(folder: string, ...args: string[]): Promise<void> {
  const { code, stderr } = await tok(folder, ...args).output();
  assertEquals(code, 0, new TextDecoder().decode(stderr));
}

/** Starts a command and kills it with SIGKILL as soon as its log has a row of step `step` or later. */
async function killAt(step: number, folder: string, run: string, ...args: string[]): Promise<void> {
  const child = tok(folder, ...args).spawn();
  const log = join(folder, run, "log.jsonl");
  for (let waited = 0; waited < 120_000; waited += 20) {
    await new Promise((r) => setTimeout(r, 20));
    let last = 0;
    try {
      for (const [, n] of Deno.readTextFileSync(log).matchAll(/"step":(\d+)/g)) {
        last = Math.max(last, Number(n));
      }
    } catch {
      continue; // the run has not made its log yet
    }
    if (last >= step) break;
  }
  child.kill("SIGKILL");
  await child.status;
  await child.stderr.cancel();
}

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

Deno.test("an alignment killed in any stage resumes to the bits of the run that was never killed", async () => {
  const folder = await Deno.makeTempDir();
  try {
    await finish(folder, "align", "--out", "whole", ...SMALL);
    const whole = Deno.readFileSync(join(folder, "whole/tokenizer/model.safetensors"));
    // In the middle of stages 1, 2 and 3, between two checkpoints.
    for (const step of [3, 9, 15]) {
      await killAt(
        step,
        folder,
        "killed",
        "align",
        "--out",
        "killed",
        ...SMALL,
        // Where images are made, what is recomputed, and what is validated changes nothing.
        ...["--val-every", "4", "--tensorboard"],
        ...(step > 3 ? ["--resume", "--workers", "0", "--recompute"] : []),
      );
    }
    await finish(folder, "align", "--out", "killed", ...SMALL, "--resume");
    assertEquals(Deno.readFileSync(join(folder, "killed/tokenizer/model.safetensors")), whole);
    const { code, stderr } = await tok(
      folder,
      "align",
      "--out",
      "killed",
      ...SMALL,
      "--resume",
      "--w-semantic",
      "3",
    ).output();
    assertEquals(code, 2);
    assert(new TextDecoder().decode(stderr).includes("--w-semantic was 0.2 and is 3"));

    const dit = [
      "--tokenizer",
      "whole",
      "--images",
      "60",
      "--steps",
      "12",
      "--log-every",
      "1",
      "--save-every",
      "4",
      "--precision",
      "f16",
    ];
    await finish(folder, "train-dit", "--out", "dit", ...dit);
    await killAt(7, folder, "dit2", "train-dit", "--out", "dit2", ...dit);
    await finish(folder, "train-dit", "--out", "dit2", ...dit, "--resume");
    assertEquals(
      Deno.readFileSync(join(folder, "dit2/model/model.safetensors")),
      Deno.readFileSync(join(folder, "dit/model/model.safetensors")),
    );
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
