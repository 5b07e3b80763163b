// AlignTok's three stages as data, and one training step that serves them all. Stage 1 trains adapter and decoder on a
// frozen encoder; stage 2 trains everything, held to the latents of stage 1 by the semantic loss; stage 3 refines the
// decoder. Source: arXiv 2509.25162 for the stages; losses and weights by the grades of the recipe.

import { detach, full, grad, gradOf, noGrad } from "../tensor/autograd.ts";
import { within } from "../gpu/scope.ts";
import { copy } from "../gpu/memory.ts";
import { capture, type Program } from "../gpu/program.ts";
import { Adapter } from "../models/adapter.ts";
import type { Discriminator } from "../models/discriminator.ts";
import type { Lpips } from "../models/lpips.ts";
import { Encoder, type Tokenizer } from "../models/tokenizer.ts";
import { Vit } from "../models/vit.ts";
import { state } from "../nn/layers.ts";
import { ParameterSet } from "../nn/parameter_set.ts";
import { add, mul, scale } from "../ops/math.ts";
import { pointwise } from "../ops/pointwise.ts";
import { reshape, slice } from "../ops/layout.ts";
import { input, type Precision, readTensor, type Tensor, variable } from "../tensor/tensor.ts";
import {
  adaptiveWeight,
  cosineDistance,
  discriminatorLoss,
  generatorLoss,
  l1,
  l2,
  lpipsLoss,
} from "./losses.ts";
import { Optimizer, refreshWorkingCopies } from "./optimizer.ts";

type Part = "encoder" | "adapter" | "decoder";

export interface Stage {
  name: "latent" | "perceptual" | "refine";
  train: readonly Part[];
  /** Weights of the losses; a loss of weight 0 is not computed. */
  losses: { l1: number; perceptual: number; gan: number; semantic: number };
  steps: number;
  lr: number;
  /** Factor of the rate for the encoder. */
  encoderLr: number;
  /** Decay of the moving average of the weights that become the result of the stage; 0 for none. */
  ema: number;
  /** Step of the stage from which the adversarial loss counts. */
  ganStart: number;
}

export interface AlignmentOptions {
  batchSize: number;
  accumulate: number;
  imageSize: number;
  semanticLoss: "l2" | "cosine";
  semanticAt: "after" | "before";
  /** Recomputes blocks in the backward pass instead of keeping their activations (false). */
  recompute?: boolean;
}

/** The running metrics of a step, in this order; the squared norm of the gradients is the last. */
export const RUNNING_METRICS = [
  "loss",
  "l1",
  "perceptual",
  "semantic",
  "gan",
  "gan_weight",
  "discriminator",
  "grad_norm2",
] as const;

/** The models of an alignment, each in its own parameter set. */
export class Alignment {
  /** The encoder as it was given, frozen: perceptual features, and half of the semantic anchor. */
  readonly reference: Vit;
  /** The adapter as stage 1 left it. */
  readonly anchor: Adapter;
  readonly discriminator: Discriminator | undefined;
  readonly sets: Record<Part | "anchor" | "reference", ParameterSet> & { discriminator?: ParameterSet };
  readonly #reference: Encoder;

  /** @param lpips the perceptual loss; the distance of the reference's features where there is none */
  constructor(
    readonly tokenizer: Tokenizer,
    discriminator: Discriminator | undefined,
    readonly lpips?: Lpips,
    /** Of the activations while training. */
    readonly precision: Precision = "f32",
  ) {
    const { config } = tokenizer;
    this.reference = new Vit(config.encoder);
    this.#reference = new Encoder(this.reference, config.image_mean, config.image_std);
    this.anchor = new Adapter(config.encoder.hidden_size, config.decoder.z_channels, config.adapter_hidden);
    this.discriminator = discriminator;
    const set = (name: string, module: object) => new ParameterSet(name, module, precision);
    this.sets = {
      encoder: set("encoder", tokenizer.encoder),
      adapter: set("adapter", tokenizer.adapter),
      decoder: set("decoder", {
        post_quant_conv: tokenizer.post_quant_conv,
        decoder: tokenizer.decoder,
      }),
      anchor: set("anchor", this.anchor),
      reference: set("reference", this.reference),
      ...(discriminator ? { discriminator: set("discriminator", discriminator) } : {}),
    };
  }

  /** Freezes what stage 1 made: the anchor of the semantic loss. */
  async setAnchor(): Promise<void> {
    await this.#copySet("adapter", "anchor");
  }

  /** Makes the frozen reference equal to the encoder as it is now. */
  async setReference(): Promise<void> {
    await this.#copySet("encoder", "reference");
    const own = state(this.tokenizer.encoder);
    for (const [key, tensor] of state(this.reference)) {
      // A fixed table of positions is in no parameter set.
      if (tensor.storage.category !== "parameters") {
        tensor.storage.write(await readTensor(own.get(key) as Tensor));
      }
    }
  }

