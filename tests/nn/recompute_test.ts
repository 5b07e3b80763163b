// Training with recomputed blocks (--recompute) gives the same bits in less memory. In fp16 a few roundings differ: a fused
// launch does not round intermediates, and what is fused depends on which activations are kept.

import { assert, assertEquals } from "@std/assert";
import { Shapes } from "../../src/data/toy_shapes.ts";
import { gather } from "../../src/data/image_source.ts";
import { PatchDiscriminator } from "../../src/models/discriminator.ts";
import { Dit, DIT_SIZES, type DitConfig, ditConfig } from "../../src/models/dit.ts";
import { Lpips } from "../../src/models/lpips.ts";
import { Tokenizer, tokenizerConfig } from "../../src/models/tokenizer.ts";
import { vitConfig } from "../../src/models/vit.ts";
import { snapshot } from "../../src/nn/layers.ts";
import { Initializer } from "../../src/nn/init.ts";
import { normal } from "../../src/philox.ts";
import type { Precision } from "../../src/tensor/tensor.ts";
import { Alignment } from "../../src/train/alignment.ts";
import { type Stage, StageRun } from "../../src/train/stage_run.ts";
import { Diffusion } from "../../src/train/diffusion.ts";
import { refreshWorkingCopies } from "../../src/train/optimizer.ts";
import { alignment } from "../helpers/alignment.ts";
import { testDevice } from "../helpers/check.ts";

const HYPER = {
  lr: 1e-3,
  beta1: 0.9,
  beta2: 0.95,
  eps: 1e-8,
  weightDecay: 0.01,
  clip: 1,
  emaDecay: 0.9,
};
const PRECISIONS: Precision[] = ["f32", "f16"];

type Saved = { name: string; data: Float32Array }[];

/** Largest relative difference (norm over norm) of two steps in fp16. Unrelated steps would differ by about 1.4. */
const TOLERANCE = 0.05;
/** One in fp16: rounding differences grow from step to step. */
const STEPS = { f32: 3, f16: 1 };

/** Fails unless the tensors are the same bits; in fp16, unless the losses and the gradients' averages agree. */
function assertSame(a: Saved, b: Saved, precision: Precision): void {
  const bits = ({ data }: Saved[number]) => new Uint32Array(data.buffer, data.byteOffset, data.length);
  const wrong = a.filter((one, i) => {
    const other = b[i] as Saved[number];
    if (one.name !== other.name || one.data.length !== other.data.length) return true;
    if (precision === "f32") {
      const mine = bits(one), theirs = bits(other);
      return mine.some((word, k) => word !== theirs[k]);
    }
    if (one.name !== "running metrics" && !/\.m\.\d+$/.test(one.name)) return false;
    const norm = (x: Float32Array) => Math.hypot(...x.slice(0, 100_000));
    return !(norm(one.data.map((v, k) => v - (other.data[k] as number))) <= TOLERANCE * norm(other.data));
  });
  assertEquals(wrong.map(({ name }) => name), []);
}

/** Everything that a run leaves after a few steps: weights, averages, moments, and the sums of its losses. */
async function trainDit(precision: Precision, recompute: boolean, architecture: Partial<DitConfig> = {}) {
  const [S, C, B] = [4, 4, 3];
  const dit = new Dit(
    ditConfig.parse({
      input_size: S,
      in_channels: C,
      hidden_size: 48,
      depth: 3,
      num_heads: 2,
      num_classes: 3,
      use_qknorm: true,
      ...architecture,
    }),
  );
  const diffusion = new Diffusion(dit, {
    batchSize: B,
    labelDropout: 0.3,
    directionWeight: 1,
    ema: true,
    seed: 1,
    precision,
    recompute,
  });
  const init = new Initializer(0);
  dit.init(init);
  // Gates that are zero would hide the blocks.
  for (const { adaLN_modulation } of [...dit.blocks, ...dit.head?.blocks ?? []]) {
    init.normal(adaLN_modulation[1].weight, 0.1);
  }
  init.normal(dit.final_layer.linear.weight, 0.1);
  const program = await diffusion.capture().prepare();
  await refreshWorkingCopies([diffusion.set]);
  for (let n = 0; n < STEPS[precision]; n++) {
    diffusion.optimizer.set(HYPER);
    diffusion.random.set(n);
    program.run({ x: normal(5, 1, B * S * S * C, n), labels: Uint32Array.from([0, 1, 2]) });
  }
  const left = await snapshot(new Map([...diffusion.state(), ["running metrics", diffusion.runningMetrics]]));
  program.destroy();
  diffusion.destroy();
  return { left: left.map(({ name, data }) => ({ name, data: data.slice() })), plan: program.plan };
}

const ARCHITECTURES: Record<string, Partial<DitConfig>> = {
  "DiT": {},
  "DiT with a wide head": {
    patch_size: 2,
    depth: 1,
    use_swiglu: false,
    use_rmsnorm: false,
    wo_shift: true,
    use_gembed: true,
    inner_head: 1,
    head: { hidden_size: 64, depth: 1, num_heads: 2 },
  },
};

