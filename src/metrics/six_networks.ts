// The six spaces of FDr6 (FD-loss, arXiv 2604.28190), their networks, and which of these are given. valFD is the Frechet distance
// of ImageNet's validation set to its training set, as the authors publish it.

import { INCEPTION_FILE } from "../models/inception.ts";
import { UsageError } from "../errors.ts";
import type { EncoderConfig, EncoderSource } from "../zoo/encoders.ts";
import type { Provenance } from "../formats/provenance.ts";
import type { FormName } from "./encoder_features.ts";
import type { Features, Gaussian } from "./moments.ts";

/** One of the six. */
export interface SixSpace {
  /** Ends the keys of its figures: "fd_dinov2@256". */
  key: string;
  /** Name of the published network, and where it is. */
  network: string;
  where: string;
  /** Key of stored statistics, and the form of an encoder's input; Inception has no form. */
  space: FormName | "inception_fdr6";
  /** Number of features of the published network. */
  width: number;
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
    width: 2048,
    valFd: 1.68,
    family: () => false,
    sizes: {},
  },
  {
    key: "convnextv2@224",
    network: "ConvNeXt V2-B",
    where: "facebook/convnextv2-base-22k-224",
    space: "convnextv2_224",
    width: 1024,
    valFd: 56.87,
    family: vit("convnextv2"),
    sizes: { hidden_sizes: [128, 256, 512, 1024], depths: [3, 3, 27, 3] },
  },
  {
    key: "dinov2@256",
    network: "DINOv2-L/14",
    where: "facebook/dinov2-large",
    space: "dinov2_256",
    width: 1024,
    valFd: 14.19,
    family: ({ model_type }) => model_type === "dinov2",
    sizes: { ...LARGE, patch_size: 14 },
  },
  {
    key: "mae@224",
    network: "MAE-L/16",
    where: "facebook/vit-mae-large",
    space: "mae_224",
    width: 1024,
    valFd: 0.04,
    family: vit("vit_mae"),
    sizes: { ...LARGE, patch_size: 16 },
  },
  {
    key: "siglip2@224",
    network: "SigLIP 2 So400m/16",
    where: "google/siglip2-so400m-patch16-256",
    space: "siglip2_224",
    width: 1152,
    valFd: 0.6,
    family: vit("siglip"),
    sizes: { hidden_size: 1152, num_hidden_layers: 27, patch_size: 16, image_size: 256 },
  },
  {
    key: "clip@256",
    network: "CLIP-L/14",
    where: "openai/clip-vit-large-patch14",
    space: "clip_256",
    width: 1024,
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

/** The name under which stored features say, by false, that their network is not the published one. */
const publishedAs = (six: SixSpace): string => `${recordedAs(six)} is the published one`;

/** What says of which networks stored features are. */
interface StoredSix {
  name: string;
  spaces?: Partial<Record<string, { moments?: Gaussian; features?: Features }>>;
  about?: Provenance;
}

/** What makes networks other ones than the published, a phrase for each encoder and each set of stored features. */
export function othersOfSix(encoders: SixEncoders, sets: readonly StoredSix[] = []): string[] {
  const given = [...encoders].flatMap(([six, { path, config }]) => {
    const other = otherSize(six, config);
    return other ? [`"${path}" is not ${six.network}: its ${other[0]} is ${other[1]}, not ${other[2]}`] : [];
  });
  const stored = sets.flatMap(({ name, spaces, about }) => {
    const others = SIX_SPACES.flatMap((six) => {
      const { moments, features } = spaces?.[six.space] ?? {},
        columns = moments?.mean.length ?? features?.columns;
      if (columns === undefined) return [];
      if (columns !== six.width) return [`${columns} features for ${six.network}, which has ${six.width}`];
      return about?.[publishedAs(six)] === false ? [`another network for ${six.network}`] : [];
    });
    return others.length ? [`"${name}" is not of the published networks: ${others.join(", ")}`] : [];
  });
  return [...given, ...stored];
}

/** A field of an encoder's configuration that is not as in the published network. */
function otherSize(
  { sizes }: SixSpace,
  config: EncoderConfig,
): [key: string, own: unknown, published: unknown] | undefined {
  const fields = config as unknown as Record<string, unknown>;
  const other = Object.entries(sizes).find(([key, size]) =>
    JSON.stringify(fields[key]) !== JSON.stringify(size)
  );
  return other && [other[0], fields[other[0]], other[1]];
}

/** What stored features say of an encoder that is not the published network, next to its name. */
export const recordOther = (six: SixSpace, { config }: EncoderSource<EncoderConfig>): Provenance =>
  otherSize(six, config) ? { [publishedAs(six)]: false } : {};

/** The networks of which nothing says what they are: they compute no features here, and no stored features name them. */
export const unknownOfSix = (needed: readonly SixSpace[], sets: readonly StoredSix[]): SixSpace[] =>
  SIX_SPACES.filter((six) =>
    !needed.includes(six) && !sets.some(({ about }) => about?.[recordedAs(six)] !== undefined)
  );

/**
 * Warns of networks that are not the published ones, or unknown: their figures do not bear the protocol's name.
 * @param needed the spaces in which something is computed
 * @param protocol --protocol
 * @throws UsageError for such a network under FDr6's protocol
 */
export function cautionOfSix(
  encoders: SixEncoders,
  needed: readonly SixSpace[],
  sets: readonly StoredSix[],
  protocol: string | undefined,
  log: { line(text: string): void; warn(text: string): void },
): void {
  for (const [{ network, key }, { path }] of encoders) {
    log.line(`fdr6: ${network} at ${key.split("@")[1]}: "${path}"`);
  }
  const others = othersOfSix(encoders, sets), [first] = others;
  if (first !== undefined && protocol === "fdr6") {
    throw new UsageError(
      `Cannot use --protocol fdr6: ${first}; give the published network, or --metrics fdr6 without --protocol`,
    );
  }
  for (const other of others) log.warn(`${other}: fdr6 and mind6 do not compare with published figures`);
  const unknown = others.length ? [] : unknownOfSix(needed, sets).map(({ network }) => network);
  if (unknown.length === 0) return;
  log.warn(
    `nothing says of which weights the stored features for ${
      unknown.join(", ")
    } are: fdr6 and mind6 are means ` +
      `over the features as given, and "protocol" is "tok"`,
  );
}
