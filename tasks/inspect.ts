// tok inspect: what is inside a file, a run or a model folder.

import { join } from "@std/path";
import { inspectConfig } from "../src/config.ts";
import { UsageError } from "../src/errors.ts";
import { exists, formatBytes, readJson } from "../src/io/files.ts";
import { openModel } from "../src/io/shards.ts";
import { tensorBytes, tensorSize } from "../src/io/tensors.ts";
import { command } from "./command.ts";

export const inspect = command({
  name: "inspect",
  purpose: "List the tensors, sizes and configuration of a file, run or folder",
  schema: inspectConfig,
  argument: "path",
  examples: ["tok inspect runs/align-001", "tok inspect model.safetensors --json"],
  async run({ path }, { log }) {
    if (path === undefined) throw new UsageError("Cannot inspect: name a file, a run or a folder");
    const folders = [path, join(path, "tokenizer"), join(path, "model")]
      .filter((p) =>
        p.endsWith(".safetensors") || exists(join(p, "model.safetensors")) ||
        exists(join(p, "model.safetensors.index.json"))
      );
    if (!folders.length) {
      throw new UsageError(`Cannot inspect "${path}": it is no safetensors file, run or model folder`);
    }
    const found = [];
    for (const folder of folders) {
      const store = await openModel(folder);
      let parameters = 0, bytes = 0;
      log.line(log.bold(store.name));
      for (const [name, entry] of store.tensors) {
        const { dtype, shape } = entry;
        parameters += tensorSize(entry);
        bytes += tensorBytes(entry);
        log.line(`  ${name.padEnd(64)} ${dtype.padEnd(5)} [${shape.join(", ")}]`);
      }
      for (const [key, value] of store.metadata) {
        log.line(`  ${key}: ${value.length > 200 ? `${value.slice(0, 200)}...` : value}`);
      }
      log.line(
        `  ${store.tensors.size} tensors, ${(parameters / 1e6).toFixed(2)} M elements, ${formatBytes(bytes)}`,
      );
      const config = exists(join(folder, "config.json")) ? readJson(join(folder, "config.json")) : undefined;
      if (config) log.line(JSON.stringify(config, undefined, 2));
      found.push({
        path: store.name,
        tensors: [...store.tensors].map(([name, { dtype, shape }]) => ({ name, dtype, shape })),
        parameters,
        bytes,
        config,
      });
      store.close();
    }
    return { found };
  },
});
