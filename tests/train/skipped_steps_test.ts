// Skipped steps: a value that is not finite leaves weights, moments, averages and running statistics bitwise unchanged, is
// reported with its cause, and ends the run if every step is skipped.

import type { Adapter } from "../../src/models/adapter.ts";
import { assert, assertEquals, assertRejects } from "@std/assert";
import { GpuError, UsageError } from "../../src/errors.ts";
import { capture } from "../../src/gpu/program.ts";
import { Initializer } from "../../src/nn/init.ts";
import { Shapes } from "../../src/data/toy_shapes.ts";
import { gather } from "../../src/data/image_source.ts";
import { Dit, ditConfig } from "../../src/models/dit.ts";
import { snapshot } from "../../src/nn/layers.ts";
import {
  adamw,
  FAULTS,
  faultVariable,
  hyperVariable,
  packHyper,
  progressVariable,
  squaredNorm,
} from "../../src/ops/adamw.ts";
import { normal } from "../../src/philox.ts";
import { input, readTensor, type Tensor, variable } from "../../src/tensor/tensor.ts";
import { StageRun } from "../../src/train/stage_run.ts";
import { Diffusion, DIFFUSION_METRICS } from "../../src/train/diffusion.ts";
import { trainLoop } from "../../src/train/loop.ts";
import { alignment, HYPER, OPTIONS, STAGES } from "../helpers/alignment.ts";
import { PROFILES, randomArray, testDevice } from "../helpers/check.ts";

const N = 1000;

/** Names of the tensors that differ between two snapshots, but for the optimizers' counts. */
type Saved = Awaited<ReturnType<typeof snapshot>>;
function changed(before: Saved, after: Saved): string[] {
  return after.filter(({ name, data }, i) =>
    !name.endsWith(".progress") && data.some((v, k) => !Object.is(v, before[i]?.data[k]))
  ).map(({ name }) => name);
}

for (const profile of PROFILES) {
  Deno.test(`an update that overflows, or a reported value that is not finite, changes nothing, profile ${profile}`, async () => {
    await testDevice(profile);
    const flat = (label: string, data: Float32Array) => variable([N], { label, init: () => data });
    const start = randomArray(N, 1), g = randomArray(N, 2).map((v) => Math.abs(v) + 0.1);
    start[777] = -9e5;
    const set = {
      parameters: flat("p", start),
      gradients: input([N]),
      m: flat("m", randomArray(N, 3).map((v) => 0.01 * v)),
      v: flat("v", randomArray(N, 4).map((v) => 0.01 * v * v)),
      ema: flat("ema", randomArray(N, 5)),
      lrFactor: 1,
    };
    const hyper = hyperVariable(),
      progress = progressVariable(false),
      fault = faultVariable(),
      values = input([3]);
    const program = await capture("adamw", { g: set.gradients, values }, ({ values }) => {
      adamw([set], hyper, squaredNorm([set.gradients]), progress, { values, fault });
      return { progress };
    }).prepare();
    const all = new Map<string, Tensor>(
      Object.entries({ p: set.parameters, m: set.m, v: set.v, ema: set.ema }),
    );
    const before = await snapshot(all), good = { ...HYPER, weightDecay: 0, clip: 0 };
    const cases: [string, number, number[], number[]][] = [
      ["a rate of Infinity", 1e39, [1, 2, 3], [FAULTS.update]],
      ["a rate that fits 32 bits", 1e30, [1, 2, 3], [FAULTS.update]],
      ["a rate that takes one weight of 1,000 beyond 1e6", 2e5, [1, 2, 3], [FAULTS.update]],
      ["a value", 1e-3, [1, 2, NaN], [FAULTS.value, 2]],
      ["another value", 1e-3, [1, Infinity, 3], [FAULTS.value, 1]],
    ];
    for (const [n, [name, lr, reported, expected]] of cases.entries()) {
      hyper.storage.write(packHyper({ ...good, lr }));
      program.run({ g, values: Float32Array.from(reported) });
      assertEquals(changed(before, await snapshot(all)), [], name);
      assertEquals([...await readTensor(progress)], [0, n + 1, 1, -n - 1], name);
      assertEquals([...await readTensor(fault)].slice(0, expected.length), expected, name);
    }
    // The same gradients at a rate that fits, though it is large.
    hyper.storage.write(packHyper({ ...good, lr: 1e4 }));
    program.run({ g, values: Float32Array.of(1, 2, 3) });
    assertEquals(changed(before, await snapshot(all)), ["p", "m", "v", "ema"]);
    assertEquals([...await readTensor(progress)], [1, 5, 1, 1]);
    program.destroy();
  });
}

