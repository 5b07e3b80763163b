// Ten steps of LightningDiT's training and of each alignment stage equal an independent PyTorch computation in f64:
// every loss, the gradient's norm and the adaptive GAN weight of every step; the change of every parameter, of the
// discriminator and of the EMA after the last. tests/fixtures/make_golden.py is the PyTorch side.

import { assert, assertEquals } from "@std/assert";
import { PatchDiscriminator } from "../../src/models/discriminator.ts";
import { Dit, ditConfig } from "../../src/models/dit.ts";
import { Tokenizer, tokenizerConfig } from "../../src/models/tokenizer.ts";
import { loadState, saveState } from "../../src/nn/layers.ts";
import { packImages, wordsOf } from "../../src/ops/pixels.ts";
import { readTensor, type Tensor } from "../../src/tensor/tensor.ts";
import { Alignment } from "../../src/train/alignment.ts";
import { RUNNING_METRICS, type Stage, StageRun } from "../../src/train/stage_run.ts";
import { Diffusion, DIFFUSION_METRICS } from "../../src/train/diffusion.ts";
import { StoredLatents } from "../../src/train/latent_source.ts";
import { schedule } from "../../src/train/recipe.ts";
import { PROFILES, testDevice } from "../helpers/check.ts";
import { open } from "../helpers/compare.ts";
import { formulaSource, formulaWeights, shapesOf, units } from "../helpers/formula.ts";

const STEPS = 10, TOLERANCE = 1e-4;

/** Softmax does not see a bias of the keys: its gradient is rounding, which AdamW makes steps of. */
const WITHOUT_GRADIENT = /\.(k|key)\.bias$/;

/** Tables that training does not change. */
const TABLES = /^(pos_embed|feat_rope\.|latent_)/;

/** The schedule of make_golden.py. */
const linear = ({ warmup, last }: { warmup: number; last: number }) =>
  ({ warmup, lrEnd: last, lrSchedule: "linear" }) as const;

/** Fills a module's tensors by the formula, but for its tables. */
async function loadFormula(module: object): Promise<void> {
  const source = formulaSource(shapesOf(module));
  const saved = (await saveState(module)).filter(({ name }) => TABLES.test(name));
  const tables = new Map(saved.map(({ name, data }) => [name, data]));
  await loadState(module, { ...source, read: async (key) => tables.get(key) ?? await source.read(key) });
}

/** A batch as make_golden.py makes it: uniform in -bound..bound. */
const batch = (name: string, size: number, bound: number) =>
  Float32Array.from(units(name, size), (u) => bound * (2 * u - 1));

/** Latents [B,C,P] as files hold them, which normalise to a batch x [B,P,C]. */
function storedLatents(x: Float32Array, P: number, { mean, std }: Record<"mean" | "std", Float32Array>) {
  const C = mean.length;
  return Float32Array.from(x, (_, i) => {
    const b = Math.floor(i / (C * P)), c = Math.floor(i / P) % C, p = i % P;
    return (mean[c] as number) + (std[c] as number) * (x[(b * P + p) * C + c] as number);
  });
}

/** A batch of images as make_golden.py makes it: uniform bytes. */
function imageBatch(name: string, B: number, S: number): Uint32Array {
  const images = new Uint32Array(B * S * wordsOf(S));
  packImages(Uint8Array.from(units(name, B * S * S * 3), (u) => 256 * u), S, images);
  return images;
}

/** A number may be wrong by 1e-4 of `scale`, and by what ten roundings of a f32 parameter of this magnitude make. */
const isNear = (got: number, expected: number, scale: number, magnitude = 0) =>
  Math.abs(got - expected) <= TOLERANCE * scale + 5e-7 * magnitude;

/**
 * The change of each tensor of `module` against a row of make_golden.py's `fingerprints`: its norm, its dot product with a
 * direction, and 14 elements from the first to the last, with errors relative to the change's norm and RMS.
 */
async function compareChange(where: string, module: object, expected: Float32Array): Promise<void> {
  const tensors = (await saveState(module)).filter(({ name }) => !TABLES.test(name))
    .toSorted((a, b) => a.name < b.name ? -1 : 1);
  assertEquals(expected.length, 16 * tensors.length, `numbers for ${where}`);
  const wrong: string[] = [];
  for (const [row, { name, shape, data }] of tensors.entries()) {
    if (WITHOUT_GRADIENT.test(name)) continue;
    const first = formulaWeights(name, shape), n = data.length;
    const change = Float64Array.from(data, (v, i) => v - (first[i] as number));
    const direction = units(`direction.${name}`, n).map((u) => 2 * u - 1);
    const dot = (other: Float64Array) => change.reduce((sum, v, i) => sum + v * (other[i] as number), 0);
    const magnitude = Math.sqrt(first.reduce((sum, v) => sum + v * v, 0));
    const [norm, along, ...elements] = expected.subarray(16 * row, 16 * row + 16);
    if (norm === undefined || along === undefined) throw new Error("no row");
    const complain = (what: string, got: number, want: number) =>
      wrong.push(`${what} of the change of ${where} "${name}": ${got} instead of ${want} (norm ${norm})`);
    const gotNorm = Math.sqrt(dot(change)), gotAlong = dot(direction);
    if (!isNear(gotNorm, norm, norm, magnitude)) complain("norm", gotNorm, norm);
    if (!isNear(gotAlong, along, norm, magnitude)) complain("direction", gotAlong, along);
    elements.forEach((want, k) => {
      const i = Math.trunc(k * (n - 1) / 13), got = change[i] as number;
      if (!isNear(got, want, norm / Math.sqrt(n), Math.abs(first[i] as number))) {
        complain(`[${i}]`, got, want);
      }
    });
  }
  assert(wrong.length === 0, `${wrong.length} are wrong:\n${wrong.slice(0, 12).join("\n")}`);
}

