// What a figure was computed from. metrics.json holds it under "ingredients", by the key of the figure; figures of different
// runs compare only where `protocol`, `space`, `network`, `input`, `real`, the count of `fake`, `split`, `probe` and the noise on
// latents are the same.

import { z } from "zod";
import { described, type View } from "../data/network_input.ts";
import { type Identity, identitySchema } from "../formats/provenance.ts";

/** A set of images, or statistics of one. */
const setSchema = z.object({
  name: z.string(),
  /** Hash of a file, or of the names and sizes of a folder's files; absent for samples and reconstructions. */
  fingerprint: z.string().optional(),
  /** Number of images; absent for statistics, which do not say. */
  count: z.int().nonnegative().optional(),
  /** It holds stored statistics of Inception's features. */
  statistics: z.literal(true).optional(),
});

/** How samples were made. */
const samplingSchema = z.object({
  sampler: z.string(),
  /** Absent where the sampler chooses its steps. */
  steps: z.int().optional(),
  /** Evaluations of the network for an image: the mean. */
  nfe: z.number(),
  /** Such as "cfg 4 in 0.1-1". */
  guidance: z.string(),
  /** As --labels of `tok sample`. */
  labels: z.enum(["equal", "random"]),
  /** "the model's own", or the width or decay of --ema. */
  ema: z.union([z.string(), z.number()]),
  /** --seed, and the first and last number of the images: noise is a function of both. */
  seed: z.int(),
  images: z.tuple([z.int(), z.int()]),
  /** All sampling options that differ from the defaults, as `tok sample` takes them. */
  options: z.string(),
});

/** Labelled images that a classifier learns from, and those that test it. */
const splitSchema = z.object({
  train: z.int(),
  /** Absent where it tests the generated images. */
  test: z.int().optional(),
  by: z.string(),
  /** Of generated training images; a split by index has none. */
  seed: z.int().optional(),
});

/** How a linear probe was trained (linear_probe.ts). */
const probeSchema = z.object({
  optimizer: z.string(),
  objective: z.string(),
  penalty: z.number(),
  features: z.string(),
  iterations: z.int(),
  converged: z.boolean(),
});

export const ingredientsSchema = z.object({
  /** A value of --protocol, or "tok". */
  protocol: z.string(),
  /** What is scored: pairs of images, latents, labels, or features of sets. */
  from: z.enum(["reconstructions", "latents", "labels", "encoder", "inception", "six"]),
  /** Which features of the network: "pooled", "spatial", "logits" of Inception, or a space of an encoder. */
  space: z.string().optional(),
  /** Its weights. */
  network: identitySchema.optional(),
  /** How an image becomes the network's input, or which pixels are compared. */
  input: z.string().optional(),
  precision: z.literal("f32"),
  real: setSchema.optional(),
  fake: setSchema.optional(),
  tokenizer: identitySchema.optional(),
  model: identitySchema.optional(),
  sampling: samplingSchema.optional(),
  /** Standard deviation of the noise on latents, in units of theirs. */
  latentNoise: z.number().optional(),
  /** Of a probe and of nearest neighbours. */
  split: splitSchema.optional(),
  probe: probeSchema.optional(),
  /** Of subsets and directions that a figure samples, and of noise. */
  seed: z.int(),
  /** Version of tok. */
  tok: z.string(),
  /** The WebGPU adapter and the variants of kernels. */
  adapter: z.string(),
});
export type Ingredients = z.infer<typeof ingredientsSchema>;
export type SamplingIngredients = z.infer<typeof samplingSchema>;
export type SetIngredients = z.infer<typeof setSchema>;

export type SplitIngredients = z.infer<typeof splitSchema>;
export type ProbeIngredients = z.infer<typeof probeSchema>;

/** What all figures of an evaluation have in common. */
export type CommonIngredients = Pick<Ingredients, "precision" | "seed" | "tok" | "adapter">;

/** What a figure has of its own. */
export type OwnIngredients =
  & Pick<Ingredients, "from">
  & Partial<Pick<Ingredients, "space" | "network" | "input" | "latentNoise" | "split" | "probe">>
  /** "tok" where its networks are those of no protocol. */
  & { protocol?: "tok" };

/** What the figures of one model or set have in common. */
export type PartIngredients = Partial<
  Pick<Ingredients, "real" | "fake" | "tokenizer" | "model" | "sampling">
>;

/** A set as an ingredient. */
export function setIngredients(
  { name, images, identity, pooled, features, spaces = {} }: {
    name: string;
    images?: { length: number };
    pooled?: unknown;
    features?: { rows: number };
    spaces?: Readonly<Record<string, { features?: { rows: number } } | undefined>>;
    identity?: { fingerprint: string };
  },
): SetIngredients {
  const stored = Object.values(spaces).find((space) => space?.features)?.features;
  const count = images?.length ?? features?.rows ?? stored?.rows;
  return {
    name,
    ...identity && { fingerprint: identity.fingerprint },
    ...count !== undefined && { count },
    ...pooled !== undefined && { statistics: true },
  };
}

/** Those of a figure in an encoder's space. @param view of the images, where some were read */
export function encoderIngredients(
  from: "encoder" | "labels",
  network: Identity,
  space: string,
  view: View | undefined,
): OwnIngredients {
  return { from, space, network, ...view && { input: `each has ${described(view)}` } };
}

/** metrics.json: figures as plain numbers, and what each was computed from. */
export const metricsSchema = z.object({ ingredients: z.record(z.string(), ingredientsSchema).optional() })
  .catchall(z.unknown());
