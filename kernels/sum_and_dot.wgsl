// Over the middle axis of a and b [O, K, I], the sums of a and of a b, next to each other: y [O, S, 2, I] for S chunks of K.
// A thread owns a column (of vectors V). Additions have a fixed order, in the three levels of reduce.wgsl. Needs prelude_vec4 or
// prelude_scalar.

struct Params {
  outer: u32,
  size: u32,   // K
  inner: u32,  // I, in vectors
  chunks: u32, // S
  chunk: u32,
}

override WG: u32 = 64;

const BLOCK = 16u;

var<storage> a: array<V>;
var<storage> b: array<V>;
var<storage> y: array<V>;

@compute @workgroup_size(WG)
fn sum_and_dot(id: Invocation) {
  let item = thread_of(id, WG);
  if (item >= params.outer * params.chunks * params.inner) { return; }
  let i = item % params.inner;
  let s = (item / params.inner) % params.chunks;
  let o = item / (params.inner * params.chunks);
  let end = min((s + 1u) * params.chunk, params.size);
  var sum = V(); var dot = V();
  for (var h = s * params.chunk; h < end; h += BLOCK * BLOCK) {
    var middle_sum = V(); var middle_dot = V();
    for (var j = h; j < min(h + BLOCK * BLOCK, end); j += BLOCK) {
      var block_sum = V(); var block_dot = V();
      for (var k = j; k < min(j + BLOCK, end); k++) {
        let at = (o * params.size + k) * params.inner + i;
        let v = a(at);
        block_sum += v;
        block_dot += v * b(at);
      }
      middle_sum += block_sum; middle_dot += block_dot;
    }
    sum += middle_sum; dot += middle_dot;
  }
  let to = 2u * (item - i) + i;
  store_y(to, sum);
  store_y(to + params.inner, dot);
}
