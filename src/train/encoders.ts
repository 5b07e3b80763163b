// Encoders in Hugging Face layout: configuration, preprocessing and weights. The embedded encoder goes through the same
// loader as a published one.

import { fromFileUrl, join } from "@std/path";
import { z } from "zod";
import { UsageError } from "../errors.ts";
import { exists, readJson, validated } from "../io/files.ts";
import { openModel } from "../io/shards.ts";
import { type Vit, type VitConfig, vitConfig } from "../models/vit.ts";
import { loadState, type TensorSource } from "../nn.ts";

/** The encoder that comes with tok: trained by tasks/dev/pretrain_encoder.ts on generated images. */
export const EMBEDDED_ENCODER = fromFileUrl(new URL("../models/tiny", import.meta.url));

const preprocessor = z.object({
  image_mean: z.array(z.number()).length(3).default([0.485, 0.456, 0.406]),
  image_std: z.array(z.number()).length(3).default([0.229, 0.224, 0.225]),
  size: z.union([
    z.object({ shortest_edge: z.number().int().positive() }),
    z.object({ height: z.number().int().positive(), width: z.number().int().positive() }),
  ]).default({ shortest_edge: 256 }),
  crop_size: z.object({ height: z.number().int().positive(), width: z.number().int().positive() }).optional(),
  do_center_crop: z.boolean().default(true),
  resample: z.number().int().default(3),
});

/** An encoder folder: architecture, preprocessing, and the weights ready to be read. */
export interface EncoderFolder {
  path: string;
  config: VitConfig;
  mean: number[];
  std: number[];
  /** Side that the shorter edge is resized to, and the side of the centre crop. */
  resize: number;
  crop: number;
  filter: "box" | "bilinear" | "bicubic" | "lanczos";
  load(vit: Vit): Promise<void>;
}

/** Reads an encoder folder's configuration. @throws UsageError when something is missing or unsupported */
export function openEncoder(path: string = EMBEDDED_ENCODER): EncoderFolder {
  if (!exists(join(path, "config.json"))) {
    throw new UsageError(
      `Cannot load the encoder "${path}": there is no "config.json" in it; check the path`,
    );
  }
  const raw = readJson(join(path, "config.json"));
  const config = validated(vitConfig, raw, join(path, "config.json"));
  const file = join(path, "preprocessor_config.json");
  const p = validated(preprocessor, exists(file) ? readJson(file) : {}, file);
  const resize = "shortest_edge" in p.size ? p.size.shortest_edge : p.size.height;
  const filter = ({ 0: "box", 1: "lanczos", 2: "bilinear", 3: "bicubic" } as const)[p.resample];
  if (!filter) {
    throw new UsageError(`Cannot use "${file}": the resample filter ${p.resample} is not supported`);
  }
  return {
    path,
    config,
    mean: p.image_mean,
    std: p.image_std,
    resize,
    crop: p.do_center_crop ? p.crop_size?.height ?? resize : resize,
    filter,
    async load(vit) {
      const store = await openModel(path);
      try {
        await loadEncoder(vit, store);
      } finally {
        store.close();
      }
    },
  };
}

/** Classification checkpoints wrap the encoder: their prefix is taken off, and their head is left out. */
async function loadEncoder(vit: Vit, store: TensorSource): Promise<void> {
  const keys = [...store.shapes.keys()];
  const prefix = ["dinov2.", "dinov2_with_registers."].find((p) => keys.some((key) => key.startsWith(p))) ??
    "";
  await loadState(vit, store, { prefix, ignore: /^classifier\./ });
}
