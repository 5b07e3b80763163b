// Which tile a matrix product is cut into, and into how many parts its K is cut. Every tile adds up an output in the same
// order of K, so the choice changes speed and never a bit; the parts of K do change bits, and depend on the shape alone
// (in batch-invariant programs not on the number of images; see nominalImages).
//
// The rule: workgroups come in rounds of as many as the adapter runs at once, and each takes as long as its tile is large
// and the tile's rate is low, padding included: 257 rows make 272 of 16, 264 of 24, 288 of 32. The rates below were measured; tuning
// (bench/gemm_tuning.ts) measures an adapter's own and puts them here.

import { type GemmSource, GPU_DEPTH, gpuTileBytes } from "../../kernels/gemm.ts";
import { device, type Profile } from "../gpu/device.ts";
import { scope } from "../gpu/scope.ts";

/** Rows and columns of C that a lane (cpu) or a workgroup (gpu) owns. */
export type Tile = readonly [number, number];

/** A family of products that load in the same way. */
export type GemmKind = "nn" | "nt" | "tn" | "tt" | "conv" | "conv_dx" | "conv_dweight";

/** What the choice goes by. */
export interface GemmShape {
  kind: GemmKind;
  M: number;
  N: number;
  /** Depth of one part of K. */
  K: number;
  /** Matrices in the batch, times the parts that K is cut into. */
  count: number;
  /** Loads go four at a time. */
  vector: boolean;
  /** A convolution that shares loads between its taps. */
  tapsInside?: boolean;
}

/** What the choice knows of the adapter and of the program. */
export interface Machine {
  profile: Profile;
  /** Lanes of a software adapter's workgroup. */
  lanes: number;
  /** Bytes of workgroup memory. */
  storage: number;
  /** How often the program will run. */
  runs: number;
}

/** The open device and the program that is being captured, as the choice sees them. */
export function thisMachine(): Machine {
  const { profile, lanes, limits } = device();
  return { profile, lanes, storage: limits.maxComputeWorkgroupStorageSize, runs: scope().runs };
}

/** How fast a tile is once the adapter is full, in GFLOP/s or any one unit, and how many workgroups fill the adapter. */
export interface TileRate {
  rate: number;
  slots: number;
}

/** Measured rates by `tileKey`; what is missing goes by the built-in ones. */
export type TileTable = Readonly<Record<string, TileRate>>;

/** The tiles to choose from. More would each cost compilation, 1 to 5 s on a software adapter. */
export const TILES: Readonly<Record<Profile, readonly Tile[]>> = {
  cpu: [[16, 16], [24, 24], [32, 16], [32, 20]],
  gpu: [[64, 64], [128, 64], [64, 128], [128, 128]],
};

// cpu: GFLOP/s of two cores with llvmpipe, 512 bits and operands in textures, by tile in the order of TILES: products of 256
// to 4096 numbers a side, shapes and tiles in turn with each other; convolutions as `tok doctor --tune` measures them, the
// middle of four times. Loads go with the sum of a tile's sides and arithmetic with their product, but outputs and operands
// beyond the first cache (48 KiB a core, 640 outputs of 16 lanes are 40) lose what that saves. The machine's speed changed by a
// third meanwhile: differences below a twentieth say little. gpu: TFLOP/s of an H100 at 4096, and how many workgroups are as
// fast together as they are alone.
const CPU_RATES: Readonly<Record<GemmKind, readonly number[]>> = {
  nn: [66, 72, 70, 78],
  nt: [66, 70, 71, 75],
  tn: [66, 70, 62, 66],
  tt: [66, 70, 62, 66],
  conv: [63, 70, 68, 73],
  conv_dx: [50, 55, 58, 64],
  conv_dweight: [65, 76, 73, 76],
};
const GPU_RATES = [31, 39, 39, 45];
const GPU_SLOTS = [155, 134, 140, 132];

/** Multiply-adds of a product over all runs (3 s of two cores) from which a software adapter may use large tiles. */
const LARGE = 90e9;

/**
 * Whether a convolution walks the taps of a kernel row inside its channels (GemmSpec.tapsInside): where few channels would
 * leave little between two taps. Changes bits, and so depends on nothing else: not on the batch.
 */
export function sharesTaps(channels: number): boolean {
  return channels <= 32;
}

let table: TileTable = {};

/** Puts measured rates in the place of the built-in ones, for what is captured from now on. */
export function useTiles(measured: TileTable): void {
  table = measured;
}

