// The recipes learn: each stage of the alignment, the discriminator, flow matching; and invariances of a step.

import { assert, assertEquals } from "@std/assert";
import { Shapes } from "../../src/data/toy_shapes.ts";
import { gather } from "../../src/data/image_source.ts";
import { Dit, ditConfig } from "../../src/models/dit.ts";
import { Initializer } from "../../src/nn/init.ts";
import { normal } from "../../src/philox.ts";
import { readTensor } from "../../src/tensor/tensor.ts";
import type { Alignment } from "../../src/train/alignment.ts";
import { RUNNING_METRICS, type Stage, StageRun } from "../../src/train/stage_run.ts";
import { Diffusion, DIFFUSION_METRICS } from "../../src/train/diffusion.ts";
import { Sampler } from "../../src/sampling/sampler.ts";
import { timeGrid } from "../../src/sampling/times.ts";
import { alignment, HYPER, OPTIONS, STAGES } from "../helpers/alignment.ts";
import { relativeError, testDevice } from "../helpers/check.ts";

/** Means of the running metrics over the first and the last third of `steps` on one batch. */
async function curve(a: Alignment, stage: Stage, options = OPTIONS, steps = stage.steps) {
  const { images } = await gather(
    new Shapes(8, 1),
    Array.from({ length: options.batchSize * options.accumulate }, (_, i) => i),
    32,
  );
  const run = new StageRun(a, stage, options);
  if (stage.ema > 0) await run.optimizer.startEma();
  const program = await run.program(0);
  const read = async () => {
    const sums = await readTensor(run.runningMetrics);
    run.runningMetrics.storage.write(new Float32Array(RUNNING_METRICS.length));
    return Object.fromEntries(
      RUNNING_METRICS.map((name, i) => [name, (sums[i] as number) / (steps / 3)]),
    ) as Record<
      (typeof RUNNING_METRICS)[number],
      number
    >;
  };
  const thirds = [];
  for (let n = 0; n < steps; n++) {
    run.optimizer.set({ ...HYPER, lr: stage.lr });
    run.discriminatorOptimizer?.set({ ...HYPER, lr: 5e-4 });
    program.run({ x: images });
    if ((n + 1) % (steps / 3) === 0) thirds.push(await read());
  }
  const skipped = (await readTensor(run.optimizer.progress))[1];
  await run.finish();
  run.destroy();
  assert(skipped === 0, `${skipped} steps were skipped`);
  return [thirds[0], thirds[2]] as [(typeof thirds)[number], (typeof thirds)[number]];
}

Deno.test("the reconstruction loss falls in each stage, and the encoder stays near its anchor", async () => {
  const a = await alignment();
  const [first, last] = await curve(a, STAGES.latent);
  assert(last.loss < 0.8 * first.loss, `stage 1: ${first.loss} to ${last.loss}`);
  await a.setAnchor();
  const [second, third] = await curve(a, STAGES.perceptual);
  assert(third.l1 < 0.95 * second.l1, `stage 2: ${second.l1} to ${third.l1}`);
  assert(third.semantic > 0 && third.semantic < 0.2, `semantic ${third.semantic}`);
  const [begin, end] = await curve(a, STAGES.refine);
  assert(end.l1 < 0.9 * begin.l1 && begin.gan_weight > 0, `stage 3: ${begin.l1} to ${end.l1}`);
  assert(
    end.discriminator < begin.discriminator && begin.discriminator < 1.5,
    `discriminator ${begin.discriminator} to ${end.discriminator}`,
  );
});

Deno.test("the variants of the semantic loss are zero before the weights change", async () => {
  for (const semanticLoss of ["l2", "cosine"] as const) {
    for (const semanticAt of ["after", "before"] as const) {
      const [first] = await curve(await alignment(), { ...STAGES.perceptual, lr: 0 }, {
        ...OPTIONS,
        semanticLoss,
        semanticAt,
      }, 3);
      assert(Math.abs(first.semantic) < 1e-6, `${semanticLoss} ${semanticAt}: ${first.semantic}`);
    }
  }
});

Deno.test("two or four micro-batches give the step of one batch of the same images", async () => {
  const weights: Float32Array[] = [];
  for (const accumulate of [1, 2, 4]) {
    const options = { ...OPTIONS, batchSize: 4 / accumulate, accumulate };
    const a = await alignment();
    await curve(a, STAGES.latent, options, 3);
    weights.push(await readTensor(a.tokenizer.decoder.conv_in.weight));
  }
  const [one, ...others] = weights as [Float32Array, ...Float32Array[]];
  for (const other of others) assert(relativeError(one, other) < 1e-3);
});

Deno.test("more micro-batches take no more memory and record no more launches", async () => {
  const a = await alignment();
  const [two, eight] = [2, 8].map((accumulate) => {
    const options = { ...OPTIONS, batchSize: 2, accumulate };
    return new StageRun(a, { ...STAGES.latent }, options).capture("none").plan;
  });
  assertEquals(eight?.bytes, two?.bytes);
  assertEquals(eight?.recorded, two?.recorded);
  assert((eight?.launches.length ?? 0) > 3 * (two?.launches.length ?? 0));
});

