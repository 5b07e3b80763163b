// Matrix products for software adapters: straight-line register tiles, one lane a tile. See gemm.ts.

import { elementFunctions, type GemmSpec, lines, offsets, range, store, XYZW } from "./gemm_parts.ts";

/** Rows of A transposed whose columns are added up at a time (GemmSpec.sums); a multiple of the step. */
export const SUM_BLOCK = 128;

export function cpuKernel(spec: GemmSpec): string {
  const { lanes, tile: [TM, TN] } = spec;
  const TN4 = TN / 4;
  return `${spec.vector ? gatherFunctions(spec) : elementFunctions(spec)}
@compute @workgroup_size(${lanes})
fn gemm(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let tile = (group.y * groups.x + group.x) * ${lanes}u + lane;
  if (tile >= params.tiles) { return; }
  let n0 = tile % params.tiles_n * ${TN}u;
  let m0 = (tile / params.tiles_n) % params.tiles_m * ${TM}u;
  let zs = tile / (params.tiles_n * params.tiles_m);
  let z = zs / params.splits;
  let split = zs % params.splits;
${offsets()}
  let begin = split * params.depth;
  let end = min(begin + params.depth, params.K);
${lines(TM, (i) => range(TN4).map((j) => `  var c${i}_${j} = vec4<f32>();`).join(" "))}
${spec.sums ? lines(TM / 4, (i) => `  var sum${i} = vec4<f32>();`) : ""}
${spec.vector ? vectorLoop(spec) : scalarLoop(spec)}
${spec.sums ? storeSums(spec) : ""}
${store(spec)}
}
`;
}

/** A's columns were added up by every tile; the first one in each row of tiles stores them. */
function storeSums({ tile: [TM] }: GemmSpec): string {
  return `  if (n0 == 0u) {
${
    lines(TM / 4, (i) =>
      `    if (m0 + ${4 * i}u < params.M) { sums[(zs * params.M + m0) / 4u + ${i}u] = sum${i}; }`)
  }
  }`;
}

/** Loads four numbers of an operand; `at` counts in fours. */
function load({ texels }: GemmSpec, operand: "a" | "b", at: string): string {
  if (!texels) return `${operand}[${at}]`;
  return `textureLoad(${operand}, vec2<u32>((${at}) & ${texels - 1}u, (${at}) >> ${Math.log2(texels)}u))`;
}

/** The multiply-adds of `step` K's, accumulator by accumulator (other orders spill more). */
function multiplyAdd(
  { tile: [TM, TN], step }: GemmSpec,
  a: (i: number, q: number) => string,
  before: (i: number) => string = () => "",
): string {
  const sum = (i: number, j: number) => range(step).map((q) => `${a(i, q)} * b${q}_${j}`).join(" + ");
  return lines(
    TM,
    (i) => before(i) + range(TN / 4).map((j) => `c${i}_${j} = c${i}_${j} + ${sum(i, j)};`).join(" "),
  );
}

/** b<q>_<j> out of t<n>_<q / 4> = four K's of column n. */
function transposeB({ tile: [, TN], step }: GemmSpec): string {
  return range(step).map((q) =>
    lines(
      TN / 4,
      (j) =>
        `let b${q}_${j} = vec4<f32>(${
          range(4).map((e) => `t${4 * j + e}_${q >> 2}.${XYZW[q & 3]}`).join(", ")
        });`,
    )
  ).join("\n");
}

/** A coordinate that is outside of every map, whatever tap is added. */
const OUTSIDE = -0x40000000;

/** Output pixels of a convolution as corners of what they see; and input pixels in the gradient of the input likewise. */
function pixelView({ source, segment }: GemmSpec): string {
  const [rows, columns, stride, top, left] = source.kind === "conv_dx"
    ? ["H", "W", "1", "i32(params.KH - 1u - params.top)", "i32(params.KW - 1u - params.left)"]
    : ["Ho", "Wo", "i32(params.stride)", "i32(params.top)", "i32(params.left)"];
  return `let corner = -vec2<i32>(${top}, ${left}); let stride = ${stride};
let walk = Walk(corner, corner + vec2<i32>(vec2<u32>(params.${rows}, params.${columns})) * stride, vec2<i32>(stride, stride * ${segment}));`;
}

