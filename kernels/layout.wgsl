// One kernel moves data for permute, slice, concat, pad, flip, split and expand: over an index space of up to six axes,
//   y[y_from + sum_d i_d ys_d] = x[x_from + sum_d i_d xs_d]
// with strides in vectors (4 elements, or 1 in `move1`). With PAD, index i_d must lie in lo_d..hi_d - 1, else y is zero.
// One invocation moves UNROLL vectors of the index space, whose axes the host has coalesced. The host says what an element
// E is: a word (u32), or a number (f32) where halves take part.

override RANK: u32 = 6;
override PAD: u32 = 0;

struct Params {
  count: u32,
  x_from: i32, y_from: i32,
  n0: u32, n1: u32, n2: u32, n3: u32, n4: u32, n5: u32,
  x0: i32, x1: i32, x2: i32, x3: i32, x4: i32, x5: i32,
  y0: i32, y1: i32, y2: i32, y3: i32, y4: i32, y5: i32,
  lo0: u32, lo1: u32, lo2: u32, lo3: u32, lo4: u32, lo5: u32,
  hi0: u32, hi1: u32, hi2: u32, hi3: u32, hi4: u32, hi5: u32,
}

@group(0) @binding(0) var<storage, read> x: array<E>;
@group(0) @binding(1) var<storage, read> x_wide: array<vec4<E>>;
@group(0) @binding(2) var<storage, read_write> y: array<E>;
@group(0) @binding(3) var<storage, read_write> y_wide: array<vec4<E>>;
@group(0) @binding(4) var<uniform> params: Params;

const WG = 64u;
const UNROLL = 4u;

struct Place {
  x_at: i32,
  y_at: i32,
  inside: bool,
}

fn step(p: Place, i: u32, xs: i32, ys: i32, lo: u32, hi: u32) -> Place {
  return Place(p.x_at + i32(i) * xs, p.y_at + i32(i) * ys, p.inside && (PAD == 0u || (i >= lo && i < hi)));
}

// The innermost axis is 5; RANK axes are in use.
fn place(index: u32) -> Place {
  var p = Place(params.x_from, params.y_from, true);
  var rest = index;
  if (RANK > 1u) { p = step(p, rest % params.n5, params.x5, params.y5, params.lo5, params.hi5); rest /= params.n5; }
  else { return step(p, rest, params.x5, params.y5, params.lo5, params.hi5); }
  if (RANK > 2u) { p = step(p, rest % params.n4, params.x4, params.y4, params.lo4, params.hi4); rest /= params.n4; }
  else { return step(p, rest, params.x4, params.y4, params.lo4, params.hi4); }
  if (RANK > 3u) { p = step(p, rest % params.n3, params.x3, params.y3, params.lo3, params.hi3); rest /= params.n3; }
  else { return step(p, rest, params.x3, params.y3, params.lo3, params.hi3); }
  if (RANK > 4u) { p = step(p, rest % params.n2, params.x2, params.y2, params.lo2, params.hi2); rest /= params.n2; }
  else { return step(p, rest, params.x2, params.y2, params.lo2, params.hi2); }
  if (RANK > 5u) { p = step(p, rest % params.n1, params.x1, params.y1, params.lo1, params.hi1); rest /= params.n1; }
  else { return step(p, rest, params.x1, params.y1, params.lo1, params.hi1); }
  return step(p, rest, params.x0, params.y0, params.lo0, params.hi0);
}

@compute @workgroup_size(WG)
fn move4(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
         @builtin(local_invocation_index) thread: u32) {
  let first = (group.y * groups.x + group.x) * WG * UNROLL + thread;
  for (var i = 0u; i < UNROLL; i++) {
    let index = first + i * WG;
    if (index < params.count) {
      let p = place(index);
      y_wide[p.y_at] = select(vec4<E>(), x_wide[max(p.x_at, 0)], p.inside);
    }
  }
}

@compute @workgroup_size(WG)
fn move1(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
         @builtin(local_invocation_index) thread: u32) {
  let first = (group.y * groups.x + group.x) * WG * UNROLL + thread;
  for (var i = 0u; i < UNROLL; i++) {
    let index = first + i * WG;
    if (index < params.count) {
      let p = place(index);
      y[p.y_at] = select(E(), x[max(p.x_at, 0)], p.inside);
    }
  }
}
