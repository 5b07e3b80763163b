// Watching a diffusion training: pictures and Frechet distances change no bit of it, the distance is the one of eval, and the best
// checkpoint is kept.

import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { sampleConfig } from "../../src/cli/config.ts";
import { generatedInputs, Workers } from "../../src/data/decode_pool.ts";
import { Shapes } from "../../src/data/toy_shapes.ts";
import { OutOfMemoryError, UsageError } from "../../src/errors.ts";
import { device } from "../../src/gpu/device.ts";
import { EncoderFeatures, writeTokens } from "../../src/metrics/encoder_features.ts";
import { Dit, ditConfig } from "../../src/models/dit.ts";
import { Initializer } from "../../src/nn/init.ts";
import { ParameterSet } from "../../src/nn/parameter_set.ts";
import { writeReport } from "../../src/run/report.ts";
import { samplingOptions } from "../../src/sampling/sampler.ts";
import { writePreview } from "../../src/sampling/preview.ts";
import { type Real, SampleWatch, type WatchOptions } from "../../src/sampling/watch.ts";
import { type Validation, Validator } from "../../src/train/validation.ts";
import type { Tensor } from "../../src/tensor/tensor.ts";
import { openEncoder } from "../../src/zoo/encoders.ts";
import { checkpointPath, openCheckpoint, readBest } from "../../src/run/checkpoint.ts";
import { openDit, openTokenizer } from "../../src/zoo/runs.ts";
import { testDevice } from "../helpers/check.ts";
import { inFolder, quietLog, run, writeImages } from "../helpers/commands.ts";
import { readEvents } from "../helpers/events.ts";
import { fixturePath } from "../helpers/published.ts";

const VAE = fixturePath("vavae_tiny.pt");
const SMALL = [
  "--tokenizer",
  VAE,
  "--image-size",
  "8",
  "--batch-size",
  "2",
  "--log-every",
  "1",
  "--workers",
  "0",
];

type Row = Record<string, unknown> & { step: number };
const validations = (folder: string): Row[] =>
  Deno.readTextFileSync(join(folder, "log.jsonl")).trim().split("\n").map((line) => JSON.parse(line))
    .filter((row) => row.event === "validation");

Deno.test("pictures and distances of samples change no bit of a training, and are those of the averaged weights", async () => {
  await inFolder(async (folder) => {
    const at = (...names: string[]) => join(folder, ...names);
    for (const name of ["a", "b"]) await writeImages(at("data", name), 4);
    const train = (out: string, ...args: string[]) =>
      run("train-dit", ...SMALL, "--data", at("data"), "--steps", "5", "--out", at(out), ...args);
    await train("plain");
    const often = ["--sample-every", "3", "--val-every", "2", "--val-num", "3", "--val-steps", "2"];
    const watched = [...often, "--val-cfg", "2", "--tensorboard", "--save-every", "3", "--keep", "9"];
    await train("watched", ...watched);
    const model = (name: string) => Deno.readFileSync(at(name, "model/model.safetensors"));
    assertEquals(model("watched"), model("plain"));

    const found = validations(at("watched"));
    assertEquals(found.map(({ step, fd_encoder }) => [step, typeof fd_encoder]), [
      [2, "number"],
      [3, "undefined"],
      [4, "number"],
      [5, "number"],
    ]);
    const pictures = [...Deno.readDirSync(at("watched/images/samples"))].map(({ name }) => name).sort();
    assertEquals(pictures, ["step_00000003.png", "step_00000005.png"]);
    const page = Deno.readTextFileSync(at("watched/report.html"));
    for (const part of ["validation fd encoder", "Samples over time", "Best checkpoint: step"]) {
      assert(page.includes(part), part);
    }

    // The distance of the last step is the one of eval, of the saved model against the training images.
    const { result } = await run(
      "eval",
      ...["--model", at("watched"), "--real", at("data"), "--num", "3", "--image-size", "8"],
      ...["--cfg", "2", "--steps", "2", "--metrics", "fd-encoder", "--workers", "0", "--out", at("eval")],
    );
    const [expected, got] = [result.fd_encoder, found.at(-1)?.fd_encoder] as number[] as [number, number];
    assert(Math.abs(got / expected - 1) < 1e-6, `${got}, eval: ${expected}`);

    const scored = found.filter(({ fd_encoder }) =>
      fd_encoder !== undefined
    ) as (Row & { fd_encoder: number })[];
    const lowest = scored.toSorted((a, b) => a.fd_encoder - b.fd_encoder)[0];
    const best = readBest(at("watched"));
    assertEquals(best, {
      step: lowest?.step as number,
      metric: "fd_encoder",
      value: lowest?.fd_encoder as number,
    });
    const { file, step } = await openCheckpoint(at("watched/checkpoints/best.safetensors"));
    file.close();
    assertEquals(step, best?.step);
    assertEquals((await openDit(at("watched/best"))).config.classes, ["a", "b"]);

    const [name] = [...Deno.readDirSync(at("watched"))].map(({ name }) => name).filter((n) =>
      n.includes("tfevents")
    );
    const values = readEvents(at("watched", name as string)).flatMap((e) => e.step === 5 ? e.values : []);
    assertEquals(values.find(({ tag }) => tag === "val/fd_encoder")?.scalar, Math.fround(got));
    assert(values.some(({ tag }) => tag === "val/samples"));

    // From a checkpoint between two validations, in another folder: the same noise and classes.
    await train("resumed", ...watched, "--resume", checkpointPath(at("watched"), 3));
    assertEquals(model("resumed"), model("plain"));
    assertEquals(
      validations(at("resumed")).map(({ step, fd_encoder }) => [step, fd_encoder]),
      found.slice(-2).map(({ step, fd_encoder }) => [step, fd_encoder]),
    );
    const picture = (out: string) => Deno.readFileSync(at(out, "images/samples/step_00000005.png"));
    assertEquals(picture("resumed"), picture("watched"));
  });
});

