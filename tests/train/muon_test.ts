// Muon: its update against PyTorch's (tests/fixtures/make_muon.py), skipped steps, and a DiT trained with it that is resumed.

import { assert, assertEquals, assertNotEquals, assertThrows } from "@std/assert";
import { trainDitConfig } from "../../src/cli/config.ts";
import { UsageError } from "../../src/errors.ts";
import { openSafetensors } from "../../src/formats/safetensors.ts";
import { capture } from "../../src/gpu/program.ts";
import { Dit, ditConfig } from "../../src/models/dit.ts";
import { Initializer } from "../../src/nn/init.ts";
import { parameters, restore, snapshot } from "../../src/nn/layers.ts";
import { ParameterSet } from "../../src/nn/parameter_set.ts";
import { normal } from "../../src/philox.ts";
import {
  input,
  parameter,
  type Precision,
  readTensor,
  type Shape,
  sizeOf,
  type Tensor,
} from "../../src/tensor/tensor.ts";
import { isHiddenMatrix } from "../../src/train/diffusion.ts";
import { checkDitOptions, diffusionRecipe } from "../../src/train/dit_training.ts";
import { hyperAt } from "../../src/train/recipe.ts";
import { Optimizer, refreshWorkingCopies } from "../../src/train/optimizer.ts";
import { relativeError, testDevice } from "../helpers/check.ts";
import { units } from "../helpers/formula.ts";
import { fixturePath } from "../helpers/published.ts";

const fixture = await openSafetensors(fixturePath("muon.safetensors"));
const stored = (key: string) => JSON.parse(fixture.metadata.get(key) ?? "null");
const HYPER = stored("hyper"),
  SHAPES: Record<string, Shape> = stored("shapes"),
  STEPS: number = stored("steps");
const expected = new Map<string, Float32Array>();
for (const key of fixture.tensors.keys()) expected.set(key, await fixture.read(key));
fixture.close();

/** Uniform in -1..1. */
const values = (name: string, shape: Shape) =>
  Float32Array.from(units(name, sizeOf(shape)), (u) => 2 * u - 1);
const gradientsOf = (step: number, factor = 1) =>
  Object.fromEntries(
    Object.entries(SHAPES).map(([name, shape]) => {
      const size = factor * ([0.05, 1, 0.3][step] as number);
      return [name, values(`${name}.gradient${step}`, shape).map((x) => x * size)];
    }),
  );

/** Matrices that Muon updates and a bias that AdamW does; gradients are inputs, multiplied by the loss scale in fp16. */
async function build(precision: Precision) {
  const { bias, ...matrices } = Object.fromEntries(
    Object.entries(SHAPES).map(([name, shape]) => [name, parameter(shape, () => values(name, shape))]),
  ) as Record<string, Tensor> & { bias: Tensor };
  const rest = new ParameterSet("rest", { bias }, precision),
    hidden = new ParameterSet("hidden", matrices, precision);
  const optimizer = new Optimizer("o", [{ set: rest, ema: true }, { set: hidden, ema: true, muon: true }]);
  const gradients = Object.fromEntries(Object.entries(SHAPES).map(([name, shape]) => [name, input(shape)]));
  const program = await capture("muon", gradients, (gradients) => {
    optimizer.store(
      [...rest.tensors.keys(), ...hidden.tensors.keys()].map((name) => gradients[name] as Tensor),
    );
    optimizer.update();
    return {};
  }).prepare();
  for (const set of [rest, hidden]) await set.materialise();
  await refreshWorkingCopies([rest, hidden]);
  await optimizer.startEma();
  const read = async () =>
    new Map((await snapshot(optimizer.state())).map(({ name, data }) => [name, data.slice()]));
  return { tensors: { ...matrices, bias } as Record<string, Tensor>, rest, hidden, optimizer, program, read };
}

/** A tensor in a flat buffer that has the layout of `set`. */
function partOf(flat: Float32Array, set: ParameterSet, name: string): Float32Array {
  const { storage, size } = set.tensors.get(name) as Tensor;
  return flat.subarray(storage.offset / 4, storage.offset / 4 + size);
}

for (const [precision, profile] of [["f32", "cpu"], ["f16", "gpu"]] as const) {
  Deno.test(`three steps of Muon and AdamW equal PyTorch's to 1e-4, matrices tall, wide and square, ${precision}, profile ${profile}`, async () => {
    await testDevice(profile);
    const { tensors, rest, hidden, optimizer, program, read } = await build(precision);
    const near = (got: Float32Array, key: string) => {
      const off = relativeError(got, expected.get(key) as Float32Array);
      assert(off < 1e-4, `${key}: ${off}`);
    };
    for (let step = 0; step < STEPS; step++) {
      optimizer.set(HYPER);
      program.run(gradientsOf(step, precision === "f16" ? 65536 : 1));
      for (const [name, tensor] of Object.entries(tensors)) {
        near(await readTensor(tensor), `${name}.${step}`);
      }
    }
    const state = await read();
    for (const name of hidden.tensors.keys()) {
      near(partOf(state.get("o.hidden.m.0") as Float32Array, hidden, name), `${name}.momentum`);
      near(partOf(state.get("o.hidden.ema.0") as Float32Array, hidden, name), `${name}.ema`);
    }
    assertEquals(
      [...state.keys()].filter((key) => key.includes(".v.")),
      ["o.rest.v.0"],
      "Muon has no second moments",
    );
    for (const { flats, working } of [rest, hidden]) {
      const [copy] = working ?? [];
      if (!copy) continue;
      const weights = await readTensor(flats[0] as Tensor);
      assertEquals(await readTensor(copy), Float32Array.from(new Float16Array(weights)));
    }
    program.destroy();
  });
}