function scalarLoop(spec: GemmSpec): string {
  const { tile: [TM, TN] } = spec, TN4 = TN / 4;
  const row = (f: string, first: string, i: number) =>
    `vec4<f32>(${range(4).map((q) => `${f}(from_a, ${first} + ${i}u, k, k + ${q}u, end)`).join(", ")})`;
  return `for (var k = begin; k < end; k += 4u) {
${lines(TM, (i) => `let a${i} = ${row("a_at", "m0", i)};`)}
${
    range(4).map((q) =>
      lines(TN4, (j) =>
        `let b${q}_${j} = vec4<f32>(${
          range(4).map((e) =>
            `b_at(from_b, n0 + ${4 * j + e}u, k, k + ${q}u, end)`
          ).join(", ")
        });`)
    ).join("\n")
  }
${multiplyAdd(spec, (i, q) => `a${i}.${XYZW[q]}`)}
}`;
}

/**
 * Walks over the pixels of a map, image by image and row by row, without a division for each (16 lanes divide one after the
 * other). A pixel is (image, y, x), already scaled by the stride and moved by the padding.
 */
function gatherFunctions({ source }: GemmSpec): string {
  if (source.kind === "plain") return "";
  return `
struct Walk { first: vec2<i32>, last: vec2<i32>, step: vec2<i32> } // (y, x) of the first pixel and behind the last
fn pixel_at(w: Walk, index: u32, rows: u32, columns: u32) -> vec3<i32> {
  let row = index / columns;
  return vec3<i32>(i32(row / rows), w.first + vec2<i32>(vec2<u32>(row % rows, index % columns)) * w.step.x);
}
fn next(w: Walk, p: vec3<i32>) -> vec3<i32> {
  let x = p.z + w.step.y;
  let row_ends = x == w.last.y;
  let y = p.y + select(0, w.step.x, row_ends);
  let image_ends = y == w.last.x;
  return vec3<i32>(p.x + select(0, 1, image_ends), select(y, w.first.x, image_ends), select(x, w.first.y, row_ends));
}`;
}

/**
 * Loops over K with vec4 loads. Rows and columns beyond M and N are loaded too: such loads stay inside the buffer (robust
 * access) and their results are never stored.
 */