Deno.test("latents without images are decoded for the distance", async () => {
  await inFolder(async (folder) => {
    const at = (...names: string[]) => join(folder, ...names);
    await writeImages(at("data"), 4);
    await run(
      "encode",
      "--tokenizer",
      VAE,
      "--image-size",
      "8",
      "--data",
      at("data"),
      "--out",
      at("latents"),
    );
    const out = at("run"), steps = ["--steps", "1", "--val-every", "1", "--val-num", "2", "--val-steps", "1"];
    await run("train-dit", ...SMALL, "--latents", at("latents"), ...steps, "--out", out);
    const decoded = ["--image-size", "8", "--no-grid", "--out", at("decoded")];
    await run("reconstruct", "--tokenizer", VAE, "--input", at("data"), ...decoded);
    const { result } = await run(
      "eval",
      ...["--model", out, "--real", at("decoded"), "--num", "2", "--image-size", "8", "--cfg", "1"],
      ...["--steps", "1", "--metrics", "fd-encoder", "--workers", "0", "--out", at("eval")],
    );
    const [expected, got] = [result.fd_encoder, validations(out)[0]?.fd_encoder] as [number, number];
    assert(Math.abs(got / expected - 1) < 1e-3, `${got}, eval: ${expected}`);
  });
});

/** Watches a small DiT on the fixture's latents in `folder`, with a picture and a distance every second step. */
async function watching(
  folder: string,
  real: Real,
  { classes = ["a", "b"], ...more }: { classes?: string[] } & Partial<WatchOptions> = {},
) {
  await testDevice();
  const tokenizer = await openTokenizer(VAE), side = tokenizer.side(8), C = tokenizer.channels;
  const sizes = { hidden_size: 16, depth: 1, num_heads: 2, num_classes: classes.length };
  const dit = new Dit(ditConfig.parse({ ...sizes, input_size: side, in_channels: C }));
  dit.init(new Initializer(0));
  await new ParameterSet("model", dit).materialise();
  const config = { dit: dit.config, classes, latent_mean: Array(C).fill(0) };
  const configIn = () => ({ ...config, latent_std: Array(C).fill(1) });
  const { log, lines } = quietLog(), sampling = samplingOptions(sampleConfig.parse({ steps: 2 }));
  const options = { sampleEvery: 2, valEvery: 2, valNum: 2, valCfg: 1, valSteps: 1, ...more };
  const watched = { model: dit, configIn, tokenizer, real, workers: new Workers(0), sampling };
  const watch = await SampleWatch.open(folder, watched, options, openEncoder) as SampleWatch;
  const preview = () => writePreview(folder, { dit, config: configIn() }, tokenizer, sampling, log);
  return { dit, log, lines, watch, preview, [Symbol.dispose]: () => watched.workers[Symbol.dispose]() };
}

/** Three images; `crops` gets the crop of each that is read. */
const countedImages = (crops: unknown[]) => ({
  length: 3,
  classes: [],
  label: () => 0,
  name: String,
  bytes: (i: number, size: number, crop: unknown) => {
    crops.push(crop);
    return new Uint8Array(3 * size * size).fill(40 * i + 1).map((v, k) => v + k % 50);
  },
});

