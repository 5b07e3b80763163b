// Prints the WGSL of softmax(q k^T * scale) v with streaming softmax: the T x T matrix is never stored. A generator
// because each lane holds whole head rows in registers, written out. q, k, v, y are [B, T, NH, HS].
//
// One lane owns a few query rows (forward, and dq), or a few key rows (dk, dv); it walks over the other side in order, so
// sums are in a fixed order without atomics. lse = max + log(sum) of each row is kept for the backward pass:
//   p = exp(s - lse);  D = sum(dy y);  ds = p (dy v - D);  dq = scale ds k;  dk = scale ds^T q;  dv = p^T dy
// A software adapter loads as slowly as it multiplies ten times: there a loaded row serves as many rows as the lane owns.

export type AttentionEntry = "attention" | "attention_backward_q" | "attention_backward_kv";

/** Heads wider than this do not fit a lane's registers, and take minutes to compile: they are matrix products instead. */
export const WIDEST_HEAD = 128;

/**
 * Lanes of a workgroup, and rows of a lane in each entry point: fewer, the wider a row is.
 * @param vector lanes of a software adapter's workgroup
 */
export function attentionTiling(
  HS: number,
  profile: "cpu" | "gpu",
  vector: number,
): { lanes: number; rows: Record<AttentionEntry, number> } {
  if (profile === "gpu") {
    return { lanes: 64, rows: { attention: 1, attention_backward_q: 1, attention_backward_kv: 1 } };
  }
  const most = Math.max(1, Math.floor(256 / HS));
  return {
    lanes: vector,
    rows: {
      attention: Math.min(4, most),
      attention_backward_q: Math.min(4, most),
      attention_backward_kv: Math.min(2, most),
    },
  };
}

