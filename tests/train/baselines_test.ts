// Two training steps of each baseline recipe equal an independent PyTorch computation in f64: every loss and adaptive weight, the
// gradient of every parameter in the second step, and what AdamW made of it. tests/fixtures/make_baselines.py is the PyTorch side.

import { assert, assertEquals } from "@std/assert";
import { alignConfig } from "../../src/cli/config.ts";
import { resolveConfig } from "../../src/cli/flags.ts";
import { PatchDiscriminator } from "../../src/models/discriminator.ts";
import { Encoder, Tokenizer, tokenizerConfig } from "../../src/models/tokenizer.ts";
import { autoencoderConfig, TrainableAutoencoder } from "../../src/models/autoencoder.ts";
import { Vit } from "../../src/models/vit.ts";
import { vitConfig } from "../../src/models/vit_config.ts";
import { Initializer } from "../../src/nn/init.ts";
import { fileShape, Linear, loadState, saveState, state } from "../../src/nn/layers.ts";
import type { ParameterSet } from "../../src/nn/parameter_set.ts";
import { packImages, wordsOf } from "../../src/ops/pixels.ts";
import { readTensor, type Shape, type Tensor } from "../../src/tensor/tensor.ts";
import { stagesOf } from "../../src/train/align_config.ts";
import { ALIGN_RECIPES } from "../../src/train/align_recipes.ts";
import { Alignment } from "../../src/train/alignment.ts";
import { StageRun } from "../../src/train/stage_run.ts";
import { testDevice } from "../helpers/check.ts";
import { open } from "../helpers/compare.ts";
import { formulaSource, formulaWeights, shapesOf, units } from "../helpers/formula.ts";

const STEPS = 2, TOLERANCE = 1e-4;

/** Of the elements of an update: AdamW divides by the root of the second moment, which amplifies errors of small gradients. */
const UPDATE_TOLERANCE = 3e-4;

/** A number may be wrong by a part of `scale`, and by the roundings of an f32 parameter of this magnitude. */
const isNear = (got: number, want: number, scale: number, magnitude = 0, tolerance = TOLERANCE) =>
  Math.abs(got - want) <= tolerance * scale + 2e-7 * magnitude;

/** Softmax does not see a bias of the keys: its gradient is rounding. */
const WITHOUT_GRADIENT = /\.(k|key)\.bias$/;

/** Compares tensors with rows of make_golden.py's `fingerprints`: norm, product with a direction, and 14 elements. */
function compareRows(
  where: string,
  got: readonly { name: string; values: Float64Array; magnitudes?: Float32Array }[],
  expected: Float32Array,
): void {
  const tensors = got.toSorted((a, b) => a.name < b.name ? -1 : 1), wrong: string[] = [];
  assertEquals(expected.length, 16 * tensors.length, `numbers for ${where}`);
  for (const [row, { name, values, magnitudes }] of tensors.entries()) {
    if (WITHOUT_GRADIENT.test(name)) continue;
    const [norm = 0, along = 0, ...elements] = expected.subarray(16 * row, 16 * row + 16), n = values.length;
    const direction = units(`direction.${name}`, n).map((u) => 2 * u - 1);
    const dot = (other: Float64Array) => values.reduce((sum, v, i) => sum + v * (other[i] as number), 0);
    const size = Math.hypot(...magnitudes ?? [0]), scale = Math.max(norm, 1e-6);
    const tolerance = magnitudes ? UPDATE_TOLERANCE : TOLERANCE;
    const check = (what: string, value: number, want: number, scale: number, magnitude: number) => {
      if (!isNear(value, want, scale, magnitude, tolerance)) {
        wrong.push(`${what} of "${name}": ${value} for ${want}`);
      }
    };
    check("norm", Math.sqrt(dot(values)), norm, scale, size);
    check("direction", dot(direction), along, scale, size);
    for (const [k, want] of elements.entries()) {
      const i = Math.trunc(k * (n - 1) / 13), magnitude = Math.abs(magnitudes?.[i] ?? 0);
      check(`[${i}]`, values[i] as number, want, scale / Math.sqrt(n), magnitude);
    }
  }
  assert(wrong.length === 0, `${where}: ${wrong.length} are wrong:\n${wrong.slice(0, 12).join("\n")}`);
}

type Losses = Record<"l1" | "perceptual" | "gan" | "kl" | "vf", number>;
type Snapshot = ReadonlyMap<string, Float32Array>;

/** Every tensor of each part, in the layout of files. */
async function snapshotOf(parts: Record<string, object>): Promise<Record<string, Snapshot>> {
  const all: Record<string, Snapshot> = {};
  for (const [part, module] of Object.entries(parts)) {
    all[part] = new Map((await saveState(module)).map(({ name, data }) => [name, data]));
  }
  return all;
}

/** The gradients that a step left for the optimizer, in the layout of files. */
async function gradientsOf(set: ParameterSet, module: object) {
  const { of } = set.gradients(), made = [];
  for (const [name, tensor] of state(module)) {
    const values = Float64Array.from(await readTensor(of.get(tensor) as Tensor)), shape = fileShape(tensor);
    made.push({ name, values: tensor.rank === 4 ? channelsFirst(values, shape) : values });
  }
  return made;
}

