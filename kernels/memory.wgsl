// The engine's own kernels on flat buffers of `count` elements E, defined by the host: u32 to move bits, f32, or vec4<f32> where
// fp16 is converted.
// fill: y[i] = bits (E = u32); copy: y[i] = x[i]; add_in_place: y[i] += x[i]; swap: x[i], y[i] = y[i], x[i]
// (bits). A thread owns UNROLL elements with a stride of WG.

struct Params {
  count: u32,
  bits: u32,
}

var<storage> x: array<E>;
var<storage> y: array<E>;

const WG = 256u;
const UNROLL = 4u;

@compute @workgroup_size(WG)
fn fill(id: Invocation) {
  let at = thread_of(id, WG * UNROLL);
  for (var i = 0u; i < UNROLL; i++) {
    let j = at + i * WG;
    if (j < params.count) { store_y(j, params.bits); }
  }
}

@compute @workgroup_size(WG)
fn copy(id: Invocation) {
  let at = thread_of(id, WG * UNROLL);
  for (var i = 0u; i < UNROLL; i++) {
    let j = at + i * WG;
    if (j < params.count) { store_y(j, x(j)); }
  }
}

@compute @workgroup_size(WG)
fn add_in_place(id: Invocation) {
  let at = thread_of(id, WG * UNROLL);
  for (var i = 0u; i < UNROLL; i++) {
    let j = at + i * WG;
    if (j < params.count) { store_y(j, y(j) + x(j)); }
  }
}

@compute @workgroup_size(WG)
fn swap(id: Invocation) {
  let at = thread_of(id, WG * UNROLL);
  for (var i = 0u; i < UNROLL; i++) {
    let j = at + i * WG;
    if (j < params.count) {
      let value = y(j);
      store_y(j, x(j));
      store_x(j, value);
    }
  }
}
