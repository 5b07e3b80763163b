// Continuing from a checkpoint: for more steps, in another folder, with other options or data; and what must be equal.

import { assert, assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { join } from "@std/path";
import { UsageError } from "../../src/errors.ts";
import { saveCheckpoint } from "../../src/run/checkpoint.ts";
import { openSafetensors, type SafetensorsFile } from "../../src/formats/safetensors.ts";
import { openModel } from "../../src/formats/shards.ts";
import { EMBEDDED_ENCODER } from "../../src/zoo/encoders.ts";
import { z } from "zod";
import { optimizing, running } from "../../src/cli/options.ts";
import {
  checkResumedOptions,
  checkResumedSources,
  openResumed,
  resumeCommandOf,
} from "../../src/run/resume.ts";
import { inFolder, quietLog, run, writeImages } from "../helpers/commands.ts";
import { fixturePath, type Weights, write } from "../helpers/published.ts";

const metadata = async (path: string) => {
  const file = await openSafetensors(path);
  file.close();
  return JSON.parse(file.metadata.get("config") as string);
};

Deno.test("a run resumes in its own folder only with the same options; from another folder, differences are reported", () => {
  const { recompute } = optimizing(0.9, 0.95);
  const options = { lr: 1, seed: 3, out: "a", tokenizer: "t" };
  const saved = { ...options, made_from: { data: { name: "d", fingerprint: "11" } } };
  const resumed = (elsewhere: boolean, config: object = saved) => ({
    path: "a/checkpoints/step_7",
    step: 7,
    config,
    file: undefined as unknown as SafetensorsFile,
    elsewhere,
  });
  const check = (from: ReturnType<typeof resumed>, change: object, data: [string, string] = ["d", "11"]) => {
    const { log, lines } = quietLog();
    const schema = z.object({ later: z.string().default("x"), out: running.out, recompute });
    checkResumedOptions(from, { config: { ...options, later: "x", ...change }, schema }, ["steps"], log);
    checkResumedSources(from, { data: { name: data[0], fingerprint: data[1] } }, log);
    return lines;
  };
  // Where things are, what the caller compares, and options that the checkpoint does not know yet.
  assertEquals(check(resumed(false), { out: "b", steps: 9, tokenizer: "moved/t" }, ["moved/d", "11"]), []);
  const refused = (change: object, data?: [string, string]) =>
    assertThrows(() => check(resumed(false), change, data), UsageError).message;
  assertEquals(
    refused({ lr: 2 }),
    'Cannot resume from "a/checkpoints/step_7": --lr was 1 and is 2; use the same, or go on in a new run with ' +
      "--resume a/checkpoints/step_7 and another --out",
  );
  // Checkpoints of tok 0.2.0 call recomputation "checkpoint".
  assertEquals(check(resumed(false, { ...saved, checkpoint: true }), { recompute: false }), []);
  // The batch in other micro-batches: its sums round differently.
  const sized = resumed(false, { ...saved, batchSize: 8, accumulate: 3 });
  for (
    const [batchSize, remedy] of [[
      24,
      "use --batch-size 8 --accumulate 3 without --memory, since other micro-batches of the same batch round differently",
    ], [25, "use the same"]] as const
  ) {
    assertEquals(
      assertThrows(() => check(sized, { batchSize, accumulate: 1 }), UsageError).message,
      `Cannot resume from "a/checkpoints/step_7": --batch-size was 8 and is ${batchSize}; ${remedy}, or go on in a new run ` +
        "with --resume a/checkpoints/step_7 and another --out",
    );
  }
  assertMatch(refused({ later: "y" }), /--later was "x" and is "y"/);
  assertMatch(refused({}, ["e", "22"]), /the data was "d" \(11\) and is "e" \(22\)/);
  assertEquals(check(resumed(true), { lr: 2 }, ["e", "22"]), [
    "from step 7 on: --lr was 1 and is 2",
    'from step 7 on: the data was "d" (11) and is "e" (22)',
  ]);
  // Checkpoints of tok 0.2.0 say no fingerprints: paths are compared, and what they lead to is believed.
  assertMatch(
    check(resumed(false, options), {}).join(),
    /^"a\/checkpoints\/step_7" does not say what it was made from/,
  );
  assertThrows(
    () => check(resumed(false, options), { tokenizer: "u" }),
    UsageError,
    '--tokenizer was "t" and is "u"',
  );
});

Deno.test("train-dit continued with more steps in another folder has the bits of an uninterrupted run", async () => {
  await inFolder(async (folder) => {
    const at = (name: string) => join(folder, name);
    // A constant rate, so that the schedule does not depend on the number of steps.
    const common = [
      "--image-size",
      "8",
      "--images",
      "12",
      "--batch-size",
      "2",
      "--warmup",
      "1",
      "--lr-end",
      "1",
    ];
    const train = (out: string, ...args: string[]) =>
      run("train-dit", "--tokenizer", fixturePath("vavae_tiny.pt"), ...common, "--out", at(out), ...args);
    await train("whole", "--steps", "4");
    await train("shorter", "--steps", "2");
    const wrong = await assertRejects(() => train("shorter", "--resume", "--lr", "1"), UsageError);
    assertMatch(wrong.message, /--lr was 0.007 and is 1; use the same, or go on in a new run/);
    const checkpoint = at("shorter/checkpoints/step_00000002.safetensors");
    const { lines } = await train("longer", "--steps", "4", "--resume", checkpoint);
    const model = (name: string) => Deno.readFileSync(at(`${name}/model/model.safetensors`));
    assertEquals(model("longer"), model("whole"));
    assertEquals(
      lines.filter((line) => line.startsWith("--steps")),
      ["--steps was 2 and is 4: the learning rate now falls until step 4, and goes from 0.00700 to 0.00700 at step 2"],
    );
    // The run knows its tokenizer.
    const fewer = () => run("train-dit", ...common, "--out", at("longer"), "--steps", "3", "--resume");
    await assertRejects(fewer, UsageError, "it has done 4 steps, and --steps is 3");
  });
});

Deno.test("align continues with more steps and stages, keeps earlier scores, and refuses other images and encoders", async () => {
  await inFolder(async (folder) => {
    const at = (name: string) => join(folder, name);
    await writeImages(at("data"), 20);
    const small = [
      "--image-size",
      "16",
      "--decoder-channels",
      "4",
      "--decoder-multiples",
      "1,1,1",
      "--gan",
      "none",
    ];
    const few = [
      "--held-out",
      "2",
      "--batch-size",
      "2",
      "--warmup",
      "1",
      "--lr-end",
      "1",
      "--save-every",
      "1",
    ];
    const align = (out: string, data: string, ...args: string[]) =>
      run("align", ...small, ...few, "--data", at(data), "--out", at(out), ...args);
    await align("whole", "data", "--stages", "1,3", "--steps", "2,1,2");
    await align("part", "data", "--stages", "1", "--steps", "1,1,2");

    const resume = ["--stages", "1,3", "--steps", "2,1,2", "--resume"];
    await writeImages(at("more"), 21);
    const more = await assertRejects(() => align("part", "more", ...resume), UsageError);
    assertMatch(more.message, /the data was ".+data" \([0-9a-f]{16}\) and is ".+more" \([0-9a-f]{16}\); use/);
    const store = await openModel(EMBEDDED_ENCODER), weights: Weights = new Map();
    for (const [name, shape] of store.shapes) weights.set(name, { shape, data: await store.read(name) });
    store.close();
    const [first] = weights.values();
    if (first) first.data[0] = 1;
    Deno.mkdirSync(at("encoder"));
    for (const name of ["config.json", "preprocessor_config.json"]) {
      Deno.copyFileSync(join(EMBEDDED_ENCODER, name), join(at("encoder"), name));
    }
    await write(at("encoder/model.safetensors"), weights);
    const encoder = () => align("part", "data", ...resume, "--encoder", at("encoder"));
    await assertRejects(encoder, UsageError, 'the encoder was "the embedded one" (');

    // The same images elsewhere, more steps of the stage and another stage.
    Deno.renameSync(at("data"), at("moved"));
    const { lines } = await align("part", "moved", ...resume);
    assert(lines.some((line) => line.startsWith('stage "latent": 1 steps before, 2 now; its learning rate')));
    const weightsOf = (name: string) => Deno.readFileSync(at(`${name}/tokenizer/model.safetensors`));
    const scores = (name: string) => JSON.parse(Deno.readTextFileSync(at(`${name}/metrics.json`)));
    assertEquals(weightsOf("part"), weightsOf("whole"));
    assertEquals(Object.keys(scores("whole").stages), ["latent", "refine"]);
    assertEquals(scores("part"), scores("whole"));
    // A finished run that is resumed stays complete, and so does its report.
    await align("part", "moved", ...resume);
    assertEquals(scores("part"), scores("whole"));
    assertMatch(Deno.readTextFileSync(at("part/report.html")), /<td>latent<\/td>.+<td>refine<\/td>/);
    const last = await metadata(at("part/checkpoints/step_00000004.safetensors"));
    assertEquals(last.metrics, { latent: scores("whole").stages.latent });
    // A stage that is over keeps its steps.
    const over = () => align("part", "moved", "--stages", "1,3", "--steps", "3,1,2", "--resume");
    await assertRejects(over, UsageError, 'it has done 2 steps of the stage "refine"');
  });
});

Deno.test("the command to resume after an interruption names the newest checkpoint, not the one it began with", () => {
  const again = (line: string, out?: string) => resumeCommandOf({ commandLine: line }, out, true);
  for (
    const file of ["--resume a/step_1", "--resume=a/step_1", "--resume 'a b'", "'--resume=a b'", "--resume"]
  ) {
    assertEquals(again(`tok align ${file} --out x`), "tok align --out x --resume", file);
    assertEquals(
      again(`tok align --steps 1,2,3 ${file}`, "x y"),
      "tok align --steps 1,2,3 --out 'x y' --resume",
    );
  }
  assertEquals(again("tok align --resume --out x"), "tok align --out x --resume");
  assertEquals(again("tok align --out my--resume-x"), "tok align --out my--resume-x --resume");
  assertEquals(resumeCommandOf({ commandLine: "tok sample" }, "x"), "tok sample --out x");
});

Deno.test("a checkpoint counts as another folder's by where its run lies, however the path is written", async () => {
  await inFolder(async (folder) => {
    const at = join(folder, "run"), path = await saveCheckpoint(at, 1, [], { stages: [1] });
    const { log, lines } = quietLog();
    const elsewhere = async (asked: string, out: string) => {
      const resumed = await openResumed(asked, { out, command: "align", log });
      resumed?.file.close();
      return resumed?.elsewhere;
    };
    assertEquals(await elsewhere("", at), false);
    assertEquals(await elsewhere(path, `${folder}/x/../run/`), false);
    Deno.symlinkSync(at, join(folder, "link"));
    assertEquals(await elsewhere(path, join(folder, "link")), false);
    assertEquals(await elsewhere(path, join(folder, "new")), true);
    assertEquals(await elsewhere("", join(folder, "new")), undefined);
    const other = join(folder, "other");
    await saveCheckpoint(other, 9, [], { command: "train-dit" });
    await assertRejects(() => elsewhere(path, other), UsageError, `"${other}" holds another run already`);
    await assertRejects(() => elsewhere("", other), UsageError, 'it is of "tok train-dit"');
    assertMatch(lines.join(), /there is no checkpoint in ".+new"; starting anew/);
  });
});
