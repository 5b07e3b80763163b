// The weights of a model in a folder of Hugging Face layout: one file, or shards and their index. Shard names come from a
// file that others made, so they may not leave the folder; and every shard must be there before anything is read.

import { join } from "@std/path";
import { UsageError } from "../errors.ts";
import { exists, readJson } from "./files.ts";
import {
  damaged,
  openSafetensors,
  type SafetensorsFile,
  type TensorEntry,
  type TensorStore,
} from "./safetensors.ts";

/**
 * Opens the weights in a folder of Hugging Face layout: `model.safetensors`, or all the shards that
 * `model.safetensors.index.json` names. A path to one file is taken too.
 * @throws UsageError when a file is missing or damaged; nothing is read before all of them are there
 */
export async function openModel(path: string): Promise<TensorStore> {
  const single = join(path, "model.safetensors"), index = `${single}.index.json`;
  if (exists(single)) return await openSafetensors(single);
  if (exists(index)) return await openShards(path, index);
  if (exists(path) && Deno.statSync(path).isFile) return await openSafetensors(path);
  throw new UsageError(
    `Cannot load the model "${path}": there is neither "model.safetensors" nor "model.safetensors.index.json"; ` +
      `check the path`,
  );
}

async function openShards(folder: string, index: string): Promise<TensorStore> {
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
  const names = [...new Set(shardOf.values())].sort();
  const missing = [];
  for (const name of names) if (!exists(join(folder, name))) missing.push(name);
  if (missing.length) {
    throw new UsageError(
      `Cannot load the model "${folder}": "${missing.join('", "')}" is missing; fetch it again`,
    );
  }
  const files = new Map<string, SafetensorsFile>();
  const close = () => files.forEach((file) => file.close());
  try {
    for (const name of names) files.set(name, await openSafetensors(join(folder, name)));
    const owner = (key: string): SafetensorsFile => {
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
      read: async (key) => await owner(key).read(key),
      readRows: async (key, from, to) => await owner(key).readRows(key, from, to),
      readIntegers: async (key) => await owner(key).readIntegers(key),
      close,
    };
  } catch (error) {
    close();
    throw error;
  }
}
