// Philox4x32-10 (Salmon et al., 2011): uniform numbers in (0, 1) and standard normals by Box-Muller. Element e of row r is
// a function of (seed, stream, step, r, e) alone, whatever the batch. Twin of src/philox.ts, bit for bit before the
// logarithm. A thread makes four elements of a row.

override NORMAL: u32 = 0;

struct Params {
  rows: u32,
  size: u32,   // elements of a row
  quads: u32,  // ceil(size / 4)
  stream: u32,
  probability: f32, // of dropping a label
  no_class: u32,    // replaces dropped labels
}

var<storage> state: array<u32>; // seed low, seed high, step, number of the first row
var<storage> y: array<f32>;
var<storage> labels: array<u32>;
var<storage> kept: array<u32>;

fn mul_high(a: u32, b: u32) -> u32 {
  let low = (a & 0xffffu) * (b & 0xffffu);
  let mid1 = (a >> 16u) * (b & 0xffffu) + (low >> 16u);
  let mid2 = (a & 0xffffu) * (b >> 16u) + (mid1 & 0xffffu);
  return (a >> 16u) * (b >> 16u) + (mid1 >> 16u) + (mid2 >> 16u);
}

fn philox(counter: vec4<u32>, seed: vec2<u32>) -> vec4<u32> {
  var c = counter;
  var k = seed;
  for (var i = 0u; i < 10u; i++) {
    c = vec4<u32>(mul_high(0xcd9e8d57u, c.z) ^ c.y ^ k.x, 0xcd9e8d57u * c.z, mul_high(0xd2511f53u, c.x) ^ c.w ^ k.y, 0xd2511f53u * c.x);
    k += vec2<u32>(0x9e3779b9u, 0xbb67ae85u);
  }
  return c;
}

@compute @workgroup_size(64)
fn random(id: Invocation) {
  let i = thread_of(id, 64u);
  if (i >= params.rows * params.quads) { return; }
  let row = i / params.quads;
  let quad = i % params.quads;
  let bits = philox(vec4(quad, params.stream, state(2), state(3) + row), vec2(state(0), state(1)));
  var v = (vec4<f32>(bits >> vec4(8u)) + 0.5) * 5.9604645e-8;
  if (NORMAL == 1u) {
    let radius = sqrt(-2.0 * log(v.xz));
    let angle = 6.2831853 * v.yw;
    v = vec4(radius.x * cos(angle.x), radius.x * sin(angle.x), radius.y * cos(angle.y), radius.y * sin(angle.y));
  }
  let at = row * params.size + quad * 4u;
  for (var j = 0u; j < 4u; j++) {
    if (quad * 4u + j < params.size) { store_y(at + j, v[j]); }
  }
}

// Replaces labels by `no_class` with a probability; the random number of label r is element 0 of row r.
@compute @workgroup_size(64)
fn drop_labels(@builtin(global_invocation_id) id: vec3<u32>) {
  let row = id.x;
  if (row >= params.rows) { return; }
  let bits = philox(vec4(0u, params.stream, state(2), state(3) + row), vec2(state(0), state(1)));
  let drop = (f32(bits.x >> 8u) + 0.5) * 5.9604645e-8 < params.probability;
  store_kept(row, select(labels(row), params.no_class, drop));
}
