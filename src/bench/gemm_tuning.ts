// Measures which GEMM tiles are fast on this adapter, once; the rates are remembered in the user's cache folder and replace the
// built-in ones (ops/gemm_tiles.ts). A tile changes no bit. Under fp16 on a device with subgroup matrices the rates also choose
// between them and the ordinary kernels, which round differently: another file may change the bits of a new run, not of a resumed
// one.

import { dirname, join } from "@std/path";
import { z } from "zod";
import metadata from "../../deno.json" with { type: "json" };
import { grad } from "../tensor/autograd.ts";
import { UsageError } from "../errors.ts";
import { type AdapterFacts, device, type Profile } from "../gpu/device.ts";
import { capture, makePipelines } from "../gpu/program.ts";
import { within } from "../gpu/scope.ts";
import { cacheFolder } from "../formats/cache.ts";
import { exists, makeFolder, readJson, validated, writeJson } from "../formats/files.ts";
import { conv2d } from "../ops/conv.ts";
import {
  fastestTiles,
  fp16Key,
  GEMM_KINDS,
  type GemmKind,
  isFasterByMatrices,
  type Machine,
  matricesInUse,
  onlyTile,
  ordinaryRate,
  thisMachine,
  type Tile,
  tileKey,
  tilesPerGroup,
  tilesWithin,
  type TileTable,
  useTiles,
  withoutMatrices,
} from "../ops/gemm_tiles.ts";
import { matmul } from "../ops/matmul.ts";
import { input, type Precision, type Shape, type Tensor } from "../tensor/tensor.ts";
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
  { vendor, description, device = "" }: Pick<AdapterFacts, "vendor" | "description" | "device">,
  profile: Profile,
): string {
  // Cards share a driver.
  const adapter = description.includes(device) ? description : `${description} ${device}`;
  return [vendor, adapter, profile, `tok ${metadata.version}`].join(" | ");
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

/** What was measured, in words: the fastest tile of each kind, and how matrices compare with the ordinary kernels in fp16. */
export function describeTiles(table: TileTable): { tiles: string; fp16?: string } {
  const tiles: string[] = [], matrices: string[] = [], others: string[] = [];
  const text = ({ tile, rate }: { tile: Tile; rate: number }) =>
    `${tile.join("x")} ${rate.toFixed(1)} GFLOP/s`;
  for (const kind of GEMM_KINDS) {
    const [plain] = [...fastestTiles(table, "cpu", kind), ...fastestTiles(table, "gpu", kind)];
    const [matrix] = fastestTiles(table, "matrix", kind), rate = ordinaryRate(table, kind)?.toFixed(1);
    if (plain) tiles.push(`${kind} ${text(plain)}`);
    if (!matrix) continue;
    if (!isFasterByMatrices(kind, table)) others.push(`${kind} ${rate} GFLOP/s (matrices ${text(matrix)})`);
    else matrices.push(`${kind} ${text(matrix)}${rate === undefined ? "" : ` (ordinary kernels ${rate})`}`);
  }
  const fp16 = [
    ...matrices.length ? [`by matrices ${matrices.join(", ")}`] : [],
    ...others.length ? [`by the ordinary kernels ${others.join(", ")}`] : [],
  ].join("; ");
  return { tiles: tiles.join(", "), ...fp16 ? { fp16 } : {} };
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
  const isKnown = table &&
    (!matricesInUse() || Object.keys(table).some((name) => name.startsWith("matrix ")));
  if (tune === "again" || (tune === "once" && !isKnown)) {
    const began = performance.now();
    table = await measure();
    const took = `${((performance.now() - began) / 1000).toFixed(1)} s`;
    try {
      rememberTiles(path, key, table);
      line(`tuned GEMM tiles for this adapter in ${took} ("${path}")`);
    } catch (error) {
      if (!(error instanceof UsageError)) throw error;
      line(`tuned GEMM tiles for this adapter in ${took}`);
      warn(`${error.message}; the measured rates are used now and not remembered`);
    }
  }
  useTiles(table ?? {});
  return table;
}

/**
 * Sizes to measure at: enough tiles of every size to fill the adapter, no padding, some milliseconds. In fp16 they are those of
 * subgroup matrices, for the ordinary kernels too: the two are compared.
 */
export function tuningSizes(precision: Precision): { S: number; map: Shape; channels: number; few: number } {
  const { profile, facts } = device();
  if (profile === "cpu") return { S: 480, map: [1, 24, 24], channels: 480, few: 96 };
  return facts.software
    ? { S: 256, map: [1, 16, 16], channels: 64, few: 64 }
    : { S: precision === "f16" ? 4096 : 2048, map: [16, 64, 64], channels: 128, few: 128 };
}

type Operation = (a: Tensor, b: Tensor, dy: Tensor) => Tensor;
/** A GEMM of a kind: shapes of its operands, and the op. */
type Case = readonly [GemmKind, readonly Shape[], Operation];

/** Every kind of GEMM, those of most training steps first. K of the convolutions is 9 times the few channels. */
function tuningCases(precision: Precision, only: GemmKind | undefined): Case[] {
  const { S, map, channels, few } = tuningSizes(precision);
  const square: Shape = [S, S], many: Shape = [...map, channels], fewer: Shape = [...map, few];
  const convolve = (a: Tensor, b: Tensor) => conv2d(a, b, undefined, { padding: 1 });
  const gradient = (wrt: 0 | 1) => (a: Tensor, b: Tensor, dy: Tensor) => {
    const leaf = [a, b][wrt] as Tensor;
    leaf.requiresGrad = true;
    return grad(convolve(a, b), [leaf], dy)[0] as Tensor;
  };
  const cases: Case[] = [
    ["nn", [square, square], (a, b) => matmul(a, b)],
    ["nt", [square, square], (a, b) => matmul(a, b, { transposeB: true })],
    ["tn", [square, square], (a, b) => matmul(a, b, { transposeA: true })],
    ["conv", [fewer, [channels, 3, 3, few]], convolve],
    ["conv_dx", [many, [few, 3, 3, channels], fewer], gradient(0)],
    ["conv_dweight", [many, [few, 3, 3, channels], fewer], gradient(1)],
  ];
  return cases.filter(([kind]) => kind === "nn" || kind === (only ?? kind));
}

/** Milliseconds that tuning a software adapter takes at most, but for the last kernels: almost all of it is compilation. */
const BUDGET = 25_000;

/** Time that measuring may take. */
interface Clock {
  /** When a software adapter compiles no more kernels. */
  readonly until: number;
  /** Milliseconds per output of a kernel's tile, once that is known. */
  cost?: number;
}

/**
 * Rates of GEMMs in every tile, and how many workgroups of a tile run at once. Where subgroup matrices are in use, also of theirs,
 * and of the ordinary kernels in fp16 to compare them with.
 * @param options.only one kind (and the kind nn)
 * @param options.budget milliseconds after which a software adapter compiles no more kernels [25,000]; a kind without a rate in a
 * tile keeps the built-in one (ops/gemm_tiles.ts)
 */
export async function measureTiles(
  { only, budget = BUDGET }: { only?: GemmKind; budget?: number } = {},
): Promise<TileTable> {
  const began = performance.now();
  const clock = (share: number): Clock => ({ until: began + share * budget });
  try {
    useTiles({});
    if (!thisMachine("nn").unit) return await measureBackend("f32", clock(1), only);
    const table = {
      ...await measureBackend("f32", clock(1 / 3), only),
      ...await measureBackend("f16", clock(2 / 3), only),
    };
    useTiles(table);
    const rates = await ratesUntil(clock(1), "f16", only, withoutMatrices);
    for (const [kind, rate] of Object.entries(withTt(rates, only))) {
      table[fp16Key(kind as GemmKind)] = { rate, slots: 1 };
    }
    return table;
  } finally {
    useTiles({});
  }
}

/** The table of the backend that GEMMs of a precision have on the open device. */
async function measureBackend(
  precision: Precision,
  clock: Clock,
  only: GemmKind | undefined,
): Promise<Record<string, { rate: number; slots: number }>> {
  const { facts: { software } } = device();
  const machine = thisMachine(precision === "f16" ? "nn" : undefined), { profile } = machine;
  // The smallest tile compiles in a third of the time of the largest, which follows because the built-in rates prefer it.
  const [smallest, ...others] = tilesWithin(machine);
  const tiles = [smallest as Tile, ...software ? others.reverse() : others];
  const table: Record<string, { rate: number; slots: number }> = {};
  for (const tile of tiles) {
    useTiles(onlyTile(profile, tile));
    const rates = await ratesUntil(clock, precision, only, (fn) => fn(), tile[0] * tile[1]), { nn } = rates;
    if (nn === undefined) break;
    // A software adapter runs one workgroup per processor.
    const slots = software
      ? navigator.hardwareConcurrency
      : Math.max(1, Math.round(nn / await rateOfOne(machine, tile, precision)));
    for (const [kind, rate] of Object.entries(withTt(rates, only))) {
      table[tileKey(profile, kind as GemmKind, tile)] = { rate, slots };
    }
  }
  return table;
}

type Rates = Partial<Record<GemmKind, number>>;

/** A^T B^T is not measured: it is as fast as A^T B. */
const withTt = (rates: Rates, only: GemmKind | undefined): Rates => {
  const tt = rates.tn ?? (only && rates.nn);
  return tt === undefined ? rates : { ...rates, tt };
};

/** GFLOP/s by kind, of as many cases as fit into the time that is left. @param outputs of a kernel's tile */
async function ratesUntil(
  clock: Clock,
  precision: Precision,
  only: GemmKind | undefined,
  around: Around,
  outputs = 1,
): Promise<Rates> {
  const rates: Rates = {}, { facts: { software } } = device(), cases = tuningCases(precision, only);
  for (let at = 0, fit; at < cases.length; at += fit) {
    const from = performance.now(), left = clock.until - from, { cost } = clock;
    fit = !software ? cases.length : cost === undefined ? 1 : Math.floor(left / (cost * outputs));
    const chosen = cases.slice(at, at + fit);
    if (!(fit >= 1)) break;
    Object.assign(rates, await ratesOf(chosen, precision, around));
    clock.cost = (performance.now() - from) / chosen.length / outputs;
  }
  return rates;
}

/** How a program is captured. */
type Around = <T>(capture: () => T) => T;

/** GFLOP/s by kind. The kernels are compiled together, which uses two processors of a software adapter. */
async function ratesOf(cases: readonly Case[], precision: Precision, around: Around): Promise<Rates> {
  const programs = cases.map(([kind, shapes, fn]) =>
    [kind, around(() => programOf(shapes, fn, precision))] as const
  );
  const rates: Rates = {};
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
async function rateOfOne(machine: Machine, [M, N]: Tile, precision: Precision): Promise<number> {
  const count = tilesPerGroup(machine);
  const time = async (K: number) => {
    const program = programOf([[count, M, K], [count, K, N]], (a, b) => matmul(a, b), precision);
    return await timeOf(program).finally(() => program.destroy());
  };
  const few = await time(16), many = await time(240);
  return 2 * M * N * (240 - 16) * count / Math.max(1e-6, many.ms - few.ms) / 1e6;
}

function programOf(shapes: readonly Shape[], fn: Operation, precision: Precision) {
  const inputs = Object.fromEntries(shapes.map((shape, i) => [`x${i}`, input(shape, precision)]));
  return capture("tuning", inputs, (t) => ({
    y: within({ precision }, () => fn(t.x0 as Tensor, t.x1 as Tensor, t.x2 as Tensor)),
  }));
}

async function timeOf(program: ReturnType<typeof programOf>): Promise<{ ms: number; flops: number }> {
  await program.prepare();
  const [ms] = await timesOf((runs) => program.repeat(runs), 30, 3);
  return { ms: ms as number, flops: program.plan.flops };
}
