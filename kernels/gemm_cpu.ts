// GEMM for software adapters: each thread owns a register tile, unrolled, without workgroup memory. See gemm.ts.

import {
  type CommonSpec,
  elementFunctions,
  epilogue,
  type GemmProblem,
  type GemmSource,
  lines,
  offsets,
  range,
  XYZW,
} from "./gemm_parts.ts";
import { type CpuGrid, tileOfThread } from "./gemm_cpu_grid.ts";

/** Rows of A transposed in one partial sum of its columns; a multiple of kStep. */
const SUM_BLOCK = 128;

/** Rows of a tile that one iteration of the loop of stores has: with 1, compilation gains little and short sums lose a tenth. */
const STORED_ROWS = 2;

/** What a spec needs of the device and of the operands. */
export interface CpuMachine extends CpuGrid {
  /** Which operands are read from textures: never a uniform A. */
  readonly textures: Readonly<Record<"a" | "b", boolean>>;
  /** Whether an iteration loads all operands before it computes (gpu/software/README.md). */
  readonly loadsFirst: boolean;
  /** Whether a loop stores the tile, STORED_ROWS rows an iteration (gpu/software/README.md). */
  readonly loopsStores: boolean;
}

export interface CpuSpec extends CommonSpec, CpuMachine {
  readonly backend: "cpu";
  /** k of one loop iteration; the innermost run of K is a multiple of 8 where it is 8. */
  readonly kStep: 4 | 8;
  /** K is not a multiple of kStep: rows of k past the end are masked. */
  readonly maskK: boolean;
  /** conv_dx: the stride as a literal, so that the tap of a pixel needs no division by a variable; else 1. */
  readonly stride: number;
  /** conv and conv_dx: K runs as (ky, c / kStep, kx, c % kStep) and not as (ky, kx, c). */
  readonly kxInner: boolean;
  /** Adjacent output pixels of a thread that reuse inputs in registers from tap kx to kx + 1; 1 disables it. */
  readonly pixelReuse: 1 | 4;
  /** Also accumulates the rows of op(A) over K; needs A transposed and vec4 loads. */
  readonly rowSums: boolean;
}

const gathersA = ({ kind }: GemmSource) => kind === "conv" || kind === "conv_dx";

/** Length of the innermost run of K that is contiguous in memory. */
const runOfK = ({ source: { kind }, conv, K }: Pick<GemmProblem, "source" | "conv" | "K">): number =>
  (kind === "conv" ? conv?.C : kind === "conv_dx" ? conv?.Co : K) ?? K;

/** Whether a convolution runs kx inside the channels. It changes the order of additions, so it depends on the shape alone. */
export function usesKxInner(problem: Pick<GemmProblem, "source" | "conv" | "K">): boolean {
  return gathersA(problem.source) && runOfK(problem) <= 32;
}

/** Whether K can be split: a gathered map is traversed from its first tap to its last. */
export const canSplitK = (source: GemmSource): boolean => !gathersA(source);

/** @param rowSums asks for the sums of A's columns, where the kernel can */
export function cpuSpec(problem: GemmProblem, machine: CpuMachine, rowSums: boolean): CpuSpec {
  const { source, tile, vector, vectorStore, bias, conv, K } = problem;
  const kxInner = usesKxInner(problem);
  // Rows of A transposed are loaded k by k: a longer step would save no loads.
  const transposedA = source.kind === "conv_dweight" || (source.kind === "plain" && source.transposeA);
  // From textures, a longer step saves no time where all loads come first, and doubles the time of compilation.
  const wide = machine.uniformA || (machine.textures.a && !machine.loadsFirst);
  const width = source.kind === "conv" ? conv?.Wo : conv?.W;
  return {
    backend: "cpu",
    source,
    tile,
    vector,
    vectorStore,
    bias,
    ...machine,
    kStep: wide && !kxInner && !transposedA && runOfK(problem) % 8 === 0 ? 8 : 4,
    maskK: vector && K % 4 !== 0,
    stride: source.kind === "conv_dx" ? conv?.stride ?? 1 : 1,
    kxInner,
    pixelReuse: kxInner && conv?.stride === 1 && (width ?? 0) % 4 === 0 ? 4 : 1,
    rowSums: rowSums && vector,
  };
}

