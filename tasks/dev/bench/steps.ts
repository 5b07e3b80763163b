// Whole steps: encoder forward and backward, the three alignment stages, DiT training and sampling, at the sizes of the
// preset "tiny" and of published models. Weights and data are random.

import { grad, noGrad } from "../../../src/tensor/autograd.ts";
import { alignConfig, trainDitConfig } from "../../../src/cli/config.ts";
import { within } from "../../../src/gpu/scope.ts";
import { capture } from "../../../src/gpu/program.ts";
import { Initializer } from "../../../src/nn/init.ts";
import { Lpips } from "../../../src/models/lpips.ts";
import { Dit, DIT_SIZES, type DitConfig, ditConfig } from "../../../src/models/dit.ts";
import { Vit, type VitConfig, vitConfig } from "../../../src/models/vit.ts";
import { ParameterSet } from "../../../src/nn/parameter_set.ts";
import { ALIGN_PRESETS } from "../../../src/cli/presets.ts";
import { input, type Precision, type Tensor } from "../../../src/tensor/tensor.ts";
import { Alignment } from "../../../src/train/alignment.ts";
import { StageRun } from "../../../src/train/stage_run.ts";
import { Diffusion } from "../../../src/train/diffusion.ts";
import { openEncoder } from "../../../src/zoo/encoders.ts";
import { refreshWorkingCopies } from "../../../src/train/optimizer.ts";
import { TINY } from "../../../src/train/dit_training.ts";
import type { Stretch } from "../../../src/sampling/plan.ts";
import { Sampler } from "../../../src/sampling/sampler.ts";
import { ganStartOf, stagesOf, tokenizerOf } from "../../../src/train/align_config.ts";
import { discriminatorOf } from "../../../src/train/discriminators.ts";
import type { Measurable } from "./measure.ts";

/** A step; its sizes are for the peers. */
export interface Step {
  name: string;
  precision: Precision;
  make(): Promise<Measurable>;
  [size: string]: unknown;
}

/** Options of `tok align` and the encoder they are for. */
interface Preset {
  values: Record<string, unknown>;
  encoder: VitConfig;
}

/**
 * The steps, in the order in which they run.
 * @param large adds batches that fill a GPU (minutes on a CPU)
 */
export async function steps(precision: Precision, large: boolean): Promise<Step[]> {
  const tiny = (await openEncoder()).config;
  const base = vitConfig.parse({
    hidden_size: 768,
    num_hidden_layers: 12,
    num_attention_heads: 12,
    image_size: 518,
  });
  const dinov2 = { values: { ...ALIGN_PRESETS["dinov2-b-f16d32"], accumulate: 1 }, encoder: base };
  const { batchSize } = trainDitConfig.parse({});
  const tinyDit = { ...TINY, input_size: 4, in_channels: 16, num_classes: 10 };
  const small = DIT_SIZES["S/1"];
  const filling = large
    ? [
      vit("encoder forward, DINOv2-B, 32 images of 224", "forward", base, 32, 224, precision),
      vit("encoder with gradients, DINOv2-B, 32 images of 224", "gradients", base, 32, 224, precision),
      alignment("alignment step, stage 2 with GAN, DINOv2-B, 8 images of 256", 2, precision, dinov2),
      alignment("alignment step, stage 3 with GAN, DINOv2-B, 8 images of 256", 3, precision, dinov2),
      training("DiT training step, B/1, batch 32", DIT_SIZES["B/1"], 32, precision),
      training("DiT training step, XL/1, batch 16", DIT_SIZES["XL/1"], 16, precision),
      sampling("sampling step with guidance, B/1, 32 samples", DIT_SIZES["B/1"], 32),
    ]
    : [];
  return [
    vit("encoder forward, tiny, 8 images", "forward", tiny, 8, 32, precision),
    vit("encoder forward, DINOv2-B, 1 image of 224", "forward", base, 1, 224, precision),
    vit("encoder with gradients, DINOv2-B, 1 image of 224", "gradients", base, 1, 224, precision),
    alignment("alignment step, stage 1, tiny", 1, precision),
    alignment("alignment step, stage 2, tiny", 2, precision),
    alignment("alignment step, stage 3 with GAN, tiny", 3, precision),
    training("DiT training step, tiny", tinyDit, batchSize, precision),
    training("DiT training step, S/1, batch 4", small, 4, precision),
    // Sampling always runs in fp32.
    sampling("sampling step with guidance, tiny, 24 samples", tinyDit, 24),
    sampling("sampling step with guidance, S/1, 1 sample", small, 1),
    ...filling,
  ];
}

