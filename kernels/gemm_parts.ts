// What both GEMM generators share: the problem, bounds-checked element loads, and the epilogue.

/** Where the operands come from. */
export type GemmSource =
  /** A is [M,K] or, transposed, [K,M]; B is [K,N] or, transposed, [N,K]. */
  | { kind: "plain"; transposeA: boolean; transposeB: boolean }
  /** A gathers x [B,H,W,C] at output pixels, K = (ky, kx, c); B is the weight [N,KH,KW,C]. */
  | { kind: "conv" }
  /** A gathers dy [B,Ho,Wo,Cout] at input pixels, K = (ky, kx, co); B is the weight [Cout,KH,KW,N]. */
  | { kind: "conv_dx" }
  /** A is dy transposed [B Ho Wo, M]; B gathers x, N = (ky, kx, c), K = output pixels. */
  | { kind: "conv_dweight" };

/** Sizes of a convolution: H, W, C the input; Ho, Wo, Co the output. */
export type ConvSizes = Record<(typeof CONV_SIZES)[number], number>;
export const CONV_SIZES = ["H", "W", "C", "Ho", "Wo", "Co", "KH", "KW", "stride", "top", "left"] as const;

/** A matrix multiplication that is split over K and tiled already: what both generators compute their specs from. */
export interface GemmProblem {
  readonly source: GemmSource;
  readonly K: number;
  /** Length of one split of K. */
  readonly splitK: number;
  /** Sizes of the convolution, where the source is one. */
  readonly conv: ConvSizes | undefined;
  /** Outputs of a thread (cpu; multiples of 4) or of a workgroup (gpu: multiples of 64, matrix: of 32). */
  readonly tile: readonly [number, number];
  /** Loads are vec4s: leading dimensions are multiples of 4, and K where an operand is contiguous along it (zero-padded). */
  readonly vector: boolean;
  /** Stores are vec4s; N and ldc must be multiples of 4. */
  readonly vectorStore: boolean;
  /** The epilogue adds bias[n]. */
  readonly bias: boolean;
}

/** The part of a problem that the generated text depends on, in both backends. */
export type CommonSpec = Pick<GemmProblem, "source" | "tile" | "vector" | "vectorStore" | "bias">;

/** Length of a K-tile of the gpu backend. Splits of K begin at multiples of it. */
export const GPU_TILE_K = 16;

export const XYZW = ["x", "y", "z", "w"] as const;
export const range = (n: number) => Array.from({ length: n }, (_, i) => i);
export const lines = (n: number, line: (i: number) => string) => range(n).map(line).join("\n");

/** Offsets of the matrices of batch element z = (batch, head): the heads of a projection share its rows. */
export function offsets(): string {
  const offset = (name: string) =>
    `z / params.heads * params.batch_${name} + z % params.heads * params.head_${name}`;
  return `  let offset_a = ${offset("a")};
  let offset_b = ${offset("b")};
  let offset_c = ${offset("c")} + split * params.c_split;`;
}

/**
 * Bounds-checked loads a_at and b_at: zero outside. `offset_a` and `offset_b` are the offsets of the batch element's
 * matrices, `k_tile` is the first k of the K-tile.
 * @param wide loads the four elements that begin there along the contiguous axis
 * @param sizes of a convolution, as literals; parameters where absent
 */