/** [O,H,W,I] -> [O,I,H,W] */
function channelsFirst(x: Float64Array, [O, I, H, W]: Shape): Float64Array {
  const [o, i, n] = [O ?? 1, I ?? 1, (H ?? 1) * (W ?? 1)];
  return Float64Array.from(x, (_, at) => {
    const [row, channel, pixel] = [Math.floor(at / (i * n)), Math.floor(at / n) % i, at % n];
    return row < o ? x[(row * n + pixel) * i + channel] as number : NaN;
  });
}

const fixture = await open("baselines");
const metadata = (key: string) => JSON.parse(fixture.metadata.get(key) as string);
const c = metadata("config"), recipes = metadata("recipes"), expected = metadata("metrics");

function tokenizerOf(kind: string): Tokenizer | TrainableAutoencoder {
  const { image_size, image_mean, image_std, encoder, adapter_hidden, decoder, z_channels } = c;
  if (kind === "conv") {
    const half = { ...decoder, double_z: true, num_res_blocks: 1 };
    return new TrainableAutoencoder(
      autoencoderConfig.parse({ image_size, embed_dim: z_channels, encoder: half, decoder }),
    );
  }
  const input = { image_size, image_mean, image_std, encoder };
  return new Tokenizer(tokenizerConfig.parse(
    kind === "vit"
      ? { ...input, adapter_hidden, double_z: true, decoder }
      : { ...input, decoder: { ...decoder, z_channels: encoder.hidden_size } },
  ));
}

for (
  const [name, { encoder: kind, losses }] of Object.entries<{ encoder: string; losses: Losses }>(recipes)
) {
  Deno.test(`two steps of --recipe ${name} equal PyTorch's`, async () => {
    await testDevice("cpu");
    const tokenizer = tokenizerOf(kind), discriminator = new PatchDiscriminator(c.discriminator);
    const own = new Encoder(new Vit(vitConfig.parse(c.encoder)), c.image_mean, c.image_std);
    const projection = losses.vf ? new Linear(tokenizer.channels, c.encoder.hidden_size, false) : undefined;
    const alignment = new Alignment(tokenizer, discriminator, undefined, "f32", own, projection);
    const parts = {
      ...tokenizer.parts,
      ...projection ? { projection: { projection } } : {},
    } as Record<string, object>;
    for (const part of [...Object.values(parts), discriminator]) {
      await loadState(part, formulaSource(shapesOf(part)));
    }
    const reference = alignment.reference as Encoder, shapes = shapesOf(reference.vit);
    await loadState(reference.vit, {
      ...formulaSource(shapes),
      read: (key) => Promise.resolve(formulaWeights(`reference.${key}`, shapes.get(key) ?? [])),
    });
    if (kind === "frozen") new Initializer(0).norm((tokenizer as Tokenizer).encoder.layernorm);
    const before = await snapshotOf(parts);

    const options = resolveConfig(alignConfig, ["--recipe", name], {
      command: "align",
      recipes: ALIGN_RECIPES,
    });
    const [stage] = stagesOf(options, true);
    assert(stage);
    const run = new StageRun(
      alignment,
      { ...stage, losses, steps: 10, lr: c.lr, ganStart: 0, discriminatorStart: 0 },
      {
        batchSize: c.batch,
        accumulate: 1,
        imageSize: c.image_size,
        semanticLoss: "l2",
        semanticAt: "after",
        vfMargins: c.vf_margins,
      },
    );
    const { optimizer: hyper } = c;
    for (let n = 0; n < STEPS; n++) {
      run.optimizer.set({ ...hyper, lr: c.lr, emaDecay: 0 });
      run.discriminatorOptimizer?.set({ ...hyper, lr: hyper.ganLr, weightDecay: 0, emaDecay: 0 });
      const S = c.image_size,
        bytes = Uint8Array.from(units(`images.${name}.${n}`, c.batch * S * S * 3), (u) => 256 * u);
      const x = new Uint32Array(c.batch * S * wordsOf(S));
      packImages(bytes, S, x);
      (await run.program(n)).run({ x, ...run.randomInput(c.seed, n) });
      const sums = await readTensor(run.runningMetrics), want = expected[name][n];
      run.runningMetrics.storage.write(new Float32Array(sums.length));
      for (const [key, value] of Object.entries<number>(want)) {
        const got = sums[run.metrics.indexOf(key as never)] as number;
        assert(
          isNear(got, value, Math.max(Math.abs(value), 1e-2)),
          `${key} of step ${n}: ${got} for ${value}`,
        );
      }
    }
    const after = await snapshotOf(parts);
    for (const [part, module] of Object.entries(parts)) {
      const changed = before[part] as Snapshot, now = after[part] as Snapshot;
      if (part === "projection" || stage.train.includes(part as never)) {
        const gradients = await gradientsOf(alignment.sets[part as "encoder"], module);
        compareRows(`gradients of the ${part}`, gradients, await fixture.read(`${name}.${part}.gradients`));
        const changes = [...now].map(([name, values]) => {
          const magnitudes = changed.get(name) as Float32Array;
          return {
            name,
            magnitudes,
            values: Float64Array.from(values, (v, i) => v - (magnitudes[i] as number)),
          };
        });
        compareRows(`changes of the ${part}`, changes, await fixture.read(`${name}.${part}.changes`));
      } else assertEquals(now, changed, `the frozen ${part}`);
    }
    run.destroy();
  });
}
