// A stage as data, and one training step that serves the stages of every method. AlignTok (arXiv 2509.25162): stage 1 trains
// adapter and decoder on a frozen encoder; stage 2 trains everything, and the semantic loss compares its latents with those of
// stage 1; stage 3 trains the decoder.

import { capture } from "../gpu/program.ts";
import { detach, full, grad, gradOf, noGrad } from "../tensor/autograd.ts";
import { within } from "../gpu/scope.ts";
import { state } from "../nn/layers.ts";
import { add, mul, scale } from "../ops/math.ts";
import { type Augmentation, augmentationNumbers, diffAugment } from "../ops/diffaug.ts";
import { imageInput, pixels } from "../ops/pixels.ts";
import type { RandomSource } from "../ops/random.ts";
import { perturbed, sampleOf } from "../models/posterior.ts";
import { constant, input, type Tensor, variable } from "../tensor/tensor.ts";
import { LOSS_TABLE, type LossName } from "./alignment_losses.ts";
import {
  adaptiveWeight,
  discriminatorLoss,
  generatorLoss,
  gradientRatio,
  type Weighted,
  weightedSum,
} from "./losses.ts";
import { Optimizer, refreshWorkingCopies } from "./optimizer.ts";
import { StepProgram, stepRandom } from "./step_program.ts";
import type { Part } from "../models/tokenizer.ts";
import type { StageName } from "./align_recipes.ts";
import type { Alignment, AlignmentOptions } from "./alignment.ts";

export interface Stage {
  name: StageName;
  train: readonly Part[];
  /** Weights of the losses; `gan` is the factor of the adaptive weight. A loss of weight 0 is not computed. */
  losses: Readonly<Partial<Record<LossName, number>> & { gan: number }>;
  steps: number;
  lr: number;
  /** Factor of the rate for the encoder. */
  encoderLr: number;
  /** The same for adapter and decoder (1). */
  adapterLr?: number;
  decoderLr?: number;
  /** Decay of the moving average of the weights that become the result of the stage; 0 for none. */
  ema: number;
  /** Step of the stage from which the adversarial loss counts. */
  ganStart: number;
  /** Maximum standard deviation of the noise that is added to the latents before decoding (0). */
  noiseTau?: number;
  /** Step of the stage from which the discriminator trains (`ganStart`). */
  discriminatorStart?: number;
}

/** Adversarial part of a step: none, the discriminator alone (its warm-up), or the discriminator and the loss of the decoder. */
type Adversarial = "none" | "discriminator" | "both";

/** The running metrics of a stage, in this order. @param weights of its losses */
const metricsOf = (weights: Partial<Record<LossName, number>>) =>
  [
    "loss",
    ...LOSS_TABLE.filter(([name, { optional }]) => !optional || weights[name]).map(([name]) => name),
    ...weights.vf ? ["vf_weight"] as const : [],
    "gan",
    "gan_weight",
    "discriminator",
    "grad_norm2",
  ] as const;
type Metric = ReturnType<typeof metricsOf>[number];

/** The running metrics of every stage; {@link StageRun.metrics} adds those of optional losses. */
export const RUNNING_METRICS = metricsOf({});

/** Trains one stage: its optimizers and the program of its steps, which changes where the adversarial loss starts. */
export class StageRun {
  readonly optimizer: Optimizer;
  readonly discriminatorOptimizer: Optimizer | undefined;
  /** Names of the running metrics. */
  readonly metrics: readonly Metric[];
  /** Their sums over the applied steps since they were last cleared. */
  readonly runningMetrics: Tensor;
  #program: { adversarial: Adversarial; program: StepProgram<Record<string, Tensor>> } | undefined;

  constructor(readonly alignment: Alignment, readonly stage: Stage, readonly options: AlignmentOptions) {
    const { sets } = alignment;
    this.metrics = metricsOf(stage.losses);
    this.runningMetrics = variable([this.metrics.length], { label: "running metrics" });
    const projection = stage.losses.vf ? sets.projection : undefined; // not in the result: no average of it
    this.optimizer = new Optimizer("optimizer", [
      ...stage.train.map((part) => ({
        set: alignment.trained(part),
        lrFactor: stage[`${part}Lr`] ?? 1,
        ema: stage.ema > 0,
      })),
      ...projection ? [{ set: projection }] : [],
    ]);
    const set = sets.discriminator;
    this.discriminatorOptimizer = stage.losses.gan > 0 && set
      ? new Optimizer("discriminator optimizer", [{ set }], "critic") // the prefix of its tensors in checkpoints
      : undefined;
  }

  /** The program of step `n` of the stage; captured and prepared when it changes. */
  async program(
    n: number,
    progress?: (done: number, total: number) => void,
  ): Promise<StepProgram<Record<string, Tensor>>> {
    const adversarial = this.#adversarialAt(n);
    if (this.#program?.adversarial !== adversarial) {
      this.#program?.program.destroy();
      this.#program = { adversarial, program: await this.capture(adversarial).prepare(progress) };
      await refreshWorkingCopies(Object.values(this.alignment.sets));
    }
    return this.#program.program;
  }