export function elementFunctions(
  source: GemmSource,
  wide: boolean,
  sizes?: ConvSizes,
  { type = "f32", tileK = GPU_TILE_K }: { type?: "f32" | "f16"; tileK?: number } = {},
): string {
  const V = wide ? `vec4<${type}>` : type;
  const read = (name: string, at: string) => `return ${name}(${wide ? `(${at}) / 4u` : at});`;
  const a = (body: string) => `
fn a_at(offset_a: u32, m: u32, k_tile: u32, k: u32, end: u32) -> ${V} {
  if (m >= params.M || k >= end) { return ${V}(); }
  ${body}
}`;
  const b = (body: string) => `
fn b_at(offset_b: u32, n: u32, k_tile: u32, k: u32, end: u32) -> ${V} {
  if (n >= params.N || k >= end) { return ${V}(); }
  ${body}
}`;
  if (source.kind === "plain") {
    return a(read("a", `offset_a + ${source.transposeA ? "k * params.lda + m" : "m * params.lda + k"}`)) +
      b(read("b", `offset_b + ${source.transposeB ? "n * params.ldb + k" : "k * params.ldb + n"}`));
  }
  const { H, W, C, Ho, Wo, Co, KW, stride, top, left } = sizeNames(sizes);
  /** The tap of k. Where tileK divides the channels, a K-tile lies within one tap, and all threads divide the same number. */
  const tapOf = (name: "C" | "Co", channels: string) =>
    `let tap = ${sizes && sizes[name] % tileK === 0 ? "k_tile" : "k"} / ${channels};`;
  const pixelOfX = `
fn pixel_of_x(pixel: u32, ky: u32, kx: u32) -> i32 { // index of the first channel, or -1 in the padding
  let iy = i32((pixel / ${Wo}) % ${Ho} * ${stride} + ky) - i32(${top});
  let ix = i32(pixel % ${Wo} * ${stride} + kx) - i32(${left});
  if (iy < 0 || ix < 0 || iy >= i32(${H}) || ix >= i32(${W})) { return -1; }
  return ((i32(pixel / (${Wo} * ${Ho})) * i32(${H}) + iy) * i32(${W}) + ix) * i32(${C});
}`;
  const pixelOfDy = `
fn pixel_of_dy(pixel: u32, ky: u32, kx: u32) -> i32 {
  let sy = i32((pixel / ${W}) % ${H} + ${top}) - i32(ky);
  let sx = i32(pixel % ${W} + ${left}) - i32(kx);
  let s = i32(${stride});
  if (sy < 0 || sx < 0 || sy % s != 0 || sx % s != 0 || sy / s >= i32(${Ho}) || sx / s >= i32(${Wo})) { return -1; }
  return ((i32(pixel / (${W} * ${H})) * i32(${Ho}) + sy / s) * i32(${Wo}) + sx / s) * i32(${Co});
}`;
  const gather = (from: string, pixel: string, channel: string) => `
  let at = ${from}(${pixel}, tap / ${KW}, tap % ${KW});
  if (at < 0) { return ${V}(); }
  ${channel}`;
  switch (source.kind) {
    case "conv":
      return pixelOfX +
        a(tapOf("C", C) + gather("pixel_of_x", "m", read("a", `offset_a + u32(at) + k - tap * ${C}`))) +
        b(read("b", `offset_b + n * params.ldb + k`));
    case "conv_dx":
      return pixelOfDy +
        a(tapOf("Co", Co) + gather("pixel_of_dy", "m", read("a", `offset_a + u32(at) + k - tap * ${Co}`))) +
        b(tapOf("Co", Co) + read("b", `offset_b + (k - tap * ${Co}) * params.ldb + tap * params.N + n`));
    case "conv_dweight":
      return pixelOfX + a(read("a", `offset_a + k * params.lda + m`)) +
        b(
          `let tap = n / ${C};` +
            gather("pixel_of_x", "k", read("b", `offset_b + u32(at) + n - tap * ${C}`)),
        );
  }
}

/** How a workgroup loads one operand's K-tile. */
export interface TileLoad {
  readonly name: "a" | "b";
  /** Rows of A or columns of B in the tile. */
  readonly side: number;
  /** Whether the operand is contiguous along the side, and not along K: adjacent threads load adjacent addresses. */
  readonly along: boolean;
  readonly tileK: number;
  readonly threads: number;
  readonly vector: boolean;
  readonly type: "f32" | "f16";
}

/** Whether each operand is contiguous along its side of the tile, and not along K. */
export const alongSide = (source: GemmSource): { a: boolean; b: boolean } => ({
  a: source.kind === "conv_dweight" || (source.kind === "plain" && source.transposeA),
  b: !(source.kind === "conv" || (source.kind === "plain" && source.transposeB)),
});

