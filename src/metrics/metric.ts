// What a metric is: what it scores and needs, and how it is computed, for each kind of input. table.ts has all of them.

import type { InputSource } from "../data/network_input.ts";
import type { Inception, InceptionInput } from "../models/inception.ts";
import type { Lpips } from "../models/lpips.ts";
import type { Log } from "../run/log.ts";
import type { EncoderConfig, EncoderSource } from "../zoo/encoders.ts";
import type { LabelledFeatures } from "./batched.ts";
import type { EncoderSpace } from "./encoder_features.ts";
import type { FeatureKind, InceptionView } from "./inception.ts";
import type { Probe } from "./linear_probe.ts";
import type { Features } from "./moments.ts";
import type { PairScore } from "./pairs.ts";
import type { LatentView } from "./representation.ts";

/** What is scored. */
export type Subject = "tokenizer" | "model" | "sets";

/** Values by their key in metrics.json. */
export type Scores = Record<string, number>;

/**
 * How a figure gets its 95 % interval.
 * - images: from images.csv, by a bootstrap of the images
 * - groups: by --intervals, from the scores without each group of the images
 * - hits: by --intervals, from the images that a classifier is right about, by a bootstrap of them
 * - none: why it has none
 */
export type IntervalKind = "images" | "groups" | "hits" | { none: string };

interface Entry {
  /** As in --metrics. */
  name: string;
  interval: IntervalKind;
  of: readonly Subject[];
  /** The option that must name the weights of its network. */
  weights?: "inception" | "lpips";
  /** Smallest number of images (of either set) that defines it. */
  minImages?: number;
  /** Computed only if --metrics names it. */
  onRequest?: true;
}

/** Computed from pairs of images, batch by batch: originals and their reconstructions, or two sets with the same names. */
export interface ReconstructionMetric extends Entry {
  from: "reconstructions";
  /** Smallest side of an image, pixels. */
  minSide?: number;
  /** Whether the images must be squares. */
  square?: true;
  /** Computed whenever images are reconstructed. */
  always?: true;
  open(context: ReconstructionContext): PairScore | Promise<PairScore>;
}

export interface ReconstructionContext {
  /** Number of images, their width, and how many come at a time. */
  n: number;
  size: number;
  /** Their height [the width]. */
  height?: number;
  batchSize: number;
  inception(): Promise<Inception>;
  inceptionInput: InceptionInput;
  lpips(): Promise<Lpips>;
  /** Whether a score keeps what it needs without groups of the images (false). */
  groups?: boolean;
}

/** Computed from labelled features: the latents of a tokenizer, or an encoder's features of real images. */
export interface LabelMetric extends Entry {
  from: "labels";
  /** Smallest number of training images of a class. */
  minPerClass?: number;
  /** What it is computed of instead of the features, as an ingredient. */
  input?: string;
  /** @returns which images are right, by the key of the accuracy */
  compute(context: LabelContext): Record<string, Hits> | Promise<Record<string, Hits>>;
}

/** Which of the test images, or of the generated ones, a classifier is right about: 1, else 0. */
export interface Hits {
  of: "test" | "fake";
  hits: Uint8Array;
}

export interface LabelContext {
  train: LabelledFeatures;
  test: LabelledFeatures;
  /** A linear probe on `train`, trained once. */
  probe(): Promise<Probe>;
  /** The generated images, their features and their side. */
  fake?: LabelledFeatures & { images: InputSource; side: number };
  batchSize: number;
}

/** Computed from a summary of a tokenizer's latents. */
export interface LatentMetric extends Entry {
  from: "latents";
  /** Whether it compares with the encoder that the tokenizer was made from. */
  original?: true;
  /** @param features of the same images by that encoder */
  compute(latents: LatentView, features: () => Promise<Features>): Scores | Promise<Scores>;
}

/** Computed from features of both sets. */
export interface SetMetric extends Entry {
  /** What it needs of each set. */
  real?: FeatureKind;
  fake: FeatureKind;
  /** Features of the images of the fake set that it is computed from, where these are not all: groups of an interval are of them. */
  subset?(real: InceptionView, fake: InceptionView, seed: number): Features;
  compute: SetCompute;
}

export type SetCompute = (real: InceptionView, fake: InceptionView, context: SetContext) => Promise<Scores>;

export interface SetContext {
  seed: number;
  /** The fake set is all images without a group: random subsets are those of all, without the group's images. */
  replicate?: { of: Features; without: number };
  progress: Log["progress"];
  /** Writes a picture of images of the fake set above others of the real one, by their numbers. */
  show(
    file: string,
    what: string,
    pairs: readonly (readonly [fake: number, real: number])[],
  ): Promise<void>;
}

/** In an encoder's space. */
export interface EncoderMetric extends SetMetric {
  from: "encoder";
  space: EncoderSpace;
  /** Why it is not defined for an encoder. */
  excludes?(encoder: EncoderSource<EncoderConfig>): string | undefined;
  /** Whether it is defined only against images that the caller names, and not against generated shapes. */
  named?: true;
}

/** In Inception's space. */
export interface InceptionMetric extends SetMetric {
  from: "inception";
}

/** In each of six spaces (six_networks.ts), with their mean. */
export interface SixMetric extends SetMetric {
  from: "six";
  /** Begins the keys of the spaces. */
  key: string;
  /** Of the values in the order of the spaces. */
  mean(values: readonly number[]): number;
}

export type Metric =
  | SixMetric
  | ReconstructionMetric
  | LabelMetric
  | LatentMetric
  | EncoderMetric
  | InceptionMetric;
