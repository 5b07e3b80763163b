// Softmax over the last axis of x [R, C] and cross entropy with class numbers; safe for large inputs.
//   softmax: y = exp(x - max) / sum      backward: dx = y (dy - sum(dy y))
//   cross entropy: loss[r] = log sum exp x[r] - x[r, label]      backward: dx = (softmax(x) - onehot) dy * scale
// Needs the preludes prelude_vec4 or prelude_scalar, and prelude_rows.

struct Params {
  rows: u32,
  size: u32, // vectors of a row
  scale: f32,
}

var<storage> x: array<V>;
var<storage> y: array<V>;
var<storage> saved: array<V>; // y of the forward pass
var<storage> dy: array<V>;
var<storage> dx: array<V>;
var<storage> labels: array<u32>;
var<storage> x1: array<f32>;      // x element by element
var<storage> loss: array<f32>;
var<storage> dloss: array<f32>;   // one number

const LOWEST = -3.4028234e38;

// (max, sum of exp(x - max)) of a row.
fn normaliser(at: u32, thread: u32, row: u32, live: bool) -> vec2<f32> {
  var m = V(LOWEST);
  if (live) { for (var k = thread; k < params.size; k += THREADS) { m = max(m, x(at + k)); } }
  let top = max_threads(biggest(m), thread, row);
  var s = V();
  if (live) { for (var k = thread; k < params.size; k += THREADS) { s += exp(x(at + k) - top); } }
  return vec2(top, sum_threads(vec2(total(s), 0.0), thread, row).x);
}

@compute @workgroup_size(THREADS * ROWS)
fn softmax(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) index: u32) {
  let thread = index % THREADS;
  let row = (group.y * groups.x + group.x) * ROWS + index / THREADS;
  let live = row < params.rows;
  let at = row * params.size;
  let n = normaliser(at, thread, index / THREADS, live);
  if (!live) { return; }
  let r = 1.0 / n.y;
  for (var k = thread; k < params.size; k += THREADS) { store_y(at + k, exp(x(at + k) - n.x) * r); }
}

@compute @workgroup_size(THREADS * ROWS)
fn softmax_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                    @builtin(local_invocation_index) index: u32) {
  let thread = index % THREADS;
  let row = (group.y * groups.x + group.x) * ROWS + index / THREADS;
  let live = row < params.rows;
  let at = row * params.size;
  var s = V();
  if (live) { for (var k = thread; k < params.size; k += THREADS) { s += dy(at + k) * saved(at + k); } }
  let dot = sum_threads(vec2(total(s), 0.0), thread, index / THREADS).x;
  if (!live) { return; }
  for (var k = thread; k < params.size; k += THREADS) { store_dx(at + k, saved(at + k) * (dy(at + k) - dot)); }
}

@compute @workgroup_size(THREADS * ROWS)
fn cross_entropy(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                 @builtin(local_invocation_index) index: u32) {
  let thread = index % THREADS;
  let row = (group.y * groups.x + group.x) * ROWS + index / THREADS;
  let live = row < params.rows;
  let n = normaliser(row * params.size, thread, index / THREADS, live);
  if (!live || thread > 0u) { return; }
  let classes = params.size * u32(WIDTH);
  store_loss(row, log(n.y) + n.x - x1(row * classes + min(labels(row), classes - 1u)));
}

@compute @workgroup_size(THREADS * ROWS)
fn cross_entropy_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                          @builtin(local_invocation_index) index: u32) {
  let thread = index % THREADS;
  let row = (group.y * groups.x + group.x) * ROWS + index / THREADS;
  let live = row < params.rows;
  let at = row * params.size;
  let n = normaliser(at, thread, index / THREADS, live);
  if (!live) { return; }
  let label = min(labels(row), params.size * u32(WIDTH) - 1u);
  let factor = dloss(0) * params.scale;
  for (var k = thread; k < params.size; k += THREADS) {
    store_dx(at + k, (exp(x(at + k) - n.x) / n.y - one_hot(k, label)) * factor);
  }
}
