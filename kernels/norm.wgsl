// Layer and RMS norm over the last axis of x [R, C] (C in vectors V).
//   layer: y = (x - mean) r w + b,  r = 1 / sqrt(var + eps)       rms: y = x r w + b,  r = 1 / sqrt(mean(x^2) + eps)
// backward, with g = dy w and n = (x - mean) r:  dx = r (g - mean(g) - n mean(g n))   (rms: without mean(g))
//   dw = sum over rows of dy n, db = sum over rows of dy: partial sums over chunks of rows, in blocks of BLOCK rows so that
//   rounding errors do not grow with the chunk; a second launch reduces the chunks.
// Each component of each thread keeps a running mean and a sum of squared deviations (Welford), combined at the end: one pass
// over the row, without cancellation by a large mean or an outlier. Values are relative to the row's first element, so that a
// constant row has exactly its own mean and zero variance.
// Needs prelude_vec4 or prelude_scalar, and prelude_rows.

override RMS: u32 = 0;
override WG: u32 = 16;     // threads of a workgroup of norm_backward_weight

const BLOCK = 16u;

struct Params {
  rows: u32,
  size: u32,   // vectors of a row
  eps: f32,
  chunks: u32, // of norm_backward_weight
  chunk: u32,
}

var<storage> x: array<V>;
var<storage> w: array<V>; // 1 where absent
var<storage> b: array<V>; // 0 where absent
var<storage> y: array<V>;
var<storage> stats: array<vec2<f32>>; // mean, r
var<storage> dy: array<V>;
var<storage> dx: array<V>;
var<storage> dw: array<V>;            // [chunks, C]
var<storage> db: array<V>;

// (mean, r) of the row that begins at vector `at`.
fn moments(at: u32, row: Row) -> vec2<f32> {
  let n = f32(params.size) * WIDTH;
  var origin = 0.0;
  if (RMS == 0u && row.live) { origin = head(x(at)); }
  var count = 0.0;
  var m = V(); var q = V();
  if (row.live) {
    for (var k = row.thread; k < params.size; k += THREADS) {
      let v = x(at + k) - origin;
      let d = v - m;
      count += 1.0;
      if (RMS == 0u) { m += d * (1.0 / count); }
      q += d * (v - m);
    }
  }
  var mean = 0.0;
  if (RMS == 0u) {
    mean = sum_threads(vec2(count * total(m), 0.0), row).x / n;
    let e = m - mean;
    q += count * e * e;
  }
  let variance = sum_threads(vec2(total(q), 0.0), row).x / n;
  return vec2(origin + mean, inverseSqrt(variance + params.eps));
}

@compute @workgroup_size(THREADS * ROWS)
fn norm(id: Invocation) {
  let row = row_of(id, params.rows);
  let at = row.index * params.size;
  let m = moments(at, row);
  if (!row.live) { return; }
  if (row.thread == 0u) { store_stats(row.index, m); }
  for (var k = row.thread; k < params.size; k += THREADS) { store_y(at + k, (x(at + k) - m.x) * m.y * w(k) + b(k)); }
}

@compute @workgroup_size(THREADS * ROWS)
fn norm_backward_x(id: Invocation) {
  let row = row_of(id, params.rows);
  let at = row.index * params.size;
  let m = stats(select(0u, row.index, row.live));
  var s = V(); var q = V();
  if (row.live) {
    for (var k = row.thread; k < params.size; k += THREADS) {
      let g = dy(at + k) * w(k);
      s += g;
      q += g * (x(at + k) - m.x) * m.y;
    }
  }
  var mean = sum_threads(vec2(total(s), total(q)), row) / (f32(params.size) * WIDTH);
  if (RMS == 1u) { mean.x = 0.0; }
  if (!row.live) { return; }
  for (var k = row.thread; k < params.size; k += THREADS) {
    store_dx(at + k, m.y * (dy(at + k) * w(k) - mean.x - (x(at + k) - m.x) * m.y * mean.y));
  }
}

fn store_column(chunk: u32, k: u32, q: V, s: V) {
  if (k < params.size) {
    store_dw(chunk * params.size + k, q);
    store_db(chunk * params.size + k, s);
  }
}

// A thread owns four columns of a chunk, at a distance of `stride`, so that a row's statistics are loaded once for all four and a pass
// over a row touches most of it. A column past the end reads another row and is not stored.
@compute @workgroup_size(WG)
fn norm_backward_weight(id: Invocation) {
  let item = thread_of(id, WG);
  let stride = (params.size + 3u) / 4u;
  if (item >= params.chunks * stride) { return; }
  let chunk = item / stride;
  let k = item % stride;
  let begin = chunk * params.chunk;
  let end = min(begin + params.chunk, params.rows);
  var s0 = V(); var s1 = V(); var s2 = V(); var s3 = V();
  var q0 = V(); var q1 = V(); var q2 = V(); var q3 = V();
  for (var first = begin; first < end; first += BLOCK) {
    var a0 = V(); var a1 = V(); var a2 = V(); var a3 = V();
    var b0 = V(); var b1 = V(); var b2 = V(); var b3 = V();
    for (var row = first; row < min(first + BLOCK, end); row++) {
      let m = stats(row);
      let at = row * params.size + k;
      let g0 = dy(at);
      let g1 = dy(at + stride);
      let g2 = dy(at + 2u * stride);
      let g3 = dy(at + 3u * stride);
      a0 += g0; a1 += g1; a2 += g2; a3 += g3;
      b0 += g0 * ((x(at) - m.x) * m.y);
      b1 += g1 * ((x(at + stride) - m.x) * m.y);
      b2 += g2 * ((x(at + 2u * stride) - m.x) * m.y);
      b3 += g3 * ((x(at + 3u * stride) - m.x) * m.y);
    }
    s0 += a0; s1 += a1; s2 += a2; s3 += a3;
    q0 += b0; q1 += b1; q2 += b2; q3 += b3;
  }
  store_column(chunk, k, q0, s0);
  store_column(chunk, k + stride, q1, s1);
  store_column(chunk, k + 2u * stride, q2, s2);
  store_column(chunk, k + 3u * stride, q3, s3);
}
