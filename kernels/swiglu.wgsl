// y [R, H] = silu(a) b for x [R, 2H] = (a, b) in rows, Shazeer (2020). Backward writes dx = (da, db):
//   da = dy b s (1 + a (1 - s)),  db = dy a s,  s = sigmoid(a). Needs prelude_vec4 or prelude_scalar.

struct Params {
  count: u32, // vectors of y
  size: u32,  // vectors of H
}

var<storage> x: array<V>;
var<storage> dy: array<V>;
var<storage> y: array<V>;

@compute @workgroup_size(64)
fn swiglu(id: Invocation) {
  let i = thread_of(id, 64u);
  if (i >= params.count) { return; }
  let at = i + i / params.size * params.size;
  let a = x(at);
  store_y(i, a / (1.0 + exp(-a)) * x(at + params.size));
}

@compute @workgroup_size(64)
fn swiglu_backward(id: Invocation) {
  let i = thread_of(id, 64u);
  if (i >= params.count) { return; }
  let at = i + i / params.size * params.size;
  let a = x(at);
  let s = 1.0 / (1.0 + exp(-a));
  let g = dy(i);
  store_y(at, g * x(at + params.size) * s * (1.0 + a * (1.0 - s)));
  store_y(at + params.size, g * a * s);
}
