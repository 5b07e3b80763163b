// What .npz files hold of the features of a set: `mu` and `sigma` of pooled Inception features (pytorch-fid, clean-fid, ADM), `mu_s`
// and `sigma_s` of spatial ones (ADM), the features themselves as `features` (clean-fid's KID files: `feats`), the same of an
// encoder's space as `mu_SPACE`, `sigma_SPACE` and `features_SPACE`, and `about`: UTF-8 JSON of what they were computed with.

import { UsageError } from "../errors.ts";
import { validated } from "../formats/files.ts";
import type { NpyHeader } from "../formats/npy.ts";
import { type NpzArray, type NpzFile, writeNpz } from "../formats/npz.ts";
import { type Provenance, provenanceSchema } from "../formats/provenance.ts";

/** Mean [n] and covariance [n, n] of features. */
export interface Statistics {
  mean: Float64Array;
  covariance: Float64Array;
}

/** Features of many images, one row each. */
interface FeatureRows {
  data: Float32Array;
  rows: number;
  columns: number;
}

/** What is stored in one space. */
export interface StoredSpace {
  moments?: Statistics;
  features?: FeatureRows;
}

/** What a file holds besides images. */
export interface StoredFeatures {
  pooled?: Statistics;
  spatial?: Statistics;
  features?: FeatureRows;
  /** In an encoder's spaces, by their names. */
  spaces?: Record<string, StoredSpace>;
  /** The networks and settings that they were computed with, where tok wrote the file. */
  about?: Provenance;
}

/** @throws UsageError for arrays of another form, and numbers that are not finite */
export async function readFeatures(npz: NpzFile): Promise<StoredFeatures> {
  const { arrays } = npz, stored: StoredFeatures = {}, spaces: Record<string, StoredSpace> = {};
  if (arrays.has("mu")) stored.pooled = await statisticsOf(npz, "mu", "sigma");
  if (arrays.has("mu_s")) stored.spatial = await statisticsOf(npz, "mu_s", "sigma_s");
  const rows = ["features", "feats"].find((key) => arrays.has(key));
  if (rows !== undefined) stored.features = await rowsOf(npz, rows);
  for (const key of arrays.keys()) {
    const [, what, space = ""] = /^(mu|features)_(?!s$)(\w+)$/.exec(key) ?? [];
    if (what === "mu") (spaces[space] ??= {}).moments = await statisticsOf(npz, key, `sigma_${space}`);
    if (what === "features") (spaces[space] ??= {}).features = await rowsOf(npz, key);
  }
  if (Object.keys(spaces).length > 0) stored.spaces = spaces;
  if (arrays.has("about")) stored.about = await aboutOf(npz);
  return stored;
}

/** Writes what {@link readFeatures} reads, atomically. */
export async function writeFeatures(path: string, stored: StoredFeatures): Promise<void> {
  const arrays: NpzArray[] = [];
  const add = (name: string, shape: readonly number[], data: NpzArray["data"]) =>
    arrays.push({ name, shape, data });
  const moments = (end: string, { mean, covariance }: Statistics) => {
    add(`mu${end}`, [mean.length], mean);
    add(`sigma${end}`, [mean.length, mean.length], covariance);
  };
  const features = (end: string, { data, rows, columns }: FeatureRows) =>
    add(`features${end}`, [rows, columns], data);
  if (stored.pooled) moments("", stored.pooled);
  if (stored.spatial) moments("_s", stored.spatial);
  if (stored.features) features("", stored.features);
  for (const [space, of] of Object.entries(stored.spaces ?? {})) {
    if (of.moments) moments(`_${space}`, of.moments);
    if (of.features) features(`_${space}`, of.features);
  }
  if (stored.about) {
    const text = new TextEncoder().encode(JSON.stringify(stored.about));
    add("about", [text.length], text);
  }
  await writeNpz(path, arrays);
}