Deno.test("where samples are not finite or memory is too small, the training goes on without their picture and score", async () => {
  await inFolder(async (folder) => {
    const crops: unknown[] = [];
    using made = await watching(folder, { images: countedImages(crops), crop: "adm" });
    const { dit, log, lines, watch, preview } = made, rows: [string, unknown][] = [];
    log.event = (name, row) => void rows.push([name, row]);
    const validator = new Validator(
      folder,
      watch.hooks(() => Promise.resolve(), log).validation as Validation,
      {
        log,
        show: () => {},
        record: () => Promise.resolve(),
      },
    );
    assertEquals(await validator.run(0, "diffusion", 2), true);
    assertEquals(crops, ["adm", "adm", "adm"], "the crop of the training");

    const createBuffer = device().createBuffer;
    const full = () => Promise.reject(new OutOfMemoryError("Cannot allocate 9 bytes: out of device memory"));
    device().createBuffer = full;
    lines.length = 0;
    assertEquals(await validator.run(0, "diffusion", 4), false);
    device().createBuffer = createBuffer;
    const { storage, size } = dit.final_layer.linear.bias as Tensor;
    storage.write(new Float32Array(size).fill(3e38));
    assertEquals(await validator.run(0, "diffusion", 6), false);
    await preview();
    const lost = "warning: Cannot allocate 9 bytes: out of device memory; the training goes on without it";
    assertEquals(lines.map((line) => line.replace(/^(warning: Cannot generate image 0): .*;/, "$1;")), [
      ...[lost, lost, "step 4 (diffusion): fd_encoder NaN"],
      ...Array(2).fill("warning: Cannot generate image 0; the training goes on without it"),
      "step 6 (diffusion): fd_encoder NaN",
      "warning: Cannot generate image 0; the training goes on without it",
    ]);
    assertEquals(readBest(folder), undefined);
    assertEquals([...Deno.readDirSync(join(folder, "images/samples"))].length, 1, "of step 2");
    watch.destroy();

    // A missing score is null in the log, and no point of the report's curve.
    const found = rows.map(([event, row]) => JSON.stringify({ event, ...row as object }));
    assertEquals(JSON.parse(found.at(-1) as string), {
      event: "validation",
      stage: "diffusion",
      step: 6,
      fd_encoder: null,
    });
    Deno.writeTextFileSync(join(folder, "log.jsonl"), found.join("\n"));
    await writeReport(folder, { title: "t", line: "tok" });
    assert(!Deno.readTextFileSync(join(folder, "report.html")).includes("validation fd encoder"));
  });
});

Deno.test("the distance of an unconditional model takes one pass a step, whatever a config file says of --val-cfg", async () => {
  await inFolder(async (folder) => {
    const real = { images: countedImages([]), crop: "random" } as const, batches: number[] = [];
    using made = await watching(folder, real, { classes: [], valCfg: 3, sampleEvery: 0 });
    const forward = made.dit.forward.bind(made.dit);
    made.dit.forward = (x, ...others) => {
      batches.push(x.dim(0));
      return forward(x, ...others);
    };
    const { scores } = await made.watch.score(2, made.log);
    assert(Number.isFinite(scores.fd_encoder));
    assertEquals(batches, [2]);
    made.watch.destroy();
  });
});

Deno.test("options of watching without effect are refused", async () => {
  const cases = [
    [["--val-num", "9"], "Cannot use --val-num: it needs --val-every; add it, or leave --val-num out"],
    [["--val-cfg", "2"], "Cannot use --val-cfg: it needs --val-every"],
    [["--val-encoder", "x"], "Cannot use --val-encoder: it needs --val-every"],
    [["--val-steps", "2"], "Cannot use --val-steps: it needs --val-every or --sample-every"],
    [
      ["--val-every", "1", "--val-cfg", "2", "--unconditional"],
      "Cannot use --val-cfg: an unconditional model",
    ],
    [["--val-every", "1", "--val-num", "1"], "Cannot use --val-num 1"],
  ] as const;
  for (const [args, message] of cases) {
    await assertRejects(() => run("train-dit", ...SMALL, ...args, "--dry-run"), UsageError, message);
  }
});

Deno.test("an encoder whose features do not fit into memory, or are closed, leaves nothing on the device", async () => {
  await testDevice();
  const encoder = await openEncoder(), { createBuffer, memory } = device(), before = memory.live;
  const open = () => EncoderFeatures.open(encoder, { batchSize: 2, n: 2 });
  const features = await open();
  assert(memory.live > before);
  features.destroy();
  assertEquals(memory.live, before);
  let left = 20; // of the encoder's weights
  device().createBuffer = (...args) =>
    left-- > 0 ? createBuffer.apply(device(), args) : Promise.reject(new OutOfMemoryError("full"));
  await assertRejects(open, OutOfMemoryError, "full");
  device().createBuffer = createBuffer;
  assertEquals([left < 0, memory.live], [true, before]);
});

Deno.test("the network of features in a file is removed from the device with its program", async () => {
  await testDevice();
  await inFolder(async (folder) => {
    const encoder = await openEncoder(), { preprocessor } = encoder, path = join(folder, "f.safetensors");
    using workers = new Workers(0);
    const images = generatedInputs(workers, new Shapes(2, 1), 32), before = device().memory.live;
    await writeTokens(path, encoder, images, { preprocessor, batchSize: 2, onProgress: () => {} });
    assertEquals(device().memory.live, before);
  });
});
