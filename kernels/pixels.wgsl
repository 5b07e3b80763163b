// y = table[byte] for rows of RGB bytes, four in a u32, each row padded to whole u32s: x [rows, words], y [rows, size]. A table
// of 256 values gives the same bits as the host's b / 127.5 - 1. One thread owns an element of y.

struct Params {
  count: u32, // elements of y
  size: u32,  // elements of a row
  words: u32, // u32s of a row
}

var<storage> x: array<u32>;
var<storage> table: array<f32>;
var<storage> y: array<f32>;

@compute @workgroup_size(64)
fn unpack(id: Invocation) {
  let i = thread_of(id, 64u);
  if (i >= params.count) { return; }
  let at = i % params.size;
  let word = x(i / params.size * params.words + at / 4u);
  store_y(i, table((word >> (8u * (at % 4u))) & 255u));
}
