// Encoder folders in Hugging Face layout, written from a fixture's weights.

import { join } from "@std/path";
import { writeSafetensors } from "../../src/formats/safetensors.ts";
import type { SavedTensor } from "../../src/nn/layers.ts";
import { below, open } from "./compare.ts";
import { formulaWeights } from "./formula.ts";

/** Runs a test in a folder of its own. */
export async function inFolder(test: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await test(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

export const writeJson = (path: string, value: unknown) =>
  Deno.writeTextFileSync(path, JSON.stringify(value));

/** The weights of a fixture, as tensors of a file. */
export async function weightsOf(
  fixture: string,
): Promise<{ config: Record<string, unknown>; tensors: SavedTensor[] }> {
  const file = await open(fixture);
  try {
    const source = below(file, "weights."), tensors = [];
    for (const [name, shape] of source.shapes) tensors.push({ name, shape, data: await source.read(name) });
    return { config: JSON.parse(file.metadata.get("config") ?? "{}"), tensors };
  } finally {
    file.close();
  }
}

/** A folder in Hugging Face layout with the weights of a fixture. */
export async function encoderFolder(
  folder: string,
  fixture: string,
  preprocessor?: unknown,
): Promise<string> {
  const { config, tensors } = await weightsOf(fixture), path = join(folder, fixture);
  await Deno.mkdir(path);
  writeJson(join(path, "config.json"), config);
  if (preprocessor !== undefined) writeJson(join(path, "preprocessor_config.json"), preprocessor);
  await writeSafetensors(join(path, "model.safetensors"), tensors);
  return path;
}

/** A model of fixtures/make_pooling_heads.py, as the metadata of pooling_heads.safetensors describe it. */
export interface Model {
  shapes: Record<string, number[]>;
  config: Record<string, unknown>;
  preprocessor: Record<string, unknown>;
}

/** A two-tower checkpoint, or one with a classifier, in Hugging Face layout. @param without a tensor that it lacks */
export async function checkpoint(path: string, { shapes, config, preprocessor }: Model, without?: string) {
  await Deno.mkdir(path);
  writeJson(join(path, "config.json"), config);
  writeJson(join(path, "preprocessor_config.json"), preprocessor);
  const others: Record<string, number[]> = config.model_type === "convnextv2"
    ? { "classifier.weight": [4, 8] }
    : { "text_model.final_layer_norm.weight": [4], "text_projection.weight": [12, 4] };
  const tensors = Object.entries({ ...shapes, ...others }).filter(([name]) => name !== without);
  await writeSafetensors(
    join(path, "model.safetensors"),
    tensors.map(([name, shape]) => ({ name, shape, data: formulaWeights(name, shape) })),
  );
}
