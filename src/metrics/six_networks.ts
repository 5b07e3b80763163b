// The six spaces of FDr6 (FD-loss, arXiv 2604.28190), their networks, and which of these are given. valFD is the Frechet distance
// of ImageNet's validation set to its training set, as the authors publish it.

import { INCEPTION_FILE } from "../models/inception.ts";
import { UsageError } from "../errors.ts";
import type { EncoderConfig, EncoderSource } from "../zoo/encoders.ts";
import type { FormName } from "./encoder_features.ts";

/** One of the six. */
export interface SixSpace {
  /** Ends the keys of its figures: "fd_dinov2@256". */
  key: string;
  /** Name of the published network, and where it is. */
  network: string;
  where: string;
  /** Key of stored statistics, and the form of an encoder's input; Inception has no form. */
  space: FormName | "inception_fdr6";
  /** The distance of ImageNet's validation set. */
  valFd: number;
  /** Fields of config.json that the family has, and the published network. */
  family: (config: EncoderConfig) => boolean;
  sizes: Readonly<Record<string, unknown>>;
}

const vit = (type: string) => ({ model_type }: EncoderConfig) => model_type.startsWith(type);
const LARGE = { hidden_size: 1024, num_hidden_layers: 24 };

export const SIX_SPACES: readonly SixSpace[] = [
  {
    key: "inception@299",
    network: "Inception-v3",
    where: `--inception FILE: ${INCEPTION_FILE}`,
    space: "inception_fdr6",
    valFd: 1.68,
    family: () => false,
    sizes: {},
  },
  {
    key: "convnextv2@224",
    network: "ConvNeXt V2-B",
    where: "facebook/convnextv2-base-22k-224",
    space: "convnextv2_224",
    valFd: 56.87,
    family: vit("convnextv2"),
    sizes: { hidden_sizes: [128, 256, 512, 1024], depths: [3, 3, 27, 3] },
  },
  {
    key: "dinov2@256",
    network: "DINOv2-L/14",
    where: "facebook/dinov2-large",
    space: "dinov2_256",
    valFd: 14.19,
    family: ({ model_type }) => model_type === "dinov2",
    sizes: { ...LARGE, patch_size: 14 },
  },
  {
    key: "mae@224",
    network: "MAE-L/16",
    where: "facebook/vit-mae-large",
    space: "mae_224",
    valFd: 0.04,
    family: vit("vit_mae"),
    sizes: { ...LARGE, patch_size: 16 },
  },
  {
    key: "siglip2@224",
    network: "SigLIP 2 So400m/16",
    where: "google/siglip2-so400m-patch16-256",
    space: "siglip2_224",
    valFd: 0.6,
    family: vit("siglip"),
    sizes: { hidden_size: 1152, num_hidden_layers: 27, patch_size: 16, image_size: 256 },
  },
  {
    key: "clip@256",
    network: "CLIP-L/14",
    where: "openai/clip-vit-large-patch14",
    space: "clip_256",
    valFd: 5.6,
    family: vit("clip"),
    sizes: { ...LARGE, patch_size: 14, image_size: 224 },
  },
];

/** The name of a space's network among the networks of an evaluation, which stored features name. */
export const recordedAs = ({ space, network }: SixSpace): string =>
  space === "inception_fdr6" ? "inception" : `${network} of FDr6`;

export type SixEncoders = ReadonlyMap<SixSpace, EncoderSource<EncoderConfig>>;

/** Which encoder is of which space. @throws UsageError for an encoder of none, and two of one */
export function sixEncoders(encoders: readonly EncoderSource<EncoderConfig>[]): SixEncoders {
  const found = new Map<SixSpace, EncoderSource<EncoderConfig>>();
  for (const encoder of encoders) {
    const six = SIX_SPACES.find(({ family }) => family(encoder.config));
    if (!six) {
      const names = SIX_SPACES.slice(1).map(({ network }) => network).join(", ");
      throw new UsageError(
        `Cannot use "${encoder.path}" of --encoders: it is of type "${encoder.config.model_type}" and none of ` +
          `${names}; leave it out`,
      );
    }
    const other = found.get(six);
    if (other) {
      throw new UsageError(
        `Cannot use --encoders: "${other.path}" and "${encoder.path}" are both for the space of ${six.network}; give one`,
      );
    }
    found.set(six, encoder);
  }
  return found;
}

/** Why FDr6 cannot be computed: the networks of needed spaces that are missing, and where they are. */
export function missingOfSix(
  needed: readonly SixSpace[],
  encoders: SixEncoders,
  inception: boolean,
): string | undefined {
  const has = (six: SixSpace) =>
    !needed.includes(six) || (six.space === "inception_fdr6" ? inception : encoders.has(six));
  const missing = SIX_SPACES.filter((six) => !has(six)), given = SIX_SPACES.filter(has);
  if (missing.length === 0) return undefined;
  const named = missing.map(({ network, where }) =>
    `${network} (${where.startsWith("--") ? where : `--encoders ${where}`})`
  );
  return `it needs six networks; given: ${
    given.map(({ network }) => network).join(", ") || "none"
  }; missing: ${named.join(", ")}; --download fetches encoders by name`;
}

/** What makes the encoders other networks than the published ones, a phrase each. */
export function othersOfSix(encoders: SixEncoders): string[] {
  return [...encoders].flatMap(([{ network, sizes }, { path, config }]) => {
    const fields = config as unknown as Record<string, unknown>;
    const other = Object.entries(sizes).find(([key, value]) =>
      JSON.stringify(fields[key]) !== JSON.stringify(value)
    );
    return other
      ? [`"${path}" is not ${network}: its ${other[0]} is ${fields[other[0]]}, not ${other[1]}`]
      : [];
  });
}

/**
 * Warns of networks that are not the published ones.
 * @param protocol --protocol
 * @throws UsageError for such a network under FDr6's protocol
 */
export function cautionOfSix(
  encoders: SixEncoders,
  protocol: string | undefined,
  log: { line(text: string): void; warn(text: string): void },
): void {
  for (const [{ network, key }, { path }] of encoders) {
    log.line(`fdr6: ${network} at ${key.split("@")[1]}: "${path}"`);
  }
  const others = othersOfSix(encoders), [first] = others;
  if (first !== undefined && protocol === "fdr6") {
    throw new UsageError(
      `Cannot use --protocol fdr6: ${first}; give the published network, or --metrics fdr6 without --protocol`,
    );
  }
  for (const other of others) log.warn(`${other}: fdr6 and mind6 do not compare with published figures`);
}
