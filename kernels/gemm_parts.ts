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

/** Sizes of a convolution: H, W, C the input; Ho, Wo, Co the output. */
export interface ConvSizes {
  H: number;
  W: number;
  C: number;
  Ho: number;
  Wo: number;
  Co: number;
  KH: number;
  KW: number;
  stride: number;
  top: number;
  left: number;
}

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
  /**
   * gpu, convolutions: the sizes, written out, since every load divides by them. A GPU compiles a text for each convolution in
   * a tenth of a second; a software adapter takes seconds, and walks without dividing (gemm_cpu.ts). Parts of K must begin at
   * multiples of GPU_DEPTH.
   */
  readonly sizes: ConvSizes | undefined;
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
 * Element access with bounds: zero outside. `from_a` and `from_b` are the offsets of the batch's matrices, and `slab` is
 * where the K's that are loaded together begin. On a GPU that loads vectors, the access is to the four elements that begin
 * there along the contiguous axis.
 */
export function elementFunctions({ source, vector, profile, sizes }: GemmSpec): string {
  const wide = vector && profile === "gpu", V = wide ? "vec4<f32>" : "f32";
  const read = (name: string, at: string) => `return ${name}[${wide ? `(${at}) / 4u` : at}];`;
  const a = (body: string) => `
fn a_at(from_a: u32, m: u32, slab: u32, k: u32, end: u32) -> ${V} {
  if (m >= params.M || k >= end) { return ${V}(); }
  ${body}
}`;
  const b = (body: string) => `
fn b_at(from_b: u32, n: u32, slab: u32, k: u32, end: u32) -> ${V} {
  if (n >= params.N || k >= end) { return ${V}(); }
  ${body}
}`;
  if (source.kind === "plain") {
    return a(read("a", `from_a + ${source.transposeA ? "k * params.lda + m" : "m * params.lda + k"}`)) +
      b(read("b", `from_b + ${source.transposeB ? "n * params.ldb + k" : "k * params.ldb + n"}`));
  }
  const { H, W, C, Ho, Wo, Co, KW, stride, top, left } = sizeNames(sizes);
  /** The tap that k belongs to. Where 16 divides the channels, a slab lies inside one, so that all lanes divide the same number. */
  const tapOf = (name: "C" | "Co", channels: string) =>
    `let tap = ${sizes && sizes[name] % GPU_DEPTH === 0 ? "slab" : "k"} / ${channels};`;
  const ofX = `
fn pixel_of_x(pixel: u32, ky: u32, kx: u32) -> i32 { // index of the first channel, or -1 in the padding
  let iy = i32((pixel / ${Wo}) % ${Ho} * ${stride} + ky) - i32(${top});
  let ix = i32(pixel % ${Wo} * ${stride} + kx) - i32(${left});
  if (iy < 0 || ix < 0 || iy >= i32(${H}) || ix >= i32(${W})) { return -1; }
  return ((i32(pixel / (${Wo} * ${Ho})) * i32(${H}) + iy) * i32(${W}) + ix) * i32(${C});
}`;
  const ofDy = `
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
      return ofX +
        a(tapOf("C", C) + gather("pixel_of_x", "m", read("a", `from_a + u32(at) + k - tap * ${C}`))) +
        b(read("b", `from_b + n * params.ldb + k`));
    case "conv_dx":
      return ofDy +
        a(tapOf("Co", Co) + gather("pixel_of_dy", "m", read("a", `from_a + u32(at) + k - tap * ${Co}`))) +
        b(tapOf("Co", Co) + read("b", `from_b + (k - tap * ${Co}) * params.ldb + tap * params.N + n`));
    case "conv_dweight":
      return ofX + a(read("a", `from_a + k * params.lda + m`)) +
        b(
          `let tap = n / ${C};` +
            gather("pixel_of_x", "k", read("b", `from_b + u32(at) + n - tap * ${C}`)),
        );
  }
}

/** The sizes of a convolution as they stand in the text: numbers where they are known, or else parameters. */
function sizeNames(sizes: ConvSizes | undefined): Record<keyof ConvSizes, string> {
  const names = ["H", "W", "C", "Ho", "Wo", "Co", "KH", "KW", "stride", "top", "left"] as const;
  return Object.fromEntries(
    names.map((name) => [name, sizes ? `${sizes[name]}u` : `params.${name}`]),
  ) as Record<keyof ConvSizes, string>;
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