/** Loop iterations of a thread. */
export function cpuIterations({ source, kStep, kxInner, rowSums }: CpuSpec, problem: GemmProblem): number {
  const { splitK, conv } = problem;
  if (!gathersA(source) || !conv) {
    return Math.ceil(splitK / kStep) + (rowSums ? Math.ceil(splitK / SUM_BLOCK) : 0);
  }
  const { KH, KW } = conv, steps = Math.ceil(runOfK(problem) / kStep);
  return KH * (kxInner ? 1 + steps * (1 + KW) : 1 + KW * (1 + steps));
}

export function cpuKernel(spec: CpuSpec): string {
  const { source, threads, tile: [TM, TN] } = spec;
  const TN4 = TN / 4;
  return `${spec.vector ? gatherFunctions(source) : elementFunctions(source, false)}
@compute @workgroup_size(${threads})
fn gemm(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
${tileOfThread(spec, spec.tile)}
  let z = zs / params.splits;
  let split = zs % params.splits;
${offsets()}
  let begin = split * params.split_k;
  let end = min(begin + params.split_k, params.K);
${lines(TM, (i) => range(TN4).map((j) => `  var c${i}_${j} = vec4<f32>();`).join(" "))}
${spec.rowSums ? lines(TM / 4, (i) => `  var sum${i} = vec4<f32>();`) : ""}
${spec.vector ? vectorLoop(spec) : scalarLoop(spec)}
${spec.rowSums ? storeRowSums(spec) : ""}
${epilogue(spec, spec.loopsStores ? STORED_ROWS : undefined)}
}
`;
}

/** Every tile accumulates A's columns; the first one in each row of tiles stores them. */
function storeRowSums({ tile: [TM] }: CpuSpec): string {
  return `  if (n0 == 0u) {
${
    lines(TM / 4, (i) =>
      `    if (m0 + ${4 * i}u < params.M) { store_row_sums((zs * params.M + m0) / 4u + ${i}u, sum${i}); }`)
  }
  }`;
}

/**
 * The multiply-adds of kStep k, accumulator by accumulator (other orders spill more registers).
 * @param load loads row i of A, where rows of A are loaded one by one
 */
function multiplyAdd(
  { tile: [TM, TN], kStep, loadsFirst }: CpuSpec,
  a: (i: number, q: number) => string,
  load: (i: number) => string = () => "",
): string {
  const sum = (i: number, j: number) => range(kStep).map((q) => `${a(i, q)} * b${q}_${j}`).join(" + ");
  const row = (i: number) => range(TN / 4).map((j) => `c${i}_${j} = c${i}_${j} + ${sum(i, j)};`).join(" ");
  return loadsFirst ? `${lines(TM, load)}\n${lines(TM, row)}` : lines(TM, (i) => load(i) + row(i));
}

/** b<q>_<j> from t<n>_<q / 4>, which are four k of column n. */
function transposeB({ tile: [, TN], kStep }: CpuSpec): string {
  return range(kStep).map((q) =>
    lines(
      TN / 4,
      (j) =>
        `let b${q}_${j} = vec4<f32>(${
          range(4).map((e) => `t${4 * j + e}_${q >> 2}.${XYZW[q & 3]}`).join(", ")
        });`,
    )
  ).join("\n");
}

/** A coordinate outside of every map, whatever tap is added. */
const OUTSIDE = -0x40000000;

/** The output pixels of a convolution as the top left corners of their receptive fields; for conv_dx, the input pixels. */
function pixelGrid({ source, pixelReuse }: CpuSpec): string {
  const [rows, columns, stride, top, left] = source.kind === "conv_dx"
    ? ["H", "W", "1", "i32(params.KH - 1u - params.top)", "i32(params.KW - 1u - params.left)"]
    : ["Ho", "Wo", "i32(params.stride)", "i32(params.top)", "i32(params.left)"];
  return `let corner = -vec2<i32>(${top}, ${left}); let stride = ${stride};
let grid = PixelGrid(corner, corner + vec2<i32>(vec2<u32>(params.${rows}, params.${columns})) * stride, vec2<i32>(stride, stride * ${pixelReuse}));`;
}

