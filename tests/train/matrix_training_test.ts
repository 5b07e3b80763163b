// A short recipe with fp16 GEMMs by subgroup matrices, where the device has them: two steps of align's second stage (encoder, adapter,
// decoder, discriminator), and two of train-dit.

import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { Dit, ditConfig } from "../../src/models/dit.ts";
import { Initializer } from "../../src/nn/init.ts";
import { findMatrices } from "../../src/ops/gemm_matrices.ts";
import { GEMM_KINDS, kindsByMatrices } from "../../src/ops/gemm_tiles.ts";
import { normal } from "../../src/philox.ts";
import { type Precision, readTensor } from "../../src/tensor/tensor.ts";
import { Diffusion, DIFFUSION_METRICS } from "../../src/train/diffusion.ts";
import { RUNNING_METRICS, StageRun } from "../../src/train/stage_run.ts";
import type { Plan } from "../../src/gpu/plan.ts";
import { checkpointPath, openCheckpoint, saveCheckpoint } from "../../src/run/checkpoint.ts";
import { alignment, HYPER, STAGES, TINY_OPTIONS } from "../helpers/alignment.ts";
import { randomArray, testDevice } from "../helpers/check.ts";
import { inFolder, run, writeImages } from "../helpers/commands.ts";

/** Sums of the metrics over the steps, and how many of the program's GEMMs use matrices. */
interface Result {
  metrics: Record<string, number>;
  share: number;
}

const STEPS = 2;

function result(names: readonly string[], sums: Float32Array, { plan }: { plan: Plan }): Result {
  const gemms = plan.launches.filter(({ kernel }) => kernel.entry === "gemm");
  return {
    metrics: Object.fromEntries(names.map((name, i) => [name, sums[i] as number])),
    share: gemms.filter(({ kernel }) => kernel.wgsl.includes("subgroupMatrix")).length / gemms.length,
  };
}

/** Bytes of two images of 8 pixels. */
const IMAGES = Uint8Array.from(randomArray(2 * 8 * 8 * 3, 1), (v) => 128 + 80 * v);

async function align(precision: Precision): Promise<Result> {
  const a = await alignment(precision, { tiny: true });
  await testDevice("matrix");
  const stage = { ...STAGES.perceptual, losses: { ...STAGES.perceptual.losses, gan: 0.1 } };
  const run = new StageRun(a, stage, TINY_OPTIONS), program = await run.program(0);
  // The first loss scale is too large for the gradients of this model: the step would be skipped.
  if (precision === "f16") run.optimizer.progress.storage.write(new Float32Array([0, 0, 4096, 0]));
  for (let n = 0; n < STEPS; n++) {
    run.optimizer.set({ ...HYPER, lr: 1e-3 });
    run.discriminatorOptimizer?.set({ ...HYPER, lr: 5e-4 });
    program.run({ x: new Uint32Array(IMAGES.buffer) });
  }
  assertEquals((await run.optimizer.readProgress()).applied, STEPS);
  const got = result(RUNNING_METRICS, await readTensor(run.runningMetrics), program);
  run.destroy();
  return got;
}

async function trainDit(precision: Precision): Promise<Result> {
  await testDevice("matrix");
  const [S, C, B] = [4, 4, 2], sizes = { hidden_size: 32, depth: 1, num_heads: 2, num_classes: 2 };
  const dit = new Dit(ditConfig.parse({ ...sizes, input_size: S, in_channels: C }));
  const options = { batchSize: B, labelDropout: 0.1, directionWeight: 1, ema: true, seed: 0, precision };
  const diffusion = new Diffusion(dit, options);
  dit.init(new Initializer(0));
  const program = diffusion.capture();
  await diffusion.prepareProgram(program);
  for (let n = 0; n < STEPS; n++) {
    diffusion.optimizer.set({ ...HYPER, lr: 1e-3 });
    diffusion.random.set(n);
    program.run({ x: normal(5, 1, B * S * S * C, n), labels: Uint32Array.of(0, 1) });
  }
  assertEquals((await diffusion.optimizer.readProgress()).applied, STEPS);
  const got = result(DIFFUSION_METRICS, await readTensor(diffusion.runningMetrics), program);
  program.destroy();
  diffusion.destroy();
  return got;
}

await testDevice();
if (findMatrices()) {
  for (const [name, train] of [["align", align], ["train-dit", trainDit]] as const) {
    Deno.test(`losses and gradient norms of ${name} in fp16 by matrices are those of f32 within 0.2 %`, async () => {
      const single = await train("f32"), half = await train("f16");
      assert(single.share === 0 && half.share > 0.5, `${half.share} of the GEMMs use matrices`);
      for (const [name, expected] of Object.entries(single.metrics)) {
        const got = half.metrics[name] as number;
        assert(
          Math.abs(got - expected) <= 2e-3 * Math.abs(expected),
          `${name}: ${expected}, in fp16 ${got}`,
        );
      }
    });
  }

  Deno.test("a checkpoint has the kinds of GEMMs by matrices, and a resumed run uses these alone", async () => {
    await inFolder(async (folder) => {
      await writeImages(join(folder, "images"), 4);
      const out = join(folder, "vae");
      const align = (...more: string[]) =>
        run(
          "align",
          ...[
            "--recipe",
            "vae",
            "--image-size",
            "16",
            "--batch-size",
            "2",
            "--held-out",
            "2",
            "--gan-start",
            "9",
          ],
          ...[
            "--latent-channels",
            "4",
            "--decoder-channels",
            "8",
            "--precision",
            "f16",
            "--kernels",
            "matrix",
          ],
          ...["--data", join(folder, "images"), "--out", out, ...more],
        );
      await align("--steps", "1");
      const { file, config, step } = await openCheckpoint(checkpointPath(out, 1));
      assertEquals((config as { matrix_gemms: unknown }).matrix_gemms, GEMM_KINDS);
      const tensors = await Promise.all(
        [...file.tensors].map(async ([name, { shape }]) => ({ name, shape, data: await file.read(name) })),
      );
      file.close();
      await saveCheckpoint(out, step, tensors, { ...config as object, matrix_gemms: ["conv_dx"] });
      await align("--steps", "2", "--resume");
      assertEquals(kindsByMatrices()?.matrix, ["conv_dx"]);
    });
  });
}
