// Softmax over the last axis of x [R, C] and cross entropy with labels; stable for large inputs.
//   softmax: y = exp(x - max) / sum      backward: dx = y (dy - sum(dy y))
//   cross entropy: loss[r] = log sum exp x[r] - x[r, label]      backward: dx = (softmax(x) - onehot) dy * scale
// Needs prelude_vec4 or prelude_scalar, and prelude_rows.

struct Params {
  rows: u32,
  size: u32, // vectors of a row
  scale: f32,
}

var<storage> x: array<V>;
var<storage> y: array<V>;
var<storage> dy: array<V>;
var<storage> dx: array<V>;
var<storage> labels: array<u32>;
var<storage> loss: array<f32>;
var<storage> dloss: array<f32>;   // scalar

const LOWEST = -3.4028234e38;

// (max, sum of exp(x - max)) of a row.
fn normaliser(at: u32, row: Row) -> vec2<f32> {
  var m = V(LOWEST);
  if (row.live) { for (var k = row.thread; k < params.size; k += THREADS) { m = max(m, x(at + k)); } }
  let top = max_threads(biggest(m), row);
  var s = V();
  if (row.live) { for (var k = row.thread; k < params.size; k += THREADS) { s += exp(x(at + k) - top); } }
  return vec2(top, sum_threads(vec2(total(s), 0.0), row).x);
}

@compute @workgroup_size(THREADS * ROWS)
fn softmax(id: Invocation) {
  let row = row_of(id, params.rows);
  let at = row.index * params.size;
  let n = normaliser(at, row);
  if (!row.live) { return; }
  let r = 1.0 / n.y;
  for (var k = row.thread; k < params.size; k += THREADS) { store_y(at + k, exp(x(at + k) - n.x) * r); }
}

@compute @workgroup_size(THREADS * ROWS)
fn softmax_backward(id: Invocation) {
  let row = row_of(id, params.rows);
  let at = row.index * params.size;
  var s = V();
  if (row.live) { for (var k = row.thread; k < params.size; k += THREADS) { s += dy(at + k) * y(at + k); } }
  let dot = sum_threads(vec2(total(s), 0.0), row).x;
  if (!row.live) { return; }
  for (var k = row.thread; k < params.size; k += THREADS) { store_dx(at + k, y(at + k) * (dy(at + k) - dot)); }
}

@compute @workgroup_size(THREADS * ROWS)
fn cross_entropy(id: Invocation) {
  let row = row_of(id, params.rows);
  let n = normaliser(row.index * params.size, row);
  if (!row.live || row.thread > 0u) { return; }
  let classes = params.size * u32(WIDTH);
  store_loss(row.index, log(n.y) + n.x - x_scalar(row.index * classes + min(labels(row.index), classes - 1u)));
}

@compute @workgroup_size(THREADS * ROWS)
fn cross_entropy_backward(id: Invocation) {
  let row = row_of(id, params.rows);
  let at = row.index * params.size;
  let n = normaliser(at, row);
  if (!row.live) { return; }
  let label = min(labels(row.index), params.size * u32(WIDTH) - 1u);
  let factor = dloss(0) * params.scale;
  for (var k = row.thread; k < params.size; k += THREADS) {
    store_dx(at + k, (exp(x(at + k) - n.x) / n.y - one_hot(k, label)) * factor);
  }
}
