// Name maps of published autoencoders to LDM's names. Checkpoints of LDM, SD-VAE and VA-VAE have these names inside a wrapper;
// diffusers counts the decoder's levels from the lowest resolution and stores attention as linear layers. The architecture is
// inferred from the tensors, so that a file needs no configuration.

import { UsageError } from "../errors.ts";
import { validated } from "../formats/files.ts";
import { type Renamed, renamed } from "../formats/mapped_store.ts";
import { type TensorStore, unreadNote } from "../formats/tensors.ts";
import { type AutoencoderConfig, autoencoderConfig } from "./autoencoder.ts";
import { underNote, wrapperOf } from "./wrappers.ts";

const SUPPORTED = "the KL autoencoders of LDM, SD-VAE and VA-VAE, under LDM's or diffusers' names";

/** Other contents of checkpoints: losses, discriminators, EMA, VA-VAE's vision model. */
const BESIDE = /^(loss|discriminator|model_ema|foundation_model|linear_proj|logvar)\b/;
const ATTENTION_WEIGHT = /\.attn(?:_1|\.\d+)\.(?:q|k|v|proj_out)\.weight$/;

/** A tensor that identifies this family, in each layout. */
export const AUTOENCODER_ANCHOR = "decoder.conv_in.weight";

/**
 * The autoencoder in a checkpoint under LDM's names, without wrappers and other contents.
 * @returns the tensors, the layout of the file, and the prefix of its keys
 * @throws UsageError if there is none
 */
export function autoencoderIn(
  store: TensorStore,
): { source: Renamed; layout: "ldm" | "diffusers"; prefix: string } {
  const keys = [...store.shapes.keys()];
  const prefix = wrapperOf(keys, AUTOENCODER_ANCHOR);
  if (prefix === undefined) {
    throw new UsageError(
      `Cannot load an autoencoder from "${store.name}": it has no "${AUTOENCODER_ANCHOR}"${
        underNote(keys, AUTOENCODER_ANCHOR)
      }; ` +
        `supported are ${SUPPORTED}${unreadNote(store.unread)}`,
    );
  }
  const own = keys.filter((key) => key.startsWith(prefix)).map((key) => key.slice(prefix.length));
  if (own.some((key) => key.startsWith("quantize."))) {
    throw new UsageError(
      `Cannot load "${store.name}": it is a vector-quantised autoencoder ("quantize"); supported are ${SUPPORTED}`,
    );
  }
  const levels = count(own, /^decoder\.up_blocks\.(\d+)\./);
  const entries = new Map<string, string>();
  for (const key of own) {
    if (!BESIDE.test(key)) entries.set(levels ? ldmName(key, levels) : key, prefix + key);
  }
  const source = renamed(store, entries);
  // Linear layers over channels are 1x1 convolutions.
  const shapes = new Map([...source.shapes].map(([key, shape]) => {
    const flat = ATTENTION_WEIGHT.test(key) && shape.length >= 2 && shape.slice(2).every((n) => n === 1);
    return [key, flat ? [...shape.slice(0, 2), 1, 1] : shape];
  }));
  return { source: { ...source, shapes }, layout: levels ? "diffusers" : "ldm", prefix };
}

/** Maps a diffusers key to LDM's; other keys are unchanged. */
function ldmName(key: string, levels: number): string {
  const block =
    /^(encoder|decoder)\.(?:mid_block|(?:down|up)_blocks\.(\d+))\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)$/
      .exec(key);
  if (!block) return key.replace(".conv_norm_out.", ".norm_out.");
  const [, half, level, kind, k, rest] = block as unknown as [string, string, string?, ...string[]];
  const leaf = kind === "resnets"
    ? (rest as string).replace("conv_shortcut.", "nin_shortcut.")
    : kind === "attentions"
    ? attentionName(rest as string)
    : rest;
  if (level === undefined) {
    return `${half}.mid.${kind === "resnets" ? "block" : "attn"}_${Number(k) + 1}.${leaf}`;
  }
  const place = half === "encoder" ? `encoder.down.${level}` : `decoder.up.${levels - 1 - Number(level)}`;
  if (kind === "resnets" || kind === "attentions") {
    return `${place}.${kind === "resnets" ? "block" : "attn"}.${k}.${leaf}`;
  }
  return `${place}.${kind === "downsamplers" ? "downsample" : "upsample"}.${leaf}`;
}

