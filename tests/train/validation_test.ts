// Validation during an alignment: it changes no bit of the training, scores the averaged weights, and keeps the best checkpoint.

import { assert, assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { join } from "@std/path";
import { heldOutOf, splitOff } from "../../src/data/held_out.ts";
import { gather, subset } from "../../src/data/image_source.ts";
import { Shapes } from "../../src/data/toy_shapes.ts";
import { Interrupted, OutOfMemoryError, UsageError } from "../../src/errors.ts";
import { device } from "../../src/gpu/device.ts";
import { requestStop } from "../../src/interruption.ts";
import { FeatureFrechet } from "../../src/metrics/feature_frechet.ts";
import { checkpointPath, listCheckpoints, openCheckpoint, readBest } from "../../src/run/checkpoint.ts";
import { reshape } from "../../src/ops/layout.ts";
import { snapshot } from "../../src/nn/layers.ts";
import { readTensor, variable } from "../../src/tensor/tensor.ts";
import { trainLoop } from "../../src/train/loop.ts";
import { StageRun } from "../../src/train/stage_run.ts";
import { Validator } from "../../src/train/validation.ts";
import { openTokenizer } from "../../src/zoo/runs.ts";
import { alignment, HYPER, STAGES, TINY_OPTIONS } from "../helpers/alignment.ts";
import { testDevice } from "../helpers/check.ts";
import { inFolder, quietLog, run, writeImages } from "../helpers/commands.ts";
import { readEvents } from "../helpers/events.ts";

/** Sizes of a small alignment, and two classes of images with some of each held out. */
const SMALL = [
  ...[
    "--image-size",
    "16",
    "--batch-size",
    "2",
    "--stages",
    "2,3",
    "--steps",
    "1,4,2",
    "--workers",
    "0",
    "--log-every",
    "1",
  ],
  ...["--decoder-channels", "4", "--decoder-multiples", "1,1,1", "--latent-channels", "4", "--gan", "none"],
];

type Row = Record<string, unknown> & { step: number };
const rowsOf = (folder: string, event: string): Row[] =>
  Deno.readTextFileSync(join(folder, "log.jsonl")).trim().split("\n").map((line) => JSON.parse(line))
    .filter((row) => row.event === event);

Deno.test("validation changes no bit of an alignment, also of one that is resumed, and keeps the best checkpoint", async () => {
  await inFolder(async (folder) => {
    const at = (...names: string[]) => join(folder, ...names);
    for (const name of ["a", "b"]) {
      await writeImages(at("data", name), 8);
      await writeImages(at("val", name), 3);
    }
    const align = (...args: string[]) =>
      run("align", ...SMALL, "--data", at("data"), "--val", at("val"), ...args);
    await align("--out", at("plain"), "--save-every", "0");
    const watched = [
      "--val-every",
      "3",
      "--tensorboard",
      "--save-every",
      "2",
      "--keep",
      "1",
      "--keep-every",
      "5",
    ];
    await align(...watched, "--out", at("watched"));
    const model = (name: string) => Deno.readFileSync(at(name, "tokenizer/model.safetensors"));
    assertEquals(model("watched"), model("plain"));

    // Within stages every three steps of the run, and at the end of each.
    const found = rowsOf(at("watched"), "validation");
    assertEquals(found.map(({ stage, step }) => [stage, step]), [
      ["perceptual", 3],
      ["perceptual", 4],
      ["refine", 6],
    ]);
    for (const row of found) {
      for (const key of ["psnr", "ssim", "mse", "fd_encoder", "probe", "knn", "n"]) {
        assert(Number.isFinite(row[key]), `${key} at ${row.step}`);
      }
    }
    const ends = rowsOf(at("watched"), "stage").map(({ psnr, fd_encoder }) => [psnr, fd_encoder]);
    assertEquals(
      [4, 6].map((step) => found.find((row) => row.step === step))
        .map((row) => [row?.psnr, row?.fd_encoder]),
      ends,
    );

    // The best one, with a tokenizer of its own, although only one checkpoint and every fifth step are kept.
    const best = readBest(at("watched")),
      highest = found.toSorted((a, b) => Number(b.psnr) - Number(a.psnr))[0];
    assertEquals(best, { step: highest?.step as number, metric: "psnr", value: highest?.psnr as number });
    const { file, step } = await openCheckpoint(at("watched/checkpoints/best.safetensors")); // as --resume does
    file.close();
    assertEquals(step, best?.step);
    assertEquals(listCheckpoints(at("watched")), [6, 5]);
    assertEquals((await openTokenizer(at("watched/best"))).channels, 4);
    Deno.renameSync(at("watched/tokenizer"), at("aside"));
    await assertRejects(() => openTokenizer(at("watched")), UsageError, "its run is not finished");
    Deno.renameSync(at("aside"), at("watched/tokenizer"));
    const page = Deno.readTextFileSync(at("watched/report.html"));
    for (
      const part of [
        "validation psnr",
        "validation fd encoder",
        "Reconstructions over time",
        `Best checkpoint: step ${best?.step}`,
      ]
    ) {
      assert(page.includes(part), part);
    }
    const pictures = [...Deno.readDirSync(at("watched/images/validation"))].map(({ name }) => name).sort();
    assertEquals(pictures, [
      "originals.png",
      ...[3, 4, 6].map((n) => `step_${String(n).padStart(8, "0")}.png`),
    ]);

    // TensorBoard has the same numbers.
    const [name] = [...Deno.readDirSync(at("watched"))].map(({ name }) => name).filter((n) =>
      n.includes("tfevents")
    );
    const events = readEvents(at("watched", name as string));
    const scalar = (step: number, tag: string) =>
      events.filter((e) => e.step === step).flatMap((e) => e.values).find((v) => v.tag === tag)?.scalar;
    assertEquals(scalar(3, "val/psnr"), Math.fround(found[0]?.psnr as number));
    const [logged] = rowsOf(at("watched"), "step").filter(({ step }) => step === 3);
    assertEquals(scalar(3, "train/loss"), Math.fround(logged?.loss as number));
    assertEquals(scalar(3, "grad_norm/encoder"), Math.fround(logged?.["grad_norm/encoder"] as number));
    assert((logged?.["grad_norm/encoder"] as number) > 0);

    // From a checkpoint between two validations, in another folder.
    const from = checkpointPath(at("watched"), 5);
    await align(...watched, "--out", at("resumed"), "--resume", from);
    assertEquals(model("resumed"), model("plain"));
    const again = rowsOf(at("resumed"), "validation");
    assertEquals(
      again.map(({ step, psnr, fd_encoder, probe }) => [step, psnr, fd_encoder, probe]),
      found.slice(2).map(({ step, psnr, fd_encoder, probe }) => [step, psnr, fd_encoder, probe]),
    );
    const bad = (...args: string[]) => align("--out", at("none"), ...args);
    await assertRejects(
      () => bad("--val-every", "3", "--best", "lpips"),
      UsageError,
      "Cannot choose the best checkpoint by --best lpips: this run computes psnr, ssim",
    );
    Deno.removeSync(at("val/b"), { recursive: true });
    await assertRejects(() => bad(), UsageError, 'it has no images of the class "b"');
    await assertRejects(
      () => align(...watched, "--out", at("watched"), "--resume"),
      UsageError,
      'it has no images of the class "b"',
    );
    await writeImages(at("val/b"), 4);
    await assertRejects(
      () => align(...watched, "--out", at("watched"), "--resume"),
      UsageError,
      "the validation data was",
    );
  });
});

Deno.test("withEma() shows the averages and restores the weights to the bit, also after a signal", async () => {
  const a = await alignment("f32", { tiny: true });
  const stage = new StageRun(a, STAGES.perceptual, TINY_OPTIONS);
  await stage.optimizer.startEma();
  const { images } = await gather(new Shapes(2, 1), [0, 1], TINY_OPTIONS.imageSize);
  const program = await stage.program(0);
  stage.optimizer.set({ ...HYPER, lr: 1e-2, emaDecay: 0.5 });
  program.run({ x: images });
  const all = new Map([...a.state(), ...stage.state()]), before = await snapshot(all);
  const sets = ["encoder", "adapter", "decoder"] as const;
  const flats = async () =>
    await Promise.all(sets.map(async (name) => await readTensor(a.sets[name].flats[0]!)));
  const weights = await flats();
  await stage.optimizer.withEma(async () => {
    const averages = sets.map((name) => before.find((t) => t.name === `optimizer.${name}.ema.0`)?.data);
    assertEquals(await flats(), averages as Float32Array[]);
    assert(averages.every((average, i) => average?.some((v, k) => v !== weights[i]?.[k])));
  });
  assertEquals(await snapshot(all), before);
  // Averages and weights change places without memory for either: none is left at the limit of --memory.
  const { createBuffer } = device();
  device().createBuffer = (bytes, ...others) =>
    bytes < 1024
      ? createBuffer.call(device(), bytes, ...others)
      : Promise.reject(new OutOfMemoryError("full"));
  try {
    await stage.optimizer.withEma(() => Promise.resolve());
  } finally {
    device().createBuffer = createBuffer;
  }
  assertEquals(await snapshot(all), before);
  const signalled = () => {
    requestStop(130);
    return Promise.reject(new Interrupted());
  };
  try {
    await assertRejects(() => stage.optimizer.withEma(signalled), Interrupted);
  } finally {
    requestStop(0);
  }
  assertEquals(await snapshot(all), before);
  stage.destroy();
});

Deno.test("FeatureFrechet is the Frechet distance of the images' mean tokens", async () => {
  await testDevice();
  // The tokens are the pixels: three features an image, their means and variances in closed form if the channels are independent.
  const S = 2, n = 8, options = { size: S, batchSize: 3, n };
  // Channel c of image i is +-20 by bit c of i: uncorrelated.
  const images = (shift: number, stretch: number) =>
    Uint8Array.from({ length: n * S * S * 3 }, (_, k) => {
      const i = Math.floor(k / (S * S * 3)), c = k % 3;
      return 100 + shift * (c + 1) + (i >> c & 1 ? 20 : -20) * (c === 1 ? stretch : 1);
    });
  const score = await FeatureFrechet.open((x) => reshape(x, [x.dim(0), S * S, 3]), options);
  await score.add(images(0, 1), images(10, 2));
  const { fd_encoder } = await score.scores();
  // |m|^2 = (10 / 127.5)^2 (1 + 4 + 9); standard deviations of channel 1 differ by 20 / 127.5 sqrt(n / (n - 1)).
  const expected = (14 * 10 ** 2 + 20 ** 2 * n / (n - 1)) / 127.5 ** 2;
  assert(Math.abs(fd_encoder as number - expected) < 1e-5, `${fd_encoder}, not ${expected}`);
  const originals = await score.originals();
  score.destroy();
  const again = await FeatureFrechet.open((x) => reshape(x, [x.dim(0), S * S, 3]), { ...options, originals });
  await again.add(images(7, 3), images(10, 2)); // the known statistics count
  assertEquals((await again.scores()).fd_encoder, fd_encoder);
  again.destroy();
});

Deno.test("a folder of few images is said to be one, whatever is held out of it", () => {
  const lines: string[] = [], of = (n: number) => new Shapes(n, 0);
  splitOff(of(12), 256, "photos", (line) => lines.push(line));
  assertMatch(lines.join(), /^warning: "photos" has few images: 11 to train on.*1 held out.*--val$/);
  splitOff(of(200), 5, "photos", (line) => lines.push(line));
  assertEquals(lines.length, 1);
});

Deno.test("images held out in a folder need the classes of the training images", () => {
  const shapes = new Shapes(40, 1), names = { train: "photos", validation: "val" };
  const of = (classes: string[], label = (i: number) => i % classes.length, length = 40) => ({
    ...subset(shapes, length),
    classes,
    label,
  });
  const split = heldOutOf(of(["a", "b"]), of(["b", "a"], (i) => i < 20 ? 0 : 1), 4, names);
  assertEquals([0, 1, 2, 3].map((i) => split.heldOut.label(i)), [1, 1, 0, 0], "labels are those of training");
  assertEquals([split.heldOut.length, split.train.length, split.probe?.length], [4, 40, 40]);
  assertEquals(heldOutOf(of([]), of([]), 9, names).probe, undefined);
  assertEquals(heldOutOf(of(["a", "b"]), of([]), 9, names).probe, undefined);
  const message = (a: string[], b: string[]) =>
    assertThrows(() => heldOutOf(of(a), of(b), 9, names), UsageError).message;
  assertEquals(
    message(["cat", "dog", "owl"], ["dog", "owl"]),
    'Cannot validate on "val": it has no images of the class "cat" of "photos"; add some, or hold images out with ' +
      "--held-out alone",
  );
  assertEquals(message(["a"], ["a", "b"]), 'Cannot validate on "val": "photos" has no class "b"; remove it');
});

Deno.test("the best checkpoint is the highest or the lowest score, whichever the metric means", async () => {
  await inFolder(async (folder) => {
    const { log } = quietLog();
    const watch = { log, show: () => {}, record: () => Promise.resolve() };
    for (const [best, chosen] of [["psnr", [10, 20]], ["fd-encoder", [10, 30]], [undefined, []]] as const) {
      const saved: number[] = [];
      let step = 0;
      const validator = new Validator(folder, {
        every: 10,
        best,
        metrics: ["psnr", "fd_encoder"],
        score: () => Promise.reject(new Error("not asked")),
        save: () => Promise.resolve(void saved.push(step)),
      }, watch);
      for (const [psnr, fd_encoder] of [[10, 5], [12, 6], [11, 4], [NaN, NaN]] as const) {
        assertEquals(validator.isDue(step += 10), true);
        await validator.add("latent", step, { psnr, fd_encoder });
        assertEquals(validator.isDue(step), false, "done");
      }
      assertEquals(saved, [...chosen]);
      assertEquals([5, 0, 50].map((n) => validator.isDue(n)), [false, false, true]);
    }
  });
});

Deno.test("the loop saves after an interrupted or failed validation, and not twice after one that saved", async () => {
  await testDevice();
  const counts = { applied: 1, skipped: 0, inARow: 0, lossScale: 1 };
  const optimizer = {
    readProgress: () => Promise.resolve(counts),
    readNorms: () => Promise.resolve([]),
    lr: 1,
    label: "optimizer",
  };
  const loop = async (validate: (n: number) => Promise<boolean>) => {
    const saved: number[] = [];
    const done = await trainLoop({
      steps: 6,
      runningMetrics: variable([1]),
      metrics: ["loss"],
      optimizers: [optimizer] as never,
      stepBytes: 1,
      async *data() {
        for (;;) yield 0;
      },
      step: () => Promise.resolve(),
    }, {
      from: 0,
      logEvery: 100,
      saveEvery: 2,
      keeps: (n) => n === 5,
      onLog: () => {},
      save: (n) => Promise.resolve(void saved.push(n)),
      validate,
      stopping: () => false,
    }).then(({ done }) => done, (error) => (error as Error).message);
    return { done, saved };
  };
  const asked: number[] = [];
  // Best, and therefore saved by the validation, after two steps.
  assertEquals(await loop((n) => Promise.resolve(asked.push(n) > 0 && n === 2)), {
    done: 6,
    saved: [4, 5, 6],
  });
  assertEquals(asked, [1, 2, 3, 4, 5]);
  const failing = (error: Error) => (n: number) => n === 3 ? Promise.reject(error) : Promise.resolve(false);
  assertEquals(await loop(failing(new Interrupted())), { done: 3, saved: [2, 3] });
  assertEquals(await loop(failing(new UsageError("image 7 is damaged"))), {
    done: "image 7 is damaged",
    saved: [2, 3],
  });
});
