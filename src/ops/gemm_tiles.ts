// How a GEMM runs: by subgroup matrices or the ordinary kernels, in which tile, and its split-K; and the throughputs that decide.
// Every tile of a backend sums over K in the same order, so the tile changes speed and never a bit. Split-K does change bits, and
// depends on the shape alone (in batch-invariant programs not on the number of images; see nominalImages). Matrices change bits too:
// the kind of a GEMM decides whether it uses them, never its shape, and a resumed run keeps its kinds (train/run.ts).
//
// Cost model: workgroups run in waves; a wave takes tile area / throughput, padding included (257 rows are 272 in tiles of
// 16, 264 of 24, 288 of 32). The built-in throughputs are below; bench/gemm_tuning.ts measures an adapter's own.

import {
  cpuGroups,
  type GemmSource,
  GPU_TILE_K,
  gpuTileBytes,
  matrixSplitUnit,
  matrixTileBytes,
  type MatrixUnit,
} from "../../kernels/gemm.ts";
import { type Device, device, type Profile } from "../gpu/device.ts";
import { scope } from "../gpu/scope.ts";

/** The generators of kernels/gemm.ts: the device's profile, or subgroup matrices. */
export type GemmBackend = Profile | "matrix";

/** Rows and columns of C that a thread (cpu) or a workgroup (gpu) owns. */
export type Tile = readonly [number, number];

/** GEMMs that load their operands in the same way. */
export type GemmKind = "nn" | "nt" | "tn" | "tt" | "conv" | "conv_dx" | "conv_dweight";

/** The problem, as the cost model sees it. */
export interface GemmShape {
  kind: GemmKind;
  M: number;
  N: number;
  /** Length of one split of K. */
  K: number;
  /** Matrices in the batch, times the splits of K. */
  count: number;
  /** Loads are vec4s. */
  vector: boolean;
  /** A convolution that keeps inputs in registers from tap to tap (kernels/gemm_cpu.ts). */
  kxInner?: boolean;
}

/** The adapter and the program, as the cost model sees them. */
export interface Machine {
  profile: GemmBackend;
  /** The adapter's subgroup matrices, where they are used. */
  unit?: MatrixUnit | undefined;
  /** Threads of a software adapter's workgroup. */
  threads: number;
  /** Loads of one address by all threads are scalar (gpu/software/prepare.ts). */
  scalarLoads?: boolean;
  /** Multiply-adds over all runs from which a tile larger than 16x16 earns back its compilation [90e9]. */
  largeTilesFrom?: number;
  /** The same of GEMMs without vec4 loads, in a tile larger than 4x4 [0]. */
  largeScalarTilesFrom?: number;
  /** Bytes of workgroup memory. */
  storage: number;
  /** How often the program will run. */
  runs: number;
}

/** The subgroup matrices that each device may use, and the kinds of GEMMs that do, where these are fixed. */
const matrices = new WeakMap<Device, { unit: MatrixUnit; kinds: readonly GemmKind[] | undefined }>();

/**
 * Runs GEMMs of fp16 operands by subgroup matrices on the open device, in profile gpu; undefined: no longer.
 * @param kinds those that use them [those that {@link isFasterByMatrices} chooses]
 */
export function useMatrices(unit: MatrixUnit | undefined, kinds?: readonly GemmKind[]): void {
  if (unit) matrices.set(device(), { unit, kinds });
  else matrices.delete(device());
}

/** Runs `fn`, which captures a program, without subgroup matrices. @param fn must be synchronous */
export function withoutMatrices<T>(fn: () => T): T {
  const used = matrices.get(device());
  matrices.delete(device());
  try {
    return fn();
  } finally {
    if (used) matrices.set(device(), used);
  }
}

/** The subgroup matrices in use on the open device. */
export const matricesInUse = (): MatrixUnit | undefined => matrices.get(device())?.unit;

/** The open device and the program that is being captured. @param fp16 kind of a GEMM whose operands are both fp16 */
export function thisMachine(fp16?: GemmKind): Machine {
  const { profile, simdWidth: threads, compiler, limits } = device();
  const used = fp16 && profile === "gpu" ? matrices.get(device()) : undefined;
  const unit = used && fp16 && (used.kinds?.includes(fp16) ?? isFasterByMatrices(fp16))
    ? used.unit
    : undefined;
  const storage = limits.maxComputeWorkgroupStorageSize;
  const profileInUse = unit ? "matrix" : profile, { runs } = scope();
  const { scalarLoads, largeTilesFrom, largeScalarTilesFrom } = compiler;
  return {
    profile: profileInUse,
    unit,
    threads,
    scalarLoads,
    largeTilesFrom,
    largeScalarTilesFrom,
    storage,
    runs,
  };
}

