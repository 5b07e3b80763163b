// Ten steps of LightningDiT's training and of each alignment stage equal an independent PyTorch computation in f64:
// every loss, the gradient's norm and the adaptive GAN weight of every step; the change of every parameter, of the
// discriminator and of the EMA after the last. tests/fixtures/make_golden.py is the PyTorch side.

import { PatchDiscriminator } from "../../src/models/discriminator.ts";
import { Dit, ditConfig } from "../../src/models/dit.ts";
import { Tokenizer, tokenizerConfig } from "../../src/models/tokenizer.ts";
import { Alignment } from "../../src/train/alignment.ts";
import { RUNNING_METRICS, type Stage, StageRun } from "../../src/train/stage_run.ts";
import { Diffusion, DIFFUSION_METRICS } from "../../src/train/diffusion.ts";
import { StoredLatents } from "../../src/train/latent_source.ts";
import { schedule } from "../../src/train/recipe.ts";
import { PROFILES, testDevice } from "../helpers/check.ts";
import { open } from "../helpers/compare.ts";
import {
  batch,
  compareChange,
  compareMetrics,
  imageBatch,
  loadFormula,
  storedLatents,
} from "../helpers/golden.ts";

const STEPS = 10;

/** The schedule of make_golden.py. */
const linear = ({ warmup, last }: { warmup: number; last: number }) =>
  ({ warmup, lrEnd: last, lrSchedule: "linear" }) as const;

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
