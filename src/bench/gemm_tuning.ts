// Measures which GEMM tiles are fast on this adapter, once; the rates are remembered in the user's cache folder and replace the
// built-in ones (ops/gemm_tiles.ts). A tile changes no bit, so neither does a lost file.

import { dirname, join } from "@std/path";
import { z } from "zod";
import metadata from "../../deno.json" with { type: "json" };
import { grad } from "../tensor/autograd.ts";
import { UsageError } from "../errors.ts";
import { type AdapterFacts, device, type Profile } from "../gpu/device.ts";
import { capture, makePipelines } from "../gpu/program.ts";
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
export function tuningSizes(): { S: number; map: Shape; channels: number; few: number } {
  const { profile, facts } = device();
  if (profile === "cpu") return { S: 480, map: [1, 24, 24], channels: 480, few: 96 };
  return facts.software
    ? { S: 256, map: [1, 16, 16], channels: 64, few: 64 }
    : { S: 2048, map: [16, 64, 64], channels: 128, few: 128 };
}

type Operation = (a: Tensor, b: Tensor, dy: Tensor) => Tensor;
/** A GEMM of a kind: shapes of its operands, and the op. */
type Case = readonly [GemmKind, readonly Shape[], Operation];

/** Every kind of GEMM, those of most training steps first. K of the convolutions is 9 times the few channels. */
function tuningCases(): Case[] {
  const { S, map, channels, few } = tuningSizes();
  const square: Shape = [S, S], many: Shape = [...map, channels], fewer: Shape = [...map, few];
  const convolve = (a: Tensor, b: Tensor) => conv2d(a, b, undefined, { padding: 1 });
  const gradient = (wrt: 0 | 1) => (a: Tensor, b: Tensor, dy: Tensor) => {
    const leaf = [a, b][wrt] as Tensor;
    leaf.requiresGrad = true;
    return grad(convolve(a, b), [leaf], dy)[0] as Tensor;
  };
  return [
    ["nn", [square, square], (a, b) => matmul(a, b)],
    ["nt", [square, square], (a, b) => matmul(a, b, { transposeB: true })],
    ["tn", [square, square], (a, b) => matmul(a, b, { transposeA: true })],
    ["conv", [fewer, [channels, 3, 3, few]], convolve],
    ["conv_dx", [many, [few, 3, 3, channels], fewer], gradient(0)],
    ["conv_dweight", [many, [few, 3, 3, channels], fewer], gradient(1)],
  ];
}

/** Milliseconds that tuning a software adapter takes at most, but for the last kernel: almost all of it is compilation. */
const BUDGET = 25_000;

/**
 * Rates of GEMMs in every tile, and how many workgroups of a tile run at once.
 * @param options.only one kind (and the kind nn)
 * @param options.budget milliseconds after which a software adapter compiles no more kernels [25,000]; a kind without a rate in a
 * tile keeps the built-in one (ops/gemm_tiles.ts)
 */
export async function measureTiles(
  { only, budget = BUDGET }: { only?: GemmKind; budget?: number } = {},
): Promise<TileTable> {
  const machine = thisMachine(), { profile } = machine, { facts: { software } } = device();
  const cases = tuningCases().filter(([kind]) => kind === "nn" || kind === (only ?? kind));
  // The smallest tile compiles in a third of the time of the largest, which follows because the built-in rates prefer it.
  const [smallest, ...others] = tilesWithin(machine);
  const tiles = [smallest as Tile, ...software ? others.reverse() : others];
  const table: Record<string, { rate: number; slots: number }> = {};
  const began = performance.now();
  /** Milliseconds per output of a kernel's tile. */
  let cost: number | undefined;
  try {
    for (const tile of tiles) {
      useTiles(onlyTile(profile, tile));
      const rates: Partial<Record<GemmKind, number>> = {}, outputs = tile[0] * tile[1];
      for (let at = 0, fit; at < cases.length; at += fit) {
        const from = performance.now(), left = budget - (from - began);
        fit = !software ? cases.length : cost === undefined ? 1 : Math.floor(left / (cost * outputs));
        const chosen = cases.slice(at, at + fit);
        if (!(fit >= 1)) break;
        Object.assign(rates, await ratesOf(chosen));
        cost = (performance.now() - from) / chosen.length / outputs;
      }
      const { nn, tn } = rates;
      if (nn === undefined) break;
      if (tn !== undefined || only) rates.tt = tn ?? nn;
      // A software adapter runs one workgroup per processor.
      const slots = software
        ? navigator.hardwareConcurrency
        : Math.max(1, Math.round(nn / await rateOfOne(machine, tile)));
      for (const [kind, rate] of Object.entries(rates)) {
        table[tileKey(profile, kind as GemmKind, tile)] = { rate, slots };
      }
    }
  } finally {
    useTiles({});
  }
  return table;
}

/** GFLOP/s by kind. The kernels are compiled together, which uses two processors of a software adapter. */
async function ratesOf(cases: readonly Case[]): Promise<Partial<Record<GemmKind, number>>> {
  const programs = cases.map(([kind, shapes, fn]) => [kind, programOf(shapes, fn)] as const);
  const rates: Partial<Record<GemmKind, number>> = {};
  try {
    await makePipelines(programs.flatMap(([, { plan }]) => plan.launches));
    for (const [kind, program] of programs) {
      const { ms, flops } = await timeOf(program);
      rates[kind] = flops / Math.max(1e-6, ms) / 1e6;
    }
  } finally {
    for (const [, program] of programs) program.destroy();
  }
  return rates;
}

/** GFLOP/s of one workgroup alone. The fixed cost of a run is subtracted. */
async function rateOfOne(machine: Machine, [M, N]: Tile): Promise<number> {
  const count = tilesPerGroup(machine);
  const time = async (K: number) => {
    const program = programOf([[count, M, K], [count, K, N]], (a, b) => matmul(a, b));
    return await timeOf(program).finally(() => program.destroy());
  };
  const few = await time(16), many = await time(240);
  return 2 * M * N * (240 - 16) * count / Math.max(1e-6, many.ms - few.ms) / 1e6;
}

function programOf(shapes: readonly Shape[], fn: Operation) {
  const inputs = Object.fromEntries(shapes.map((shape, i) => [`x${i}`, input(shape)]));
  return capture("tuning", inputs, (t) => ({ y: fn(t.x0 as Tensor, t.x1 as Tensor, t.x2 as Tensor) }));
}

async function timeOf(program: ReturnType<typeof programOf>): Promise<{ ms: number; flops: number }> {
  await program.prepare();
  const [ms] = await timesOf((runs) => program.repeat(runs), 30, 3);
  return { ms: ms as number, flops: program.plan.flops };
}