function scalarLoop(spec: CpuSpec): string {
  const { tile: [TM, TN] } = spec, TN4 = TN / 4;
  const row = (f: string, first: string, i: number) =>
    `vec4<f32>(${range(4).map((q) => `${f}(offset_a, ${first} + ${i}u, k, k + ${q}u, end)`).join(", ")})`;
  return `for (var k = begin; k < end; k += 4u) {
${lines(TM, (i) => `let a${i} = ${row("a_at", "m0", i)};`)}
${
    range(4).map((q) =>
      lines(TN4, (j) =>
        `let b${q}_${j} = vec4<f32>(${
          range(4).map((e) =>
            `b_at(offset_b, n0 + ${4 * j + e}u, k, k + ${q}u, end)`
          ).join(", ")
        });`)
    ).join("\n")
  }
${multiplyAdd(spec, (i, q) => `a${i}.${XYZW[q]}`)}
}`;
}

/** Iterates over the pixels (image, y, x) of a map without divisions, which a SIMD vector does element by element. */
function gatherFunctions(source: GemmSource): string {
  if (source.kind === "plain") return "";
  return `
struct PixelGrid { first: vec2<i32>, last: vec2<i32>, step: vec2<i32> } // (y, x) of the first pixel and past the last
fn pixel_at(w: PixelGrid, index: u32, rows: u32, columns: u32) -> vec3<i32> {
  let row = index / columns;
  return vec3<i32>(i32(row / rows), w.first + vec2<i32>(vec2<u32>(row % rows, index % columns)) * w.step.x);
}
fn next_pixel(w: PixelGrid, p: vec3<i32>) -> vec3<i32> {
  let x = p.z + w.step.y;
  let row_ends = x == w.last.y;
  let y = p.y + select(0, w.step.x, row_ends);
  let image_ends = y == w.last.x;
  return vec3<i32>(p.x + select(0, 1, image_ends), select(y, w.first.x, image_ends), select(x, w.first.y, row_ends));
}`;
}

