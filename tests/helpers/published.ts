// Checkpoints in the published layouts. Their weights come from the formula in the fixtures' metadata, so no fixture stores
// them.

import { fromFileUrl, join } from "@std/path";
import { openSafetensors, writeSafetensors } from "../../src/formats/safetensors.ts";
import type { TensorStore } from "../../src/formats/tensors.ts";
import { randomArray } from "./check.ts";

/** Tensors by name. */
export type Weights = Map<string, { shape: readonly number[]; data: Float32Array<ArrayBuffer> }>;

export const fixturePath = (name: string) => fromFileUrl(new URL(`../fixtures/${name}`, import.meta.url));
export const fixture = (name: string) => openSafetensors(fixturePath(`${name}.safetensors`));

/** Configuration and weights of the model that a fixture was made with. */
export async function made(name: string): Promise<{ config: Record<string, unknown>; weights: Weights }> {
  const file = await fixture(name);
  const [config, shapes] = ["config", "shapes"].map((key) => JSON.parse(file.metadata.get(key) as string));
  file.close();
  return { config, weights: formulaWeights(shapes) };
}

/** The weights of a model with these shapes, as `made` of the autoencoders' fixtures says. */
export function formulaWeights(shapes: Readonly<Record<string, readonly number[]>>): Weights {
  return new Map(
    Object.keys(shapes).sort().map((key, i) => {
      const shape = shapes[key] as readonly number[];
      const n = shape.reduce((a, b) => a * b, 1);
      const fan = Math.sqrt(n / (shape[0] as number));
      const gain = /norm/.test(key) && key.endsWith("weight");
      const data = randomArray(n, i + 1).map((r) =>
        shape.length > 1 ? r / fan : gain ? 1 + 0.2 * r : 0.1 * r
      );
      return [key, { shape, data: data as Float32Array<ArrayBuffer> }];
    }),
  );
}

/** The same tensors under other names; undefined drops one. */
export function rename(weights: Weights, name: (key: string) => string | undefined): Weights {
  return new Map([...weights].flatMap(([key, tensor]) => {
    const other = name(key);
    return other === undefined ? [] : [[other, tensor] as const];
  }));
}

export const write = (path: string, weights: Weights) =>
  writeSafetensors(path, [...weights].map(([name, tensor]) => ({ name, ...tensor })));

/** A folder as diffusers writes one. */
export async function writeDiffusers(folder: string, weights: Weights, config: unknown): Promise<string> {
  await write(join(folder, "diffusion_pytorch_model.safetensors"), weights);
  await Deno.writeTextFile(join(folder, "config.json"), JSON.stringify(config));
  return folder;
}

/** Tensors in memory, as far as a loader asks a file for them. */
export function memoryStore(weights: Weights): TensorStore {
  return {
    name: "memory",
    shapes: new Map([...weights].map(([key, { shape }]) => [key, shape])),
    read: (key: string) => Promise.resolve(weights.get(key)?.data),
  } as unknown as TensorStore;
}

/** LDM's name of a key in diffusers' layout with `levels` levels, written down independently of the product's map. */
export function ldmKey(key: string, levels: number): string {
  return key
    .replace(/up_blocks\.(\d+)/, (_, i) => `up.${levels - 1 - Number(i)}`)
    .replace("down_blocks", "down")
    .replace(/mid_block\.resnets\.(\d)/, (_, i) => `mid.block_${Number(i) + 1}`)
    .replace("mid_block.attentions.0", "mid.attn_1")
    .replace(".resnets.", ".block.").replace(".attentions.", ".attn.")
    .replace(/(down|up)samplers\.0/, "$1sample").replace("conv_shortcut", "nin_shortcut")
    .replace("conv_norm_out", "norm_out").replace("group_norm", "norm")
    .replace("to_out.0", "proj_out").replace(/to_([qkv])/, "$1");
}
