// Protocols of published evaluators: what each one fixes, as a table. A figure compares with published ones only where all of it
// is the same; its protocol is named next to it. Forms of the input: models/inception.ts, encoder_features.ts.

import type { InceptionInput } from "../models/inception.ts";
import { UsageError } from "../errors.ts";
import type { EncoderSpace } from "./encoder_features.ts";
import { NEIGHBOURS } from "./precision_recall.ts";

/** The values of --protocol. */
export const PROTOCOL_NAMES = ["adm", "pytorch-fid", "clean", "edm2", "dgm", "fdr6"] as const;
export type ProtocolName = typeof PROTOCOL_NAMES[number];

export interface Protocol {
  /** Whose evaluator it is. */
  source: string;
  /** The metrics that it defines. */
  metrics: readonly string[];
  /** Resizing and scaling before Inception [it has no figure in its space]. */
  input?: InceptionInput;
  /** The resizing before an encoder and its pooling, as the space in place of the metric's own. */
  spaces?: Readonly<Partial<Record<EncoderSpace, EncoderSpace>>>;
  /** Number of generated images. */
  images: { exactly: number } | { atLeast: number };
  /** What the images are compared with. */
  reference: string;
  /** Whether the reference must be statistics, which cover more images than a file can hold. */
  statistics?: true;
  /** Neighbours of precision and recall. */
  neighbours?: number;
  /** Why a metric that the evaluator reports is not among them. */
  undefined?: Readonly<Record<string, string>>;
  /** What differs from the evaluator. */
  differs?: string;
}

const DGM_PRECISION =
  "dgm-eval's has k = 5 and 10,000 random images of each set, tok's has k = 3 and all images";
const DGM_DENSITY = "dgm-eval's is of 10,000 random images of each set, tok's of all images";

/** One row each. */
export const PROTOCOLS: Readonly<Record<ProtocolName, Protocol>> = {
  adm: {
    source: "openai/guided-diffusion, evaluations (TensorFlow)",
    metrics: ["fid", "sfid", "is", "precision", "recall", "rfid"],
    input: "adm",
    images: { exactly: 50_000 },
    reference: "statistics of all training images and 10,000 images, such as VIRTUAL_imagenet256_labeled.npz",
    statistics: true,
    neighbours: NEIGHBOURS,
  },
  "pytorch-fid": {
    source: "mseitzer/pytorch-fid",
    metrics: ["fid", "rfid"],
    input: "pytorch-fid",
    images: { atLeast: 2048 },
    reference: "a folder or statistics",
  },
  clean: {
    source: "GaParmar/clean-fid, mode clean",
    metrics: ["fid", "kid", "rfid"],
    input: "clean",
    images: { atLeast: 2 },
    reference: "a folder or statistics, never of JPEG files",
  },
  edm2: {
    source: "NVlabs/edm2, calculate_metrics.py, resize_mode torch",
    metrics: ["fid", "fd-dinov2"],
    input: "adm",
    spaces: { dinov2: "dinov2_torch" },
    images: { exactly: 50_000 },
    reference: "all training images",
  },
  dgm: {
    source: "layer6ai-labs/dgm-eval",
    metrics: ["fd-dinov2", "fd-infinity-encoder", "kid-encoder"],
    spaces: { patches: "dinov2" },
    undefined: {
      ...Object.fromEntries(["precision-encoder", "recall-encoder"].map((name) => [name, DGM_PRECISION])),
      ...Object.fromEntries(["density-encoder", "coverage-encoder"].map((name) => [name, DGM_DENSITY])),
    },
    images: { exactly: 50_000 },
    reference: "50,000 training images",
  },
  fdr6: {
    source: "Jiawei-Yang/FD-loss (arXiv 2604.28190)",
    metrics: ["fdr6", "mind6"],
    input: "fdr6",
    images: { exactly: 50_000 },
    reference: "all training images of ImageNet, cropped to 256 x 256 as ADM does",
    differs: "networks run in f32, not in bf16",
  },
};

