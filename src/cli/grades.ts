// How sure each value of the recipe is, by option: `--explain` prints it. AlignTok's code is not released (arXiv 2509.25162), so
// every value has a grade. An option of `tok align` or `tok train-dit` that decides the result needs an entry here; an empty list
// where nothing is known, and every value is tok's own choice.

import type { AlignConfig, TrainDitConfig } from "./config.ts";
import type { watching } from "./dit_options.ts";
import type { general, reading, running, validating } from "./options.ts";

/** S stated by the authors, N independent notes that agree, C one note, I inferred. */
export type Grade = "S" | "N" | "C" | "I";

/** A value of the recipe. */
export interface Evidence<C> {
  value: unknown;
  grade: Grade;
  /** What it is, or where it comes from. */
  source: string;
  /** Whether the options have it [the option equals `value`]. */
  holds?: (c: C) => boolean;
}

const of = (value: unknown, grade: Grade, source: string) => ({ value, grade, source });
/** Grade I: the code that the paper builds on. */
const ldm = (value: unknown) => of(value, "I", "code of LDM and VA-VAE");
const lightningDit = (value: unknown) => of(value, "I", "code of LightningDiT");

const BATCH = {
  ...of("256 in all", "I", "batch size x accumulation; code of VA-VAE"),
  holds: (c: AlignConfig) => c.batchSize * c.accumulate === 256,
};
const DIT_BATCH = {
  ...of("1024 in all", "I", "batch size x accumulation; code of LightningDiT"),
  holds: (c: TrainDitConfig) => c.batchSize * c.accumulate === 1024,
};
const ABLATED = "a variant that the paper ablates";

const CONSTANT = {
  ...of("constant", "I", "code of VA-VAE and LightningDiT; a linear decay to 1 is constant, too"),
  holds: (c: { lrSchedule: string; lrEnd: number }) => c.lrSchedule === "constant" || c.lrEnd === 1,
};

/** Options that decide no result, or that name the inputs. */
type Plumbing =
  | keyof (
    & typeof general
    & typeof reading
    & typeof running
    & typeof validating
    & Pick<typeof watching, "sampleEvery" | "valEvery">
  )
  | "epochs"
  | "memory";

export const ALIGN_GRADES: Record<
  Exclude<keyof AlignConfig, Plumbing | "preset" | "data" | "lpips" | "download">,
  readonly Evidence<AlignConfig>[]
> = {
  recipe: [
    of("aligntok", "S", "the paper's method"),
    of("vae", "N", "a baseline of the paper"),
    of("va-vae", "N", "a baseline of the paper; its losses from code of VA-VAE (I)"),
  ],
  encoder: [
    of("facebook/dinov2-large", "N", "DINOv2-L/14, 304 M parameters"),
    of("google/siglip2-base-patch16-256", "I", "the paper compares SigLIP 2 (N); its size is unknown"),
    of("google/siglip2-large-patch16-256", "I", "the paper compares SigLIP 2 (N); its size is unknown"),
    of("facebook/vit-mae-large", "I", "the paper compares MAE (N); its size is unknown"),
  ],
  interpolateOffset: [],
  init: [of(undefined, "I", "stage 1 starts from random adapter and decoder")],
  initParts: [],
  imageSize: [
    of(256, "S", "results on ImageNet 256 x 256"),
    of(512, "N", "text to image continues at 512"),
  ],
  batchSize: [BATCH],
  accumulate: [BATCH],
  heldOut: [],
  flip: [],
  crop: [],
  stages: [of([1, 2, 3], "S", "latent alignment, perceptual alignment, decoder refinement")],
  steps: [],
  lr: [ldm([1e-4, 1e-4, 1e-4]), ldm([1e-4])],
  train: [
    of(
      ["adapter+decoder", "encoder+adapter+decoder", "decoder"],
      "S",
      "what each of the three stages trains",
    ),
  ],
  encoderLr: [ldm(0.1)],
  adapterLr: [],
  decoderLr: [],
  ema: [of(0.9999, "I", "code of VA-VAE; that there is an EMA: N"), of(0, "N", ABLATED)],
  precision: [],
  recompute: [],
  beta1: [ldm(0.5)],
  beta2: [ldm(0.9)],
  weightDecay: [],
  clip: [],
  warmup: [],
  lrSchedule: [CONSTANT],
  lrEnd: [of(1, "I", "constant learning rate, as in the code of VA-VAE")],
  wL1: [of(1, "N", "L_rec = L1 + w_p LPIPS + w_g GAN")],
  perceptual: [of("lpips", "N", "L_rec = L1 + w_p LPIPS + w_g GAN")],
  wPerceptual: [of(1, "N", "L_rec = L1 + w_p LPIPS + w_g GAN")],
  wSemantic: [
    of(1, "N", "on ImageNet"),
    of(3, "C", "on LAION"),
    ...[0, 5, 10].map((weight) => of(weight, "N", ABLATED)),
  ],
  semanticLoss: [
    of("l2", "S", "squared distance of the latents; mean over elements: I"),
    of("cosine", "N", ABLATED),
  ],
  semanticAt: [of("after", "S", "after the adapter"), of("before", "C", ABLATED)],
  wVf: [ldm(0.1)],
  vfMargins: [ldm([0.5, 0.25])],
  wKl: [of(0, "N", "deterministic latent; the paper tried KL without gain")],
  noiseTau: [of(0, "N", "no noise"), of(0.8, "I", "RAE")],
  layers: [of(undefined, "I", "patch tokens of the last layer")],
  loraRank: [of(0, "S", "stage 2 trains the encoder; LoRA is a variant that the paper ablates (N)")],
  loraAlpha: [],
  gan: [of("patch", "I", "PatchGAN with hinge loss, code of VA-VAE; that there is a discriminator: N")],
  ganEncoder: [],
  ganLoss: [ldm("hinge")],
  diffaug: [of(undefined, "I", "no augmentation, as in the code of LDM and VA-VAE")],
  wGan: [of(0.5, "I", "code of VA-VAE; that the weight is adaptive: C")],
  ganStart: [ldm([5001, 0, 0])],
  ganWarmup: [ldm(0)],
  discriminatorChannels: [ldm(64)],
  discriminatorLayers: [ldm(3)],
  ganLr: [ldm(1e-4)],
  latentChannels: [of(32, "N", "f16d32"), of(64, "N", "f16d64")],
  adapterHidden: [of(undefined, "I", "the encoder's width; that the adapter has two layers: C")],
  encoderBlocks: [ldm(2)],
  decoderChannels: [of(128, "I", "VA-VAE's decoder; that it has 41.4 M parameters: C")],
  decoderMultiples: [of([1, 1, 2, 2, 4], "I", "VA-VAE's decoder; the factor 16: N")],
  decoderBlocks: [of(2, "I", "VA-VAE's decoder")],
  decoderGroups: [of(32, "I", "VA-VAE's decoder")],
  decoderAttention: [of([16], "I", "VA-VAE's decoder")],
};

