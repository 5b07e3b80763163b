// Opens latents that are decoded: a folder in the layout of LightningDiT's tools, or one safetensors file. Those of another
// tokenizer are refused by name.

import { join } from "@std/path";
import { UsageError } from "../errors.ts";
import { exists, isFile, readJson } from "../formats/files.ts";
import { openLatents, readStatistics } from "../formats/latents.ts";
import { openLatentsFile } from "../formats/latents_file.ts";
import { differences, fingerprintOf, type Identity, type Provenance } from "../formats/provenance.ts";
import type { KnownTokenizer } from "../zoo/runs.ts";
import type { Statistics } from "../models/normalisation.ts";
import type { LatentSource } from "./decode.ts";
import { latentsFolder } from "./saved_latents.ts";

/** Open latents. */
export interface DecodableLatents extends Disposable {
  source: LatentSource;
  labels: number[] | undefined;
  /** Statistics of normalised latents; undefined if they are not normalised. */
  statistics: Statistics | undefined;
  /** Name and fingerprint of the contents. */
  identity: Identity;
}

/**
 * Opens a folder or a file of latents.
 * @param say called with a line where nothing says which tokenizer they are of
 * @throws UsageError if they are of another tokenizer
 */
export async function openForDecoding(
  path: string,
  tokenizer: KnownTokenizer,
  say: (line: string) => void,
): Promise<DecodableLatents> {
  const { madeFrom, close, ...latents } = await (isFile(path) ? openFile(path) : openFolder(path));
  try {
    const { name, latents: fingerprint } = tokenizer.identity;
    const [difference] = differences(madeFrom ?? {}, { tokenizer: { name, fingerprint } });
    if (difference !== undefined) {
      throw new UsageError(
        `Cannot decode the latents "${path}": ${difference}; name the tokenizer that made them with --tokenizer`,
      );
    }
    const [C, H, W] = latents.source.shape;
    if (C !== tokenizer.channels || H !== W) {
      throw new UsageError(
        `Cannot decode the latents "${path}": they are [${C},${H},${W}], those of the tokenizer "${name}" have ` +
          `${tokenizer.channels} channels and equal sides; name another with --tokenizer`,
      );
    }
    if (!madeFrom?.tokenizer) {
      say(`"${path}" does not name the tokenizer of its latents: "${name}" is assumed`);
    }
    return { ...latents, [Symbol.dispose]: close };
  } catch (error) {
    close();
    throw error;
  }
}

/** Whether the latents in a run are those that it trains on, thousands that nobody wants as pictures. */
function isTraining(run: string): boolean {
  const file = join(run, "config.json");
  if (!isFile(file)) return false;
  try {
    return (readJson(file) as { command?: unknown } | null)?.command === "train-dit";
  } catch {
    return false; // damaged, and so of no known command
  }
}

/**
 * The newest complete folder of latents of a tokenizer in `runs`: of `tok encode`, or those that `tok sample` saved.
 * @throws UsageError if there is none
 */
export async function newestLatents(runs: string, { identity }: KnownTokenizer): Promise<string> {
  const folders = exists(runs) ? [...Deno.readDirSync(runs)].map(({ name }) => join(runs, name)).sort() : [];
  let newest: { folder: string; time: number } | undefined;
  for (const folder of folders.flatMap((run) => isTraining(run) ? [] : [run, latentsFolder(run)])) {
    const stats = await readStatistics(folder).catch(() => undefined); // a damaged one is not suitable
    const { tokenizer } = stats?.record?.made_from ?? {};
    if (!stats || typeof tokenizer !== "object" || tokenizer.fingerprint !== identity.latents) continue;
    const time = Deno.statSync(stats.path).mtime?.getTime() ?? 0;
    if (!newest || time >= newest.time) newest = { folder, time };
  }
  if (newest) return newest.folder;
  throw new UsageError(
    `Cannot find latents of the tokenizer "${identity.name}" under "${runs}": run "tok encode" or "tok sample --save-latents" ` +
      `first, or name a folder or a file with --latents`,
  );
}

type Opened = Omit<DecodableLatents, typeof Symbol.dispose> & {
  madeFrom: Provenance | undefined;
  close: () => void;
};

async function openFolder(path: string): Promise<Opened> {
  const source = await openLatents(path), { record, mean, std, labels, shape } = source;
  return {
    source,
    labels: [...labels],
    statistics: undefined,
    // The statistics are over all latents.
    identity: { name: path, fingerprint: fingerprintOf(`${shape}`, `${mean}`, `${std}`, `${labels}`) },
    madeFrom: record?.made_from,
    close: () => source.close(),
  };
}

async function openFile(path: string): Promise<Opened> {
  const { rows, labels, statistics, record } = await openLatentsFile(path);
  const { mean, std } = statistics ?? {};
  return {
    source: rows,
    labels: labels && [...labels],
    statistics,
    identity: {
      name: path,
      fingerprint: fingerprintOf(await rows.fingerprint(), `${mean}`, `${std}`, `${labels}`),
    },
    madeFrom: record?.made_from,
    close: () => rows.close(),
  };
}