/** What decides the protocol of a figure. */
export interface ProtocolOptions {
  /** --protocol. */
  protocol?: ProtocolName | undefined;
  inceptionInput: InceptionInput;
  imageSize?: number | undefined;
}

/**
 * The protocol of a metric: that of --protocol, else the one whose input, space, number of images and
 * form of reference are exactly these, else "tok".
 * @param metric its name, and the space of an encoder's metric
 * @param images number of generated images [unknown]
 * @param statistics whether the reference holds stored statistics
 */
export function protocolOf(
  metric: { name: string; from: string; space?: EncoderSpace },
  { protocol, inceptionInput, imageSize }: ProtocolOptions,
  images: number | undefined,
  statistics = false,
): ProtocolName | "tok" {
  const name = metric.from !== "six" ? metric.name : metric.name.startsWith("mind") ? "mind6" : "fdr6"; // of a space
  const defined = (p: Protocol) => p.metrics.includes(name);
  if (protocol !== undefined) return defined(PROTOCOLS[protocol]) ? protocol : "tok";
  if (imageSize !== undefined && metric.from !== "reconstructions" || images === undefined) return "tok";
  return PROTOCOL_NAMES.find((candidate) => {
    const p = PROTOCOLS[candidate];
    const space = metric.space === undefined || !p.spaces ||
      !(metric.space in p.spaces); // another space takes its place
    const input = metric.from === "encoder" || metric.from === "six" || p.input === inceptionInput;
    const reference = !p.statistics || statistics || metric.from === "reconstructions" || name === "is";
    return defined(p) && input && space && reference && counted(p, images);
  }) ?? "tok";
}

const counted = ({ images: asked }: Protocol, images: number) =>
  "exactly" in asked ? images === asked.exactly : images >= asked.atLeast;

/** What makes the figures of a protocol hard to compare with published ones: numbers of images, the form of the reference. */
export function cautionsOfProtocol(
  name: ProtocolName,
  real: { name: string; pooled?: unknown },
  fake: { name: string; images?: { length: number } },
): string[] {
  const protocol = PROTOCOLS[name], { images: asked, statistics, reference } = protocol, cautions = [];
  const n = fake.images?.length;
  if (n !== undefined && !counted(protocol, n)) {
    const number = "exactly" in asked
      ? asked.exactly.toLocaleString("en-US")
      : `at least ${asked.atLeast.toLocaleString("en-US")}`;
    cautions.push(
      `--protocol ${name} asks for ${number} generated images, and "${fake.name}" has ` +
        `${n.toLocaleString("en-US")}: the figures do not compare with published ones`,
    );
  }
  if (statistics && !real.pooled) {
    cautions.push(
      `--protocol ${name} compares with ${reference}, and "${real.name}" has no statistics: ` +
        `the figures do not compare with published ones`,
    );
  }
  return cautions;
}

/**
 * The options that a protocol fixes, in place of those with defaults.
 * @throws UsageError for a metric that it does not define
 */
export function underProtocol<
  C extends ProtocolOptions & { metrics?: string[] | undefined },
>(c: C, subject: "tokenizer" | "model" | "sets"): C & { standard?: readonly string[] } {
  if (c.protocol === undefined) return c;
  const { metrics, input } = PROTOCOLS[c.protocol];
  const other = c.metrics?.find((name) => !metrics.includes(name));
  if (other !== undefined) {
    const reason = PROTOCOLS[c.protocol].undefined?.[other];
    const defines = PROTOCOL_NAMES.filter((name) => PROTOCOLS[name].metrics.includes(other));
    throw new UsageError(
      `Cannot use --protocol ${c.protocol} with --metrics ${other}: ${
        reason ? `${reason}, and ` : ""
      }it defines ` +
        `${metrics.join(", ")}; ` +
        `${defines.length ? `choose --protocol ${defines.join(" or ")}` : "leave --protocol out"}, or ` +
        `leave ${other} out`,
    );
  }
  const imageSize = subject === "tokenizer" ? c.imageSize : undefined; // a tokenizer's images are squares
  return { ...c, standard: metrics, inceptionInput: input ?? c.inceptionInput, imageSize };
}