/** Old and new attention names of diffusers. */
function attentionName(leaf: string): string {
  const names: Record<string, string> = {
    group_norm: "norm",
    to_q: "q",
    query: "q",
    to_k: "k",
    key: "k",
    to_v: "v",
    value: "v",
    "to_out.0": "proj_out",
    proj_attn: "proj_out",
  };
  const [, layer, kind] = /^(.+)\.(weight|bias)$/.exec(leaf) ?? [];
  return layer !== undefined && names[layer] ? `${names[layer]}.${kind}` : leaf;
}

/**
 * Infers the architecture of an autoencoder from its tensors under LDM's names.
 * @param groups of group norm, which cannot be inferred
 * @param imageSize that it was trained for, which cannot be inferred
 * @throws UsageError for an unsupported architecture
 */
export function inferAutoencoder(
  { name, shapes }: Pick<Renamed, "name" | "shapes">,
  { imageSize, groups }: { imageSize: number; groups: number },
): AutoencoderConfig {
  const refuse = (reason: string) =>
    new UsageError(`Cannot load the autoencoder "${name}": ${reason}; supported are ${SUPPORTED}`);
  const size = (key: string, axis: number): number => {
    const n = shapes.get(key)?.[axis];
    if (n === undefined) throw refuse(`there is no "${key}"`);
    return n;
  };
  const keys = [...shapes.keys()];
  const ch = size("encoder.conv_in.weight", 0),
    [z, pixels] = [size(AUTOENCODER_ANCHOR, 1), size("encoder.conv_in.weight", 1)];
  if (pixels !== 3 || size("decoder.conv_out.weight", 0) !== 3) {
    throw refuse(`it works on images of ${pixels} channels`);
  }
  const half = (path: string) => {
    const levels = count(keys, new RegExp(`^${path}\\.(\\d+)\\.`));
    if (!levels) throw refuse(`there is no "${path}"`);
    if (imageSize % 2 ** (levels - 1)) {
      throw refuse(`${levels} levels do not fit images of side ${imageSize}`);
    }
    const side = (level: number) => imageSize / 2 ** level;
    const widths = Array.from({ length: levels }, (_, i) => size(`${path}.${i}.block.0.conv1.weight`, 0));
    const wrong = widths.find((width) => width % groups);
    if (wrong) throw refuse(`${wrong} channels are not a multiple of ${groups} groups`);
    return {
      ch,
      ch_mult: widths.map((width) => width / ch),
      blocks: count(keys, new RegExp(`^${path}\\.0\\.block\\.(\\d+)\\.`)),
      attn_resolutions: widths.map((_, i) => i).filter((i) => shapes.has(`${path}.${i}.attn.0.norm.weight`))
        .map(side),
      resolution: imageSize,
      mid_attention: shapes.has(`${path.slice(0, 7)}.mid.attn_1.norm.weight`),
      groups,
    };
  };
  const { blocks, ...down } = half("encoder.down"), { blocks: more, ...up } = half("decoder.up");
  if (down.ch_mult.length !== up.ch_mult.length) {
    throw refuse(`its encoder has ${down.ch_mult.length} levels, its decoder ${up.ch_mult.length}`);
  }
  const moments = size("encoder.conv_out.weight", 0);
  const post_quant_conv = shapes.has("post_quant_conv.weight"), quant_conv = shapes.has("quant_conv.weight");
  const embed_dim = post_quant_conv ? size("post_quant_conv.weight", 1) : z;
  if (moments !== z && moments !== 2 * z) {
    throw refuse(`its encoder ends in ${moments} channels, its decoder begins with ${z}`);
  }
  const config = {
    image_size: imageSize,
    embed_dim,
    encoder: { ...down, num_res_blocks: blocks, z_channels: z, double_z: moments === 2 * z },
    decoder: { ...up, num_res_blocks: more - 1, z_channels: z },
    quant_conv,
    post_quant_conv,
  };
  return validated(autoencoderConfig, config, name);
}

/** One more than the highest number that `pattern` captures. */
function count(keys: readonly string[], pattern: RegExp): number {
  return keys.reduce((most, key) => Math.max(most, Number(pattern.exec(key)?.[1] ?? -1) + 1), 0);
}