  #adversarialAt(n: number): Adversarial {
    const { ganStart, discriminatorStart = ganStart } = this.stage;
    if (this.discriminatorOptimizer === undefined || n < discriminatorStart) return "none";
    return n < ganStart ? "discriminator" : "both";
  }

  /** Records one step of `accumulate` micro-batches, by default the last of the stage; nothing is allocated yet. */
  capture(
    adversarial: Adversarial = this.#adversarialAt(this.stage.steps - 1),
  ): StepProgram<Record<string, Tensor>> {
    const { batchSize: B, imageSize: S, accumulate, recompute = false } = this.options;
    const { alignment: { precision }, optimizer } = this;
    const discriminatorOptimizer = adversarial === "none" ? undefined : this.discriminatorOptimizer;
    const inputs = {
      x: imageInput(B, S),
      ...this.options.flip ? { flips: input([B], "f32", "flips") } : {},
      ...this.random ? { random: input([4], "u32", "random state") } : {},
    };
    const count = this.metrics.length - 1, discriminator = this.metrics.indexOf("discriminator");
    const saved = adversarial === "none" ? [] : this.#discriminatorState();
    return within(
      { recompute, precision },
      () =>
        StepProgram.capture(`stage ${this.stage.name}`, inputs, accumulate, {
          optimizers: discriminatorOptimizer ? [optimizer, discriminatorOptimizer] : [optimizer],
          saved,
          gradients: ({ x, flips, random }) => {
            const gradients = () =>
              this.#gradients(pixels(x as Tensor, flips), random && { tensor: random }, adversarial);
            return this.#lora ? this.#lora.tracked(gradients) : gradients();
          },
          update: (means, before) => {
            const norm2 = optimizer.update(means);
            if (this.#lora) this.alignment.mergeLora();
            discriminatorOptimizer?.update([means[discriminator] as Tensor]);
            saved.forEach((x, i) => discriminatorOptimizer?.restoreIfSkipped(x, before[i] as Tensor));
            optimizer.report([...means.slice(0, count), norm2], this.runningMetrics);
          },
        }),
    );
  }

  /** Whether a step draws random numbers: the input `random` of its program then holds {@link randomInput}. */
  get random(): boolean {
    const augments = this.discriminatorOptimizer !== undefined && this.#augmentations.length > 0;
    return augments || this.alignment.tokenizer.gaussian || (this.stage.noiseTau ?? 0) > 0;
  }

  get #augmentations(): readonly Augmentation[] {
    return this.options.augmentations ?? [];
  }

  /** The low-rank updates, if this stage trains them. */
  get #lora() {
    return this.stage.train.includes("encoder") ? this.alignment.lora : undefined;
  }

  /** The random state of a step: random numbers are a function of seed, step, and index of the image in the step. */
  randomInput(seed: number, step: number): { random?: Uint32Array } {
    return this.random ? { random: stepRandom(seed, step, this.options) } : {};
  }

  /** State of the discriminator's norms, which a skipped step must not change. */
  #discriminatorState(): Tensor[] {
    const all = this.alignment.discriminator ? [...state(this.alignment.discriminator).values()] : [];
    return all.filter(({ storage }) => storage.category !== "parameters");
  }

  /**
   * Losses of one micro-batch, and its part of the gradients for the trained parts and for the discriminator.
   * @returns as `values` the metrics but the last, then the squared gradient norms of the adaptive weights
   */
  #gradients(
    x: Tensor,
    random: RandomSource | undefined,
    adversarial: Adversarial,
  ) {
    const { alignment, stage: { name: stage, train, losses, noiseTau = 0 }, options, optimizer } = this;
    const discriminatorOptimizer = adversarial === "none" ? undefined : this.discriminatorOptimizer;
    const { tokenizer, discriminator } = alignment;
    const gradIf = <T>(trained: boolean, fn: () => T): T => trained ? fn() : noGrad(fn);
    const frozen = alignment.reference && noGrad(() => alignment.frozenFeatures(x)); // [B, T, features]
    const encoderTrains = train.includes("encoder"),
      adapterTrains = encoderTrains || train.includes("adapter");
    // In stage 1 a frozen encoder equals the reference.
    const features = stage === "latent" && !encoderTrains && alignment.anchor && frozen
      ? frozen
      : gradIf(encoderTrains, () => tokenizer.features(x));
    const posterior = gradIf(adapterTrains, () => tokenizer.posterior(features)); // [B, side, side, C]
    const z = random ? sampleOf(posterior, random) : posterior.mean;
    const y = tokenizer.decode(random && noiseTau > 0 ? perturbed(z, noiseTau, random) : z); // [B, S, S, 3]

    const zero = scalar(0);
    const metrics = Object.fromEntries(this.metrics.map((name) => [name, zero])) as Record<Metric, Tensor>;
    const onReconstruction: Weighted[] = [], adaptive: Weighted[] = [], others: Weighted[] = [];
    for (const [name, loss] of LOSS_TABLE) {
      const weight = losses[name] ?? 0;
      if (weight === 0 && !loss.always) continue;
      metrics[name] = loss.value({ alignment, options, x, y, posterior, z, features, frozen });
      const kind = loss.reconstruction ? onReconstruction : loss.adaptive ? adaptive : others;
      if (weight > 0) kind.push([metrics[name], weight]);
    }
    const reconstruction = weightedSum(onReconstruction);
    metrics.loss = weightedSum([[reconstruction, 1], ...others]);

    // Micro-batches accumulate the gradients of the mean.
    const fraction = 1 / options.accumulate;
    const averaged = (dy: Tensor) => fraction === 1 ? dy : scale(dy, fraction);
    const dRec = grad(reconstruction, [y], optimizer.scaled(full([], 1)))[0] as Tensor;
    const roots = [{ y, dy: averaged(dRec) }];
    const gradients: Tensor[][] = [], norms: Tensor[] = [];
    const augmented = this.#augmentation(random);
    if (discriminator && adversarial === "both") {
      metrics.gan = generatorLoss(discriminator.forward(augmented(y), "frozen"));
      const dGan = grad(metrics.gan, [y], optimizer.scaled(full([], 1)))[0] as Tensor;
      const gan = adaptiveWeight(y, tokenizer.lastLayer, dRec, dGan, losses.gan, optimizer.lossScale());
      metrics.gan_weight = gan.weight;
      norms.push(...gan.norms.map(averaged)); // so that the sum over micro-batches overflows only where one does
      roots.push({ y, dy: averaged(mul(dGan, metrics.gan_weight)) });
    }
    if (discriminator && discriminatorOptimizer) {
      const [real, fake] = [augmented(x), augmented(detach(y))];
      metrics.discriminator = discriminatorLoss(discriminator, real, fake, options.ganLoss);
      const { parameters } = discriminatorOptimizer;
      gradients.push(
        grad(metrics.discriminator, parameters, discriminatorOptimizer.scaled(scalar(fraction))),
      );
    }
    for (const [loss, factor] of adaptive) {
      const pair = [{ y, dy: dRec }, { y: loss, dy: optimizer.scaled(full([], 1)) }] as const;
      const limits = { factor, max: 1e8, lossScale: optimizer.lossScale() };
      const vf = gradientRatio(tokenizer.lastEncodingLayer, pair, limits);
      metrics.vf_weight = vf.weight;
      norms.push(...vf.norms.map(averaged));
      metrics.loss = add(metrics.loss, mul(loss, vf.weight));
      roots.push({ y: loss, dy: optimizer.scaled(averaged(vf.weight)) });
    }
    for (const [loss, weight] of others) {
      roots.push({ y: loss, dy: optimizer.scaled(scalar(weight * fraction)) });
    }
    gradients.unshift(gradOf(roots, optimizer.parameters));
    return { values: [...this.metrics.slice(0, -1).map((name) => metrics[name]), ...norms], gradients };
  }

  /** DiffAug by this step's random numbers: the same for an image, its reconstruction, and both passes of it. */
  #augmentation(random: RandomSource | undefined): (x: Tensor) => Tensor {
    const which = this.#augmentations;
    if (!random || !which.length) return (x) => x;
    const numbers = augmentationNumbers(this.options.batchSize, random);
    return (x) => diffAugment(x, which, numbers);
  }

  /** Names and tensors that a checkpoint of this stage holds besides the models. */
  state(): Map<string, Tensor> {
    return new Map([...this.optimizer.state(), ...this.discriminatorOptimizer?.state() ?? []]);
  }

  /** The averages become the weights: the end of a stage with averaging. */
  async finish(): Promise<void> {
    if (this.stage.ema > 0) {
      for (const [i, part] of this.stage.train.entries()) {
        await this.optimizer.readEmaInto(i, this.alignment.trained(part));
      }
      await this.applyLora();
    }
  }

  /** Makes the encoder's weights follow low-rank updates that were changed outside a step. */
  protected async applyLora(): Promise<void> {
    if (!this.#lora) return;
    const program = await capture("merge LoRA", {}, () => (this.alignment.mergeLora(), {})).prepare();
    program.run();
    program.destroy();
  }

  destroy(): void {
    this.#program?.program.destroy();
    this.optimizer.destroy();
    this.discriminatorOptimizer?.destroy();
    this.runningMetrics.storage.destroy();
  }
}

const scalar = (value: number) => constant(Float32Array.of(value), [], "scalar");