export function tileKey(profile: Profile, kind: GemmKind, [m, n]: Tile): string {
  return `${profile} ${kind} ${m}x${n}`;
}

/** A table by which every product gets `tile`: to measure it, or to compare it. */
export function onlyTile(profile: Profile, tile: Tile): TileTable {
  const kinds = Object.keys(CPU_RATES) as GemmKind[];
  return Object.fromEntries(kinds.map((kind) => [tileKey(profile, kind, tile), { rate: 1e12, slots: 1 }]));
}

export function kindOf(source: GemmSource): GemmKind {
  if (source.kind !== "plain") return source.kind;
  return `${source.transposeA ? "t" : "n"}${source.transposeB ? "t" : "n"}`;
}

/** Tiles that a workgroup owns: one a lane on a software adapter. */
export function tilesOfGroup({ profile, lanes }: Machine): number {
  return profile === "cpu" ? lanes : 1;
}

/** The tiles of TILES that an adapter has room for. */
export function tilesWithin({ profile, storage }: Machine): readonly Tile[] {
  return TILES[profile].filter((tile) => profile === "cpu" || gpuTileBytes(tile) <= storage);
}

function candidates(machine: Machine, { M, N, vector, tapsInside }: GemmShape): readonly Tile[] {
  if (machine.profile === "gpu") return tilesWithin(machine);
  if (N <= 4) return [[16, 4]];
  if (M <= 4) return [[4, 16]];
  // Loads of single numbers take all the time there is: larger tiles only waste more of it at the edges. And a larger tile
  // has no registers left to pass between taps.
  return vector && !tapsInside ? TILES.cpu : [[16, 16]];
}

/** The tile that takes the least time by the rule. */
export function chooseTile(machine: Machine, shape: GemmShape): Tile {
  const all = candidates(machine, shape);
  const times = all.map((tile) => time(machine, shape, tile));
  return all[times.indexOf(Math.min(...times))] as Tile;
}

function time(machine: Machine, { kind, M, N, K, count }: GemmShape, tile: Tile): number {
  const { profile, runs } = machine;
  const tiles = Math.ceil(M / tile[0]) * Math.ceil(N / tile[1]) * count;
  const lanes = tilesOfGroup(machine);
  const measured = table[tileKey(profile, kind, tile)];
  // A larger tile is a tenth faster, of large products a third, but compiles for 3 to 5 s, 16x16 for 1 to 2: what is small
  // or runs seldom does not earn that back.
  const small = M * N * K * count * runs < LARGE;
  if (profile === "cpu" && !measured && small && tile[0] * tile[1] > 256) return Infinity;
  const { rate, slots } = measured ?? builtIn(profile, kind, tile);
  const rounds = Math.ceil(Math.ceil(tiles / lanes) / slots);
  return rounds * slots * lanes * tile[0] * tile[1] / rate;
}

function builtIn(profile: Profile, kind: GemmKind, [m, n]: Tile): TileRate {
  const at = TILES[profile].findIndex(([a, b]) => a === m && b === n);
  if (profile === "cpu") return { rate: CPU_RATES[kind][at] ?? 1, slots: 2 };
  return { rate: GPU_RATES[at] ?? 1, slots: GPU_SLOTS[at] ?? 1 };
}

/**
 * K's that one accumulator sums at most. Rounding errors grow with the square root of it, to 1.5e-6 of a sum of random numbers,
 * and a thread's loop stays within MAX_ITERATIONS (iterations.ts), which needs four K's an iteration or more.
 */
export const MAX_DEPTH = 8192;

/**
 * How deep the parts are that K is cut into, so that a product with few outputs still fills the machine: K itself where
 * there are outputs enough and K is at most MAX_DEPTH. Parts are multiples of 16, and counted in tiles of one size whatever
 * tile is chosen.
 */
export function splitDepth(profile: Profile, M: number, N: number, K: number, count: number): number {
  const [side, wanted, least] = profile === "cpu" ? [16, 64, 128] : [128, 264, 128];
  const tiles = Math.ceil(M / side) * Math.ceil(N / side) * count;
  const splits = Math.max(
    Math.ceil(K / MAX_DEPTH),
    tiles >= wanted ? 1 : Math.min(Math.floor(wanted / tiles), Math.floor(K / least)),
  );
  return splits === 1 ? K : Math.ceil(K / splits / GPU_DEPTH) * GPU_DEPTH;
}
