// The engine's own kernels: fill, copy and addition of flat f32 or u32 buffers.
// fill: y[i] = bits; copy: y[i] = x[i]; add_in_place: y[i] += x[i]
// One invocation owns UNROLL words, a workgroup's words are contiguous; buffers hold `count` words. The entry points that
// end in 4 see vectors of four numbers instead: for storages of halves.

struct Params {
  count: u32,
  bits: u32,
}

var<storage> x: array<u32>;
var<storage> y: array<u32>;
var<storage> x4: array<vec4<f32>>;
var<storage> y4: array<vec4<f32>>;

const WG = 256u;
const UNROLL = 4u;

fn first(group: vec3<u32>, groups: vec3<u32>, thread: u32) -> u32 {
  return (group.y * groups.x + group.x) * WG * UNROLL + thread;
}

@compute @workgroup_size(WG)
fn fill(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let at = first(group, groups, thread);
  for (var i = 0u; i < UNROLL; i++) {
    let j = at + i * WG;
    if (j < params.count) { store_y(j, params.bits); }
  }
}

@compute @workgroup_size(WG)
fn copy(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let at = first(group, groups, thread);
  for (var i = 0u; i < UNROLL; i++) {
    let j = at + i * WG;
    if (j < params.count) { store_y(j, x(j)); }
  }
}

@compute @workgroup_size(WG)
fn add_in_place(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let at = first(group, groups, thread);
  for (var i = 0u; i < UNROLL; i++) {
    let j = at + i * WG;
    if (j < params.count) { store_y(j, bitcast<u32>(bitcast<f32>(y(j)) + bitcast<f32>(x(j)))); }
  }
}

@compute @workgroup_size(WG)
fn copy4(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let at = first(group, groups, thread);
  for (var i = 0u; i < UNROLL; i++) {
    let j = at + i * WG;
    if (j < params.count) { store_y4(j, x4(j)); }
  }
}

@compute @workgroup_size(WG)
fn add_in_place4(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let at = first(group, groups, thread);
  for (var i = 0u; i < UNROLL; i++) {
    let j = at + i * WG;
    if (j < params.count) { store_y4(j, y4(j) + x4(j)); }
  }
}