function vectorLoop(spec: GemmSpec): string {
  const { source, tile: [TM, TN], step } = spec;
  const TM4 = TM / 4, TN4 = TN / 4, fours = step / 4;
  const rowOfA = (i: number, at: string, keep = (value: string) => value) =>
    range(fours).map((z) => `let a${i}_${z} = ${keep(load(spec, "a", `${at} + ${z}u`))}; `).join("");
  const byRow = (i: number, q: number) => `a${i}_${q >> 2}.${XYZW[q & 3]}`;
  const byColumn = (i: number, q: number) => `u${q}_${i >> 2}.${XYZW[i & 3]}`;
  /** A row of K's past the end counts as zero. */
  const within = (q: number, value: string) =>
    spec.ragged ? `select(vec4<f32>(), ${value}, k + ${q}u < end)` : value;
  const columnsOfA = range(step).map((q) =>
    lines(
      TM4,
      (i) => `let u${q}_${i} = ${within(q, load(spec, "a", `from_m + (k + ${q}u) * lda4 + ${i}u`))};`,
    )
  ).concat(
    spec.sums
      ? range(TM4).map((i) =>
        `part${i} = part${i} + (${
          range(step / 2).map((h) => `(u${2 * h}_${i} + u${2 * h + 1}_${i})`).join(" + ")
        });`
      )
      : [],
  ).join("\n");
  const columnsOfB = (at: (j: number) => string) =>
    lines(
      TN,
      (j) => range(fours).map((z) => `let t${j}_${z} = ${load(spec, "b", `${at(j)} + ${z}u`)};`).join(" "),
    ) +
    `\n${transposeB(spec)}`;
  const rowsOfB = (at: (q: number) => string) =>
    range(step).map((q) =>
      lines(TN4, (j) => `let b${q}_${j} = ${within(q, load(spec, "b", `${at(q)} + ${j}u`))};`)
    ).join("\n");
  // Sums of columns have two levels, so that rounding errors do not grow with K: those of SUM_BLOCK rows, and of the blocks.
  const overK = (body: string) =>
    spec.sums
      ? `for (var first = begin; first < end; first += ${SUM_BLOCK}u) {
${lines(TM4, (i) => `var part${i} = vec4<f32>();`)}
for (var k = first; k < min(first + ${SUM_BLOCK}u, end); k += ${step}u) {
${body}
}
${lines(TM4, (i) => `sum${i} = sum${i} + part${i};`)}
}`
      : `for (var k = begin; k < end; k += ${step}u) {
${body}
}`;
  if (source.kind === "plain") {
    const { transposeA, transposeB } = source;
    return `let lda4 = params.lda / 4u; let ldb4 = params.ldb / 4u;
let from_m = (from_a + m0) / 4u; let from_n = (from_b + n0) / 4u;
${transposeA ? "" : lines(TM, (i) => `let ra${i} = (from_a + (m0 + ${i}u) * params.lda) / 4u;`)}
${transposeB ? lines(TN, (j) => `let rb${j} = (from_b + (n0 + ${j}u) * params.ldb) / 4u;`) : ""}
${
      overK(
        `${transposeB ? columnsOfB((j) => `rb${j} + k / 4u`) : rowsOfB((q) => `from_n + (k + ${q}u) * ldb4`)}
${
          transposeA
            ? `${columnsOfA}\n${multiplyAdd(spec, byColumn)}`
            : multiplyAdd(spec, byRow, (i) => rowOfA(i, `ra${i} + k / 4u`))
        }`,
      )
    }`;
  }
  if (source.kind === "conv_dweight") {
    return `let lda4 = params.lda / 4u; let from_m = (from_a + m0) / 4u;
let H = i32(params.H); let W = i32(params.W); let C4 = i32(params.C / 4u);
${pixelView(spec)}
${
      lines(TN4, (j) =>
        `let column${j} = n0 + ${4 * j}u; let tap${j} = column${j} / params.C;` +
        ` let ky${j} = i32(tap${j} / params.KW); let kx${j} = i32(tap${j} % params.KW);` +
        ` let tap_at${j} = (ky${j} * W + kx${j}) * C4 + i32(column${j} % params.C / 4u);`)
    }
var pixel = pixel_at(walk, begin, params.Ho, params.Wo);
${
      overK(`${columnsOfA}
${
        range(step).map((q) =>
          `let p${q} = ${q ? `next(walk, p${q - 1})` : "pixel"};
let y${q} = select(${OUTSIDE}, p${q}.y, k + ${q}u < end); let at${q} = ((p${q}.x * H + p${q}.y) * W + p${q}.z) * C4;
` +
          lines(TN4, (j) =>
            `let b${q}_${j} = select(vec4<f32>(), ${
              load(spec, "b", `u32(at${q} + tap_at${j})`)
            }, (u32(y${q} + ky${j}) < params.H) & (u32(p${q}.z + kx${j}) < params.W));`)
        ).join("\n")
      }
pixel = next(walk, p${step - 1});
${multiplyAdd(spec, byColumn)}`)
    }`;
  }
  return convolutionLoop(spec, { rowsOfB, columnsOfB });
}

/**
 * A row of the tile is a pixel: of the output or, for the gradient of the input, of the input, which is the convolution of
 * dy (with zeros between its pixels where there is a stride) with the taps in reverse. From one kx to the next, the pixels
 * of a segment pass on what they have loaded, and only the last one loads.
 */
