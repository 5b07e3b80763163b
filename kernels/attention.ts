// Prints the WGSL of softmax(q k^T * scale) v with streaming softmax: the T x T matrix is never stored. A generator
// because each lane holds a whole head row in registers, written out. q, k, v, y are [B, T, NH, HS].
//
// One lane owns one query row (forward, and dq), or one key row (dk, dv); it walks over the other side in order, so sums
// are in a fixed order without atomics. lse = max + log(sum) of each row is kept for the backward pass:
//   p = exp(s - lse);  D = sum(dy y);  ds = p (dy v - D);  dq = scale ds k;  dk = scale ds^T q;  dv = p^T dy

export const ATTENTION_LANES = { cpu: 8, gpu: 64 } as const;

/** The WGSL for heads of HS elements; entry points attention, attention_backward_q, attention_backward_kv. */
export function attentionWgsl(HS: number, profile: "cpu" | "gpu"): string {
  const wide = HS % 4 === 0;
  const n = wide ? HS / 4 : HS;
  const V = wide ? "vec4<f32>" : "f32";
  const each = (line: (d: number) => string, join = " ") =>
    Array.from({ length: n }, (_, d) => line(d)).join(join);
  const load = (name: string, buffer: string, at: string) =>
    each((d) => `let ${name}${d} = ${buffer}[${at} + ${d}u];`);
  const dot = (a: string, b: string) =>
    each((d) => wide ? `dot(${a}${d}, ${b}${d})` : `${a}${d} * ${b}${d}`, " + ");
  const zero = (name: string) => each((d) => `var ${name}${d} = ${V}();`);
  const WG = ATTENTION_LANES[profile];
  const head = (entry: string, rows: string, others: string) => `
@compute @workgroup_size(${WG})
fn ${entry}(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
            @builtin(local_invocation_index) lane: u32) {
  let item = (group.y * groups.x + group.x) * ${WG}u + lane; // (b, row, h)
  if (item >= params.batch * params.${rows} * params.heads) { return; }
  let h = item % params.heads;
  let image = item / (params.heads * params.${rows});
  let own = item * ${n}u;
  let step = params.heads * ${n}u;
  let count = params.${others};
  let others = (image * count * params.heads + h) * ${n}u;
  let scale = params.scale;`;
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
  ${load("q", "q", "own")}
  ${zero("o")}
  var top = -3.4028234e38;
  var sum = 0.0;
  for (var j = 0u; j < count; j++) {
    let at = others + j * step;
    ${load("k", "k", "at")}
    let s = (${dot("q", "k")}) * scale;
    let m = max(top, s);
    let old = exp(top - m);
    let p = exp(s - m);
    ${load("v", "v", "at")}
    ${each((d) => `o${d} = o${d} * old + p * v${d};`)}
    sum = sum * old + p;
    top = m;
  }
  let r = 1.0 / sum;
  ${each((d) => `y[own + ${d}u] = o${d} * r;`)}
  lse_out[item] = top + log(sum);
}
${head("attention_backward_q", "queries", "keys")}
  ${load("q", "q", "own")}
  ${load("g", "dy", "own")}
  ${load("o", "y_saved", "own")}
  let row = lse[item];
  let D = ${dot("g", "o")};
  ${zero("a")}
  for (var j = 0u; j < count; j++) {
    let at = others + j * step;
    ${load("k", "k", "at")}
    ${load("v", "v", "at")}
    let p = exp((${dot("q", "k")}) * scale - row);
    let ds = p * (${dot("g", "v")} - D) * scale;
    ${each((d) => `a${d} = a${d} + ds * k${d};`)}
  }
  ${each((d) => `y[own + ${d}u] = a${d};`)}
  dsum_out[item] = D;
}
${head("attention_backward_kv", "keys", "queries")}
  ${load("k", "k", "own")}
  ${load("v", "v", "own")}
  ${zero("a")}
  ${zero("c")}
  let rows = image * count * params.heads + h;
  for (var i = 0u; i < count; i++) {
    let at = others + i * step;
    ${load("q", "q", "at")}
    ${load("g", "dy", "at")}
    let row = rows + i * params.heads;
    let p = exp((${dot("q", "k")}) * scale - lse[row]);
    let ds = p * (${dot("g", "v")} - dsum[row]) * scale;
    ${each((d) => `a${d} = a${d} + ds * q${d};`)}
    ${each((d) => `c${d} = c${d} + p * g${d};`)}
  }
  ${each((d) => `dk[own + ${d}u] = a${d};`)}
  ${each((d) => `dv[own + ${d}u] = c${d};`)}
}
`;
}