export const TRAIN_DIT_GRADES: Record<
  Exclude<keyof TrainDitConfig, Plumbing | "preset" | "tokenizer" | "data" | "latents" | "download">,
  readonly Evidence<TrainDitConfig>[]
> = {
  valNum: [],
  valCfg: [],
  valSteps: [],
  valEncoder: [],
  init: [of(undefined, "I", "random, as in the code of LightningDiT")],
  model: [of("XL/1", "S", "LightningDiT-XL")],
  qkNorm: [
    of(false, "S", "64 epochs without QK-norm; diverges after about 180,000 steps"),
    of(true, "S", "800 epochs with QK-norm"),
  ],
  mlp: [lightningDit("swiglu")],
  norm: [lightningDit("rms")],
  woShift: [lightningDit(false)],
  rope: [lightningDit(true)],
  headWidth: [of(0, "S", "LightningDiT has no wide head"), of(2048, "I", "code of RAE")],
  headDepth: [of(2, "I", "code of RAE")],
  innerHead: [of(0, "S", "LightningDiT has one output head"), of(8, "I", "code of Internal Guidance")],
  unconditional: [of(false, "S", "classes of ImageNet, dropped for guidance")],
  imageSize: [of(256, "S", "results on ImageNet 256 x 256")],
  images: [],
  flip: [of(true, "I", "LightningDiT also encodes a flipped copy of each image")],
  online: [of(false, "I", "latents are encoded once, code of LightningDiT")],
  crop: [of("adm", "I", "center crop of ADM, code of LightningDiT")],
  statImages: [of(10000, "I", "statistics over 10,000 images, code of LightningDiT")],
  steps: [
    of(80000, "N", "64 epochs of batch 1024 on ImageNet"),
    of(1000000, "N", "800 epochs of batch 1024 on ImageNet"),
  ],
  batchSize: [DIT_BATCH],
  accumulate: [DIT_BATCH],
  lr: [lightningDit(2e-4)],
  labelDropout: [lightningDit(0.1)],
  time: [lightningDit("logit-normal")],
  timeMu: [lightningDit(0)],
  timeSigma: [lightningDit(1)],
  timeShift: [lightningDit(1)],
  prediction: [lightningDit("velocity"), of("data", "I", "code of JiT and RAEv2")],
  wDirection: [lightningDit(1)],
  innerWeight: [of(1, "I", "code of Internal Guidance and RAEv2")],
  repa: [of(undefined, "I", "no alignment, as in the code of LightningDiT")],
  repaBlock: [of(8, "I", "code of REPA")],
  repaHidden: [of(2048, "I", "code of REPA")],
  repaWeight: [of(0.5, "I", "code of REPA")],
  ema: [lightningDit(0.9999)],
  emaEvery: [],
  optimizer: [lightningDit("adamw"), of("muon", "I", "code of RAEv2")],
  muonLr: [],
  momentum: [of(0.95, "I", "code of RAEv2")],
  precision: [],
  recompute: [],
  beta1: [lightningDit(0.9)],
  beta2: [lightningDit(0.95)],
  weightDecay: [lightningDit(0)],
  clip: [],
  warmup: [],
  lrSchedule: [CONSTANT],
  lrEnd: [of(1, "I", "constant learning rate, as in the code of LightningDiT")],
};
