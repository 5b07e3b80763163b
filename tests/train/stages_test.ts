// What the options of tok align say about each stage: the modules that it trains, their learning rates, the EMA.

import { assert, assertEquals, assertThrows } from "@std/assert";
import { type AlignConfig, alignConfig } from "../../src/cli/config.ts";
import { resolveConfig } from "../../src/cli/flags.ts";
import { Shapes } from "../../src/data/toy_shapes.ts";
import { gather } from "../../src/data/image_source.ts";
import { UsageError } from "../../src/errors.ts";
import { snapshot } from "../../src/nn/layers.ts";
import { stagesOf } from "../../src/train/align_config.ts";
import { StageRun } from "../../src/train/stage_run.ts";
import { alignment, HYPER, STAGES, TINY_OPTIONS } from "../helpers/alignment.ts";

const parsed = (...args: string[]) => resolveConfig(alignConfig, args, { command: "align" }) as AlignConfig;
const stages = (...args: string[]) => stagesOf(parsed(...args), true);

Deno.test("--ema has one value, for stage 2, or one for each stage", () => {
  const decays = (...args: string[]) => stages(...args).map(({ ema }) => ema);
  assertEquals(decays(), [0, 0.98, 0]);
  assertEquals(decays("--ema", "0.5"), [0, 0.5, 0]);
  assertEquals(decays("--ema", "0"), [0, 0, 0]);
  assertEquals(decays("--ema", "0.9,0,0.99"), [0.9, 0, 0.99]);
  assertEquals(decays("--ema", "0.9,0,0.99", "--stages", "2,3"), [0, 0.99]);
  for (const wrong of ["1", "0.9,0.9", "0.9,1,0", "0.9,x,0"]) {
    assertThrows(() => parsed("--ema", wrong), UsageError, `Cannot use --ema ${wrong}`);
  }
});

Deno.test("--train names the modules of each stage", () => {
  const trained = (...args: string[]) => stages(...args).map(({ train }) => train.join("+"));
  assertEquals(trained(), ["adapter+decoder", "encoder+adapter+decoder", "decoder"]);
  assertEquals(trained("--train", "decoder,decoder+encoder,adapter+encoder+decoder"), [
    "decoder",
    "encoder+decoder",
    "encoder+adapter+decoder",
  ]);
  for (const wrong of ["decoder", "decoder,decoder,discriminator", "decoder,decoder,decoder+decoder"]) {
    assertThrows(() => stages("--train", wrong), UsageError, `Cannot use --train ${wrong}`);
  }
  const factors = stages("--encoder-lr", "0.1", "--adapter-lr", "0.2", "--decoder-lr", "3");
  assertEquals(
    factors.map((s) => [s.encoderLr, s.adapterLr, s.decoderLr]),
    [0, 1, 2].map(() => [0.1, 0.2, 3]),
  );
});

Deno.test("a stage changes the modules that it trains, by their learning rates, and no bit of the others", async () => {
  const a = await alignment("f32", { tiny: true });
  const stage = {
    ...STAGES.perceptual,
    train: ["encoder", "decoder"] as const,
    encoderLr: 0.5,
    decoderLr: 0,
  };
  const run = new StageRun(a, stage, TINY_OPTIONS);
  await run.optimizer.startEma();
  const before = await snapshot(a.state());
  run.optimizer.set({ ...HYPER, lr: 1e-3 });
  const { images } = await gather(new Shapes(2, 1), [0, 1], TINY_OPTIONS.imageSize);
  (await run.program(0)).run({ x: images });
  const after = await snapshot(a.state());
  const changed = after.filter(({ data }, i) => data.some((v, k) => !Object.is(v, before[i]?.data[k])));
  assert(changed.length > 10);
  assertEquals(
    changed.filter(({ name }) => !name.startsWith("tokenizer.encoder.")).map(({ name }) => name),
    [],
  );
  // AdamW's first step is the learning rate in each element with a gradient, here half of 1e-3.
  const steps = changed.map(({ name, data }) => {
    const old = before.find((t) => t.name === name)?.data as Float32Array;
    return data.reduce((most, v, k) => Math.max(most, Math.abs(v - (old[k] as number))), 0);
  });
  assert(steps.every((step) => step < 5.01e-4) && Math.max(...steps) > 4.9e-4, `${steps}`);
  run.destroy();
});
