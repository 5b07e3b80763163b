// tok inspect: lists the contents of a file, a run or a model folder, converts it to safetensors, and prints the sizes of
// published models.

import { join } from "@std/path";
import { inspectConfig } from "../src/cli/config.ts";
import { printable, UsageError } from "../src/errors.ts";
import { exists, formatBytes, isFile, readJson } from "../src/formats/files.ts";
import type { Log } from "../src/run/log.ts";
import { Output } from "../src/run/output.ts";
import { copyToSafetensors } from "../src/formats/safetensors.ts";
import { holdsModel, openModel } from "../src/formats/shards.ts";
import { tensorBytes, tensorSize, type TensorStore } from "../src/formats/tensors.ts";
import { PUBLISHED, publishedSize } from "../src/models/sizes.ts";
import { command } from "./command.ts";
import { inspectEma } from "./inspect_ema.ts";
import { arrays, texts } from "./listings.ts";

/** Maximum number of plain values to print; --json has all of them. */
const SHOWN = 40;

export const inspect = command({
  name: "inspect",
  purpose: "List the tensors, sizes and configuration of a file, run or folder",
  schema: inspectConfig,
  argument: "path",
  examples: [
    "tok inspect runs/align-001",
    "tok inspect dinov2_vitl14_pretrain.pth --convert dinov2-l.safetensors",
    "tok inspect samples/000000.png",
    "tok inspect --preset dinov2-l",
    "tok inspect runs/dit-001 --ema 0.07 --out dit-ema-0.07",
  ],
  async run(c, { log }) {
    const { path, convert, preset } = c;
    if (c.ema !== undefined || c.out !== undefined) return await inspectEma(c, log);
    if (preset !== undefined) {
      if (path === undefined && convert === undefined) return { presets: presets(preset, log) };
      throw new UsageError("Cannot inspect: --preset goes without a file; leave one of them out");
    }
    if (path === undefined) throw new UsageError("Cannot inspect: name a file, a run or a folder");
    if (path.endsWith(".npz") && convert === undefined) return { found: [await arrays(path, log)] };
    if (/\.png$/i.test(path) && convert === undefined) return { found: [texts(path, log)] };
    const places = isFile(path)
      ? [path]
      : [path, join(path, "tokenizer"), join(path, "model")].filter(holdsModel);
    if (!places.length) {
      throw new UsageError(
        `Cannot inspect "${path}": it is not a file of tensors, a run or a model folder; check the path`,
      );
    }
    if (convert !== undefined && places.length > 1) {
      throw new UsageError(`Cannot convert "${path}": it holds several models; name ${places.join(" or ")}`);
    }
    using _output = convert === undefined ? undefined : openConverted(convert);
    const found = [];
    for (const place of places) {
      const store = await openModel(place);
      try {
        found.push({ ...list(store, log), config: configOf(place, log) });
        if (convert === undefined) continue;
        await copyToSafetensors(store, convert);
        log.line(`written: ${convert}, ${formatBytes(Deno.statSync(convert).size)}`);
      } finally {
        store.close();
      }
    }
    return { found, ...(convert === undefined ? {} : { converted: convert }) };
  },
});

function list(store: TensorStore, log: Log) {
  let parameters = 0, bytes = 0;
  log.line(log.bold(store.name));
  for (const [name, entry] of store.tensors) {
    parameters += tensorSize(entry);
    bytes += tensorBytes(entry);
    log.line(`  ${printable(name).padEnd(64)} ${entry.dtype.padEnd(5)} [${entry.shape.join(", ")}]`);
  }
  const unread = [...store.unread ?? []];
  const plain = [...store.metadata].filter(([key]) => !store.unread?.has(key));
  listed(
    plain,
    "values",
    ([key, value]) => `${key}: ${value.length > 200 ? `${value.slice(0, 200)}...` : value}`,
    log,
  );
  listed(
    unread,
    "objects",
    ([key, { type, holdsTensors }]) =>
      `${key}: an object of ${type}${holdsTensors ? " that holds tensors" : ""}, not read and not run`,
    log,
  );
  log.line(
    `  ${store.tensors.size} tensors, ${(parameters / 1e6).toFixed(2)} M elements, ${formatBytes(bytes)}`,
  );
  return {
    path: store.name,
    tensors: [...store.tensors].map(([name, { dtype, shape }]) => ({ name, dtype, shape })),
    metadata: Object.fromEntries(store.metadata),
    unread: unread.map(([name, { type, holdsTensors }]) => ({ name, type, holdsTensors })),
    parameters,
    bytes,
  };
}

function listed<T>(rows: readonly T[], what: string, text: (row: T) => string, log: Log): void {
  for (const row of rows.slice(0, SHOWN)) log.line(printable(`  ${text(row)}`));
  if (rows.length > SHOWN) log.line(`  and ${rows.length - SHOWN} more ${what}`);
}

function configOf(place: string, log: Log): unknown {
  const path = join(place, "config.json");
  if (!exists(path)) return undefined;
  const config = readJson(path);
  log.line(JSON.stringify(config, undefined, 2));
  return config;
}

/** Opens the output before anything is read, so that an unwritable file is an error at once. */
function openConverted(path: string): Output {
  if (!path.endsWith(".safetensors")) {
    throw new UsageError(`Cannot convert to "${path}": only .safetensors can be written; choose such a name`);
  }
  return Output.file(path);
}

function presets(asked: string, log: Log) {
  return (asked === "all" ? [...PUBLISHED.keys()] : [asked]).map((name) => {
    const { about, parameters: count } = publishedSize(name), parameters = count();
    log.line(`${name.padEnd(20)} ${(parameters / 1e6).toFixed(2).padStart(8)} M  ${about}`);
    return { name, parameters };
  });
}