/** The metrics of one step, which are cleared, against those of PyTorch. */
async function compareMetrics(where: string, names: readonly string[], sums: Tensor, expected: Float32Array) {
  const got = await readTensor(sums);
  sums.storage.write(new Float32Array(names.length));
  names.forEach((name, i) => {
    const want = expected[i] as number;
    assert(
      isNear(got[i] as number, want, Math.max(Math.abs(want), 1e-2)),
      `${name} of ${where}: ${got[i]} instead of ${want}`,
    );
  });
}

for (const profile of PROFILES) {
  Deno.test(`ten steps of LightningDiT's training equal PyTorch's (${profile} kernels)`, async () => {
    await testDevice(profile);
    const file = await open("golden"), c = JSON.parse(file.metadata.get("diffusion") as string);
    const { batch: B, optimizer: hyper, labelDropout, directionWeight, seed } = c;
    const dit = new Dit(ditConfig.parse(c.model));
    const { input_size: S, in_channels: C, num_classes } = dit.config;
    const stored = {
      mean: Float32Array.from({ length: C }, (_, c) => c - 1.5),
      std: Float32Array.from({ length: C }, (_, c) => 0.7 + 0.3 * c),
    };
    const diffusion = new Diffusion(dit, {
      batchSize: B,
      labelDropout,
      directionWeight,
      ema: true,
      seed,
      source: Object.assign(new StoredLatents([C, S, S], undefined, { seed, flip: false }), stored),
    });
    await loadFormula(dit);
    await diffusion.optimizer.startEma();
    const program = await diffusion.capture().prepare();
    const metrics = await file.read("diffusion.metrics"), columns = DIFFUSION_METRICS.length;
    for (let n = 0; n < STEPS; n++) {
      diffusion.random.set(n);
      const lr = hyper.lr * schedule(n, STEPS, linear(hyper));
      diffusion.optimizer.set({ ...hyper, lr, emaDecay: c.ema });
      const labels = Uint32Array.from({ length: B }, (_, row) => (n + row) % num_classes);
      const x = storedLatents(batch(`latents.${n}`, B * S * S * C, 2), S * S, stored);
      program.run({ x, labels });
      const expected = metrics.subarray(n * columns, (n + 1) * columns);
      await compareMetrics(`step ${n}`, DIFFUSION_METRICS, diffusion.runningMetrics, expected);
    }
    await compareChange("the model's", dit, await file.read("diffusion.parameters"));
    await diffusion.optimizer.readEmaInto(0, diffusion.set);
    await compareChange("the EMA's", dit, await file.read("diffusion.ema"));
    program.destroy();
    diffusion.destroy();
    file.close();
  });
}

// The kernels of the gpu profile give the same, and take four times as long to compile on a software adapter.
Deno.test("ten steps of each alignment stage equal PyTorch's, one stage after another", async () => {
  await testDevice("cpu");
  const file = await open("golden"), c = JSON.parse(file.metadata.get("alignment") as string);
  const { batch: B, optimizer, image_size, image_mean, image_std, encoder, adapter_hidden, decoder } = c;
  const tokenizer = new Tokenizer(
    tokenizerConfig.parse({ image_size, image_mean, image_std, encoder, adapter_hidden, decoder }),
  );
  const discriminator = new PatchDiscriminator(c.discriminator);
  const alignment = new Alignment(tokenizer, discriminator);
  const { parts } = tokenizer;
  for (const part of [...Object.values(parts), discriminator]) await loadFormula(part);
  await alignment.setReference();
  const options = {
    batchSize: B,
    accumulate: 1,
    imageSize: image_size,
    semanticLoss: "l2",
    semanticAt: "after",
  } as const;
  for (const stage of c.stages as Stage[]) {
    const run = new StageRun(alignment, { ...stage, steps: STEPS }, options);
    if (stage.ema > 0) await run.optimizer.startEma();
    const metrics = await file.read(`${stage.name}.metrics`), columns = RUNNING_METRICS.length;
    for (let n = 0; n < STEPS; n++) {
      const hyper = { ...optimizer, emaDecay: Math.min(stage.ema, (1 + n) / (10 + n)) };
      run.optimizer.set({ ...hyper, lr: stage.lr * schedule(n, STEPS, linear(optimizer)) });
      run.discriminatorOptimizer?.set({ ...hyper, lr: optimizer.ganLr, weightDecay: 0 });
      (await run.program(n)).run({ x: imageBatch(`images.${stage.name}.${n}`, B, image_size) });
      const expected = metrics.subarray(n * columns, (n + 1) * columns);
      await compareMetrics(`step ${n}, stage "${stage.name}"`, RUNNING_METRICS, run.runningMetrics, expected);
    }
    const compareParts = async (kind = "") => {
      for (const part of stage.train) {
        const expected = await file.read(`${stage.name}.${part}${kind}`);
        await compareChange(`the ${part}'s${kind}, stage "${stage.name}":`, parts[part], expected);
      }
    };
    await compareParts();
    await compareChange(
      "the discriminator's",
      discriminator,
      await file.read(`${stage.name}.discriminator`),
    );
    await run.finish();
    if (stage.ema > 0) await compareParts(".ema");
    if (stage.name === "latent") await alignment.setAnchor();
    run.destroy();
  }
  file.close();
});
