// Architecture of diffusion transformers: the published sizes, the configuration under the keys of LightningDiT's code, and
// how it is inferred from the tensors of a file: LightningDiT, SiT, REPA, Internal Guidance, and RAE with its wide head.

import { z } from "zod";
import { count, countOrNone, fitsPositions, POSITIONS_ERROR } from "../bounds.ts";
import { UsageError } from "../errors.ts";
import { validated } from "../formats/files.ts";

export const ditConfig = z.object({
  /** Side of the latent. */
  input_size: count("cells").default(16),
  /** Side of the square of latent cells that make a token. */
  patch_size: z.union([z.literal(1), z.literal(2), z.literal(4), z.literal(8)], {
    error: "patches of 1, 2, 4 or 8 cells along a side are supported",
  }).default(1),
  in_channels: count("channels").default(32),
  hidden_size: count("channels").default(1152),
  depth: count("layers").default(28),
  num_heads: count("heads").default(16),
  /** 0: unconditional, the label table has the row "no class" alone. */
  num_classes: countOrNone("classes").default(1000),
  use_qknorm: z.boolean().default(false),
  /** SwiGLU of hidden width 8/3 C; else GELU (tanh) of 4 C. */
  use_swiglu: z.boolean().default(true),
  /** Rotary positions, in addition to the sine table. */
  use_rope: z.boolean().default(true),
  /** RMSNorm; else LayerNorm without weights. */
  use_rmsnorm: z.boolean().default(true),
  /** adaLN of the blocks makes scales and gates alone. */
  wo_shift: z.boolean().default(false),
  /** The last layer also makes a variance, which is not used: DiT's and SiT's. */
  learn_sigma: z.boolean().default(false),
  /** Time enters by random Fourier features instead of fixed frequencies: RAE's. */
  use_gembed: z.boolean().default(false),
  /** The network's own time is 1 - t and its velocity noise - data: RAE's and REPA's. */
  reversed_time: z.boolean().default(false),
  /** Block, from 1, after which an inner head predicts the velocity, too; 0 for none. Internal Guidance, arXiv 2512.24176. */
  inner_head: countOrNone("layers").default(0),
  /** The wide head of DiT-DH (RAE, arXiv 2510.11690), which the other blocks condition. */
  head: z.object({ hidden_size: count("channels"), depth: count("layers"), num_heads: count("heads") })
    .optional(),
}).refine(({ input_size, patch_size, hidden_size }) => fitsPositions(input_size / patch_size, hidden_size), {
  ...POSITIONS_ERROR,
  path: ["input_size"],
}).refine(({ input_size, patch_size }) => input_size % patch_size === 0, {
  error: "the side of the latent must be a multiple of the patch size",
  path: ["patch_size"],
}).refine(({ inner_head, depth, head }) => inner_head < depth || head && inner_head === depth, {
  error: "the inner head must come before the last block",
  path: ["inner_head"],
});
export type DitConfig = z.infer<typeof ditConfig>;

const WIDTHS = {
  S: { depth: 12, hidden_size: 384, num_heads: 6 },
  B: { depth: 12, hidden_size: 768, num_heads: 12 },
  L: { depth: 24, hidden_size: 1024, num_heads: 16 },
  XL: { depth: 28, hidden_size: 1152, num_heads: 16 },
  "1p0B": { depth: 24, hidden_size: 1536, num_heads: 24 },
  "1p6B": { depth: 28, hidden_size: 1792, num_heads: 28 },
} as const;
const PATCHES = [1, 2] as const;

export type DitSize = `${keyof typeof WIDTHS}/${typeof PATCHES[number]}`;

/** The sizes of LightningDiT's code, by name and patch size. */
export const DIT_SIZES = Object.fromEntries(
  Object.entries(WIDTHS).flatMap(([name, width]) =>
    PATCHES.map((patch_size) => [`${name}/${patch_size}`, { ...width, patch_size }])
  ),
) as Readonly<Record<DitSize, Pick<DitConfig, "depth" | "hidden_size" | "num_heads" | "patch_size">>>;

/** The block of the inner head in Internal Guidance's published models, whose files do not say it. */
const PUBLISHED_INNER_HEAD = 8;

/** A tensor that identifies a diffusion transformer. */
export const DIT_ANCHOR = "x_embedder.proj.weight";

/** Tensors of REPA's training alone: what projects inner tokens to an encoder's features. */
export const PROJECTORS = /^projectors\./;

/** Whether a published file is RAE's or REPA's, whose time is reversed. */
export const isReversed = (shapes: ReadonlyMap<string, unknown>): boolean =>
  [...shapes.keys()].some((key) => key === "t_embedder.W" || PROJECTORS.test(key));

