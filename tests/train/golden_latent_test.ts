// One training step with each choice about the latent and the encoder equals an independent PyTorch computation in f64: every
// loss, and the gradient of every parameter. tests/fixtures/make_golden_latent.py is the PyTorch side.

import { assert, assertEquals } from "@std/assert";
import { capture } from "../../src/gpu/program.ts";
import { Tokenizer, tokenizerConfig } from "../../src/models/tokenizer.ts";
import { loadState, saveState } from "../../src/nn/layers.ts";
import { packImages, wordsOf } from "../../src/ops/pixels.ts";
import { readTensor, type Tensor } from "../../src/tensor/tensor.ts";
import { Alignment } from "../../src/train/alignment.ts";
import { type Stage, StageRun } from "../../src/train/stage_run.ts";
import { HYPER } from "../helpers/alignment.ts";
import { testDevice } from "../helpers/check.ts";
import { open } from "../helpers/compare.ts";
import { formulaSource, formulaWeights, shapesOf, units } from "../helpers/formula.ts";

const TOLERANCE = 1e-4;

/** Softmax does not see a bias of the keys: its gradient is rounding. */
const WITHOUT_GRADIENT = /\.(k|key)\.bias$/;

interface Case extends Pick<Stage, "train" | "losses" | "noiseTau"> {
  stage: Stage["name"];
  gaussian?: boolean;
  layers?: number[];
  lora?: { rank: number; alpha: number };
  semanticLoss?: "l2" | "cosine";
  semanticAt?: "after" | "before";
}

/** Fills a module by the formula. @param prefix of the names that the formula sees */
async function fill(module: object, prefix = ""): Promise<void> {
  const shapes = shapesOf(module);
  const read = (key: string) => Promise.resolve(formulaWeights(prefix + key, shapes.get(key) ?? []));
  await loadState(module, { ...formulaSource(shapes), read });
}

/** The tokenizer and its frozen copies with weights of their own; low-rank updates are merged. */
async function alignmentOf(c: Record<string, unknown>, { gaussian, layers, lora }: Case): Promise<Alignment> {
  const tokenizer = new Tokenizer(tokenizerConfig.parse({
    ...c,
    ...gaussian ? { double_z: true } : {},
    ...layers ? { encoder_layers: layers } : {},
  }));
  const alignment = new Alignment(tokenizer, undefined), { parts } = tokenizer;
  if (lora) await fill(alignment.addLora(lora).updates);
  for (const part of Object.values(parts)) await fill(part);
  await fill(alignment.reference?.vit as object, "reference.");
  await fill(alignment.anchor as object, "anchor.");
  const program = await capture("merge", {}, () => (alignment.mergeLora(), {})).prepare();
  program.run();
  program.destroy();
  return alignment;
}

/** Gradients of a part against a row of `fingerprints` each: norm, dot product with a direction, 14 elements. */
async function compareGradients(
  where: string,
  module: object,
  of: ReadonlyMap<Tensor, Tensor>,
  rows: Float32Array,
) {
  for (const [tensor, gradient] of of) tensor.storage.write(await readTensor(gradient));
  const tensors = (await saveState(module)).toSorted((a, b) => a.name < b.name ? -1 : 1);
  assertEquals(rows.length, 16 * tensors.length, `numbers for ${where}`);
  for (const [row, { name, data }] of tensors.entries()) {
    if (WITHOUT_GRADIENT.test(name)) continue;
    const [norm, along, ...elements] = rows.subarray(16 * row, 16 * row + 16) as unknown as [number, number];
    const near = (what: string, got: number, want: number, scale: number) =>
      assert(
        Math.abs(got - want) <= TOLERANCE * scale + 1e-9,
        `${what} of the gradient of ${where} "${name}": ${got} instead of ${want} (norm ${norm})`,
      );
    const dot = (other: ArrayLike<number>) => data.reduce((sum, v, i) => sum + v * (other[i] as number), 0);
    near("norm", Math.sqrt(dot(data)), norm, norm);
    near("direction", dot(units(`direction.${name}`, data.length).map((u) => 2 * u - 1)), along, norm);
    (elements as number[]).forEach((want, k) => {
      const i = Math.trunc(k * (data.length - 1) / 13);
      near(`[${i}]`, data[i] as number, want, Math.max(Math.abs(want), norm / Math.sqrt(data.length)));
    });
  }
}

for (const accumulate of [1, 2]) {
  Deno.test(`a step with KL, noise, several layers or LoRA equals PyTorch's (${accumulate} micro-batches)`, async () => {
    await testDevice("cpu");
    const file = await open("golden_latent");
    const c = JSON.parse(file.metadata.get("config") as string);
    const cases = Object.entries<Case>(JSON.parse(file.metadata.get("cases") as string));
    // Micro-batches draw the numbers of their images.
    for (const [name, one] of cases.filter(([name]) => accumulate === 1 || name === "noise")) {
      const alignment = await alignmentOf(c, one);
      const stage = { ...one, name: one.stage, losses: { ...one.losses, gan: 0 } };
      const run = new StageRun(alignment, { ...stage, steps: 1, lr: 0, encoderLr: 1, ema: 0, ganStart: 0 }, {
        batchSize: c.batch / accumulate,
        accumulate,
        imageSize: c.image_size,
        semanticLoss: one.semanticLoss ?? "l2",
        semanticAt: one.semanticAt ?? "after",
      });
      run.optimizer.set({ ...HYPER, lr: 0 });
      const x = new Uint32Array(c.batch * c.image_size * wordsOf(c.image_size));
      const bytes = units(`images.${name}`, c.batch * c.image_size ** 2 * 3).map((u) => 256 * u);
      packImages(Uint8Array.from(bytes), c.image_size, x);
      (await run.program(0)).run({ x, ...run.randomInput(c.seed, c.step) });
      const sums = await readTensor(run.runningMetrics);
      const [loss, l1, perceptual, semantic, kl, grad_norm2] = await file.read(`${name}.losses`);
      for (const [key, want] of Object.entries({ loss, l1, perceptual, semantic, kl, grad_norm2 })) {
        const got = sums[run.metrics.indexOf(key as typeof run.metrics[number])] ?? 0;
        assert(
          Math.abs(got - (want as number)) <= TOLERANCE * Math.max(want as number, 1e-2),
          `${key} of "${name}": ${got}, not ${want}`,
        );
      }
      for (const part of one.train) {
        const module = part === "encoder" && alignment.lora?.updates || alignment.tokenizer.parts[part];
        const { of } = alignment.trained(part).gradients();
        await compareGradients(`${name}, ${part}:`, module, of, await file.read(`${name}.${part}`));
      }
      run.destroy();
      for (const set of Object.values(alignment.sets)) set.destroy();
    }
    file.close();
  });
}