Deno.test("a step of stage 3 with a NaN changes nothing, and a skipped discriminator step keeps its running statistics", async () => {
  const a = await alignment(), run = new StageRun(a, { ...STAGES.refine, ema: 0.9 }, OPTIONS);
  await run.optimizer.startEma();
  const { images } = await gather(new Shapes(8, 1), [0, 1, 2, 3], 32);
  const program = await run.program(0);
  const all = new Map([...a.state(), ...run.state()]);
  const submit = (rates: { generator: number; discriminator: number }) => {
    run.optimizer.set({ ...HYPER, lr: rates.generator });
    run.discriminatorOptimizer?.set({ ...HYPER, lr: rates.discriminator });
    program.run({ x: images });
  };
  const step = async (of: typeof rates) => {
    submit(of);
    return await snapshot(all);
  };
  const rates = { generator: 1e-3, discriminator: 1e-3 };
  const first = await step(rates);
  assert(first.some(({ name }) => name === "optimizer.decoder.ema.0"), "the averages are compared, too");
  const { bias } = (a.tokenizer.adapter as Adapter).fc2, good = await readTensor(bias as Tensor); // not trained in this stage
  bias?.storage.write(good.map(() => NaN));
  submit(rates);
  bias?.storage.write(good);
  assertEquals(changed(first, await snapshot(all)), []);
  const sums = await readTensor(run.runningMetrics);
  assert(sums.every(Number.isFinite), "the running metrics are finite");
  // Everything is finite here but the discriminator's update.
  const names = changed(first, await step({ ...rates, discriminator: Infinity }));
  assert(names.some((name) => name.startsWith("tokenizer.decoder.")), "the generator goes on");
  assertEquals(names.filter((name) => name.startsWith("discriminator.") || name.startsWith("critic.")), []);
  const last = changed(first, await step(rates));
  assert(
    last.some((name) => name.startsWith("discriminator.") && name.endsWith("running_mean")),
    "and then it counts",
  );
  run.destroy();
});

Deno.test("a run whose steps are all skipped reports why and ends; its good checkpoints stay", async () => {
  await testDevice();
  for (
    const [name, lr, bad, good, cause, remedy] of [
      [
        "data",
        1e-3,
        NaN,
        0,
        '"loss" is not finite',
        "no step was applied, so numbers overflow in the networks",
      ],
      ["rate", 1e39, 1, 3, "the update overflows", "use a smaller --lr or a smaller --muon-lr"],
      [
        "divergence",
        1e-3,
        NaN,
        3,
        '"loss" is not finite',
        "the training has diverged: go on from an earlier checkpoint or begin again, with a smaller --lr, " +
        "a smaller --muon-lr, a smaller --clip or --qk-norm",
      ],
    ] as const
  ) {
    const config = ditConfig.parse({
      input_size: 2,
      in_channels: 4,
      hidden_size: 16,
      depth: 1,
      num_heads: 2,
      num_classes: 2,
    });
    const dit = new Dit(config), B = 4;
    const diffusion = new Diffusion(dit, {
      batchSize: B,
      labelDropout: 0.1,
      directionWeight: 1,
      ema: true,
      muon: { lr: 1e-3, momentum: 0.9 },
      seed: 0,
    });
    dit.init(new Initializer(0));
    const program = diffusion.capture();
    for (const set of diffusion.sets) await set.materialise();
    await diffusion.optimizer.startEma();
    await diffusion.prepareProgram(program);
    const x = normal(0, 9, B * 16), labels = new Uint32Array(B);
    const said: string[] = [], saved: number[] = [];
    let before: Saved = [];
    const error = await assertRejects(
      () =>
        trainLoop({
          steps: 1000,
          runningMetrics: diffusion.runningMetrics,
          metrics: DIFFUSION_METRICS,
          optimizers: [diffusion.optimizer],
          stepBytes: 1,
          steadied: ["--qk-norm"],
          async *data() {
            for (;;) yield x;
          },
          async step(n, x) {
            if (n === good) before = await snapshot(diffusion.state());
            diffusion.optimizer.set({ ...HYPER, lr: n < good ? 1e-3 : lr, muonLr: 1e-3, momentum: 0.9 });
            diffusion.random.set(n);
            program.run({ x: n < good ? x : x.map((v) => v * bad), labels });
          },
        }, {
          from: 0,
          logEvery: 1,
          saveEvery: 1,
          onLog: ({ muon_lr }) => assertEquals(muon_lr, 1e-3),
          onSkipped: (message) => said.push(message),
          save: async (n) => void saved.push(n),
          stopping: () => false,
        }),
      GpuError,
      `nothing is learned any more, the last 50 steps were skipped (optimizer): ${cause}`,
      name,
    );
    assert(error.message.includes(remedy), error.message);
    assertEquals(error.message.includes("--lr"), name !== "data");
    assertEquals(saved, [1, 2, 3, 4, 5].slice(0, good + 2), name); // none from the third skipped step on
    assertEquals(said.length, 50);
    assert(
      said[0]?.includes(
        `1 of the steps ${good + 1} to ${good + 1} were skipped, and changed nothing (optimizer): ${cause}`,
      ),
      said[0],
    );
    assertEquals(changed(before, await snapshot(diffusion.state())), [], name);
    program.destroy();
    diffusion.destroy();
  }
});

Deno.test("the steps before a damaged latent are saved", async () => {
  await testDevice();
  let steps = 0;
  const saved: number[] = [], counts = { applied: 1, skipped: 0, inARow: 0, lossScale: 1 };
  await assertRejects(
    () =>
      trainLoop({
        steps: 9,
        runningMetrics: variable([1]),
        metrics: [],
        optimizers: [{ readProgress: () => Promise.resolve(counts) }] as never,
        stepBytes: 1,
        async *data() {
          while (steps < 3) yield 0;
          throw new UsageError("latent 17 holds NaN");
        },
        step: () => Promise.resolve(void steps++),
      }, {
        from: 2,
        logEvery: 100,
        saveEvery: 0,
        onLog: () => {},
        save: (n) => Promise.resolve(void saved.push(n)),
        stopping: () => false,
      }),
    UsageError,
    "latent 17",
  );
  assertEquals(saved, [5]);
});
