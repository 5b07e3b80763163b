// Self-test of the trees of prelude_rows: for x [R, THREADS], a number of each thread, what each thread gets as the row's sum, sum of
// squares and maximum. Needs prelude_rows.

struct Params {
  rows: u32, // R
}

var<storage> x: array<f32>;
var<storage> y: array<f32>; // [R, THREADS, 3]

@compute @workgroup_size(THREADS * ROWS)
fn subgroup_check(id: Invocation) {
  let row = row_of(id, params.rows);
  let at = row.index * THREADS + row.thread;
  let own = x(select(0u, at, row.live));
  let sum = sum_threads(vec2(own, own * own), row);
  let top = max_threads(own, row);
  if (!row.live) { return; }
  store_y(3u * at, sum.x);
  store_y(3u * at + 1u, sum.y);
  store_y(3u * at + 2u, top);
}
