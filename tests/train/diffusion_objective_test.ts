// The objectives of diffusion training: one step with each option equals an independent PyTorch computation in f64, losses and
// gradients of all parameters; ten steps of a combination in two micro-batches equal PyTorch's of the whole batch.
// tests/fixtures/make_golden_diffusion.py is the PyTorch side. Also: fp16, recomputation, resuming, and what options require.

import { assert, assertEquals, assertThrows } from "@std/assert";
import { join } from "@std/path";
import { trainDitConfig } from "../../src/cli/config.ts";
import { UsageError } from "../../src/errors.ts";
import { readJson } from "../../src/formats/files.ts";
import type { Latents } from "../../src/formats/latents.ts";
import { capture } from "../../src/gpu/program.ts";
import { Dit, ditConfig } from "../../src/models/dit.ts";
import { velocitiesOf } from "../../src/models/prediction.ts";
import { vitConfig } from "../../src/models/vit_config.ts";
import type { ParameterSet } from "../../src/nn/parameter_set.ts";
import { unpackImages } from "../../src/ops/pixels.ts";
import { input, readTensor } from "../../src/tensor/tensor.ts";
import { Diffusion, type DiffusionOptions } from "../../src/train/diffusion.ts";
import {
  checkDitOptions,
  diffusionRecipe,
  ditOf,
  repaOf,
  suggestQkNorm,
} from "../../src/train/dit_training.ts";
import { StoredLatents } from "../../src/train/latent_source.ts";
import { schedule } from "../../src/train/recipe.ts";
import { Repa } from "../../src/train/repa.ts";
import { stepRandom } from "../../src/train/step_program.ts";
import { openEncoder } from "../../src/zoo/encoders.ts";
import { openDit, saveDit } from "../../src/zoo/runs.ts";
import { parseCommandLine } from "../../tasks/run.ts";
import { testDevice } from "../helpers/check.ts";
import { inFolder, quietLog, run } from "../helpers/commands.ts";
import { open } from "../helpers/compare.ts";
import {
  batch,
  compareChange,
  compareFingerprint,
  compareMetrics,
  fingerprint,
  imageBatch,
  loadFormula,
} from "../helpers/golden.ts";
import { fixturePath } from "../helpers/published.ts";

const STEPS = 10;

/** A case of make_golden_diffusion.py. */
interface Case extends Pick<DiffusionOptions, "time" | "timeMu" | "timeSigma" | "timeShift" | "prediction"> {
  innerHead?: number;
  innerWeight?: number;
  repa?: { block: number; hidden: number; weight: number };
}

const file = await open("golden_diffusion");
const read = (key: string) => JSON.parse(file.metadata.get(key) as string);
const golden = read("diffusion"), vision = read("encoder");
const { seed, batch: BATCH, labelDropout, directionWeight, optimizer: HYPER } = golden;
const { input_size: S, in_channels: C, num_classes: CLASSES } = golden.model;

/** A training of a case with the weights of the formula. */
async function trainingOf(case_: Case, more: Partial<DiffusionOptions> = {}): Promise<Diffusion> {
  const { innerHead = 0, repa: aligned, ...options } = case_, precision = more.precision ?? "f32";
  const dit = new Dit(ditConfig.parse({ ...golden.model, inner_head: innerHead }));
  const preprocessor = { mean: vision.image_mean, std: vision.image_std } as never;
  const encoder = { config: vitConfig.parse(vision.encoder), preprocessor };
  const repa = aligned && new Repa(encoder, dit.config.hidden_size, {
    ...aligned,
    imageSize: vision.image_size,
    precision,
    seed,
    flip: true,
  });
  const diffusion = new Diffusion(dit, {
    batchSize: BATCH,
    labelDropout,
    directionWeight,
    ema: false,
    seed,
    ...options,
    ...aligned && { repaWeight: aligned.weight },
    ...more,
  }, repa);
  for (const module of [dit, repa?.projector, repa?.encoder.vit]) if (module) await loadFormula(module);
  return diffusion;
}

/** The data of step `n` of a case, of the whole batch. */
function dataOf(diffusion: Diffusion, name: string, n: number) {
  const S = vision.image_size;
  return {
    x: batch(`${name}.latents.${n}`, BATCH * golden.model.input_size ** 2 * C, 2),
    labels: Uint32Array.from({ length: BATCH }, (_, row) => (n + row) % CLASSES),
    random: stepRandom(seed, n, diffusion.options),
    ...diffusion.repa && {
      images: imageBatch(`${name}.images.${n}`, BATCH, S),
      flips: Float32Array.from({ length: BATCH }, (_, row) => row % 2),
    },
  };
}

