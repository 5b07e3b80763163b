// The options of a diffusion transformer's architecture. Their defaults are LightningDiT's.

import { z } from "zod";
import { count, countOrNone } from "../bounds.ts";
import { GROUPS } from "./about.ts";
import { flag } from "./options.ts";

const { model } = GROUPS;
const advanced = true;

/** tiny: patches of 1. */
const MODELS = [
  "tiny",
  "tiny/2",
  "S/1",
  "S/2",
  "B/1",
  "B/2",
  "L/1",
  "L/2",
  "XL/1",
  "XL/2",
  "1p0B/1",
  "1p0B/2",
  "1p6B/1",
  "1p6B/2",
] as const;

export const architecture = {
  model: model(
    z.enum(MODELS).default("tiny"),
    `Size of the LightningDiT and side of its patches in latent cells: ${MODELS.join(", ")}`,
    { value: "SIZE" },
  ),
  qkNorm: model(flag(), "Normalise queries and keys (QK-norm); suggested beyond 100,000 steps"),
  mlp: model(
    z.enum(["swiglu", "plain"]).default("swiglu"),
    "MLP of the blocks: SwiGLU of 8/3 of the width, or two layers with GELU (tanh) of four times the width as in DiT",
    { advanced },
  ),
  norm: model(
    z.enum(["rms", "layer"]).default("rms"),
    "Norms: RMSNorm, or LayerNorm without weights as in DiT",
    { advanced },
  ),
  woShift: model(flag(), "Scale and gate only in the adaLN of the blocks, no shift", { advanced }),
  rope: model(
    z.boolean().default(true),
    "Use sine-cosine position embeddings only, as in DiT; no RoPE",
    { advanced },
  ),
  headWidth: model(
    countOrNone("channels").default(0),
    "Width of a wide diffusion head after the blocks, as in RAE's DiT-DH (2048); 0: none",
    { advanced },
  ),
  headDepth: model(count("layers").default(2), "Blocks of the wide head, with --head-width", { advanced }),
  innerHead: model(
    countOrNone("layers").default(0),
    "Block (first: 1) with an output head of its own, for internal guidance; 0: none",
    { advanced },
  ),
};
