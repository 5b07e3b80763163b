// What both profiles of a matrix product share: the description of one, element access with bounds, and the stores.

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

export interface GemmSpec {
  readonly source: GemmSource;
  readonly profile: "cpu" | "gpu";
  /** cpu: lanes of a workgroup, which is one vector of the processor. */
  readonly lanes: number;
  /** Outputs of a lane (cpu; multiples of 4) or of a workgroup (gpu; multiples of 64). */
  readonly tile: readonly [number, number];
  /**
   * Loads go four at a time along the contiguous axis; needs leading dimensions that are multiples of 4, and where an operand
   * is contiguous along K, that it is padded with zeros up to the next multiple of 4.
   */
  readonly vector: boolean;
  /** cpu, vector: operands come as textures of this many texels a row, 0 for buffers. A power of two. */
  readonly texels: number;
  /** cpu, vector: K's of one turn of the loop, 4 or 8; K (of a convolution, its channels) must be a multiple. */
  readonly step: 4 | 8;
  /** cpu, vector: K is no multiple of the step. */
  readonly ragged: boolean;
  /** cpu, conv_dx: the stride, so that the tap of a pixel needs no division by a variable; 1 otherwise. */
  readonly stride: number;
  /** cpu, conv and conv_dx: K runs as (ky, c by the step, kx, c inside the step) instead of (ky, kx, c). */
  readonly tapsInside: boolean;
  /**
   * cpu, taps inside: rows of the tile that are neighbours in a row of the map, one apart, and share their loads from one kx
   * to the next. 1 where the map's width is no multiple or the stride is not 1.
   */
  readonly segment: 1 | 4;
  /** Stores go four at a time; needs N and ldc to be multiples of 4. */
  readonly vectorStore: boolean;
  readonly bias: boolean;
  /** cpu, vector, A transposed: also adds up A's columns, which are the rows of op(A), over K. */
  readonly sums: boolean;
}

/** K's of a gpu slab. */
export const GPU_DEPTH = 16;

export const XYZW = ["x", "y", "z", "w"] as const;
export const range = (n: number) => Array.from({ length: n }, (_, i) => i);
export const lines = (n: number, line: (i: number) => string) => range(n).map(line).join("\n");

/** Where the matrices of a batch begin: batches of heads, so that heads may lie side by side in the rows of a projection. */
export function offsets(): string {
  const from = (name: string) =>
    `z / params.heads * params.batch_${name} + z % params.heads * params.head_${name}`;
  return `  let from_a = ${from("a")};
  let from_b = ${from("b")};
  let from_c = ${from("c")} + split * params.c_split;`;
}

/**
 * Element access with bounds: zero outside. `from_a` and `from_b` are the offsets of the batch's matrices. On a GPU that
 * loads vectors, the access is to the four elements that begin there along the contiguous axis.
 */
