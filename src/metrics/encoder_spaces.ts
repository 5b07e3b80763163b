// Why an encoder has no features in a space; undefined if it has.

import { FAMILIES } from "../models/vit_families.ts";
import type { EncoderConfig, EncoderSource } from "../zoo/encoders.ts";

export const notDinov2L = ({ path, config: c }: EncoderSource<EncoderConfig>) =>
  c.model_type === "dinov2" && c.hidden_size === 1024 && c.num_hidden_layers === 24 && c.patch_size === 14
    ? undefined
    : `it is a distance in the space of DINOv2-L/14, and "${path}" is another encoder; give --encoder ` +
      `facebook/dinov2-large`;

export const withoutCls = ({ path, config: { model_type: type } }: EncoderSource<EncoderConfig>) =>
  type !== "convnextv2" && FAMILIES[type].cls
    ? undefined
    : `"${path}" has no CLS token; "fd-encoder" is of its patches`;

export const withoutHead = ({ path, config: { model_type: type } }: EncoderSource<EncoderConfig>) =>
  ["clip_vision_model", "siglip_vision_model", "convnextv2"].includes(type)
    ? undefined
    : `"${path}" has no pooling head, as CLIP, SigLIP and ConvNeXt V2 have; "fd-cls" is of its CLS token`;
