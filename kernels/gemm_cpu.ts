// Matrix products for software adapters: straight-line register tiles, one lane a tile. See gemm.ts.

import { CPU_LANES, elementFunctions, type GemmSpec, lines, range, store, XYZW } from "./gemm_parts.ts";

export function cpuKernel(spec: GemmSpec): string {
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