Deno.test("a step that is not finite, or whose rate is beyond any use, changes nothing: no weight, momentum or average", async () => {
  await testDevice();
  const { tensors, optimizer, program, read } = await build("f32");
  const weights = () => Promise.all(Object.values(tensors).map(readTensor));
  optimizer.set(HYPER);
  program.run(gradientsOf(0));
  const before = [await read(), await weights()] as const;
  const unchanged = async (skipped: number, kind: string) => {
    const state = await read();
    for (const [key, value] of before[0]) {
      if (!key.endsWith("progress")) assertEquals(state.get(key), value, key);
    }
    assertEquals(await weights(), before[1]);
    assertEquals((await optimizer.readProgress()).skipped, skipped);
    assertEquals((await optimizer.readFault()).kind, kind);
  };
  const poisoned = gradientsOf(1);
  (poisoned.wide as Float32Array)[7] = NaN;
  program.run(poisoned);
  await unchanged(1, "gradient");
  optimizer.set({ ...HYPER, muonLr: 1e7 });
  program.run(gradientsOf(1));
  await unchanged(2, "update");
  // A gradient of zeros moves matrices by the rest of the momentum, and is finite without any.
  const zeros = Object.fromEntries(
    Object.entries(SHAPES).map(([name, shape]) => [name, new Float32Array(sizeOf(shape))]),
  );
  const fresh = await build("f32");
  fresh.optimizer.set({ ...HYPER, weightDecay: 0 });
  fresh.program.run(zeros);
  assertEquals(await readTensor(fresh.tensors.tall as Tensor), values("tall", SHAPES.tall as Shape));
  for (const made of [fresh.program, program]) made.destroy();
});

const SIZES = { input_size: 2, in_channels: 4, hidden_size: 16, depth: 1, num_heads: 2, num_classes: 3 };

Deno.test("a DiT trained with --optimizer muon in fp16 and micro-batches goes on from its checkpoint to the same bits, with less optimizer memory", async () => {
  await testDevice();
  const begin = (more: Partial<ReturnType<typeof trainDitConfig.parse>> = {}) => {
    const c = trainDitConfig.parse({
      optimizer: "muon",
      precision: "f16",
      ema: "posthoc",
      steps: 3,
      batchSize: 1,
      accumulate: 2,
      ...more,
    });
    const dit = new Dit(ditConfig.parse(SIZES));
    dit.init(new Initializer(0));
    return { dit, recipe: diffusionRecipe(c, dit) };
  };
  const { dit, recipe } = begin(), adamw = begin({ optimizer: "adamw" });
  const hidden = [...parameters(dit)].filter(([name, tensor]) => isHiddenMatrix(name, tensor)).map(([name]) =>
    name
  );
  const block = ["attn.qkv", "attn.proj", "mlp.w12", "mlp.w3", "adaLN_modulation.1"];
  assertEquals(hidden, block.map((name) => `blocks.0.${name}.weight`));
  const [moments, none] = [adamw, { recipe }].map(({ recipe }) => recipe.plan().bytes.optimizer) as [
    number,
    number,
  ];
  const matrices = 4 * hidden.reduce((sum, name) => sum + (parameters(dit).get(name) as Tensor).size, 0);
  assert(
    Math.abs(moments - none - matrices) < 0.1 * matrices,
    "a dry run counts no second moments of matrices",
  );
  const run = async ({ recipe }: ReturnType<typeof begin>, from: number, to: number) => {
    for (let n = from; n < to; n++) {
      await recipe.step(n, { x: Float32Array.from(normal(5, 1, 32, n)), labels: Uint32Array.of(0, n % 3) });
    }
  };
  const state = async ({ recipe }: ReturnType<typeof begin>) =>
    new Map(
      (await snapshot(recipe.state())).map((
        tensor,
      ) => [tensor.name, { ...tensor, data: tensor.data.slice() }]),
    );
  await recipe.prepare(0);
  const first = await state({ dit, recipe });
  await run({ dit, recipe }, 0, 2);
  const half = await state({ dit, recipe });
  await run({ dit, recipe }, 2, 3);
  const whole = await state({ dit, recipe });
  for (const name of hidden) {
    assertNotEquals(first.get(`model.${name}`)?.data, whole.get(`model.${name}`)?.data, `${name} is trained`);
  }
  const resumed = begin();
  await restore(resumed.recipe.state(), {
    name: "saved",
    shapes: new Map([...half].map(([name, { shape }]) => [name, shape])),
    read: (key) => Promise.resolve(half.get(key)?.data as Float32Array),
  });
  await resumed.recipe.prepare(2);
  await run(resumed, 2, 3);
  assertEquals(await state(resumed), whole);
  for (const made of [recipe, resumed.recipe]) made.destroy();
});

Deno.test("--muon-lr and --momentum reach the step, on the schedule of --lr, and are for --optimizer muon", async () => {
  await testDevice();
  const c = trainDitConfig.parse({ optimizer: "muon", muonLr: 0.3, momentum: 0.8, warmup: 10, lrEnd: 1 });
  const { options } = diffusionRecipe(c, new Dit(ditConfig.parse(SIZES)));
  const { muonLr, momentum, lr } = hyperAt(4, { steps: 900, lr: 0.1, ema: 0, muon: options.muon }, options);
  assertEquals([muonLr, momentum, lr], [0.15, 0.8, 0.05]);
  for (const option of ["muonLr", "momentum"] as const) {
    const c = trainDitConfig.parse({ [option]: 0.5 }), given = { [option]: "command line" } as const;
    assertThrows(() => checkDitOptions(c, given), UsageError, "it needs --optimizer muon");
    checkDitOptions({ ...c, optimizer: "muon" }, given);
  }
});