async function statisticsOf(npz: NpzFile, mu: string, sigma: string): Promise<Statistics> {
  const shapes = [npz.arrays.get(mu)?.shape ?? [], npz.arrays.get(sigma)?.shape ?? []] as const;
  const [n] = shapes[0];
  if (shapes[0].length !== 1 || n === undefined || n < 1) {
    throw refusal(npz, `"${mu}" is [${shapes[0].join(", ")}], not the mean of features [n]`);
  }
  if (!npz.arrays.has(sigma)) {
    throw refusal(npz, `it has "${mu}" but not "${sigma}", the covariance of the features`);
  }
  if (shapes[1].length !== 2 || shapes[1][0] !== n || shapes[1][1] !== n) {
    throw refusal(npz, `"${sigma}" is [${shapes[1].join(", ")}], not [${n}, ${n}] as "${mu}" asks for`);
  }
  const statistics = { mean: await npz.read(mu), covariance: await npz.read(sigma) };
  for (const [key, values] of [[mu, statistics.mean], [sigma, statistics.covariance]] as const) {
    refuseNotFinite(npz, key, values, key === mu ? [n] : [n, n], "compute the statistics again");
  }
  refuseNoCovariance(npz, sigma, statistics.covariance, n);
  return statistics;
}

/**
 * Refuses a negative variance, and asymmetry, beyond 0.1 % of the largest variance, more than the rounding of fp16: a Frechet distance
 * would be a number without a meaning.
 */
function refuseNoCovariance(npz: NpzFile, key: string, values: ArrayLike<number>, n: number): void {
  const at = (i: number, j: number) => values[i * n + j] as number;
  let largest = 0;
  for (let i = 0; i < n; i++) largest = Math.max(largest, at(i, i));
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) {
      const [a, b] = [at(i, j), at(j, i)];
      if ((i === j ? -a : Math.abs(a - b)) <= 1e-3 * largest) continue;
      const why = i === j ? `${a} at [${i}, ${i}]` : `${a} at [${i}, ${j}] and ${b} at [${j}, ${i}]`;
      throw refusal(npz, `"${key}" is no covariance: it is ${why}; compute the statistics again`);
    }
  }
}

async function rowsOf(npz: NpzFile, key: string): Promise<FeatureRows> {
  const { shape, kind } = npz.arrays.get(key) as NpyHeader, [rows = 0, columns = 0] = shape;
  if (shape.length !== 2 || rows * columns === 0 || !kind.startsWith("f")) {
    throw refusal(npz, `"${key}" is ${describedArray({ kind, shape })}, not features float32 [N, n]`);
  }
  const data = await npz.floats(key);
  refuseNotFinite(npz, key, data, shape, "compute the features again");
  return { data, rows, columns };
}

async function aboutOf(npz: NpzFile): Promise<Provenance> {
  const text = new TextDecoder().decode(Uint8Array.from(await npz.read("about")));
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    throw refusal(npz, `"about" is not JSON; compute the statistics again`);
  }
  return validated(provenanceSchema, json, npz.name);
}

function refuseNotFinite(
  npz: NpzFile,
  key: string,
  values: Float32Array | Float64Array,
  shape: readonly number[],
  remedy: string,
): void {
  const at = values.findIndex((value) => !Number.isFinite(value)), [, n] = shape;
  if (at < 0) return;
  const place = n === undefined ? [at] : [Math.floor(at / n), at % n];
  throw refusal(npz, `"${key}" holds ${values[at]} at [${place.join(", ")}]; ${remedy}`);
}

const KINDS: Readonly<Record<string, string>> = { u: "uint", i: "int", f: "float" };

/** "float32 [8, 16, 16, 3]" */
export function describedArray({ kind, shape }: Pick<NpyHeader, "kind" | "shape">): string {
  const name = KINDS[kind.charAt(0)];
  const dtype = name ? `${name}${8 * Number(kind.slice(1))}` : kind === "b1" ? "bool" : kind;
  return `${dtype} [${shape.join(", ")}]`;
}

export function refusal(npz: NpzFile, reason: string): UsageError {
  return new UsageError(`Cannot score "${npz.name}": ${reason}`);
}
