// Planned memory is allocated memory: a prepared step holds the bytes of its plan, and pooling reduces them.

import { assert, assertEquals } from "@std/assert";
import { device } from "../../src/gpu/device.ts";
import { capture } from "../../src/gpu/program.ts";
import { Initializer } from "../../src/nn/init.ts";
import { Dit, DIT_SIZES, ditConfig } from "../../src/models/dit.ts";
import { Tokenizer, tokenizerConfig } from "../../src/models/tokenizer.ts";
import { state } from "../../src/nn/layers.ts";
import { timestepEmbedding } from "../../src/ops/embedding.ts";
import { mul } from "../../src/ops/math.ts";
import { wordsOf } from "../../src/ops/pixels.ts";
import { resize } from "../../src/ops/resize.ts";
import { matmul } from "../../src/ops/matmul.ts";
import { constant, input, readTensor } from "../../src/tensor/tensor.ts";
import { Alignment } from "../../src/train/alignment.ts";
import { type Stage, StageRun } from "../../src/train/stage_run.ts";
import { alignConfig } from "../../src/cli/config.ts";
import { Diffusion } from "../../src/train/diffusion.ts";
import { openEncoder } from "../../src/zoo/encoders.ts";
import { stagesOf } from "../../src/train/align_config.ts";
import { PROFILES, testDevice } from "../helpers/check.ts";

/** Planned bytes within 5 % of those that appeared on the device. */
function assertAgree(planned: number, measured: number, what: string): void {
  const apart = Math.abs(planned - measured) / measured;
  assert(apart < 0.05, `${what}: planned ${planned} bytes, measured ${measured}`);
}

const diffusionOf = (config: Record<string, unknown>, batchSize: number) =>
  new Diffusion(new Dit(ditConfig.parse(config)), {
    batchSize,
    labelDropout: 0.1,
    directionWeight: 1,
    ema: true,
    seed: 0,
  });

Deno.test("a DiT training step uses the memory of its plan, and frees it", async () => {
  for (const profile of PROFILES) {
    await testDevice(profile);
    const { memory } = device(), before = memory.live;
    const diffusion = diffusionOf(
      { input_size: 4, in_channels: 16, hidden_size: 48, depth: 2, num_heads: 2, num_classes: 10 },
      4,
    );
    const program = diffusion.capture();
    assertEquals(memory.live, before, "planning allocates nothing");
    await program.prepare();
    memory.peak = memory.live;
    program.run({ x: new Float32Array(4 * 256), labels: new Uint32Array(4) });
    await readTensor(diffusion.runningMetrics);
    const most = memory.peak - before;
    assertAgree(program.plan.totalBytes, most, `DiT step, ${profile}`);
    program.destroy();
    diffusion.destroy();
    diffusion.set.destroy();
    for (const { storage } of state(diffusion.dit).values()) storage.destroy();
    assertEquals(memory.live, before, "bytes that are left");
  }
});

Deno.test("constants that a captured function makes are destroyed with the program", async () => {
  await testDevice();
  const { memory } = device(), before = memory.live;
  for (let i = 0; i < 50; i++) {
    const program = await capture("constants", { t: input([3]), x: input([1, 8, 8, 4]) }, ({ t, x }) => ({
      features: timestepEmbedding(t, 16), // a table of frequencies
      resized: resize(x, 5, 5, { filter: "bicubic", antialias: true }), // tables of weights
      y: mul(x, constant(Float32Array.of(1, 2, 3, 4), [4])),
    })).prepare();
    program.run({ t: Float32Array.of(1, 2, 3) });
    await device().idle();
    if (i === 0) assert(memory.live > before);
    program.destroy();
    assertEquals(memory.live, before, `bytes that are left after ${i + 1} programs`);
  }
});

Deno.test("an alignment step uses the memory of its plan", async () => {
  await testDevice();
  const { memory } = device(), before = memory.live;
  const c = { ...alignConfig.parse({}), stages: [2], batchSize: 2 }, encoder = await openEncoder();
  const tokenizer = new Tokenizer(tokenizerConfig.parse({
    image_size: 32,
    encoder: { ...encoder.config, num_hidden_layers: 2 },
    image_mean: encoder.preprocessor.mean,
    image_std: encoder.preprocessor.std,
    adapter_hidden: 96,
    decoder: {
      ch: 16,
      ch_mult: [1, 1, 2, 4],
      num_res_blocks: 0,
      attn_resolutions: [],
      resolution: 32,
      z_channels: 16,
      groups: 4,
    },
  }));
  tokenizer.init(new Initializer(0));
  const [stage] = stagesOf(c, false);
  const run = new StageRun(new Alignment(tokenizer, undefined), stage as Stage, c);
  const program = await run.program(0);
  program.run({ x: new Uint32Array(2 * 32 * wordsOf(32)) });
  await device().idle();
  assertAgree(program.plan.totalBytes, memory.live - before, "alignment step");
  run.destroy();
});

Deno.test("memory of a second program of the same shapes is counted until it is destroyed", async () => {
  await testDevice();
  const { memory } = device(), before = memory.live;
  const make = () =>
    capture("t", { x: input([64, 64]) }, ({ x }) => ({ y: matmul(matmul(x, x), x) })).prepare();
  const one = await make(), held = memory.live - before;
  assertEquals(held, one.plan.totalBytes);
  const two = await make();
  assertEquals(memory.live - before, 2 * held);
  one.destroy();
  two.destroy();
  one.destroy();
  assertEquals(memory.live, before);
});

Deno.test("a training step of DiT-S/1 at batch 8 plans at most half of the bytes of all intermediates", async () => {
  await testDevice();
  const { plan } = diffusionOf(DIT_SIZES["S/1"], 8).capture();
  const { unpooledBytes, bytes } = plan;
  assert(bytes.activations <= 0.5 * unpooledBytes, `${bytes.activations} of ${unpooledBytes} bytes`);
  assert(unpooledBytes > 1e9, `${unpooledBytes}`);
});