const hyperAt = (n: number) => {
  const schedules = { warmup: HYPER.warmup, lrEnd: HYPER.last, lrSchedule: "linear" } as const;
  return { ...HYPER, emaDecay: 0, lr: HYPER.lr * schedule(n, STEPS, schedules) };
};

/** Gradients of the latest step against rows of norm, product with a direction, and 14 elements, by the names' order. */
async function compareGradients(sets: readonly ParameterSet[], expected: Float32Array): Promise<void> {
  const all = sets.flatMap((set) => [...set.tensors].map(([name, tensor]) => ({ name, tensor, set })))
    .toSorted((a, b) => a.name < b.name ? -1 : 1);
  assertEquals(expected.length, 16 * all.length);
  for (const [row, { name, tensor, set }] of all.entries()) {
    const data = await readTensor(set.gradients().of.get(tensor) as typeof tensor);
    const wanted = expected.subarray(16 * row, 16 * row + 16);
    compareFingerprint(`gradient of ${name}`, fingerprint(name, data), wanted, data.length);
  }
}

for (const [name, case_] of Object.entries(read("cases") as Record<string, Case>)) {
  Deno.test(`a step with ${name} equals PyTorch's, losses and gradients`, async () => {
    await testDevice("cpu");
    const diffusion = await trainingOf(case_), { repa, set, metrics } = diffusion;
    const program = diffusion.capture();
    await diffusion.prepareProgram(program);
    diffusion.optimizer.set(hyperAt(0));
    program.run(dataOf(diffusion, name, 0));
    await compareGradients([set, ...repa ? [repa.set] : []], await file.read(`${name}.gradients`));
    await compareMetrics(name, metrics, diffusion.runningMetrics, await file.read(`${name}.metrics`));
    program.destroy();
    diffusion.destroy();
  });
}

Deno.test("ten steps of data prediction with inner head and REPA in two micro-batches equal PyTorch's of the whole batch", async () => {
  await testDevice("cpu");
  const diffusion = await trainingOf(read("combined"), { batchSize: BATCH / 2, accumulate: 2 });
  const { metrics } = diffusion, program = diffusion.capture();
  assertEquals(metrics, ["loss", "velocity", "direction", "inner", "repa", "grad_norm2"]);
  await diffusion.prepareProgram(program);
  const expected = await file.read("combined.metrics"), columns = metrics.length;
  for (let n = 0; n < STEPS; n++) {
    diffusion.optimizer.set(hyperAt(n));
    program.run(dataOf(diffusion, "combined", n));
    const row = expected.subarray(n * columns, (n + 1) * columns);
    await compareMetrics(`step ${n}`, metrics, diffusion.runningMetrics, row);
  }
  await compareChange("the model's", diffusion.dit, await file.read("combined.model"));
  await compareChange(
    "the projector's",
    (diffusion.repa as Repa).projector,
    await file.read("combined.projector"),
  );
  program.destroy();
  diffusion.destroy();
});

Deno.test("a model of data is opened as one of velocities (X - x) / max(1 - t, 0.05), its inner head too", async () => {
  await testDevice("cpu");
  const dit = new Dit(ditConfig.parse({ ...golden.model, inner_head: 1 }));
  await loadFormula(dit);
  await inFolder(async (folder) => {
    await saveDit(folder, dit, { dit: dit.config, prediction: "data", classes: ["a", "b", "c"] });
    const { dit: opened, config } = await openDit(folder);
    assertEquals([config.prediction, opened.config], ["data", dit.config]);
    const inputs = { x: input([2, S, S, C]), t: input([2]), y: input([2], "u32") };
    const program = await capture("velocities", inputs, ({ x, t, y }) => {
      const { velocity: X, inner } = dit.outputs(x, t, y), outputs = opened.outputs(x, t, y, { features: 2 });
      const { velocity, inner: innerVelocity, features } = outputs;
      return { X, inner, velocity, innerVelocity, features, v: opened.forward(x, t, y) } as Record<
        string,
        typeof x
      >;
    }).prepare();
    const x = batch("x", 2 * S * S * C, 1), t = Float32Array.of(0.3, 0.99);
    program.run({ x, t, y: Uint32Array.of(0, 2) });
    const outputs = program.outputs, of = (key: string) => program.read(outputs[key] as typeof inputs.x);
    for (const [from, to] of [["X", "velocity"], ["X", "v"], ["inner", "innerVelocity"]] as const) {
      const data = await of(from), got = await of(to);
      got.forEach((v, i) => {
        const left = i < got.length / 2 ? 0.7 : 0.05, want = ((data[i] as number) - (x[i] as number)) / left;
        assert(Math.abs(v - want) < 1e-5 * (1 + Math.abs(want)), `${to} [${i}]: ${v} instead of ${want}`);
      });
    }
    assertEquals((outputs.features as typeof inputs.x).shape, [2, S * S, golden.model.hidden_size]);
    program.destroy();
  });
  assertEquals(velocitiesOf(dit), dit, "a model of velocities is used as it is");
});

