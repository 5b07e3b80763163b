// Measures which GEMM tiles are fast on this adapter, once; the rates are remembered in the user's cache folder and replace the
// built-in ones (ops/gemm_tiles.ts). A tile changes no bit, so neither does a lost file.

import { dirname, join } from "@std/path";
import { z } from "zod";
import metadata from "../../deno.json" with { type: "json" };
import { grad } from "../tensor/autograd.ts";
import { UsageError } from "../errors.ts";
import { type AdapterFacts, device, type Profile } from "../gpu/device.ts";
import { capture } from "../gpu/program.ts";
import { cacheFolder } from "../formats/cache.ts";
import { exists, makeFolder, readJson, validated, writeJson } from "../formats/files.ts";
import { conv2d } from "../ops/conv.ts";
import {
  type GemmKind,
  type Machine,
  onlyTile,
  thisMachine,
  type Tile,
  tileKey,
  tilesPerGroup,
  tilesWithin,
  type TileTable,
  useTiles,
} from "../ops/gemm_tiles.ts";
import { matmul } from "../ops/matmul.ts";
import { input, type Shape, type Tensor } from "../tensor/tensor.ts";
import { timesOf } from "./peak.ts";

const fileSchema = z.strictObject({
  adapters: z.record(
    z.string(),
    z.record(z.string(), z.strictObject({ rate: z.number().positive(), slots: z.number().int().positive() })),
  ),
});

/** The file that remembers, in tok's cache folder. */
export function tilesFile(...system: Parameters<typeof cacheFolder>): string {
  return join(cacheFolder(...system), "tiles.json");
}

/** What rates belong to: the adapter, the kernels, and the version of tok that has them. */
export function adapterKey(
  { vendor, description }: Pick<AdapterFacts, "vendor" | "description">,
  profile: Profile,
): string {
  return [vendor, description, profile, `tok ${metadata.version}`].join(" | ");
}

/** The rates remembered for `key`. A damaged file counts as none, and `warn` is told. */
export function rememberedTiles(
  path: string,
  key: string,
  warn: (text: string) => void,
): TileTable | undefined {
  return readAll(path, warn)[key];
}

/** Remembers rates next to those of other adapters. @throws UsageError when the file cannot be written */
export function rememberTiles(path: string, key: string, table: TileTable): void {
  makeFolder(dirname(path));
  writeJson(path, { adapters: { ...readAll(path, () => {}), [key]: table } });
}

function readAll(path: string, warn: (text: string) => void): Record<string, TileTable> {
  try {
    return exists(path) ? validated(fileSchema, readJson(path), path).adapters : {};
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    warn(`${error.message}; measured rates of tiles are forgotten, "tok doctor --tune" measures them again`);
    return {};
  }
}

/** Uses the rates remembered for the open device, or measures them, as `tune` says. @returns measured rates in use */
export async function prepareTiles(
  tune: "never" | "once" | "again",
  { line, warn }: { line: (text: string) => void; warn: (text: string) => void },
  path: string = tilesFile(),
  measure: () => Promise<TileTable> = () => measureTiles(),
): Promise<TileTable | undefined> {
  const { facts, profile } = device(), key = adapterKey(facts, profile);
  let table = rememberedTiles(path, key, warn);
  if (tune === "again" || (tune === "once" && !table)) {
    const began = performance.now();
    table = await measure();
    line(
      `tuned GEMM tiles for this adapter in ${((performance.now() - began) / 1000).toFixed(1)} s ("${path}")`,
    );
    try {
      rememberTiles(path, key, table);
    } catch (error) {
      if (!(error instanceof UsageError)) throw error;
      warn(error.message);
    }
  }
  useTiles(table ?? {});
  return table;
}

/** Sizes to measure at: enough tiles of every size to fill the adapter, no padding, some milliseconds. */
export function tuningSizes(): { S: number; map: Shape; channels: number } {
  const { profile, facts } = device();
  if (profile === "cpu") return { S: 480, map: [1, 24, 24], channels: 480 };
  return facts.software
    ? { S: 256, map: [1, 16, 16], channels: 64 }
    : { S: 2048, map: [16, 64, 64], channels: 128 };
}

/** Rates of GEMMs (of every kind, or of one) in every tile, and how many workgroups of a tile run at once. */
export async function measureTiles(only?: GemmKind): Promise<TileTable> {
  const machine = thisMachine(), { profile } = machine;
  const { S, map, channels } = tuningSizes();
  const square: Shape = [S, S], x: Shape = [...map, channels], w: Shape = [channels, 3, 3, channels];
  const convolve = (a: Tensor, b: Tensor) => conv2d(a, b, undefined, { padding: 1 });
  const gradient = (wrt: 0 | 1) => (a: Tensor, b: Tensor, dy: Tensor) => {
    const leaf = [a, b][wrt] as Tensor;
    leaf.requiresGrad = true;
    return grad(convolve(a, b), [leaf], dy)[0] as Tensor;
  };
  const cases: [GemmKind, Shape[], (a: Tensor, b: Tensor, dy: Tensor) => Tensor][] = [
    ["nn", [square, square], (a, b) => matmul(a, b)],
    ["nt", [square, square], (a, b) => matmul(a, b, { transposeB: true })],
    ["tn", [square, square], (a, b) => matmul(a, b, { transposeA: true })],
    ["conv", [x, w], convolve],
    ["conv_dx", [x, w, x], gradient(0)],
    ["conv_dweight", [x, w, x], gradient(1)],
  ];
  const table: Record<string, { rate: number; slots: number }> = {};
  try {
    for (const tile of tilesWithin(machine)) {
      useTiles(onlyTile(profile, tile));
      const rates = new Map<GemmKind, number>();
      for (const [kind, shapes, fn] of cases) {
        if (kind === "nn" || kind === (only ?? kind)) rates.set(kind, await rateOf(shapes, fn));
      }
      rates.set("tt", rates.get("tn") ?? rates.get("nn") as number);
      const slots = Math.max(1, Math.round((rates.get("nn") as number) / await rateOfOne(machine, tile)));
      for (const [kind, rate] of rates) table[tileKey(profile, kind, tile)] = { rate, slots };
    }
  } finally {
    useTiles({});
  }
  return table;
}

/** GFLOP/s of one workgroup alone. The fixed cost of a run is subtracted. */
async function rateOfOne(machine: Machine, [M, N]: Tile): Promise<number> {
  const count = tilesPerGroup(machine);
  const time = (K: number) => timeOfCase([[count, M, K], [count, K, N]], (a, b) => matmul(a, b));
  const few = await time(16), many = await time(240);
  return 2 * M * N * (240 - 16) * count / Math.max(1e-6, many.ms - few.ms) / 1e6;
}

async function rateOf(shapes: Shape[], fn: (a: Tensor, b: Tensor, dy: Tensor) => Tensor): Promise<number> {
  const { ms, flops } = await timeOfCase(shapes, fn);
  return flops / Math.max(1e-6, ms) / 1e6;
}

async function timeOfCase(shapes: Shape[], fn: (a: Tensor, b: Tensor, dy: Tensor) => Tensor) {
  const inputs = Object.fromEntries(shapes.map((shape, i) => [`x${i}`, input(shape)]));
  const program = await capture("tuning", inputs, (t) => ({
    y: fn(t.x0 as Tensor, t.x1 as Tensor, t.x2 as Tensor),
  })).prepare();
  try {
    const [ms] = await timesOf((runs) => program.repeat(runs), 30, 3);
    return { ms: ms as number, flops: program.plan.flops };
  } finally {
    program.destroy();
  }
}
