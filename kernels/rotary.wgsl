// Rotary positions on x [R, T, NH, HS], pairs (x0, x1) of neighbouring channels, tables cos and sin [T, HS]:
//   y0 = x0 cos0 - x1 sin0,  y1 = x1 cos1 + x0 sin1        Su et al. (2021)
// BACK: dx0 = dy0 cos0 + dy1 sin1,  dx1 = dy1 cos1 - dy0 sin0. One invocation owns a pair.
// rotary_halves: the same with pairs (x_i, x_(i + HS/2)), as DINOv3 has them; one invocation owns two neighbouring pairs.

override BACK: u32 = 0;

struct Params {
  count: u32, // pairs
  tokens: u32,
  heads: u32,
  size: u32,  // pairs of a head
}

@group(0) @binding(0) var<storage, read> x: array<vec2<f32>>;
@group(0) @binding(1) var<storage, read> cos_table: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read> sin_table: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec2<f32>>;
@group(0) @binding(4) var<uniform> params: Params;

@compute @workgroup_size(64)
fn rotary(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
          @builtin(local_invocation_index) lane: u32) {
  let i = (group.y * groups.x + group.x) * 64u + lane;
  if (i >= params.count) { return; }
  let at = i / (params.size * params.heads) % params.tokens * params.size + i % params.size;
  let c = cos_table[at];
  let s = sin_table[at];
  let v = x[i];
  if (BACK == 0u) { y[i] = vec2(v.x * c.x - v.y * s.x, v.y * c.y + v.x * s.y); }
  else { y[i] = vec2(v.x * c.x + v.y * s.y, v.y * c.y - v.x * s.x); }
}

@compute @workgroup_size(64)
fn rotary_halves(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                 @builtin(local_invocation_index) lane: u32) {
  let i = (group.y * groups.x + group.x) * 64u + lane;
  if (i >= params.count / 2u) { return; }
  let half = params.size / 2u;
  let head = i / half;
  let low = head * params.size + i % half;
  let at = head / params.heads % params.tokens * params.size + i % half;
  let a = x[low];
  let b = x[low + half];
  let ca = cos_table[at];
  let cb = cos_table[at + half];
  let sa = sin_table[at];
  let sb = sin_table[at + half];
  if (BACK == 0u) {
    y[low] = a * ca - b * sa;
    y[low + half] = b * cb + a * sb;
  } else {
    y[low] = a * ca + b * sb;
    y[low + half] = b * cb - a * sa;
  }
}