for (const [name, architecture] of Object.entries(ARCHITECTURES)) {
  Deno.test(`a ${name} trained with recomputed blocks has the same losses and weights`, async () => {
    for (const precision of PRECISIONS) {
      await testDevice();
      const plain = await trainDit(precision, false, architecture);
      const again = await trainDit(precision, true, architecture);
      assert((plain.left.at(-1)?.data[0] ?? 0) > 0, "there is a loss");
      assertSame(again.left, plain.left, precision);
      assert(again.plan.launches.length > plain.plan.launches.length, "blocks are run again");
      assert(again.plan.bytes.activations < plain.plan.bytes.activations);
    }
  });
}

const STAGES: Stage[] = [
  { name: "latent", train: ["adapter", "decoder"], losses: { l1: 1, perceptual: 0.1, gan: 0, semantic: 0 } },
  {
    name: "perceptual",
    train: ["encoder", "adapter", "decoder"],
    losses: { l1: 1, perceptual: 0.1, gan: 0.1, semantic: 0.5 },
  },
  { name: "refine", train: ["decoder"], losses: { l1: 1, perceptual: 0.1, gan: 0.1, semantic: 0 } },
].map((stage) => ({ ...stage, steps: 3, lr: 1e-3, encoderLr: 0.5, ema: 0, ganStart: 0 }) as Stage);

/** With all kinds of blocks; LPIPS takes images of 16 pixels or more. */
const everyBlock = (precision: Precision, byLpips: boolean): Promise<Alignment> =>
  byLpips
    ? alignment(precision, { blocks: 1, attention: [8], lpips: new Lpips() })
    : alignment(precision, { tiny: true, blocks: 1, attention: [4] });

Deno.test("each stage of an alignment with recomputed blocks has the same losses and weights", async () => {
  for (const precision of PRECISIONS) {
    await testDevice();
    // Stage 2 has every block; the others compile other kernels for the same fp16 blocks.
    for (const stage of precision === "f32" ? STAGES : STAGES.slice(1, 2)) {
      const results = [];
      for (const recompute of [false, true]) {
        const byLpips = stage.name === "refine", imageSize = byLpips ? 32 : 8;
        const { images } = await gather(new Shapes(4, 1), [0, 1, 2, 3], imageSize);
        const a = await everyBlock(precision, byLpips);
        const options = { batchSize: 2, accumulate: 2, imageSize, recompute } as const;
        const run = new StageRun(a, stage, { ...options, semanticLoss: "l2", semanticAt: "after" });
        const program = await run.program(0);
        for (let n = 0; n < STEPS[precision]; n++) {
          run.optimizer.set(HYPER);
          run.discriminatorOptimizer?.set(HYPER);
          program.run({ x: images });
        }
        const left = await snapshot(
          new Map([...a.state(), ...run.state(), ["running metrics", run.runningMetrics]]),
        );
        results.push({
          left: left.map(({ name, data }) => ({ name, data: data.slice() })),
          activations: program.plan.bytes.activations,
        });
        run.destroy();
        for (const set of Object.values(a.sets)) set.destroy();
      }
      const [plain, again] = results as [(typeof results)[0], (typeof results)[0]];
      assertSame(again.left, plain.left, precision);
      assert(again.activations < plain.activations, `${again.activations} of ${plain.activations}`);
    }
  }
});

/** Planned bytes of activations, without and with recomputation. */
const compare = (plan: (recompute: boolean) => number) => [plan(false), plan(true)] as [number, number];

Deno.test("recomputation reduces a DiT-S/1's activations to less than a quarter", async () => {
  await testDevice("gpu"); // without the textures of software adapters
  for (const precision of PRECISIONS) {
    const [plain, again] = compare((recompute) => {
      const dit = new Dit(ditConfig.parse({ ...DIT_SIZES["S/1"], input_size: 16, in_channels: 32 }));
      const options = { batchSize: 8, labelDropout: 0.1, directionWeight: 1, ema: true, seed: 0 };
      return new Diffusion(dit, { ...options, precision, recompute }).capture().plan.bytes.activations;
    });
    assert(again < 0.25 * plain, `${precision}: ${again} of ${plain} bytes`);
  }
});

Deno.test("recomputation reduces the activations of an alignment of DINOv2-B to less than half", async () => {
  await testDevice("gpu");
  for (const precision of PRECISIONS) {
    for (const stage of STAGES) {
      const [plain, again] = compare((recompute) => {
        const tokenizer = new Tokenizer(tokenizerConfig.parse({
          image_size: 256,
          encoder: vitConfig.parse({
            model_type: "dinov2",
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            patch_size: 14,
            image_size: 518,
          }),
          image_mean: [0.5, 0.5, 0.5],
          image_std: [0.2, 0.2, 0.2],
          adapter_hidden: 768,
          decoder: { z_channels: 32 },
        }));
        const a = new Alignment(
          tokenizer,
          new PatchDiscriminator({ ndf: 64, n_layers: 3 }),
          new Lpips(),
          precision,
        );
        const options = { batchSize: 4, accumulate: 1, imageSize: 256, recompute } as const;
        const run = new StageRun(a, stage, { ...options, semanticLoss: "l2", semanticAt: "after" });
        return run.capture("both").plan.bytes.activations;
      });
      assert(again < 0.5 * plain, `${stage.name} in ${precision}: ${again} of ${plain} bytes`);
    }
  }
});