Deno.test("flow matching learns two classes, and guided samples land on them", async () => {
  await testDevice();
  const S = 2, C = 4, B = 32;
  const dit = new Dit(
    ditConfig.parse({
      input_size: S,
      in_channels: C,
      hidden_size: 48,
      depth: 2,
      num_heads: 2,
      num_classes: 2,
    }),
  );
  const diffusion = new Diffusion(dit, {
    batchSize: B,
    labelDropout: 0.1,
    directionWeight: 1,
    ema: true,
    seed: 0,
  });
  dit.init(new Initializer(0));
  const program = await diffusion.capture().prepare();
  await diffusion.optimizer.startEma();
  const labels = Uint32Array.from({ length: B }, (_, i) => i % 2);
  const losses: number[] = [];
  for (let n = 0; n < 300; n++) {
    // Class k is a narrow cloud around +-1.
    const x = normal(5, 1, B * S * S * C, n).map((v, i) =>
      0.15 * v + (labels[Math.floor(i / (S * S * C))] ? 1 : -1)
    );
    diffusion.optimizer.set({ ...HYPER, lr: 3e-3 * Math.min(1, (300 - n) / 200), emaDecay: 0.98 });
    diffusion.random.set(n);
    program.run({ x, labels });
    if (n % 100 === 99) {
      losses.push((await readTensor(diffusion.runningMetrics))[0] as number / 100);
      diffusion.runningMetrics.storage.write(new Float32Array(DIFFUSION_METRICS.length));
    }
  }
  assert((losses[2] as number) < 0.75 * (losses[0] as number), `${losses}`);
  await diffusion.optimizer.readEmaInto(0, diffusion.set);
  for (const sampler of ["euler", "heun"] as const) {
    const s = await new Sampler(dit, {
      batchSize: 8,
      steps: 20,
      sampler,
      shift: 1,
      cfg: 2,
      cfgInterval: [0.1, 1],
      seed: 1,
    }).prepare();
    const z = await readTensor(await s.run(Uint32Array.from([0, 1, 0, 1, 0, 1, 0, 1]), 0));
    for (let i = 0; i < 8; i++) {
      const mean = z.subarray(i * 16, i * 16 + 16).reduce((a, b) => a + b, 0) / 16;
      assert(i % 2 ? mean > 0.6 : mean < -0.6, `${sampler}: sample ${i} has mean ${mean}`);
    }
    s.destroy();
  }
});

Deno.test("a sample depends on its index, not on its batch; guidance of 1 is no guidance", async () => {
  await testDevice();
  const dit = new Dit(
    ditConfig.parse({
      input_size: 2,
      in_channels: 4,
      hidden_size: 48,
      depth: 1,
      num_heads: 2,
      num_classes: 3,
    }),
  );
  const init = new Initializer(3);
  dit.init(init);
  for (const { adaLN_modulation } of [...dit.blocks, dit.final_layer]) {
    init.normal(adaLN_modulation[1].weight, 0.1);
  }
  init.normal(dit.final_layer.linear.weight, 0.3);
  const draw = async (
    batchSize: number,
    first: number,
    options: { cfg: number; cfgInterval?: readonly [number, number] },
  ) => {
    const s = await new Sampler(dit, {
      batchSize,
      steps: 5,
      sampler: "euler",
      shift: 0.5,
      cfgInterval: [0, 1],
      seed: 9,
      ...options,
    }).prepare();
    const z = await readTensor(
      await s.run(Uint32Array.from({ length: batchSize }, (_, i) => (first + i) % 3), first),
    );
    s.destroy();
    return z;
  };
  const six = await draw(6, 0, { cfg: 3 }), two = await draw(2, 2, { cfg: 3 });
  assert(relativeError(two, six.subarray(2 * 16, 4 * 16)) < 1e-5);
  const plain = await draw(2, 0, { cfg: 1 });
  assert(
    relativeError(await draw(2, 0, { cfg: 3, cfgInterval: [2, 3] }), plain) < 1e-6,
    "outside its interval guidance does nothing",
  );
  assert(relativeError(await draw(2, 0, { cfg: 3 }), plain) > 1e-2, "inside it does something");
});

Deno.test("timeGrid() runs from 0 to 1 and is bent by the shift", () => {
  assert(relativeError(timeGrid(4, 1), [0, 0.25, 0.5, 0.75, 1]) < 1e-12);
  const bent = timeGrid(4, 0.3);
  assert(
    Math.abs((bent[2] as number) - 0.3 * 0.5 / (1 - 0.7 * 0.5)) < 1e-12 && bent[0] === 0 &&
      Math.abs((bent[4] as number) - 1) < 1e-12,
  );
});