/** Throughput of a tile on a full adapter (in any one unit), and the number of workgroups that fill the adapter: a wave. */
type TileRate = { rate: number; slots: number };

/** Measured throughputs by `tileKey`; the built-in ones stand in for what is missing. */
export type TileTable = Readonly<Record<string, TileRate>>;

/** The tiles to choose from. Each costs compilation, 1 to 5 s on a software adapter. */
export const TILES: Readonly<Record<GemmBackend, readonly Tile[]>> = {
  cpu: [[16, 16], [24, 24], [32, 16], [32, 20]],
  gpu: [[64, 64], [128, 64], [64, 128], [128, 128]],
  matrix: [[32, 32], [64, 64], [128, 64], [64, 128], [128, 128]],
};

// cpu: GFLOP/s of llvmpipe on two cores (512-bit vectors, operands in textures), tiles in the order of TILES, GEMMs of 256 to
// 4096 a side; convolutions as `tok doctor --tune` measures them, median of four. Loads go with the sum of a tile's sides and
// arithmetic with their product, but outputs and operands beyond the L1 cache (48 KiB a core; 640 outputs of 16 threads are 40)
// lose that gain. Noise was a third: differences below 5 % say little. gpu: TFLOP/s of an H100 at 4096, and the number of
// workgroups that are as fast together as alone.
const CPU_RATES: Readonly<Record<GemmKind, readonly number[]>> = {
  nn: [66, 72, 70, 78],
  nt: [66, 70, 71, 75],
  tn: [66, 70, 62, 66],
  tt: [66, 70, 62, 66],
  conv: [63, 70, 68, 73],
  conv_dx: [50, 55, 58, 64],
  conv_dweight: [65, 76, 73, 76],
};
/** How much faster a GEMM with uniform A is, on llvmpipe of Mesa 26.2. */
const UNIFORM_GAIN = 1.2;
/** The kinds in which a row of tiles may read A at the same addresses; the others gather A at each thread's pixels. */
const UNIFORM_KINDS: readonly GemmKind[] = ["nn", "nt", "tn", "tt", "conv_dweight"];
const GPU_RATES = [31, 39, 39, 45];
// matrix: guesses. No GPU with subgroup matrices has been measured: the ratios are those of bytes staged per multiply-add.
const MATRIX_RATES = [60, 120, 150, 150, 180];
/** Workgroups that are as fast together as alone: one for each of two processors on llvmpipe. */
const SLOTS: Readonly<Record<GemmBackend, readonly number[]>> = {
  cpu: [2, 2, 2, 2],
  gpu: [155, 134, 140, 132],
  matrix: [528, 396, 264, 264, 264],
};

/** Multiply-adds of a GEMM over all runs (3 s of two cores) from which Mesa 22.3 may use large tiles. */
const LARGE = 90e9;

let table: TileTable = {};

/** Replaces the built-in throughputs by measured ones, for what is captured from now on. */
export function useTiles(measured: TileTable): void {
  table = measured;
}

export function tileKey(profile: GemmBackend, kind: GemmKind, [m, n]: Tile): string {
  return `${profile} ${kind} ${m}x${n}`;
}

/** Where a table has the rate of the ordinary gpu kernels for operands in fp16, in their best tile. */
export const fp16Key = (kind: GemmKind): string => `gpu ${kind} fp16`;

export const GEMM_KINDS = Object.keys(CPU_RATES) as readonly GemmKind[];

/** The measured tiles of a kind, fastest first. */
export function fastestTiles(measured: TileTable, backend: GemmBackend, kind: GemmKind) {
  return TILES[backend].flatMap((tile) => {
    const found = measured[tileKey(backend, kind, tile)];
    return found ? [{ tile, rate: found.rate }] : [];
  }).sort((a, b) => b.rate - a.rate);
}

/** The measured rate of the ordinary gpu kernels for operands in fp16; in fp32, where only that was measured. */
export const ordinaryRate = (measured: TileTable, kind: GemmKind): number | undefined =>
  measured[fp16Key(kind)]?.rate ?? fastestTiles(measured, "gpu", kind)[0]?.rate;

