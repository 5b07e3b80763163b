// Sum over one axis, in a fixed order of additions (no atomics): the same bits every time.
// reduce_rows:    y[r, s]    = scale * sum over k in chunk s of term(x[r, k])        x [R, K]
// reduce_columns: y[o, s, i] = scale * sum over k in chunk s of term(x[o, k, i])     x [O, K, I]
// A second launch reduces the chunks. THREADS threads share a row, or a column of vectors V (1 on software adapters, where barriers
// are expensive); a workgroup has ROWS rows or WG columns, and is one-dimensional so that they fill one SIMD vector. Sums have
// three levels, so that rounding errors do not grow with the length: a thread sums up to BLOCK elements, up to BLOCK such
// sums, and those. Needs prelude_vec4 or prelude_scalar, and prelude_rows.

override WG: u32 = 64;
override SQUARED: u32 = 0; // term: x, or x * x

const BLOCK = 16u;

struct Params {
  rows: u32,    // R or O
  size: u32,    // K; of rows, in vectors
  inner: u32,   // I, in vectors
  chunks: u32,  // S
  chunk: u32,   // length of a chunk
  scale: f32,
}

var<storage> x: array<V>;
var<storage> rows: array<f32>;  // y of reduce_rows
var<storage> columns: array<V>; // y of reduce_columns

var<workgroup> shared_columns: array<V, 256>;

fn term(v: V) -> V {
  if (SQUARED == 1u) { return v * v; }
  return v;
}

@compute @workgroup_size(THREADS * ROWS)
fn reduce_rows(id: Invocation) {
  let row = row_of(id, params.rows * params.chunks);
  let item = row.index;
  let from_row = (item / params.chunks) * params.size;
  let begin = (item % params.chunks) * params.chunk;
  var acc = V();
  if (row.live) {
    let end = min(begin + params.chunk, params.size);
    for (var i = begin; i < end; i += BLOCK * BLOCK * THREADS) {
      var middle = V();
      for (var j = i; j < min(i + BLOCK * BLOCK * THREADS, end); j += BLOCK * THREADS) {
        var block = V();
        for (var k = j + row.thread; k < min(j + BLOCK * THREADS, end); k += THREADS) { block += term(x(from_row + k)); }
        middle += block;
      }
      acc += middle;
    }
  }
  let sum = sum_threads(vec2(pairwise(acc), 0.0), row).x;
  if (row.live && row.thread == 0u) { store_rows(item, sum * params.scale); }
}

@compute @workgroup_size(WG * THREADS)
fn reduce_columns(id: Invocation) {
  let index = id.thread;
  let thread = index / WG;
  let item = group_index(id) * WG + index % WG;
  let i = item % params.inner;
  let s = (item / params.inner) % params.chunks;
  let o = item / (params.inner * params.chunks);
  let end = select(0u, min((s + 1u) * params.chunk, params.size), o < params.rows); // nothing for threads past the last column
  var acc = V();
  for (var h = s * params.chunk; h < end; h += BLOCK * BLOCK * THREADS) {
    var middle = V();
    for (var j = h; j < min(h + BLOCK * BLOCK * THREADS, end); j += BLOCK * THREADS) {
      var block = V();
      for (var k = j + thread; k < min(j + BLOCK * THREADS, end); k += THREADS) {
        block += term(x((o * params.size + k) * params.inner + i));
      }
      middle += block;
    }
    acc += middle;
  }
  if (THREADS > 1u) {
    shared_columns[index] = acc;
    workgroupBarrier();
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
      if (thread < half) { shared_columns[index] += shared_columns[index + half * WG]; }
      workgroupBarrier();
    }
    acc = shared_columns[index];
  }
  if ((THREADS == 1u || thread == 0u) && o < params.rows) { store_columns(item, acc * params.scale); }
}