export function elementFunctions({ source, vector, profile }: GemmSpec): string {
  const wide = vector && profile === "gpu", V = wide ? "vec4<f32>" : "f32";
  const read = (name: string, at: string) => `return ${name}[${wide ? `(${at}) / 4u` : at}];`;
  const conv = `
fn pixel_of_x(pixel: u32, ky: u32, kx: u32) -> i32 { // index of the first channel, or -1 in the padding
  let iy = i32((pixel / params.Wo) % params.Ho * params.stride + ky) - i32(params.top);
  let ix = i32(pixel % params.Wo * params.stride + kx) - i32(params.left);
  if (iy < 0 || ix < 0 || iy >= i32(params.H) || ix >= i32(params.W)) { return -1; }
  return ((i32(pixel / (params.Wo * params.Ho)) * i32(params.H) + iy) * i32(params.W) + ix) * i32(params.C);
}
fn pixel_of_dy(pixel: u32, ky: u32, kx: u32) -> i32 {
  let sy = i32((pixel / params.W) % params.H + params.top) - i32(ky);
  let sx = i32(pixel % params.W + params.left) - i32(kx);
  let s = i32(params.stride);
  if (sy < 0 || sx < 0 || sy % s != 0 || sx % s != 0 || sy / s >= i32(params.Ho) || sx / s >= i32(params.Wo)) { return -1; }
  return ((i32(pixel / (params.W * params.H)) * i32(params.Ho) + sy / s) * i32(params.Wo) + sx / s) * i32(params.Co);
}`;
  switch (source.kind) {
    case "plain":
      return `
fn a_at(from_a: u32, m: u32, k: u32, end: u32) -> ${V} {
  if (m >= params.M || k >= end) { return ${V}(); }
  ${read("a", `from_a + ${source.transposeA ? "k * params.lda + m" : "m * params.lda + k"}`)}
}
fn b_at(from_b: u32, k: u32, n: u32, end: u32) -> ${V} {
  if (n >= params.N || k >= end) { return ${V}(); }
  ${read("b", `from_b + ${source.transposeB ? "n * params.ldb + k" : "k * params.ldb + n"}`)}
}`;
    case "conv":
      return `${conv}
fn a_at(from_a: u32, m: u32, k: u32, end: u32) -> ${V} {
  if (m >= params.M || k >= end) { return ${V}(); }
  let tap = k / params.C;
  let at = pixel_of_x(m, tap / params.KW, tap % params.KW);
  if (at < 0) { return ${V}(); }
  ${read("a", `from_a + u32(at) + k % params.C`)}
}
fn b_at(from_b: u32, k: u32, n: u32, end: u32) -> ${V} {
  if (n >= params.N || k >= end) { return ${V}(); }
  ${read("b", `from_b + n * params.ldb + k`)}
}`;
    case "conv_dx":
      return `${conv}
fn a_at(from_a: u32, m: u32, k: u32, end: u32) -> ${V} {
  if (m >= params.M || k >= end) { return ${V}(); }
  let tap = k / params.Co;
  let at = pixel_of_dy(m, tap / params.KW, tap % params.KW);
  if (at < 0) { return ${V}(); }
  ${read("a", `from_a + u32(at) + k % params.Co`)}
}
fn b_at(from_b: u32, k: u32, n: u32, end: u32) -> ${V} {
  if (n >= params.N || k >= end) { return ${V}(); }
  ${read("b", `from_b + (k % params.Co) * params.ldb + (k / params.Co) * params.N + n`)}
}`;
    case "conv_dweight":
      return `${conv}
fn a_at(from_a: u32, m: u32, k: u32, end: u32) -> ${V} {
  if (m >= params.M || k >= end) { return ${V}(); }
  ${read("a", `from_a + k * params.lda + m`)}
}
fn b_at(from_b: u32, k: u32, n: u32, end: u32) -> ${V} {
  if (n >= params.N || k >= end) { return ${V}(); }
  let tap = n / params.C;
  let at = pixel_of_x(k, tap / params.KW, tap % params.KW);
  if (at < 0) { return ${V}(); }
  ${read("b", `from_b + u32(at) + n % params.C`)}
}`;
  }
}

/** Writes the accumulators c<row>_<vector> of a tile at (m0, n0), scaled and with the bias. */
export function store({ tile: [TM, TN], vectorStore, bias }: GemmSpec): string {
  const TN4 = TN / 4;
  const biases = bias
    ? lines(
      TN4,
      (j) =>
        `  let bias${j} = vec4<f32>(${
          range(4).map((e) => `bias[min(n0 + ${4 * j + e}u, params.N - 1u)]`).join(", ")
        });`,
    )
    : "";
  const value = (i: number, j: number) => `params.alpha * c${i}_${j}${bias ? ` + bias${j}` : ""}`;
  const one = (i: number, j: number) =>
    vectorStore
      ? `if (n0 + ${4 * j}u < params.N) { c[(row + n0) / 4u + ${j}u] = ${value(i, j)}; }`
      : `{ let v = ${value(i, j)}; ${
        range(4).map((e) =>
          `if (n0 + ${4 * j + e}u < params.N) { c[row + n0 + ${4 * j + e}u] = v.${XYZW[e]}; }`
        ).join(" ")
      } }`;
  return `${biases}
${
    lines(TM, (i) =>
      `  if (m0 + ${i}u < params.M) { let row = from_c + (m0 + ${i}u) * params.ldc; ${
        range(TN4).map((j) =>
          one(i, j)
        ).join(" ")
      } }`)
  }`;
}
