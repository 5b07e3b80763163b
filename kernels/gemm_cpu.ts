// Matrix products for software adapters: straight-line register tiles, one lane a tile. See gemm.ts.

import { elementFunctions, type GemmSpec, lines, offsets, range, store, XYZW } from "./gemm_parts.ts";

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
  return `textureLoad(${operand}, vec2<u32>((${at}) & ${texels - 1}u, (${at}) >> ${Math.log2(texels)}u), 0)`;
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

function scalarLoop(spec: GemmSpec): string {
  const { tile: [TM, TN] } = spec, TN4 = TN / 4;
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
${multiplyAdd(spec, (i, q) => `a${i}.${XYZW[q]}`)}
}`;
}

function gatherFunctions(spec: GemmSpec): string {
  if (spec.source.kind !== "conv_dweight") return "";
  return `
struct Sizes { H: i32, W: i32, C4: i32, Ho: u32, Wo: u32, stride: u32, top: i32, left: i32 } // read once, not in the loop
fn x_at(s: Sizes, pixel: vec3<i32>, ky: i32, kx: i32, c4: i32) -> vec4<f32> { // pixel: first row of its image, iy, ix
  let iy = pixel.y + ky;
  let ix = pixel.z + kx;
  let inside = iy >= 0 && ix >= 0 && iy < s.H && ix < s.W;
  let at = ((pixel.x + iy) * s.W + ix) * s.C4 + c4;
  return select(vec4<f32>(), ${load(spec, "b", "u32(select(0, at, inside))")}, inside);
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
      ? range(TM4).map((i) => range(step).map((q) => `sum${i} = sum${i} + u${q}_${i};`).join(" "))
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
  if (source.kind === "plain") {
    const { transposeA, transposeB } = source;
    return `let lda4 = params.lda / 4u; let ldb4 = params.ldb / 4u;
let from_m = (from_a + m0) / 4u; let from_n = (from_b + n0) / 4u;
${transposeA ? "" : lines(TM, (i) => `let ra${i} = (from_a + (m0 + ${i}u) * params.lda) / 4u;`)}
${transposeB ? lines(TN, (j) => `let rb${j} = (from_b + (n0 + ${j}u) * params.ldb) / 4u;`) : ""}
for (var k = begin; k < end; k += ${step}u) {
${transposeB ? columnsOfB((j) => `rb${j} + k / 4u`) : rowsOfB((q) => `from_n + (k + ${q}u) * ldb4`)}
${
      transposeA
        ? `${columnsOfA}\n${multiplyAdd(spec, byColumn)}`
        : multiplyAdd(spec, byRow, (i) => rowOfA(i, `ra${i} + k / 4u`))
    }
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
for (var k = begin; k < end; k += ${step}u) {
${columnsOfA}
${lines(step, (q) => `let p${q} = corner(sizes, k + ${q}u);`)}
${
      range(step).map((q) =>
        lines(TN4, (j) =>
          `let b${q}_${j} = select(vec4<f32>(), x_at(sizes, p${q}, ky${j}, kx${j}, channel${j}), k + ${q}u < end);`)
      ).join("\n")
    }
${multiplyAdd(spec, byColumn)}
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
  return `let C4 = params.${channels} / 4u;
${dx ? "let s = i32(params.stride); let ldb4 = params.ldb / 4u;" : ""}
let H = i32(params.H); let W = i32(params.W); let Ho = i32(params.Ho); let Wo = i32(params.Wo); let KW = params.KW; let N = params.N;
let all_taps = params.KH * params.KW;
${lines(TM, pixel)}
${dx ? "" : lines(TN, (j) => `let rb${j} = (n0 + ${j}u) * params.ldb / 4u;`)}
for (var taps = 0u; taps < all_taps; taps++) {
let ky = i32(taps / KW); let kx = i32(taps % KW);${dx ? " let from_n = (taps * N + n0) / 4u;" : ""}
${lines(TM, tap)}
for (var c4 = 0u; c4 < C4; c4 += ${fours}u) {
${dx ? rowsOfB((q) => `(c4 * 4u + ${q}u) * ldb4 + from_n`) : columnsOfB((j) => `rb${j} + taps * C4 + c4`)}
${
    multiplyAdd(
      spec,
      byRow,
      (i) => rowOfA(i, `ra${i} + c4`, (value) => `select(vec4<f32>(), ${value}, ok${i})`),
    )
  }
}
}`;
}