/**
 * Whether GEMMs of fp16 operands use subgroup matrices: unless these and the ordinary kernels were measured ({@link ordinaryRate})
 * and the ordinary ones were faster. The kind decides and not the shape: the two may differ by rounding, and results must not
 * depend on the size of a batch.
 */
export function isFasterByMatrices(kind: GemmKind, measured: TileTable = table): boolean {
  const [fastest] = fastestTiles(measured, "matrix", kind);
  return !fastest || fastest.rate > (ordinaryRate(measured, kind) ?? 0);
}

/** The kinds of fp16 GEMMs that use subgroup matrices on the open device, and those that do not; undefined without matrices. */
export function kindsByMatrices(): { matrix: GemmKind[]; ordinary: GemmKind[] } | undefined {
  if (!matricesInUse()) return undefined;
  const [matrix, ordinary] = [true, false].map((used) =>
    GEMM_KINDS.filter((kind) => (thisMachine(kind).unit !== undefined) === used)
  ) as [GemmKind[], GemmKind[]];
  return { matrix, ordinary };
}

/**
 * Lets the kinds of GEMMs that used matrices in the run that is resumed use them again, whatever was measured since.
 * @param saved its kinds: `matrix` of {@link kindsByMatrices}
 * @returns what is different nevertheless, in words
 */
export function resumeKinds(saved: readonly GemmKind[] | undefined): string | undefined {
  const unit = matricesInUse();
  if (unit && saved) return void useMatrices(unit, saved);
  const changed = saved ?? kindsByMatrices()?.matrix ?? [];
  if (!changed.length) return undefined;
  const by = unit ? "subgroup matrices, which the checkpoint does not record" : "the ordinary kernels";
  return `fp16 GEMMs (${changed.join(", ")}) by ${by}: their sums may round differently`;
}

/** A table by which every GEMM gets `tile`, one of TILES: to measure or compare it. */
export function onlyTile(profile: GemmBackend, tile: Tile): TileTable {
  const rate = ([m, n]: Tile) => m === tile[0] && n === tile[1] ? 1e12 : 1;
  return Object.fromEntries(
    GEMM_KINDS.flatMap((kind) =>
      TILES[profile].map((other) => [tileKey(profile, kind, other), { rate: rate(other), slots: 1 }])
    ),
  );
}

export function kindOf(source: GemmSource): GemmKind {
  if (source.kind !== "plain") return source.kind;
  return `${source.transposeA ? "t" : "n"}${source.transposeB ? "t" : "n"}`;
}

/** Tiles of a workgroup: one a thread on a software adapter. */
export function tilesPerGroup({ profile, threads }: Machine): number {
  return profile === "cpu" ? threads : 1;
}

/** The tiles of TILES that fit the adapter's workgroup memory and matrices. */
export function tilesWithin({ profile, unit, storage }: Machine): readonly Tile[] {
  const bytes = (tile: Tile) =>
    unit ? matrixTileBytes(tile, unit) : profile === "gpu" ? gpuTileBytes(tile) : 0;
  return TILES[profile].filter((tile) => bytes(tile) <= storage);
}

/** Multiply-adds over all runs of the program. */
const work = ({ M, N, K, count }: GemmShape, { runs }: Machine) => M * N * K * count * runs;

function candidates(machine: Machine, shape: GemmShape): readonly Tile[] {
  const { M, N, vector, kxInner } = shape;
  // Scalar loads dominate: larger tiles only waste more of them at the edges.
  if (machine.profile === "matrix" && !vector) return tilesWithin(machine).slice(0, 1);
  if (machine.profile !== "cpu") return tilesWithin(machine);
  if (!vector && work(shape, machine) < (machine.largeScalarTilesFrom ?? 0)) return [[4, 4]];
  if (N <= 4) return [[16, 4]];
  if (M <= 4) return [[4, 16]];
  // Scalar loads dominate here, too. And with kxInner, a larger tile has no registers left to keep inputs in.
  return vector && !kxInner ? TILES.cpu : [[16, 16]];
}

/** The tile of the least time by the cost model. */
export function chooseTile(machine: Machine, shape: GemmShape): Tile {
  const all = candidates(machine, shape);
  const times = all.map((tile) => time(machine, shape, tile));
  return all[times.indexOf(Math.min(...times))] as Tile;
}