Deno.test("the images of an alignment are those of the step's latents, mirrored where those are", async () => {
  await testDevice("cpu");
  const N = 7, size = 4, shape = [1, 2, 2] as const;
  const latent = (i: number, flipped: boolean) =>
    Promise.resolve(new Float32Array(4).fill(flipped ? -1 - i : 1 + i));
  const stats = { mean: new Float32Array(1), std: Float32Array.of(1), labels: new Int32Array(N) };
  const latents = { ...stats, length: N, shape, latent } as unknown as Latents;
  const images = {
    length: N,
    classes: [],
    label: () => 0,
    name: String,
    bytes: (i: number) => new Uint8Array(3 * size * size).fill(1 + i),
  };
  const c = trainDitConfig.parse({
    repa: "embedded",
    flip: true,
    batchSize: 2,
    accumulate: 2,
    repaHidden: 8,
  });
  const dit = ditOf(c, shape, 1), encoder = await openEncoder();
  const repa = repaOf(c, dit.config, encoder, images, size),
    source = new StoredLatents(shape, latents, c);
  const recipe = diffusionRecipe(c, dit, source, undefined, repa), seen: number[] = [];
  const plain = source.batches(4, 3, 6);
  for await (const { x, images, flips } of recipe.data(3, 6)) {
    assertEquals(x, (await plain.next()).value?.x);
    for (let n = 0; n < 4; n++) {
      const z = (x as Float32Array)[4 * n] as number;
      const words = (images as Uint32Array<ArrayBuffer>).slice(n * size * 3, (n + 1) * size * 3);
      assertEquals([unpackImages(words, size)[0], (flips as Float32Array)[n]], [Math.abs(z), z < 0 ? 1 : 0]);
      seen.push(z);
    }
  }
  assertEquals(seen.length, 12, "both micro-batches of three steps");
  assert(seen.some((z) => z < 0) && seen.some((z) => z > 0));
  recipe.destroy();
});

Deno.test("a run with every objective trains in fp16, resumes to the same bits, and records its prediction", async () => {
  await inFolder(async (folder) => {
    const common = ["--tokenizer", fixturePath("vavae_tiny.pt"), "--image-size", "8", "--images", "8"];
    common.push(
      "--batch-size",
      "1",
      "--accumulate",
      "2",
      "--workers",
      "0",
      "--lr-schedule",
      "constant",
      "--flip",
    );
    common.push("--prediction", "data", "--time", "uniform", "--time-shift", "0.7", "--inner-head", "1");
    common.push("--repa", "embedded", "--repa-hidden", "16", "--precision", "f16", "--recompute");
    const train = (out: string, ...args: string[]) =>
      run("train-dit", ...common, "--out", join(folder, out), ...args);
    const model = (out: string) => Deno.readFileSync(join(folder, out, "model", "model.safetensors"));
    await train("whole", "--steps", "3");
    await train("parts", "--steps", "1");
    await train("parts", "--steps", "3", "--resume");
    assertEquals(model("parts"), model("whole"));
    const rows = Deno.readTextFileSync(join(folder, "whole", "log.jsonl")).trim().split("\n").map((row) =>
      JSON.parse(row)
    );
    const { skipped, loss, inner, repa } = rows.find(({ event, step }) => event === "step" && step === 3) ??
      {};
    assertEquals(skipped, 0);
    assert(
      [loss, inner].every((v) => v > 0 && v < 100) && repa > 0 && repa < 2,
      `${loss}, ${inner}, ${repa}`,
    );
    const config = readJson(join(folder, "whole", "model", "config.json")) as Record<string, unknown>;
    assertEquals(config.prediction, "data");
    const names = (await openDit(join(folder, "whole"))).config;
    assertEquals(names.dit.inner_head, 1);
  });
});

