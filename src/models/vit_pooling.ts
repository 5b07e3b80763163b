// Pooling heads: one feature vector of an image from an encoder's tokens. CLIP projects the CLS token (Radford et al., 2021);
// SigLIP attends from a learned query to all patch tokens, then adds an MLP (multihead attention pooling: Zhai et al., 2022).
// A head is read from the encoder's file where it is needed; a Vit does not own one.

import type { Origin } from "../formats/mapped_store.ts";
import { LayerNorm, Linear } from "../nn/layers.ts";
import { attention } from "../ops/attention.ts";
import { broadcastTo, reshape } from "../ops/layout.ts";
import { add } from "../ops/math.ts";
import { mean } from "../ops/reduce.ts";
import { check, parameter, type Shape, type Tensor } from "../tensor/tensor.ts";
import type { ConvNextConfig } from "./convnext.ts";
import { ACTIVATIONS, Mlp, type VitConfig, type VitOutput } from "./vit.ts";

export interface PoolingHead {
  /** Length of the feature vector. */
  readonly width: number;
  /** Feature vectors [B, width]. */
  forward(output: Pick<VitOutput, "patches" | "cls">): Tensor;
}

/** CLIP's image embedding: its visual projection of the CLS token, without normalisation. */
class Projection implements PoolingHead {
  readonly visual_projection: Linear;

  constructor(C: number, readonly width: number) {
    this.visual_projection = new Linear(C, width, false);
  }

  forward({ cls, patches }: Pick<VitOutput, "patches" | "cls">): Tensor {
    check(cls !== undefined, "project the CLS token", "the encoder has none", patches);
    return this.visual_projection.forward(cls);
  }
}

/** SigLIP's: h = attention(probe, tokens, tokens), y = h + mlp(norm(h)). */
class AttentionPooling implements PoolingHead {
  readonly width: number;
  readonly probe: Tensor;
  readonly query: Linear;
  readonly key: Linear;
  readonly value: Linear;
  readonly out_proj: Linear;
  readonly layernorm: LayerNorm;
  readonly mlp: Mlp;

  constructor(readonly config: VitConfig, hidden: number) {
    const C = this.width = config.hidden_size;
    this.probe = parameter([1, 1, C], () => new Float32Array(C), "probe");
    this.query = new Linear(C, C);
    this.key = new Linear(C, C);
    this.value = new Linear(C, C);
    this.out_proj = new Linear(C, C);
    this.layernorm = new LayerNorm(C, config.layer_norm_eps);
    this.mlp = new Mlp(C, hidden, { activation: ACTIVATIONS[config.hidden_act] });
  }

  forward({ patches }: Pick<VitOutput, "patches">): Tensor {
    const [B, T, C] = patches.shape as [number, number, number], NH = this.config.num_attention_heads;
    const q = reshape(broadcastTo(this.query.forward(this.probe), [B, 1, C]), [B, 1, NH, C / NH]);
    const [k, v] = [this.key, this.value].map((layer) =>
      reshape(layer.forward(patches), [B, T, NH, C / NH])
    ) as [Tensor, Tensor];
    const h = this.out_proj.forward(attention(q, k, v)); // [B, 1, C]
    return reshape(add(h, this.mlp.forward(this.layernorm.forward(h))), [B, C]);
  }
}

/** ConvNeXt's: the norm of the mean over pixels, which its classifier reads. */
class NormOfMean implements PoolingHead {
  readonly layernorm: LayerNorm;

  constructor(readonly width: number, eps: number) {
    this.layernorm = new LayerNorm(width, eps);
  }

  forward({ patches }: Pick<VitOutput, "patches">): Tensor {
    return this.layernorm.forward(mean(patches, [1]));
  }
}

/**
 * The pooling head in an encoder's file. SigLIP's stores query, key and value as one, as torch.nn.MultiheadAttention does.
 * @param shapes of all tensors of the file
 * @returns the head without its weights, and where they are; undefined for a file without a head
 */
export function poolingHead(
  config: VitConfig | ConvNextConfig,
  shapes: ReadonlyMap<string, Shape>,
): { head: PoolingHead; entries: ReadonlyMap<string, Origin> } | undefined {
  const C = config.hidden_size, keys = [...shapes.keys()];
  const prefixOf = (name: string) =>
    keys.find((key) => key === name || key.endsWith(`.${name}`))?.slice(0, -name.length);
  if (config.model_type === "convnextv2") {
    const weight = keys.find((key) => /^(.*\bconvnextv2\.)?layernorm\.weight$/.test(key));
    if (weight === undefined) return undefined;
    const entries = ["weight", "bias"].map((kind) =>
      [`layernorm.${kind}`, weight.replace(/weight$/, kind)] as const
    );
    return { head: new NormOfMean(C, config.layer_norm_eps), entries: new Map(entries) };
  }
  if (config.model_type === "clip_vision_model") {
    const name = "visual_projection.weight", prefix = prefixOf(name);
    const width = shapes.get(`${prefix}${name}`)?.[0];
    if (width === undefined) return undefined;
    return { head: new Projection(C, width), entries: new Map([[name, `${prefix}${name}`]]) };
  }
  const prefix = config.model_type === "siglip_vision_model" ? prefixOf("head.probe") : undefined;
  if (prefix === undefined) return undefined;
  const at = `${prefix}head.`, entries = new Map<string, Origin>([["probe", `${at}probe`]]);
  for (const kind of ["weight", "bias"]) {
    for (const layer of ["layernorm", "mlp.fc1", "mlp.fc2"]) {
      entries.set(`${layer}.${kind}`, `${at}${layer}.${kind}`);
    }
    entries.set(`out_proj.${kind}`, `${at}attention.out_proj.${kind}`);
    for (const [i, layer] of ["query", "key", "value"].entries()) {
      entries.set(`${layer}.${kind}`, { key: `${at}attention.in_proj_${kind}`, rows: [i * C, (i + 1) * C] });
    }
  }
  const hidden = shapes.get(`${at}mlp.fc1.weight`)?.[0] ?? C;
  return { head: new AttentionPooling(config, hidden), entries };
}