  /** Names and tensors of all that a checkpoint holds, but the optimizers'. */
  state(): Map<string, Tensor> {
    const parts = {
      tokenizer: this.tokenizer,
      anchor: this.anchor,
      reference: this.reference,
      discriminator: this.discriminator,
    };
    return new Map(
      Object.entries(parts).flatMap(([name, part]) =>
        part ? [...state(part)].map(([key, tensor]) => [`${name}.${key}`, tensor] as const) : []
      ),
    );
  }

  /** How different `y` looks from `x`, whose patch tokens of the frozen encoder are `frozen`. */
  perceptual(y: Tensor, x: Tensor, frozen: Tensor): Tensor {
    return this.lpips ? lpipsLoss(this.lpips, y, x) : l2(this.frozenFeatures(y), frozen);
  }

  /** Patch tokens of the frozen encoder on the latent's grid. */
  frozenFeatures(x: Tensor): Tensor {
    return this.#reference.patches(x, this.tokenizer.side(x.dim(1)));
  }

  async #copySet(from: Part, to: "anchor" | "reference"): Promise<void> {
    await this.sets[from].materialise();
    const program = await capture("copy", {}, () => {
      this.sets[from].flats.forEach((flat, i) => copy(flat, this.sets[to].flats[i] as Tensor));
      return {};
    }).prepare();
    program.run();
    program.destroy();
  }
}

type StageProgram = Program<{ x: Tensor }, Record<string, Tensor>>;

/** One stage under way: its optimizers and its programs (before and after the adversarial loss starts). */
export class StageRun {
  readonly optimizer: Optimizer;
  readonly discriminatorOptimizer: Optimizer | undefined;
  /** Sums of RUNNING_METRICS since they were last cleared, and how many steps. */
  readonly runningMetrics: Tensor = variable([RUNNING_METRICS.length], { label: "running metrics" });
  #program: { adversarial: boolean; program: StageProgram } | undefined;

  constructor(readonly alignment: Alignment, readonly stage: Stage, readonly options: AlignmentOptions) {
    const { sets } = alignment;
    this.optimizer = new Optimizer(
      "optimizer",
      stage.train.map((part) => ({
        set: sets[part],
        lrFactor: part === "encoder" ? stage.encoderLr : 1,
        ema: stage.ema > 0,
      })),
    );
    const set = sets.discriminator;
    this.discriminatorOptimizer = stage.losses.gan > 0 && set
      ? new Optimizer("discriminator optimizer", [{ set }], "critic")
      : undefined;
  }

  /** The program of step `n` of the stage; captured and prepared when it changes. */
  async program(n: number, progress?: (done: number, total: number) => void): Promise<StageProgram> {
    const adversarial = this.discriminatorOptimizer !== undefined && n >= this.stage.ganStart;
    if (this.#program?.adversarial !== adversarial) {
      this.#program?.program.destroy();
      this.#program = { adversarial, program: await this.capture(adversarial).prepare(progress) };
      await refreshWorkingCopies(Object.values(this.alignment.sets));
    }
    return this.#program.program;
  }

  /** Records one step; nothing is allocated yet. */
  capture(adversarial: boolean): StageProgram {
    const { batchSize: B, imageSize: S } = this.options;
    const x = input([B * this.options.accumulate, S, S, 3], "f32", "images");
    return capture(
      `stage ${this.stage.name}`,
      { x },
      ({ x }) =>
        within(
          { recompute: this.options.recompute ?? false, precision: this.alignment.precision },
          () => this.#step(x, adversarial),
        ),
    );
  }