/** The loop over K with vec4 loads. Rows and columns beyond M and N are loaded (robust access), but never stored. */
function vectorLoop(spec: CpuSpec): string {
  const { source, tile: [TM, TN], kStep } = spec;
  const TM4 = TM / 4, TN4 = TN / 4, kVectors = kStep / 4;
  const rowOfA = (i: number, at: string) =>
    range(kVectors).map((z) => `let a${i}_${z} = a(${at} + ${z}u); `).join("");
  const byRow = (i: number, q: number) => `a${i}_${q >> 2}.${XYZW[q & 3]}`;
  const byColumn = (i: number, q: number) => `u${q}_${i >> 2}.${XYZW[i & 3]}`;
  /** Zero for k past the end. */
  const within = (q: number, value: string) =>
    spec.maskK ? `select(vec4<f32>(), ${value}, k + ${q}u < end)` : value;
  const columnsOfA = range(kStep).map((q) =>
    lines(TM4, (i) => `let u${q}_${i} = ${within(q, `a(offset_m + (k + ${q}u) * lda4 + ${i}u)`)};`)
  ).concat(
    spec.rowSums
      ? range(TM4).map((i) =>
        `part${i} = part${i} + (${
          range(kStep / 2).map((h) => `(u${2 * h}_${i} + u${2 * h + 1}_${i})`).join(" + ")
        });`
      )
      : [],
  ).join("\n");
  const columnsOfB = (at: (j: number) => string) =>
    lines(TN, (j) => range(kVectors).map((z) => `let t${j}_${z} = b(${at(j)} + ${z}u);`).join(" ")) +
    `\n${transposeB(spec)}`;
  const rowsOfB = (at: (q: number) => string) =>
    range(kStep).map((q) => lines(TN4, (j) => `let b${q}_${j} = ${within(q, `b(${at(q)} + ${j}u)`)};`)).join(
      "\n",
    );
  // Column sums have two levels, blocks of SUM_BLOCK rows and their sum, so that rounding errors do not grow with K.
  const overK = (body: string) =>
    spec.rowSums
      ? `for (var first = begin; first < end; first += ${SUM_BLOCK}u) {
${lines(TM4, (i) => `var part${i} = vec4<f32>();`)}
for (var k = first; k < min(first + ${SUM_BLOCK}u, end); k += ${kStep}u) {
${body}
}
${lines(TM4, (i) => `sum${i} = sum${i} + part${i};`)}
}`
      : `for (var k = begin; k < end; k += ${kStep}u) {
${body}
}`;
  if (source.kind === "plain") {
    const { transposeA, transposeB } = source;
    return `let lda4 = params.lda / 4u; let ldb4 = params.ldb / 4u;
let offset_m = (offset_a + m0) / 4u; let offset_n = (offset_b + n0) / 4u;
${transposeA ? "" : lines(TM, (i) => `let ra${i} = (offset_a + (m0 + ${i}u) * params.lda) / 4u;`)}
${transposeB ? lines(TN, (j) => `let rb${j} = (offset_b + (n0 + ${j}u) * params.ldb) / 4u;`) : ""}
${
      overK(
        `${
          transposeB ? columnsOfB((j) => `rb${j} + k / 4u`) : rowsOfB((q) => `offset_n + (k + ${q}u) * ldb4`)
        }
${
          transposeA
            ? `${columnsOfA}\n${multiplyAdd(spec, byColumn)}`
            : multiplyAdd(spec, byRow, (i) => rowOfA(i, `ra${i} + k / 4u`))
        }`,
      )
    }`;
  }
  if (source.kind === "conv_dweight") {
    return `let lda4 = params.lda / 4u; let offset_m = (offset_a + m0) / 4u;
let H = i32(params.H); let W = i32(params.W); let C4 = i32(params.C / 4u);
${pixelGrid(spec)}
${
      lines(TN4, (j) =>
        `let column${j} = n0 + ${4 * j}u; let tap${j} = column${j} / params.C;` +
        ` let ky${j} = i32(tap${j} / params.KW); let kx${j} = i32(tap${j} % params.KW);` +
        ` let tap_at${j} = (ky${j} * W + kx${j}) * C4 + i32(column${j} % params.C / 4u);`)
    }
var pixel = pixel_at(grid, begin, params.Ho, params.Wo);
${
      overK(`${columnsOfA}
${
        range(kStep).map((q) =>
          `let p${q} = ${q ? `next_pixel(grid, p${q - 1})` : "pixel"};
let y${q} = select(${OUTSIDE}, p${q}.y, k + ${q}u < end); let at${q} = ((p${q}.x * H + p${q}.y) * W + p${q}.z) * C4;
` +
          lines(TN4, (j) =>
            `let b${q}_${j} = select(vec4<f32>(), b(u32(at${q} + tap_at${j})), (u32(y${q} + ky${j}) < params.H) & (u32(p${q}.z + kx${j}) < params.W));`)
        ).join("\n")
      }
pixel = next_pixel(grid, p${kStep - 1});
${multiplyAdd(spec, byColumn)}`)
    }`;
  }
  return convolutionLoop(spec, { rowsOfB, columnsOfB });
}

/**
 * A row of the tile is a pixel: of the output or, for conv_dx, of the input, whose gradient is the convolution of dy (with
 * zeros between its pixels where the stride is not 1) with the taps reversed. From tap kx to kx + 1, pixelReuse adjacent
 * pixels shift what they have loaded in registers, and only the last one loads.
 */