/** @param owners destroyed in this order */
const measurable = (program: Measurable["program"], ...owners: { destroy(): void }[]): Measurable => ({
  program,
  destroy: () => owners.forEach((owner) => owner.destroy()),
});

function vit(
  name: string,
  pass: "forward" | "gradients",
  config: VitConfig,
  B: number,
  image: number,
  precision: Precision,
): Step {
  const { hidden_size: C, num_hidden_layers: depth, num_attention_heads: NH, patch_size: patch } = config;
  const make = async () => {
    const model = new Vit(config);
    const set = new ParameterSet("encoder", model, precision);
    model.init(new Initializer(0));
    const x = input([B, image, image, 3], "f32", "images");
    const program = capture(name, { x }, ({ x }) =>
      within<Record<string, Tensor>>({ precision }, () => {
        if (pass === "forward") return { y: noGrad(() => model.forward(x).patches) };
        const y = model.forward(x).patches;
        // The mask token is not part of this loss.
        const list = [...set.tensors].filter(([key]) => !key.endsWith("mask_token")).map(([, t]) => t);
        return Object.fromEntries(grad(y, list, y).map((d, i) => [`d${i}`, d]));
      }));
    await refreshWorkingCopies([set]);
    return measurable(program, program, set);
  };
  return { op: "vit", name, precision, pass, B, image, patch, C, depth, NH, make };
}

/** A stage of `tok align` with all its losses on. */
function alignment(name: string, number: 1 | 2 | 3, precision: Precision, preset?: Preset): Step {
  const make = async () => {
    const c = alignConfig.parse(preset?.values ?? {});
    const embedded = await openEncoder(), encoder = preset?.encoder ?? embedded.config;
    const tokenizer = tokenizerOf(c, encoder, embedded.preprocessor);
    const adversarial = ganStartOf(c, number) < (c.steps[number - 1] as number);
    const { preprocessor } = embedded;
    const discriminator = adversarial ? discriminatorOf(c, { config: encoder, preprocessor }) : undefined;
    tokenizer.init(new Initializer(0));
    const lpips = c.perceptual === "lpips" ? new Lpips() : undefined;
    const lpipsSets = lpips ? [new ParameterSet("lpips", lpips)] : []; // freed with the others
    const models = new Alignment(tokenizer, discriminator, lpips, precision);
    models.discriminator?.init(new Initializer(1));
    const [stage] = stagesOf({ ...c, stages: [number] }, adversarial);
    if (!stage) throw new Error(`Cannot measure stage ${number}: there is none`);
    const run = new StageRun(models, stage, { ...c, semanticLoss: c.semanticLoss });
    const [step] = (await run.program(adversarial ? stage.ganStart : 0)).parts;
    if (!step) throw new Error(`Cannot measure stage ${number}: it has no program`);
    return measurable(step.program, run, ...Object.values(models.sets), ...lpipsSets);
  };
  return { op: "alignment", name, precision, make };
}

function training(
  name: string,
  sizes: Record<string, unknown>,
  batchSize: number,
  precision: Precision,
): Step {
  const config = ditConfig.parse(sizes);
  const make = async () => {
    const dit = new Dit(config);
    const options = { batchSize, labelDropout: 0.1, directionWeight: 1, ema: true, seed: 0, precision };
    const diffusion = new Diffusion(dit, options);
    dit.init(new Initializer(0));
    const [step] = diffusion.capture().parts;
    if (!step) throw new Error(`Cannot measure "${name}": it has no program`);
    await refreshWorkingCopies([diffusion.set]);
    return measurable(step.program, step.program, diffusion);
  };
  return { op: "dit training", name, precision, ...sizesOf(config, batchSize), make };
}

function sampling(name: string, sizes: Record<string, unknown>, batchSize: number): Step {
  const config = ditConfig.parse(sizes);
  const make = async () => {
    const dit = new Dit(config);
    const set = new ParameterSet("model", dit);
    dit.init(new Initializer(0));
    const options = { steps: 1, sampler: "euler", shift: 1, cfg: 4, seed: 0 } as const;
    const sampler = new Sampler(dit, { ...options, batchSize, cfgInterval: [0, 1] });
    const program = sampler.capture(sampler.plan[0] as Stretch);
    return measurable(program, program, sampler, set);
  };
  return { op: "dit sampling", name, precision: "f32", ...sizesOf(config, batchSize), make };
}

function sizesOf(c: DitConfig, B: number) {
  const { input_size: side, in_channels: channels, hidden_size: C, num_classes: classes } = c;
  return { B, side, channels, C, depth: c.depth, NH: c.num_heads, classes };
}
