// Rotary positions on x [R, T, NH, HS], pairs (x0, x1) of adjacent channels, tables cos and sin [T, HS]:
//   y0 = x0 cos0 - x1 sin0,  y1 = x1 cos1 + x0 sin1        Su et al. (2021)
// BACK: dx0 = dy0 cos0 + dy1 sin1,  dx1 = dy1 cos1 - dy0 sin0.
// rotary_half: the same with pairs (x_i, x_(i + HS/2)), as in DINOv3. A thread owns two pairs: one vec4, or two vec2s of
// rotary_half. The host defines E accordingly.

override BACK: u32 = 0;

struct Params {
  count: u32, // threads
  tokens: u32,
  heads: u32,
  size: u32,  // threads of a head
}

var<storage> x: array<E>;
var<storage> cos_table: array<E>;
var<storage> sin_table: array<E>;
var<storage> y: array<E>;

@compute @workgroup_size(64)
fn rotary(id: Invocation) {
  let i = thread_of(id, 64u);
  if (i >= params.count) { return; }
  let at = i / (params.size * params.heads) % params.tokens * params.size + i % params.size;
  let c = cos_table(at);
  let s = sin_table(at);
  let v = x(i);
  if (BACK == 0u) { store_y(i, v * c + vec4(-v.y, v.x, -v.w, v.z) * s); }
  else {
    let t = v * s;
    store_y(i, v * c + vec4(t.y, -t.x, t.w, -t.z));
  }
}

@compute @workgroup_size(64)
fn rotary_half(id: Invocation) {
  let i = thread_of(id, 64u);
  if (i >= params.count) { return; }
  let head = i / params.size;
  let low = 2u * head * params.size + i % params.size;
  let high = low + params.size;
  let at = 2u * (head / params.heads % params.tokens) * params.size + i % params.size;
  let a = x(low);
  let b = x(high);
  let ca = cos_table(at);
  let cb = cos_table(at + params.size);
  let sa = sin_table(at);
  let sb = sin_table(at + params.size);
  if (BACK == 0u) {
    store_y(low, a * ca - b * sa);
    store_y(high, b * cb + a * sb);
  } else {
    store_y(low, a * ca + b * sb);
    store_y(high, b * cb - a * sa);
  }
}