function convolutionLoop(
  spec: CpuSpec,
  b: Record<"rowsOfB" | "columnsOfB", (at: (n: number) => string) => string>,
): string {
  const { source, tile: [TM, TN], kStep, kxInner, pixelReuse, stride } = spec;
  const kVectors = kStep / 4, segments = range(TM / pixelReuse), dx = source.kind === "conv_dx";
  const [rows, columns, channels] = dx ? ["Ho", "Wo", "Co"] : ["H", "W", "C"];
  /** Coordinate `at` of the gathered map, and whether it is inside. */
  const coordinate = (name: string, at: string, size: string) =>
    stride === 1
      ? `let ${name} = u32(${at}); let ${name}_in = ${name} < params.${size};`
      : `let ${name} = u32(${at}) / ${stride}u; let ${name}_in = (${name} < params.${size}) & (${name} * ${stride}u == u32(${at}));`;
  /** Address of the input of row i of the tile at tap kx. */
  const locate = (i: number, kx: string) => {
    const g = Math.floor(i / pixelReuse);
    return `${coordinate(`x${i}`, `p${g}.z + ${i % pixelReuse} + ${kx}`, columns)} ` +
      `let at${i} = (row${g} + x${i}) * C4; let ok${i} = y${g}_in & x${i}_in; `;
  };
  const loadRow = (i: number, declare: string) =>
    range(kVectors).map((z) =>
      `${declare} a${i}_${z} = select(vec4<f32>(), a(at${i} + c4 + ${z}u), ok${i}); `
    ).join("");
  const isLast = (i: number) => i % pixelReuse === pixelReuse - 1;
  const reusing = range(TM).filter((i) => !isLast(i));
  const iteration = `${
    dx
      ? `let offset_n = (tap * params.N + n0) / 4u;\n${
        b.rowsOfB((q) => `(c4 * 4u + ${q}u) * ldb4 + offset_n`)
      }`
      : b.columnsOfB((j) => `rb${j} + tap * C4 + c4`)
  }
${
    multiplyAdd(
      spec,
      (i, q) => `a${i}_${q >> 2}.${XYZW[q & 3]}`,
      (i) => isLast(i) ? (kxInner ? locate(i, "kx") : "") + loadRow(i, "let") : "",
    )
  }`;
  const up = (k: string, K: string) => `for (var ${k} = 0; ${k} < i32(params.${K}); ${k}++) {`;
  const down = (k: string, K: string) => `for (var ${k} = i32(params.${K}) - 1; ${k} >= 0; ${k}--) {`;
  const tap = `let tap = ${
    dx ? "(params.KH - 1u - u32(ky)) * params.KW + params.KW - 1u - u32(kx)" : "u32(ky) * params.KW + u32(kx)"
  };`;
  const overChannels = `for (var c4 = 0u; c4 < C4; c4 += ${kVectors}u) {`;
  return `let C4 = params.${channels} / 4u;
${dx ? "let ldb4 = params.ldb / 4u;" : ""}
${pixelGrid(spec)}
let p0 = pixel_at(grid, m0, ${dx ? "params.H, params.W" : "params.Ho, params.Wo"});
${segments.slice(1).map((g) => `let p${g} = next_pixel(grid, p${g - 1});`).join("\n")}
${dx ? "" : lines(TN, (j) => `let rb${j} = (n0 + ${j}u) * params.ldb / 4u;`)}
${dx ? down("ky", "KH") : up("ky", "KH")}
${
    segments.map((g) =>
      `${coordinate(`y${g}`, `p${g}.y + ky`, rows)} ` +
      `let row${g} = (u32(p${g}.x) * params.${rows} + y${g}) * params.${columns};`
    ).join("\n")
  }
${
    kxInner
      ? `${overChannels}
${reusing.map((i) => locate(i, "0") + loadRow(i, "var")).join("\n")}
${up("kx", "KW")}
${tap}
${iteration}
${reusing.map((i) => range(kVectors).map((z) => `a${i}_${z} = a${i + 1}_${z};`).join(" ")).join("\n")}`
      : `${dx ? down("kx", "KW") : up("kx", "KW")}
${tap}
${lines(TM, (i) => locate(i, "kx"))}
${overChannels}
${iteration}`
  }
}
}
}`;
}
