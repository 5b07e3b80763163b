// Layer and RMS norm over the last axis of x [R, C] (C in vectors V).
//   layer: y = (x - mean) r w + b,  r = 1 / sqrt(var + eps)       rms: y = x r w,  r = 1 / sqrt(mean(x^2) + eps)
// backward, with g = dy w and n = (x - mean) r:  dx = r (g - mean(g) - n mean(g n))   (rms: without mean(g))
//   dw = sum over rows of dy n, db = sum over rows of dy: partial sums of `chunk` rows, added up by a second launch.
// Needs the preludes wide or narrow, and rows. A row is read twice for its variance: one pass would cancel.

override RMS: u32 = 0;

struct Params {
  rows: u32,
  size: u32,   // vectors of a row
  eps: f32,
  chunks: u32, // of norm_backward_weight
  chunk: u32,
}

@group(0) @binding(0) var<storage, read> x: array<V>;
@group(0) @binding(1) var<storage, read> w: array<V>;
@group(0) @binding(2) var<storage, read> b: array<V>;
@group(0) @binding(3) var<storage, read_write> y: array<V>;
@group(0) @binding(4) var<storage, read_write> stats: array<vec2<f32>>; // mean, r
@group(0) @binding(5) var<storage, read> dy: array<V>;
@group(0) @binding(6) var<storage, read> saved: array<vec2<f32>>;       // stats of the forward pass
@group(0) @binding(7) var<storage, read_write> dx: array<V>;
@group(0) @binding(8) var<storage, read_write> dw: array<V>;            // [chunks, C]
@group(0) @binding(9) var<storage, read_write> db: array<V>;
@group(0) @binding(10) var<uniform> params: Params;

fn moments(at: u32, lane: u32, row: u32, live: bool) -> vec2<f32> {
  let n = f32(params.size) * WIDTH;
  var mean = 0.0;
  if (RMS == 0u) {
    var s = V();
    if (live) { for (var k = lane; k < params.size; k += LANES) { s += x[at + k]; } }
    mean = sum_lanes(vec2(total(s), 0.0), lane, row).x / n;
  }
  var q = V();
  if (live) { for (var k = lane; k < params.size; k += LANES) { let d = x[at + k] - mean; q += d * d; } }
  let variance = sum_lanes(vec2(total(q), 0.0), lane, row).x / n;
  return vec2(mean, inverseSqrt(variance + params.eps));
}

@compute @workgroup_size(LANES * ROWS)
fn layer_norm(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
              @builtin(local_invocation_index) index: u32) {
  let row = (group.y * groups.x + group.x) * ROWS + (index / LANES);
  let live = row < params.rows;
  let at = row * params.size;
  let m = moments(at, (index % LANES), (index / LANES), live);
  if (!live) { return; }
  if ((index % LANES) == 0u) { stats[row] = m; }
  for (var k = (index % LANES); k < params.size; k += LANES) { y[at + k] = (x[at + k] - m.x) * m.y * w[k] + b[k]; }
}

@compute @workgroup_size(LANES * ROWS)
fn rms_norm(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
            @builtin(local_invocation_index) index: u32) {
  let row = (group.y * groups.x + group.x) * ROWS + (index / LANES);
  let live = row < params.rows;
  let at = row * params.size;
  let m = moments(at, (index % LANES), (index / LANES), live);
  if (!live) { return; }
  if ((index % LANES) == 0u) { stats[row] = m; }
  for (var k = (index % LANES); k < params.size; k += LANES) { y[at + k] = x[at + k] * m.y * w[k]; }
}

@compute @workgroup_size(LANES * ROWS)
fn norm_backward_x(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                   @builtin(local_invocation_index) index: u32) {
  let row = (group.y * groups.x + group.x) * ROWS + (index / LANES);
  let live = row < params.rows;
  let at = row * params.size;
  let m = saved[select(0u, row, live)];
  var s = V();
  var q = V();
  if (live) {
    for (var k = (index % LANES); k < params.size; k += LANES) {
      let g = dy[at + k] * w[k];
      s += g;
      q += g * (x[at + k] - m.x) * m.y;
    }
  }
  var mean = sum_lanes(vec2(total(s), total(q)), (index % LANES), (index / LANES)) / (f32(params.size) * WIDTH);
  if (RMS == 1u) { mean.x = 0.0; }
  if (!live) { return; }
  for (var k = (index % LANES); k < params.size; k += LANES) {
    dx[at + k] = m.y * (dy[at + k] * w[k] - mean.x - (x[at + k] - m.x) * m.y * mean.y);
  }
}

@compute @workgroup_size(16)
fn norm_backward_weight(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                        @builtin(local_invocation_index) lane: u32) {
  let item = (group.y * groups.x + group.x) * 16u + lane;
  if (item >= params.chunks * params.size) { return; }
  let k = item % params.size;
  let first = item / params.size * params.chunk;
  let end = min(first + params.chunk, params.rows);
  var s = V();
  var q = V();
  for (var row = first; row < end; row++) {
    let m = saved[row];
    let g = dy[row * params.size + k];
    s += g;
    q += g * (x[row * params.size + k] - m.x) * m.y;
  }
  dw[item] = q;
  db[item] = s;
}
