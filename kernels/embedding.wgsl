// y[r] = table[ids[r]], table [V, C]. Backward without atomics: a thread owns an element of dtable, reads a chunk of the ids in
// order, and writes y [chunks, V, C]. Ids are clamped to the last row.

struct Params {
  count: u32, // ids
  rows: u32,  // V
  size: u32,  // C
  chunks: u32,
  chunk: u32, // ids of a chunk
}

var<storage> table: array<f32>;
var<storage> ids: array<u32>;
var<storage> dy: array<f32>;
var<storage> y: array<f32>;

@compute @workgroup_size(64)
fn embedding(id: Invocation) {
  let i = thread_of(id, 64u);
  if (i >= params.count * params.size) { return; }
  store_y(i, table(min(ids(i / params.size), params.rows - 1u) * params.size + i % params.size));
}

@compute @workgroup_size(64)
fn embedding_backward(id: Invocation) {
  let i = thread_of(id, 64u);
  if (i >= params.chunks * params.rows * params.size) { return; }
  let row = i / params.size % params.rows;
  let c = i % params.size;
  let begin = i / (params.rows * params.size) * params.chunk;
  var sum = 0.0;
  for (var r = begin; r < min(begin + params.chunk, params.count); r++) {
    if (min(ids(r), params.rows - 1u) == row) { sum += dy(r * params.size + c); }
  }
  store_y(i, sum);
}