/**
 * Infers the architecture of a published diffusion transformer from its tensors. DiT's own models have the tensors of SiT and
 * predict noise instead of a velocity; nothing in the file says so.
 * @throws UsageError that names an unsupported part
 */
export function inferDit(name: string, shapes: ReadonlyMap<string, readonly number[]>): DitConfig {
  const refuse = (reason: string) =>
    new UsageError(
      `Cannot load the diffusion model "${name}": ${reason}; supported are LightningDiT, SiT and RAE's DiT-DH`,
    );
  const size = (key: string, axis: number): number => {
    const n = shapes.get(key)?.[axis];
    if (n === undefined) throw refuse(`there is no "${key}"`);
    return n;
  };
  const wide = shapes.has("s_embedder.proj.weight");
  const [C, channels, patch] = [0, 1, 2].map((axis) =>
    size(wide ? "s_embedder.proj.weight" : DIT_ANCHOR, axis)
  ) as [
    number,
    number,
    number,
  ];
  const blocks = [...shapes.keys()].map((key) => Number(/^blocks\.(\d+)\./.exec(key)?.[1] ?? -1));
  const all = blocks.reduce((a, b) => Math.max(a, b), -1) + 1;
  const head = wide ? inferHead(C, all, size, refuse) : undefined;
  const depth = all - (head?.depth ?? 0);

  const values = size("blocks.0.adaLN_modulation.1.weight", 0) / C;
  if (values !== 4 && values !== 6) {
    throw refuse(`its adaLN makes ${values} values a channel instead of 6, or 4 without shifts`);
  }
  const outputs = size("final_layer.linear.weight", 0), cells = patch * patch * channels;
  if (outputs !== cells && outputs !== 2 * cells) {
    throw refuse(
      `its last layer makes ${outputs} values a token instead of ${cells}, or ${2 * cells} with a variance`,
    );
  }
  const T = size("pos_embed", 1), side = Math.sqrt(T);
  if (!Number.isInteger(side)) throw refuse(`its ${T} positions are not a square`);
  const rope = `${wide ? "enc_" : ""}feat_rope.freqs_cos`;
  const HS = shapes.get(rope)?.[1] ?? shapes.get("blocks.0.attn.q_norm.weight")?.[0];
  const published = Object.values(WIDTHS).find(({ depth: d, hidden_size }) =>
    d === depth && hidden_size === C
  );
  const heads = HS === undefined ? published?.num_heads : C / HS;
  if (heads === undefined) {
    throw refuse(
      `nothing says how many heads it has, and ${depth} blocks of width ${C} are no published size`,
    );
  }
  if (!Number.isInteger(heads)) throw refuse(`heads of ${HS} do not divide its width of ${C}`);
  const config = {
    input_size: side * patch,
    patch_size: patch,
    in_channels: channels,
    hidden_size: C,
    depth,
    num_heads: heads,
    num_classes: size("y_embedder.embedding_table.weight", 0) - 1,
    use_qknorm: shapes.has("blocks.0.attn.q_norm.weight"),
    use_swiglu: !shapes.has("blocks.0.mlp.fc1.weight"),
    use_rope: shapes.has(rope),
    use_rmsnorm: shapes.has("blocks.0.norm1.weight"),
    wo_shift: values === 4,
    learn_sigma: outputs === 2 * cells,
    use_gembed: shapes.has("t_embedder.W"),
    reversed_time: isReversed(shapes),
    inner_head: shapes.has("final_layer_xr.linear.weight") ? PUBLISHED_INNER_HEAD : 0,
    ...head && { head },
  };
  return validated(ditConfig, config, name);
}

/** The wide head of RAE: the last blocks, which have another width than the first. */
function inferHead(
  C: number,
  blocks: number,
  size: (key: string, axis: number) => number,
  refuse: (reason: string) => UsageError,
): NonNullable<DitConfig["head"]> {
  const hidden_size = size(DIT_ANCHOR, 0), HS = size("dec_feat_rope.freqs_cos", 1);
  if (hidden_size === C) {
    throw refuse(`its head is as wide as its other blocks, so nothing says where it begins`);
  }
  if (hidden_size % HS) throw refuse(`heads of ${HS} do not divide its head's width of ${hidden_size}`);
  const width = (i: number) => size(`blocks.${i}.attn.qkv.weight`, 1);
  let depth = 0;
  while (depth < blocks && width(blocks - 1 - depth) === hidden_size) depth++;
  return { hidden_size, depth, num_heads: hidden_size / HS };
}