/** The WGSL for heads of HS elements; entry points attention, attention_backward_q, attention_backward_kv. */
export function attentionWgsl(HS: number, profile: "cpu" | "gpu", vector: number): string {
  const wide = HS % 4 === 0;
  const n = wide ? HS / 4 : HS;
  const V = wide ? "vec4<f32>" : "f32";
  const { lanes, rows } = attentionTiling(HS, profile, vector);
  const range = (length: number, line: (i: number) => string, join = " ") =>
    Array.from({ length }, (_, i) => line(i)).join(join);
  const each = (line: (d: number) => string, join = " ") => range(n, line, join);
  const load = (name: string, buffer: string, at: string) =>
    each((d) => `let ${name}${d} = ${buffer}[${at} + ${d}u];`);
  const dot = (a: string, b: string) =>
    each((d) => wide ? `dot(${a}${d}, ${b}${d})` : `${a}${d} * ${b}${d}`, " + ");
  const zero = (name: string) => each((d) => `var ${name}${d} = ${V}();`);
  /** The lane's own rows: r<i>, item<i> = (b, row, h) and own<i>, the first element; a short tile repeats the last row. */
  const head = (entry: AttentionEntry, own: string, others: string) => `
@compute @workgroup_size(${lanes})
fn ${entry}(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
            @builtin(local_invocation_index) lane: u32) {
  let tile = (group.y * groups.x + group.x) * ${lanes}u + lane; // (b, rows, h)
  let tiles = (params.${own} + ${rows[entry] - 1}u) / ${rows[entry]}u;
  if (tile >= params.batch * tiles * params.heads) { return; }
  let h = tile % params.heads;
  let image = tile / (params.heads * tiles);
  let r0 = tile / params.heads % tiles * ${rows[entry]}u;
  ${
    range(
      rows[entry],
      (i) =>
        `${i ? `let r${i} = min(r0 + ${i}u, params.${own} - 1u);` : ""}
  let item${i} = (image * params.${own} + r${i}) * params.heads + h; let own${i} = item${i} * ${n}u;`,
    )
  }
  let step = params.heads * ${n}u;
  let count = params.${others};
  let others = (image * count * params.heads + h) * ${n}u;
  let scale = params.scale;`;
  const rowsOf = (entry: AttentionEntry, line: (i: number) => string) => range(rows[entry], line, "\n  ");
  const store = (i: number, own: string, what: string) =>
    i ? `if (r0 + ${i}u < params.${own}) { ${what} }` : what;
  return `struct Params { batch: u32, queries: u32, keys: u32, heads: u32, scale: f32 }
@group(0) @binding(0) var<storage, read> q: array<${V}>;
@group(0) @binding(1) var<storage, read> k: array<${V}>;
@group(0) @binding(2) var<storage, read> v: array<${V}>;
@group(0) @binding(3) var<storage, read> dy: array<${V}>;
@group(0) @binding(4) var<storage, read> lse: array<f32>;            // [B, T, NH]
@group(0) @binding(5) var<storage, read> dsum: array<f32>;           // D, same layout
@group(0) @binding(6) var<storage, read> y_saved: array<${V}>;
@group(0) @binding(7) var<storage, read_write> y: array<${V}>;
@group(0) @binding(8) var<storage, read_write> lse_out: array<f32>;
@group(0) @binding(9) var<storage, read_write> dsum_out: array<f32>;
@group(0) @binding(10) var<storage, read_write> dk: array<${V}>;
@group(0) @binding(11) var<storage, read_write> dv: array<${V}>;
@group(0) @binding(12) var<uniform> params: Params;
${head("attention", "queries", "keys")}
  ${
    rowsOf("attention", (i) =>
      `${load(`q${i}_`, "q", `own${i}`)} ${zero(`o${i}_`)} var top${i} = -3.4028234e38; var sum${i} = 0.0;`)
  }
  for (var j = 0u; j < count; j++) {
    let at = others + j * step;
    ${load("k", "k", "at")}
    ${load("v", "v", "at")}
    ${
    rowsOf("attention", (i) =>
      `let s${i} = (${dot(`q${i}_`, "k")}) * scale; let more${i} = s${i} > top${i};
    let e${i} = exp(-abs(s${i} - top${i})); // one of the old sum and the new term shrinks by it
    let old${i} = select(1.0, e${i}, more${i}); let p${i} = select(e${i}, 1.0, more${i});
    ${each((d) => `o${i}_${d} = o${i}_${d} * old${i} + p${i} * v${d};`)}
    sum${i} = sum${i} * old${i} + p${i}; top${i} = max(top${i}, s${i});`)
  }
  }
  ${
    rowsOf("attention", (i) =>
      store(
        i,
        "queries",
        `let inverse${i} = 1.0 / sum${i}; ${each((d) => `y[own${i} + ${d}u] = o${i}_${d} * inverse${i};`)}
  lse_out[item${i}] = top${i} + log(sum${i});`,
      ))
  }
}
${head("attention_backward_q", "queries", "keys")}
  ${
    rowsOf("attention_backward_q", (i) =>
      `${load(`q${i}_`, "q", `own${i}`)} ${load(`g${i}_`, "dy", `own${i}`)} ${
        load(`o${i}_`, "y_saved", `own${i}`)
      }
  let row${i} = lse[item${i}]; let D${i} = ${dot(`g${i}_`, `o${i}_`)}; ${zero(`a${i}_`)}`)
  }
  for (var j = 0u; j < count; j++) {
    let at = others + j * step;
    ${load("k", "k", "at")}
    ${load("v", "v", "at")}
    ${
    rowsOf("attention_backward_q", (i) =>
      `let p${i} = exp((${dot(`q${i}_`, "k")}) * scale - row${i});
    let ds${i} = p${i} * (${dot(`g${i}_`, "v")} - D${i}) * scale;
    ${each((d) => `a${i}_${d} = a${i}_${d} + ds${i} * k${d};`)}`)
  }
  }
  ${
    rowsOf("attention_backward_q", (i) =>
      store(
        i,
        "queries",
        `${each((d) => `y[own${i} + ${d}u] = a${i}_${d};`)} dsum_out[item${i}] = D${i};`,
      ))
  }
}
${head("attention_backward_kv", "keys", "queries")}
  ${
    rowsOf("attention_backward_kv", (i) =>
      `${load(`k${i}_`, "k", `own${i}`)} ${load(`v${i}_`, "v", `own${i}`)} ${zero(`a${i}_`)} ${
        zero(`c${i}_`)
      }`)
  }
  let rows = image * count * params.heads + h;
  for (var i = 0u; i < count; i++) {
    let at = others + i * step;
    ${load("q", "q", "at")}
    ${load("g", "dy", "at")}
    let row = rows + i * params.heads;
    let of_row = lse[row];
    let D = dsum[row];
    ${
    rowsOf("attention_backward_kv", (i) =>
      `let p${i} = exp((${dot("q", `k${i}_`)}) * scale - of_row);
    let ds${i} = p${i} * (${dot("g", `v${i}_`)} - D) * scale;
    ${each((d) => `a${i}_${d} = a${i}_${d} + ds${i} * q${d}; c${i}_${d} = c${i}_${d} + p${i} * g${d};`)}`)
  }
  }
  ${
    rowsOf("attention_backward_kv", (i) =>
      store(
        i,
        "keys",
        each((d) => `dk[own${i} + ${d}u] = a${i}_${d}; dv[own${i} + ${d}u] = c${i}_${d};`),
      ))
  }
}
`;
}
