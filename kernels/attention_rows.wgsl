// Softmax over the rows of attention scores x [R, S], where attention is GEMMs. Rows are padded to whole vec4s.
//   attention_rows: y = exp(x - max) / sum         attention_rows_backward: dx = y (dy - sum(dy y))
// The padding is never read, and zeros are written there for the GEMM that follows.
// Needs prelude_vec4 and prelude_rows.

struct Params {
  rows: u32,
  size: u32, // elements of a row; vectors are (size + 3) / 4
}

var<storage> x: array<V>;
var<storage> y: array<V>;
var<storage> dy: array<V>;
var<storage> dx: array<V>;

const LOWEST = -3.4028234e38;

// Which elements of a row's last vector are not padding.
fn tail() -> vec4<bool> { return vec4(0u, 1u, 2u, 3u) < vec4((params.size + 3u) % 4u + 1u); }

@compute @workgroup_size(THREADS * ROWS)
fn attention_rows(id: Invocation) {
  let row = row_of(id, params.rows);
  let last = (params.size - 1u) / 4u; // the last vector, which may be partly padding
  let at = row.index * (last + 1u);
  let mine = row.live && row.thread == last % THREADS;
  let final_x = select(V(LOWEST), x(select(0u, at + last, row.live)), tail() & vec4(mine));
  var m = final_x;
  if (row.live) { for (var k = row.thread; k < last; k += THREADS) { m = max(m, x(at + k)); } }
  let top = max_threads(biggest(m), row);
  let final_y = select(V(), exp(final_x - top), tail() & vec4(mine));
  var s = V();
  if (row.live) { for (var k = row.thread; k < last; k += THREADS) { s += exp(x(at + k) - top); } }
  let r = 1.0 / sum_threads(vec2(total(s + final_y), 0.0), row).x;
  if (!row.live) { return; }
  for (var k = row.thread; k < last; k += THREADS) { store_y(at + k, exp(x(at + k) - top) * r); }
  if (mine) { store_y(at + last, final_y * r); }
}

@compute @workgroup_size(THREADS * ROWS)
fn attention_rows_backward(id: Invocation) {
  let row = row_of(id, params.rows);
  let last = (params.size - 1u) / 4u;
  let at = row.index * (last + 1u);
  let mine = row.live && row.thread == last % THREADS;
  let final_dy = select(V(), dy(select(0u, at + last, row.live)), tail() & vec4(mine));
  let final_y = y(select(0u, at + last, row.live));
  var s = final_dy * final_y;
  if (row.live) { for (var k = row.thread; k < last; k += THREADS) { s += dy(at + k) * y(at + k); } }
  let dot = sum_threads(vec2(total(s), 0.0), row).x;
  if (!row.live) { return; }
  for (var k = row.thread; k < last; k += THREADS) { store_dx(at + k, y(at + k) * (dy(at + k) - dot)); }
  if (mine) { store_dx(at + last, final_y * (final_dy - dot)); }
}