function convolutionLoop(
  spec: GemmSpec,
  b: Record<"rowsOfB" | "columnsOfB", (at: (n: number) => string) => string>,
): string {
  const { source, tile: [TM, TN], step, tapsInside, segment, stride } = spec;
  const fours = step / 4, segments = range(TM / segment), dx = source.kind === "conv_dx";
  const [rows, columns, channels] = dx ? ["Ho", "Wo", "Co"] : ["H", "W", "C"];
  /** Coordinate `at` of the gathered map, and whether it is inside. */
  const coordinate = (name: string, at: string, size: string) =>
    stride === 1
      ? `let ${name} = u32(${at}); let ${name}_in = ${name} < params.${size};`
      : `let ${name} = u32(${at}) / ${stride}u; let ${name}_in = (${name} < params.${size}) & (${name} * ${stride}u == u32(${at}));`;
  /** Where row i of the tile sees tap kx of its row of taps. */
  const locate = (i: number, kx: string) => {
    const g = Math.floor(i / segment);
    return `${coordinate(`x${i}`, `p${g}.z + ${i % segment} + ${kx}`, columns)} ` +
      `let at${i} = (row${g} + x${i}) * C4; let ok${i} = y${g}_in & x${i}_in; `;
  };
  const loadRow = (i: number, declare: string) =>
    range(fours).map((z) =>
      `${declare} a${i}_${z} = select(vec4<f32>(), ${load(spec, "a", `at${i} + c4 + ${z}u`)}, ok${i}); `
    ).join("");
  const isLast = (i: number) => i % segment === segment - 1;
  const passing = range(TM).filter((i) => !isLast(i));
  const turn = `${
    dx
      ? `let from_n = (tap * params.N + n0) / 4u;\n${b.rowsOfB((q) => `(c4 * 4u + ${q}u) * ldb4 + from_n`)}`
      : b.columnsOfB((j) => `rb${j} + tap * C4 + c4`)
  }
${
    multiplyAdd(
      spec,
      (i, q) => `a${i}_${q >> 2}.${XYZW[q & 3]}`,
      (i) => isLast(i) ? (tapsInside ? locate(i, "kx") : "") + loadRow(i, "let") : "",
    )
  }`;
  const up = (k: string, K: string) => `for (var ${k} = 0; ${k} < i32(params.${K}); ${k}++) {`;
  const down = (k: string, K: string) => `for (var ${k} = i32(params.${K}) - 1; ${k} >= 0; ${k}--) {`;
  const tap = `let tap = ${
    dx ? "(params.KH - 1u - u32(ky)) * params.KW + params.KW - 1u - u32(kx)" : "u32(ky) * params.KW + u32(kx)"
  };`;
  const overChannels = `for (var c4 = 0u; c4 < C4; c4 += ${fours}u) {`;
  return `let C4 = params.${channels} / 4u;
${dx ? "let ldb4 = params.ldb / 4u;" : ""}
${pixelView(spec)}
let p0 = pixel_at(walk, m0, ${dx ? "params.H, params.W" : "params.Ho, params.Wo"});
${segments.slice(1).map((g) => `let p${g} = next(walk, p${g - 1});`).join("\n")}
${dx ? "" : lines(TN, (j) => `let rb${j} = (n0 + ${j}u) * params.ldb / 4u;`)}
${dx ? down("ky", "KH") : up("ky", "KH")}
${
    segments.map((g) =>
      `${coordinate(`y${g}`, `p${g}.y + ky`, rows)} ` +
      `let row${g} = (u32(p${g}.x) * params.${rows} + y${g}) * params.${columns};`
    ).join("\n")
  }
${
    tapsInside
      ? `${overChannels}
${passing.map((i) => locate(i, "0") + loadRow(i, "var")).join("\n")}
${up("kx", "KW")}
${tap}
${turn}
${passing.map((i) => range(fours).map((z) => `a${i}_${z} = a${i + 1}_${z};`).join(" ")).join("\n")}`
      : `${dx ? down("kx", "KW") : up("kx", "KW")}
${tap}
${lines(TM, (i) => locate(i, "kx"))}
${overChannels}
${turn}`
  }
}
}
}`;
}
