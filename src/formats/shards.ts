// Weights of a model as downloaded: one file, or a folder in Hugging Face layout with one file, or shards and their index. The
// format is recognised by the contents, not by the name. Shard names are untrusted and may not leave the folder; all shards
// must exist before anything is read.

import { join } from "@std/path";
import { UsageError } from "../errors.ts";
import { damaged, openKnown } from "./bytes.ts";
import { exists, isFile, readJson } from "./files.ts";
import { readSafetensors } from "./safetensors.ts";
import type { TensorEntry, TensorStore } from "./tensors.ts";
import { isTorch, readTorch } from "./torch.ts";

/** Files of weights in a folder, in order of preference; each may be replaced by an index of shards. */
const NAMES = ["model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin"];

/** Whether a folder holds the weights of a model. */
export function holdsModel(folder: string): boolean {
  return NAMES.some((name) => exists(join(folder, name)) || exists(join(folder, `${name}.index.json`)));
}

/** Missing shards of a folder's index; none for folders without an index. */
export function missingShards(folder: string): string[] {
  for (const name of NAMES) {
    const single = join(folder, name), index = `${single}.index.json`;
    if (exists(single)) return [];
    if (!exists(index)) continue;
    return [...new Set(shardNames(index).values())].sort().filter((shard) => !exists(join(folder, shard)));
  }
  return [];
}

/**
 * Opens the weights in a folder (`model.safetensors`, the shards of `model.safetensors.index.json`, or the names of diffusers
 * and older releases), or one file: safetensors, or torch.save's format.
 * @throws UsageError if a file is missing or damaged
 */
export async function openModel(path: string): Promise<TensorStore> {
  if (isFile(path)) return openWeights(path);
  for (const name of NAMES) {
    const single = join(path, name), index = `${single}.index.json`;
    if (exists(single)) return openWeights(single);
    if (exists(index)) return await openShards(path, index);
  }
  throw new UsageError(
    `Cannot load the model "${path}": there is neither "${NAMES.join('" nor "')}" nor an index of shards ` +
      `of one; check the path`,
  );
}

function openWeights(path: string): TensorStore {
  const source = openKnown(path, "weights");
  let torch;
  try {
    torch = isTorch(source);
  } catch (error) {
    source.close();
    throw error;
  }
  return torch ? readTorch(source) : readSafetensors(source);
}

/** The shard of each tensor. @throws UsageError for an invalid index, or one that leaves its folder */
function shardNames(index: string): Map<string, string> {
  const json = readJson(index) as { weight_map?: unknown } | null;
  const map = json?.weight_map;
  if (typeof map !== "object" || map === null || Array.isArray(map)) {
    throw damaged(index, `it has no "weight_map"`);
  }
  const shardOf = new Map<string, string>();
  for (const [key, shard] of Object.entries(map)) {
    if (typeof shard !== "string" || !/^[^/\\\0]+$/.test(shard) || shard === "." || shard === "..") {
      throw damaged(index, `the shard ${JSON.stringify(shard)} of "${key}" is not a file name`);
    }
    shardOf.set(key, shard);
  }
  return shardOf;
}

async function openShards(folder: string, index: string): Promise<TensorStore> {
  const shardOf = shardNames(index);
  const names = [...new Set(shardOf.values())].sort();
  const missing = missingShards(folder);
  if (missing.length) {
    throw new UsageError(
      `Cannot load the model "${folder}": "${missing.join('", "')}" is missing; fetch it again`,
    );
  }
  const files = new Map<string, TensorStore>();
  const close = () => files.forEach((file) => file.close());
  try {
    for (const name of names) files.set(name, openWeights(join(folder, name)));
    const owner = (key: string): TensorStore => {
      const file = files.get(shardOf.get(key) ?? "");
      if (!file) throw new UsageError(`Cannot read "${key}": "${folder}" has no such tensor`);
      return file;
    };
    const tensors = new Map<string, TensorEntry>();
    for (const [key, shard] of shardOf) {
      const entry = owner(key).tensors.get(key);
      if (!entry) throw damaged(join(folder, shard), `"${key}" is not in it, although the index says so`);
      tensors.set(key, entry);
    }
    return {
      name: folder,
      tensors,
      shapes: new Map([...tensors].map(([key, { shape }]) => [key, shape])),
      metadata: new Map([...files.values()].flatMap((file) => [...file.metadata])),
      unread: new Map([...files.values()].flatMap((file) => [...file.unread ?? []])),
      read: async (key, into) => await owner(key).read(key, into),
      readRows: async (key, from, to, into) => await owner(key).readRows(key, from, to, into),
      readIntegers: async (key) => await owner(key).readIntegers(key),
      parts: (key) => owner(key).parts(key),
      close,
    };
  } catch (error) {
    close();
    throw error;
  }
}