  /** One update from `accumulate` micro-batches, one after another in the same program. */
  #step(x: Tensor, adversarial: boolean): Record<string, Tensor> {
    const { batchSize: B, accumulate } = this.options;
    const perBatch: Record<(typeof RUNNING_METRICS)[number], Tensor>[] = [];
    const norms: Tensor[] = [];
    const kept = adversarial ? this.#runningStatistics() : [];
    let first: Tensor | undefined;
    for (let i = 0; i < accumulate; i++) {
      const made = this.#gradients(slice(x, 0, i * B, (i + 1) * B), adversarial);
      const { y, parts, generator, discriminatorGradients } = made;
      perBatch.push(parts);
      norms.push(...made.norms);
      first ??= y;
      if (i === 0) this.optimizer.store(generator);
      else this.optimizer.add(generator);
      if (!adversarial) continue;
      if (i === 0) this.discriminatorOptimizer?.store(discriminatorGradients);
      else this.discriminatorOptimizer?.add(discriminatorGradients);
    }
    const average = (name: (typeof RUNNING_METRICS)[number]) => mean(perBatch.map((parts) => parts[name]));
    const values = RUNNING_METRICS.slice(0, -1).map(average);
    const norm2 = this.optimizer.update([...values, ...norms]);
    if (adversarial) this.discriminatorOptimizer?.update([average("discriminator")]);
    for (const [running, before] of kept) this.discriminatorOptimizer?.restoreIfSkipped(running, before);
    this.optimizer.report([...values, norm2], this.runningMetrics);
    return { y: first as Tensor };
  }

  /** The discriminator's running statistics, and copies of them as they are before the step. */
  #runningStatistics(): (readonly [Tensor, Tensor])[] {
    const all = this.alignment.discriminator ? [...state(this.alignment.discriminator).values()] : [];
    return all.filter(({ storage }) => storage.category !== "parameters")
      .map((t) => [t, noGrad(() => within({ precision: "f32" }, () => pointwise(["x0"], [t])))]);
  }

  /** Losses of one micro-batch, and its share of the gradients for the trained parts and for the discriminator. */
  #gradients(x: Tensor, adversarial: boolean) {
    const { alignment, stage, options, optimizer, discriminatorOptimizer } = this;
    const { tokenizer, discriminator } = alignment;
    const { losses } = stage;
    const unless = <T>(trained: boolean, fn: () => T): T => trained ? fn() : noGrad(fn);
    const frozen = noGrad(() => alignment.frozenFeatures(x)); // [B, T, features]
    // In stage 1 the encoder still is the reference.
    const features = stage.name === "latent"
      ? frozen
      : unless(stage.train.includes("encoder"), () => tokenizer.features(x));
    const z = unless(stage.train.includes("adapter"), () => tokenizer.adapt(features)); // [B, side, side, C]
    const y = tokenizer.decode(z); // [B, S, S, 3]

    const zero = scalar(0);
    const parts: Record<(typeof RUNNING_METRICS)[number], Tensor> = {
      loss: zero,
      l1: l1(y, x),
      perceptual: losses.perceptual > 0 ? alignment.perceptual(y, x, frozen) : zero,
      semantic: zero,
      gan: zero,
      gan_weight: zero,
      discriminator: zero,
      grad_norm2: zero,
    };
    if (losses.semantic > 0) {
      const distance = options.semanticLoss === "cosine" ? cosineDistance : l2;
      parts.semantic = options.semanticAt === "before"
        ? distance(features, frozen)
        : distance(z, reshape(noGrad(() => alignment.anchor.forward(frozen)), z.shape));
    }
    const reconstruction = weighted([[parts.l1, losses.l1], [parts.perceptual, losses.perceptual]]);
    parts.loss = weighted([[reconstruction, 1], [parts.semantic, losses.semantic]]);

    const share = 1 / options.accumulate;
    const shared = (dy: Tensor) => share === 1 ? dy : scale(dy, share);
    const dRec = grad(reconstruction, [y], optimizer.scaled(full([], 1)))[0] as Tensor;
    const roots = [{ y, dy: shared(dRec) }];
    let discriminatorGradients: Tensor[] = [];
    const norms: Tensor[] = [];
    if (adversarial && discriminator && discriminatorOptimizer) {
      parts.gan = generatorLoss(discriminator.forward(y, "frozen"));
      const dGan = grad(parts.gan, [y], optimizer.scaled(full([], 1)))[0] as Tensor;
      const { lastLayer } = tokenizer.decoder;
      const adaptive = adaptiveWeight(y, lastLayer, dRec, dGan, losses.gan, optimizer.lossScale());
      parts.gan_weight = adaptive.weight;
      norms.push(...adaptive.norms);
      roots.push({ y, dy: shared(mul(dGan, parts.gan_weight)) });
      parts.discriminator = discriminatorLoss(discriminator, x, detach(y));
      discriminatorGradients = grad(
        parts.discriminator,
        discriminatorOptimizer.parameters,
        discriminatorOptimizer.scaled(scalar(share)),
      );
    }
    if (losses.semantic > 0) {
      roots.push({ y: parts.semantic, dy: optimizer.scaled(scalar(losses.semantic * share)) });
    }
    return { y, parts, norms, generator: gradOf(roots, optimizer.parameters), discriminatorGradients };
  }

  /** Names and tensors that a checkpoint of this stage holds besides the models. */
  state(): Map<string, Tensor> {
    return new Map([...this.optimizer.state(), ...this.discriminatorOptimizer?.state() ?? []]);
  }

  /** The averages become the weights: the end of a stage with averaging. */
  async finish(): Promise<void> {
    if (this.stage.ema > 0) {
      for (const [i, part] of this.stage.train.entries()) {
        await this.optimizer.readEmaInto(i, this.alignment.sets[part]);
      }
    }
  }

  destroy(): void {
    this.#program?.program.destroy();
    this.optimizer.destroy();
    this.discriminatorOptimizer?.destroy();
    this.runningMetrics.storage.destroy();
  }
}

function weighted(terms: readonly (readonly [Tensor, number])[]): Tensor {
  return terms.filter(([, w]) => w !== 0).map(([t, w]) => w === 1 ? t : scale(t, w)).reduce(add);
}

const mean = (list: readonly Tensor[]): Tensor =>
  list.length === 1 ? list[0] as Tensor : scale(list.reduce(add), 1 / list.length);

const scalar = (value: number) => variable([], { label: "scalar", init: () => new Float32Array([value]) });