/** Loads of one operand's K-tile into registers: each thread has `count` vec4s `along` the tile's side, or along K. */
export function tileLoad({ name, side, along, tileK, threads, vector, type }: TileLoad) {
  const count = side * tileK / 4 / threads;
  const across = (along ? side : tileK) / 4;
  /** Where the K-tile's vec4 number e begins: `at` on the side, and k. */
  const placeOf = (e: string) => {
    const four = `${e} % ${across}u * 4u`, one = `${e} / ${across}u`;
    return along ? { at: four, k: one } : { at: one, k: four };
  };
  const number = (i: number) => `(t + ${i * threads}u)`; // of the thread's i-th vec4
  const first = name === "a" ? "first_m" : "first_n";
  const element = (kTile: string, k: string, at: string) =>
    `${name}_at(offset_${name}, ${at}, ${kTile}, ${kTile} + ${k}, end)`;
  /** The vec4 number e of the K-tile that begins at `from`. */
  const value = (from: string, e: string) => {
    const { at, k } = placeOf(e);
    const four = (e: number) =>
      along
        ? element(from, k, `${first} + ${at} + ${e}u`)
        : element(from, `${k} + ${e}u`, `${first} + ${at}`);
    return vector ? four(0) : `vec4<${type}>(${range(4).map(four).join(", ")})`;
  };
  const next = (i: number) => `next_${name}${i}`;
  return {
    count,
    placeOf,
    place: (i: number) => placeOf(number(i)),
    value,
    next,
    declare: lines(count, (i) => `  var ${next(i)} = vec4<${type}>();`),
    load: (from: string) => lines(count, (i) => `    ${next(i)} = ${value(from, number(i))};`),
  };
}

/** The sizes of a convolution in the text: literals where they are known, else parameters. */
function sizeNames(sizes: ConvSizes | undefined): Record<keyof ConvSizes, string> {
  const names = CONV_SIZES.map((name) => [name, sizes ? `${sizes[name]}u` : `params.${name}`]);
  return Object.fromEntries(names) as Record<keyof ConvSizes, string>;
}

/**
 * The epilogue: stores alpha * c<row>_<vector> + bias of the tile at (m0, n0).
 * @param rows of the tile that an iteration of a loop stores; all rows by default, without a loop
 */
export function epilogue({ tile: [TM, TN], vectorStore, bias }: CommonSpec, rows = TM): string {
  const TN4 = TN / 4, looped = rows < TM;
  const biases = bias
    ? lines(
      TN4,
      (j) =>
        `  let bias${j} = vec4<f32>(${
          range(4).map((e) => `bias(min(n0 + ${4 * j + e}u, params.N - 1u))`).join(", ")
        });`,
    )
    : "";
  /** Vector j of row `first + i`, where `first` is the first row of the iteration. */
  const sum = (i: number, j: number) =>
    range(TM / rows).slice(1).reduce(
      (value, n) => `select(${value}, c${n * rows + i}_${j}, first == ${n * rows}u)`,
      `c${i}_${j}`,
    );
  const value = (i: number, j: number) => `params.alpha * ${sum(i, j)}${bias ? ` + bias${j}` : ""}`;
  const one = (i: number, j: number) =>
    vectorStore
      ? `if (n0 + ${4 * j}u < params.N) { store_c((row + n0) / 4u + ${j}u, ${value(i, j)}); }`
      : `{ let v = ${value(i, j)}; ${
        range(4).map((e) =>
          `if (n0 + ${4 * j + e}u < params.N) { store_c(row + n0 + ${4 * j + e}u, v.${XYZW[e]}); }`
        ).join(" ")
      } }`;
  const m = (i: number) => looped ? `m0 + first + ${i}u` : `m0 + ${i}u`;
  const stores = lines(
    rows,
    (i) =>
      `  if (${m(i)} < params.M) { let row = offset_c + (${m(i)}) * params.ldc; ${
        range(TN4).map((j) => one(i, j)).join(" ")
      } }`,
  );
  return `${biases}
${looped ? `  for (var first = 0u; first < ${TM}u; first += ${rows}u) {\n${stores}\n  }` : stores}`;
}
