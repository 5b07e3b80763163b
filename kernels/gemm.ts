// Prints the WGSL of matrix products: C[M,N] = alpha * A[M,K] B[K,N] + bias[N], plain, transposed, batched, or with one
// operand gathered from a feature map (convolution as implicit GEMM). A generator because register tiles must be
// written out: loop and index checks cannot be switched off, so only straight-line code runs at speed.
//
// cpu profile: a lane owns TMxTN outputs and walks K in steps of four with vec4 loads and no workgroup memory; the eight
// lanes of a workgroup (one SIMD vector) take consecutive tiles, whatever matrix of the batch those belong to.
// gpu profile: a workgroup of 16x16 threads owns 64x64 outputs and stages 16-deep slabs in workgroup memory.

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
  /** cpu: outputs of a lane, multiples of 4. */
  readonly tile: readonly [number, number];
  /** Loads go four at a time along the contiguous axis; needs leading dimensions that are multiples of 4. */
  readonly vector: boolean;
  /** Stores go four at a time; needs N and ldc to be multiples of 4. */
  readonly vectorStore: boolean;
  readonly bias: boolean;
}

/** Lanes of a cpu workgroup, and the sides of a gpu tile. */
export const CPU_LANES = 8;
export const GPU_TILE = 64;
const GPU_DEPTH = 16;

const XYZW = ["x", "y", "z", "w"] as const;
const range = (n: number) => Array.from({ length: n }, (_, i) => i);
const lines = (n: number, line: (i: number) => string) => range(n).map(line).join("\n");

/** The WGSL text; entry point `gemm`; buffers a, b, c and, where asked for, bias. */
export function gemmWgsl(spec: GemmSpec): string {
  const wide = spec.vector && spec.profile === "cpu" ? "vec4<f32>" : "f32";
  return `struct Params {
  M: u32, N: u32, K: u32,
  lda: u32, ldb: u32, // elements between rows
  batch_a: u32, batch_b: u32, batch_c: u32, // elements between matrices
  tiles_m: u32, tiles_n: u32, tiles: u32,
  splits: u32, depth: u32, c_split: u32, // K is cut into splits of depth; each writes its own C
  alpha: f32,
  H: u32, W: u32, C: u32, Ho: u32, Wo: u32, Co: u32, KH: u32, KW: u32, stride: u32, top: u32, left: u32,
}
@group(0) @binding(0) var<storage, read> a: array<${wide}>;
@group(0) @binding(1) var<storage, read> b: array<${wide}>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> c: array<${spec.vectorStore ? "vec4<f32>" : "f32"}>;
@group(0) @binding(4) var<uniform> params: Params;

${spec.profile === "gpu" ? gpuKernel(spec) : cpuKernel(spec)}`;
}