/**
 * Whether all threads of a workgroup read A at the same addresses: where such loads are scalar, and a row of tiles leaves at most
 * an eighth of the threads idle.
 */
export function isUniformA(machine: Machine, { kind, N, vector }: GemmShape, [, TN]: Tile): boolean {
  const { profile, scalarLoads, threads } = machine, tiles = Math.ceil(N / TN);
  return profile === "cpu" && scalarLoads === true && vector && UNIFORM_KINDS.includes(kind) &&
    tiles >= 7 / 8 * Math.ceil(tiles / threads) * threads;
}

function time(machine: Machine, shape: GemmShape, tile: Tile): number {
  const { kind, M, N, count } = shape, { profile, threads } = machine;
  const perGroup = tilesPerGroup(machine), uniformA = isUniformA(machine, shape, tile);
  const [tilesM, tilesN] = [Math.ceil(M / tile[0]), Math.ceil(N / tile[1])];
  const groups = profile === "cpu"
    ? cpuGroups({ threads, uniformA }, tilesM, tilesN, count)
    : tilesM * tilesN * count;
  const measured = table[tileKey(profile, kind, tile)];
  // A larger tile is 10 % faster, for large GEMMs 30 %, but compiles for 3 to 5 s, 16x16 for 1 to 2: a GEMM that is small or runs
  // seldom does not earn that back.
  const small = work(shape, machine) < (machine.largeTilesFrom ?? LARGE);
  if (profile === "cpu" && !measured && small && tile[0] * tile[1] > 256) return Infinity;
  const { rate, slots } = measured ?? builtIn(profile, kind, tile);
  const waves = Math.ceil(groups / slots);
  return waves * slots * perGroup * tile[0] * tile[1] / (rate * (uniformA && !measured ? UNIFORM_GAIN : 1));
}

function builtIn(backend: GemmBackend, kind: GemmKind, [m, n]: Tile): TileRate {
  const at = TILES[backend].findIndex(([a, b]) => a === m && b === n);
  const { share, slots } = measuredScale(backend, kind);
  return { rate: (builtInRates(backend, kind)[at] ?? 1) * share, slots: slots ?? SLOTS[backend][at] ?? 1 };
}

const builtInRates = (backend: GemmBackend, kind: GemmKind): readonly number[] =>
  backend === "cpu" ? CPU_RATES[kind] : backend === "gpu" ? GPU_RATES : MATRIX_RATES;

/**
 * What an unmeasured tile is expected to reach: the smallest ratio of a measured rate of this kind to its built-in one, and the
 * measured number of workgroups at once. 1, and the built-in number, where nothing was measured.
 */
function measuredScale(backend: GemmBackend, kind: GemmKind): { share: number; slots?: number } {
  const rates = builtInRates(backend, kind);
  const found = TILES[backend].flatMap((tile, i) => {
    const measured = table[tileKey(backend, kind, tile)];
    return measured ? [{ share: measured.rate / (rates[i] ?? 1), slots: measured.slots }] : [];
  });
  return found[0]
    ? { share: Math.min(...found.map(({ share }) => share)), slots: found[0].slots }
    : { share: 1 };
}

/** The longest sum of one accumulator: its rounding error is 1.5e-6 of a sum of random numbers, and loops stay allowed. */
export const MAX_SPLIT_K = 8192;

/**
 * Split-K: the length of the splits, so that a GEMM with few outputs still fills the machine. K itself where there are outputs
 * enough and K is at most MAX_SPLIT_K. Splits are multiples of a K-tile, and counted in tiles of one size whatever tile is
 * chosen.
 */
export function splitLength(
  { profile, unit }: Pick<Machine, "profile" | "unit">,
  M: number,
  N: number,
  K: number,
  count: number,
): number {
  const [side, wanted, least] = profile === "cpu" ? [16, 64, 128] : [128, 264, 128];
  const tiles = Math.ceil(M / side) * Math.ceil(N / side) * count;
  const splits = Math.max(
    Math.ceil(K / MAX_SPLIT_K),
    tiles >= wanted ? 1 : Math.min(Math.floor(wanted / tiles), Math.floor(K / least)),
  );
  const multiple = unit ? matrixSplitUnit(unit) : GPU_TILE_K;
  return splits === 1 ? K : Math.ceil(K / splits / multiple) * multiple;
}