Deno.test("options of the objective reach the training", async () => {
  await testDevice("cpu");
  const c = trainDitConfig.parse({
    ...{ time: "uniform", timeShift: 0.5, timeMu: 1, timeSigma: 2, prediction: "data", innerWeight: 3 },
    ...{ wDirection: 4, repaWeight: 5, repaHidden: 6, accumulate: 2, model: "S/1" },
  });
  const dit = ditOf(c, [4, 2, 2], 3), { options } = diffusionRecipe(c, dit), encoder = await openEncoder();
  const { time, timeMu, timeSigma, timeShift, prediction, innerWeight, directionWeight, repaWeight } =
    options;
  assertEquals([time, timeMu, timeSigma, timeShift, prediction], ["uniform", 1, 2, 0.5, "data"]);
  assertEquals([innerWeight, directionWeight, repaWeight, options.accumulate], [3, 4, 5, 2]);
  const of = (more: object, config = dit.config) =>
    repaOf({ ...c, ...more }, config, encoder, undefined, 8)?.options;
  assertEquals([of({})?.block, of({})?.hidden, of({ repaBlock: 3 })?.block], [6, 6, 3]);
  assertEquals(of({}, { ...dit.config, depth: 28 })?.block, 8);
  assertThrows(() => of({ repaBlock: 13 }), UsageError, "the model has 12 blocks; choose from 1 to 12");
});

Deno.test("options without effect, and those that exclude each other, are refused in one line", () => {
  const refusals: [string, string][] = [
    ["--time uniform --time-mu 1", "Cannot use --time-mu: it needs --time logit-normal"],
    ["--time uniform --time-sigma 2", "Cannot use --time-sigma: it needs --time logit-normal"],
    ["--inner-weight 2", "Cannot use --inner-weight: it needs --inner-head"],
    ["--repa-block 2", "Cannot use --repa-block: it needs --repa"],
    ["--repa-hidden 2", "Cannot use --repa-hidden: it needs --repa"],
    ["--repa-weight 2", "Cannot use --repa-weight: it needs --repa"],
    [
      "--download",
      "Cannot use --download: it needs --repa or --val-encoder; add it, or leave --download out",
    ],
    ["--lr-schedule constant --lr-end 0.5", "Cannot use --lr-end: --lr-schedule constant has no decay"],
    ["--repa embedded --latents z", "Cannot use --repa with --latents: the encoder needs images"],
    ["--time-shift 0", "Cannot use --time-shift 0"],
    ["--time-sigma 0", "Cannot use --time-sigma 0"],
    ["--time never", "Cannot use --time never"],
    ["--prediction noise", "Cannot use --prediction noise"],
    ["--accumulate 0", "Cannot use --accumulate 0"],
  ];
  for (const [line, message] of refusals) {
    const error = assertThrows(
      () => {
        const { config, origins } = parseCommandLine(["train-dit", ...line.split(" ")]);
        checkDitOptions(config as never, origins);
      },
      UsageError,
      message,
    );
    assert(!error.message.includes("\n"));
  }
});

Deno.test("beyond 100,000 steps without QK-norm a line suggests it", () => {
  for (
    const [steps, qkNorm, said] of [[100_000, false, 0], [100_001, false, 1], [100_001, true, 0]] as const
  ) {
    const { log, lines } = quietLog();
    suggestQkNorm(trainDitConfig.parse({ qkNorm }), steps, log);
    assertEquals(
      lines.filter((line) => line.includes("--qk-norm is suggested beyond 100,000 steps")).length,
      said,
    );
    log.close();
  }
});

Deno.test("learning rates of train-dit are constant, linear or cosine, after the warm-up", async () => {
  await testDevice("cpu");
  const factors = { constant: 1, linear: 0.1 + 0.9 * 0.75, cosine: 0.1 + 0.9 * (1 + Math.SQRT1_2) / 2 };
  for (const [lrSchedule, factor] of Object.entries(factors)) {
    const c = trainDitConfig.parse({ lrSchedule, lrEnd: 0.1, lr: 2, warmup: 4, steps: 8, batchSize: 1 });
    const recipe = diffusionRecipe(c, ditOf(c, [4, 2, 2], 3));
    // The program is not prepared: the step sets its hyper-parameters first.
    await recipe.step(2, { x: new Float32Array(16), labels: new Uint32Array(1) }).catch(() => {});
    assert(Math.abs(recipe.optimizer.lr - 2 * factor * 0.75) < 1e-6, `${lrSchedule}: ${recipe.optimizer.lr}`);
    recipe.destroy();
  }
});