/** Element access with bounds: zero outside. `from_a` and `from_b` are the offsets of the batch's matrices. */
function elementFunctions({ source }: GemmSpec): string {
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
fn a_at(from_a: u32, m: u32, k: u32, end: u32) -> f32 {
  if (m >= params.M || k >= end) { return 0.0; }
  return a[from_a + ${source.transposeA ? "k * params.lda + m" : "m * params.lda + k"}];
}
fn b_at(from_b: u32, k: u32, n: u32, end: u32) -> f32 {
  if (n >= params.N || k >= end) { return 0.0; }
  return b[from_b + ${source.transposeB ? "n * params.ldb + k" : "k * params.ldb + n"}];
}`;
    case "conv":
      return `${conv}
fn a_at(from_a: u32, m: u32, k: u32, end: u32) -> f32 {
  if (m >= params.M || k >= end) { return 0.0; }
  let tap = k / params.C;
  let at = pixel_of_x(m, tap / params.KW, tap % params.KW);
  if (at < 0) { return 0.0; }
  return a[from_a + u32(at) + k % params.C];
}
fn b_at(from_b: u32, k: u32, n: u32, end: u32) -> f32 {
  if (n >= params.N || k >= end) { return 0.0; }
  return b[from_b + n * params.ldb + k];
}`;
    case "conv_dx":
      return `${conv}
fn a_at(from_a: u32, m: u32, k: u32, end: u32) -> f32 {
  if (m >= params.M || k >= end) { return 0.0; }
  let tap = k / params.Co;
  let at = pixel_of_dy(m, tap / params.KW, tap % params.KW);
  if (at < 0) { return 0.0; }
  return a[from_a + u32(at) + k % params.Co];
}
fn b_at(from_b: u32, k: u32, n: u32, end: u32) -> f32 {
  if (n >= params.N || k >= end) { return 0.0; }
  return b[from_b + (k % params.Co) * params.ldb + (k / params.Co) * params.N + n];
}`;
    case "conv_dweight":
      return `${conv}
fn a_at(from_a: u32, m: u32, k: u32, end: u32) -> f32 {
  if (m >= params.M || k >= end) { return 0.0; }
  return a[from_a + k * params.lda + m];
}
fn b_at(from_b: u32, k: u32, n: u32, end: u32) -> f32 {
  if (n >= params.N || k >= end) { return 0.0; }
  let tap = n / params.C;
  let at = pixel_of_x(k, tap / params.KW, tap % params.KW);
  if (at < 0) { return 0.0; }
  return b[from_b + u32(at) + n % params.C];
}`;
  }
}

function cpuKernel(spec: GemmSpec): string {
  const [TM, TN] = spec.tile;
  const TN4 = TN / 4;
  return `${spec.vector ? gatherFunctions(spec) : elementFunctions(spec)}
@compute @workgroup_size(${CPU_LANES})
fn gemm(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let tile = (group.y * groups.x + group.x) * ${CPU_LANES}u + lane;
  if (tile >= params.tiles) { return; }
  let n0 = tile % params.tiles_n * ${TN}u;
  let m0 = (tile / params.tiles_n) % params.tiles_m * ${TM}u;
  let zs = tile / (params.tiles_n * params.tiles_m);
  let z = zs / params.splits;
  let split = zs % params.splits;
  let from_a = z * params.batch_a;
  let from_b = z * params.batch_b;
  let from_c = z * params.batch_c + split * params.c_split;
  let begin = split * params.depth;
  let end = min(begin + params.depth, params.K);
${lines(TM, (i) => range(TN4).map((j) => `  var c${i}_${j} = vec4<f32>();`).join(" "))}
${spec.vector ? vectorLoop(spec) : scalarLoop(spec)}
${store(spec)}
}
`;
}

/** The multiply-adds of four steps of K, accumulator by accumulator (other orders spill more). */
function multiplyAdd(TM: number, TN4: number, a: (i: number, q: number) => string): string {
  return lines(
    TM,
    (i) =>
      range(TN4).map((j) =>
        `c${i}_${j} = c${i}_${j} + ${range(4).map((q) => `${a(i, q)} * b${q}_${j}`).join(" + ")};`
      ).join(" "),
  );
}

/** b<q>_<j> out of t<n> = four K's of column n. */
function transposeB(TN: number): string {
  return range(4).map((q) =>
    lines(
      TN / 4,
      (j) => `let b${q}_${j} = vec4<f32>(${range(4).map((e) => `t${4 * j + e}.${XYZW[q]}`).join(", ")});`,
    )
  ).join("\n");
}

function scalarLoop({ tile: [TM, TN] }: GemmSpec): string {
  const TN4 = TN / 4;
  const row = (f: string, first: string, i: number) =>
    `vec4<f32>(${range(4).map((q) => `${f}(from_a, ${first} + ${i}u, k + ${q}u, end)`).join(", ")})`;
  return `for (var k = begin; k < end; k += 4u) {
${lines(TM, (i) => `let a${i} = ${row("a_at", "m0", i)};`)}
${
    range(4).map((q) =>
      lines(TN4, (j) =>
        `let b${q}_${j} = vec4<f32>(${
          range(4).map((e) =>
            `b_at(from_b, k + ${q}u, n0 + ${4 * j + e}u, end)`
          ).join(", ")
        });`)
    ).join("\n")
  }
${multiplyAdd(TM, TN4, (i, q) => `a${i}.${XYZW[q]}`)}
}`;
}

function gatherFunctions({ source }: GemmSpec): string {
  if (source.kind !== "conv_dweight") return "";
  return `
struct Sizes { H: i32, W: i32, C4: i32, Ho: u32, Wo: u32, stride: u32, top: i32, left: i32 } // read once, not in the loop
fn x_at(s: Sizes, pixel: vec3<i32>, ky: i32, kx: i32, c4: i32) -> vec4<f32> { // pixel: first row of its image, iy, ix
  let iy = pixel.y + ky;
  let ix = pixel.z + kx;
  let inside = iy >= 0 && ix >= 0 && iy < s.H && ix < s.W;
  let at = ((pixel.x + iy) * s.W + ix) * s.C4 + c4;
  return select(vec4<f32>(), b[select(0, at, inside)], inside);
}
fn corner(s: Sizes, pixel: u32) -> vec3<i32> {
  let row = pixel / s.Wo;
  return vec3<i32>(i32(row / s.Ho) * s.H, i32(row % s.Ho * s.stride) - s.top, i32(pixel % s.Wo * s.stride) - s.left);
}`;
}

/**
 * Loops over K with vec4 loads. Rows and columns beyond M and N are loaded too: such loads stay inside the buffer (robust
 * access) and their results are never stored.
 */
function vectorLoop({ source, tile: [TM, TN] }: GemmSpec): string {
  const TM4 = TM / 4, TN4 = TN / 4;
  const rowsOfA = lines(TM, (i) => `let a${i} = a[ra${i} + k / 4u];`);
  const byRow = (i: number, q: number) => `a${i}.${XYZW[q]}`;
  const byColumn = (i: number, q: number) => `u${q}_${i >> 2}.${XYZW[i & 3]}`;
  const columnsOfA = (k: string) =>
    range(4).map((q) => lines(TM4, (i) => `let u${q}_${i} = a[from_m + (${k} + ${q}u) * lda4 + ${i}u];`))
      .join("\n");
  if (source.kind === "plain") {
    const loadA = source.transposeA ? columnsOfA("k") : rowsOfA;
    const loadB = source.transposeB
      ? `${lines(TN, (j) => `let t${j} = b[rb${j} + k / 4u];`)}\n${transposeB(TN)}`
      : range(4).map((q) => lines(TN4, (j) => `let b${q}_${j} = b[from_n + (k + ${q}u) * ldb4 + ${j}u];`))
        .join("\n");
    return `let lda4 = params.lda / 4u; let ldb4 = params.ldb / 4u;
let from_m = (from_a + m0) / 4u; let from_n = (from_b + n0) / 4u;
${source.transposeA ? "" : lines(TM, (i) => `let ra${i} = (from_a + (m0 + ${i}u) * params.lda) / 4u;`)}
${source.transposeB ? lines(TN, (j) => `let rb${j} = (from_b + (n0 + ${j}u) * params.ldb) / 4u;`) : ""}
for (var k = begin; k < end; k += 4u) {
${loadA}
${loadB}
${multiplyAdd(TM, TN4, source.transposeA ? byColumn : byRow)}
}`;
  }
  if (source.kind === "conv_dweight") {
    return `let lda4 = params.lda / 4u; let from_m = (from_a + m0) / 4u;
let sizes = Sizes(i32(params.H), i32(params.W), i32(params.C / 4u), params.Ho, params.Wo, params.stride, i32(params.top), i32(params.left));
${
      lines(TN4, (j) =>
        `let column${j} = n0 + ${
          4 * j
        }u; let tap${j} = column${j} / params.C; let ky${j} = i32(tap${j} / params.KW);` +
        ` let kx${j} = i32(tap${j} % params.KW); let channel${j} = i32(column${j} % params.C / 4u);`)
    }
for (var k = begin; k < end; k += 4u) {
${columnsOfA("k")}
${lines(4, (q) => `let p${q} = corner(sizes, k + ${q}u);`)}
${
      range(4).map((q) =>
        lines(TN4, (j) =>
          `let b${q}_${j} = select(vec4<f32>(), x_at(sizes, p${q}, ky${j}, kx${j}, channel${j}), k + ${q}u < end);`)
      ).join("\n")
    }
${multiplyAdd(TM, TN4, byColumn)}
}`;
  }
  const dx = source.kind === "conv_dx";
  const side = dx ? ["H", "W"] : ["Ho", "Wo"];
  const channels = dx ? "Co" : "C";
  const pixel = (i: number) =>
    `let r${i} = m0 + ${i}u; let py${i} = i32((r${i} / params.${side[1]}) % params.${side[0]}${
      dx ? " + params.top)" : " * params.stride) - i32(params.top)"
    }; let px${i} = i32(r${i} % params.${side[1]}${
      dx ? " + params.left)" : " * params.stride) - i32(params.left)"
    }; let pb${i} = i32(r${i} / (params.${side[0]} * params.${side[1]}));`;
  const tap = (i: number) =>
    dx
      ? `let sy${i} = py${i} - ky; let sx${i} = px${i} - kx; let iy${i} = sy${i} / s; let ix${i} = sx${i} / s;
let ok${i} = sy${i} >= 0 && sx${i} >= 0 && iy${i} * s == sy${i} && ix${i} * s == sx${i} && iy${i} < Ho && ix${i} < Wo;
let ra${i} = select(0u, u32((pb${i} * Ho + iy${i}) * Wo + ix${i}) * C4, ok${i});`
      : `let iy${i} = py${i} + ky; let ix${i} = px${i} + kx;
let ok${i} = iy${i} >= 0 && ix${i} >= 0 && iy${i} < H && ix${i} < W;
let ra${i} = select(0u, u32((pb${i} * H + iy${i}) * W + ix${i}) * C4, ok${i});`;
  const loadB = dx
    ? range(4).map((q) =>
      lines(
        TN4,
        (j) => `let b${q}_${j} = b[(c4 * 4u + ${q}u) * ldb4 + from_n + ${j}u];`,
      )
    ).join("\n")
    : `${lines(TN, (j) => `let t${j} = b[rb${j} + taps * C4 + c4];`)}\n${transposeB(TN)}`;
  return `let C4 = params.${channels} / 4u;
${dx ? "let s = i32(params.stride); let ldb4 = params.ldb / 4u;" : ""}
let H = i32(params.H); let W = i32(params.W); let Ho = i32(params.Ho); let Wo = i32(params.Wo); let KW = params.KW; let N = params.N;
let all_taps = params.KH * params.KW;
${lines(TM, pixel)}
${dx ? "" : lines(TN, (j) => `let rb${j} = (n0 + ${j}u) * params.ldb / 4u;`)}
for (var taps = 0u; taps < all_taps; taps++) {
let ky = i32(taps / KW); let kx = i32(taps % KW);${dx ? " let from_n = (taps * N + n0) / 4u;" : ""}
${lines(TM, tap)}
for (var c4 = 0u; c4 < C4; c4++) {
${lines(TM, (i) => `let a${i} = select(vec4<f32>(), a[ra${i} + c4], ok${i});`)}
${loadB}
${multiplyAdd(TM, TN4, byRow)}
}
}`;
}

function store({ tile: [TM, TN], vectorStore, bias }: GemmSpec): string {
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
      `  if (m0 + ${i}u < params.M) { let row = from_c + (m0 + ${i}u) * params.N; ${
        range(TN4).map((j) =>
          one(i, j)
        ).join(" ")
      } }`)
  }`;
}

/** 256 threads, 64x64 outputs, 4x4 each; slabs of 16 K's in workgroup memory, the next one loaded into registers meanwhile. */
function gpuKernel(spec: GemmSpec): string {
  const perThread = GPU_TILE * GPU_DEPTH / 256;
  // Neighbouring threads load neighbouring addresses along the operand's contiguous axis.
  const aAlongM = spec.source.kind === "conv_dweight" ||
    (spec.source.kind === "plain" && spec.source.transposeA);
  const bAlongK = spec.source.kind === "conv" || (spec.source.kind === "plain" && spec.source.transposeB);
  const place = (i: number, alongTile: boolean) =>
    alongTile
      ? [`(t + ${i * 256}u) % ${GPU_TILE}u`, `(t + ${i * 256}u) / ${GPU_TILE}u`]
      : [`(t + ${i * 256}u) / ${GPU_DEPTH}u`, `(t + ${i * 256}u) % ${GPU_DEPTH}u`];
  const load = (k: string) =>
    lines(perThread, (i) => {
      const [am, ak] = place(i, aAlongM), [bn, bk] = place(i, !bAlongK);
      return `    na${i} = a_at(from_a, m0 + ${am}, ${k} + ${ak}, end); nb${i} = b_at(from_b, ${k} + ${bk}, n0 + ${bn}, end);`;
    });
  return `${elementFunctions(spec)}
var<workgroup> slab_a: array<f32, ${GPU_DEPTH * (GPU_TILE + 4)}>; // [k][m], padded against bank conflicts
var<workgroup> slab_b: array<f32, ${GPU_DEPTH * (GPU_TILE + 4)}>; // [k][n]

@compute @workgroup_size(256)
fn gemm(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) t: u32) {
  let tile = group.y * groups.x + group.x;
  if (tile >= params.tiles) { return; } // uniform: the whole workgroup leaves
  let n0 = tile % params.tiles_n * ${GPU_TILE}u;
  let m0 = (tile / params.tiles_n) % params.tiles_m * ${GPU_TILE}u;
  let zs = tile / (params.tiles_n * params.tiles_m);
  let z = zs / params.splits;
  let split = zs % params.splits;
  let from_a = z * params.batch_a;
  let from_b = z * params.batch_b;
  let from_c = z * params.batch_c + split * params.c_split;
  let begin = split * params.depth;
  let end = min(begin + params.depth, params.K);
  let tm = t / 16u * 4u;
  let tn = t % 16u * 4u;
${lines(4, (i) => `  var c${i}_0 = vec4<f32>();`)}
${lines(perThread, (i) => `  var na${i} = 0.0; var nb${i} = 0.0;`)}
${load("begin")}
  for (var k = begin; k < end; k += ${GPU_DEPTH}u) {
${
    lines(perThread, (i) => {
      const [am, ak] = place(i, aAlongM), [bn, bk] = place(i, !bAlongK);
      return `    slab_a[(${ak}) * ${GPU_TILE + 4}u + ${am}] = na${i}; slab_b[(${bk}) * ${
        GPU_TILE + 4
      }u + ${bn}] = nb${i};`;
    })
  }
    workgroupBarrier();
${load(`k + ${GPU_DEPTH}u`)}
    for (var q = 0u; q < ${GPU_DEPTH}u; q++) {
      let at_a = q * ${GPU_TILE + 4}u + tm;
      let at_b = q * ${GPU_TILE + 4}u + tn;
      let vb = vec4<f32>(slab_b[at_b], slab_b[at_b + 1u], slab_b[at_b + 2u], slab_b[at_b + 3u]);
${lines(4, (i) => `      c${i}_0 = fma(vec4<f32>(slab_a[at_a + ${i}u]), vb, c${i}_0);`)}
    }
    workgroupBarrier();
  }
${
    store({ ...spec, tile: [4, 4] }).replaceAll("m0 +", "m0 + tm +").replaceAll("n0 +", "n0 + tn +")
      .replaceAll("+ n0)", "+ n0 + tn)")
  }
}
`;
}
