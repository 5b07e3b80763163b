// Group norm over channels-last maps x [B, P, C] (P pixels, C in vectors V), optionally followed by SiLU.
//   n = (x - mean_g) r_g,  z = n w + b,  y = z or z sigmoid(z)
// Batch norm is the case of one image and one channel per group. Backward, with u = dy silu'(z):
//   dx = r (u w - mean_g(u w) - n mean_g(u w n)),  dw = sum u n,  db = sum u
// Here are the elementwise kernels that apply the statistics, and the sums over pixels that they need, in the three levels of
// reduce.wgsl. group_norm_large.wgsl and group_norm_small.wgsl compute the statistics from those.
// Needs prelude_vec4 or prelude_scalar.

override SILU: u32 = 0;
override PIXELS: u32 = 8; // per thread of the elementwise kernels

const BLOCK = 16u;

struct Params {
  images: u32,
  pixels: u32,
  size: u32,     // vectors of C
  channels: u32, // C
  groups: u32,
  chunks: u32,
  chunk: u32,    // pixels of a chunk
  slices: u32,   // of the images, for dw and db
  slice: u32,    // images of a slice
  eps: f32,
}

var<storage> x: array<V>;
var<storage> w: array<V>;
var<storage> b: array<V>;
var<storage> mean: array<V>;       // [B, C]
var<storage> r: array<V>;          // [B, C]
var<storage> y: array<V>;
var<storage> dy: array<V>;
var<storage> dx: array<V>;
var<storage> group_sums: array<V>; // [4, B, C] mean_g(u w), mean_g(u w n), sum u, sum u n
var<storage> dw: array<V>;         // [slices, C]
var<storage> db: array<V>;

fn sigmoid(z: V) -> V { return 1.0 / (1.0 + exp(-z)); }

// u = dLoss/dz from dLoss/dy, for z = n weight + bias.
fn upstream(g: V, n: V, weight: V, bias: V) -> V {
  if (SILU == 0u) { return g; }
  let z = n * weight + bias;
  let s = sigmoid(z);
  return g * s * (1.0 + z * (1.0 - s));
}

// Sums over pixels, per channel.
struct Sums { first: V, second: V }
struct BackwardSums { u: V, un: V, n: V }

// Sums of d = x - origin and of d^2 over the pixels [begin, end) of a channel vector, `at` in the first pixel.
fn deviations(at: u32, origin: V, begin: u32, end: u32) -> Sums {
  let step = params.size;
  var s = V(); var q = V();
  for (var i = begin; i < end; i += BLOCK * BLOCK) {
    var si = V(); var qi = V();
    for (var j = i; j < min(i + BLOCK * BLOCK, end); j += BLOCK) {
      var sj = V(); var qj = V();
      for (var p = j; p < min(j + BLOCK, end); p++) {
        let d = x(at + p * step) - origin;
        sj += d;
        qj += d * d;
      }
      si += sj; qi += qj;
    }
    s += si; q += qi;
  }
  return Sums(s, q);
}

// Sums of u, of u n and of n over the same pixels, for channel vector k, which is element c of [B, C].
fn upstreams(at: u32, k: u32, c: u32, begin: u32, end: u32) -> BackwardSums {
  let step = params.size;
  let m = mean(c);
  let rstd = r(c);
  let weight = w(k);
  let bias = b(k);
  var su = V(); var sun = V(); var sn = V();
  for (var i = begin; i < end; i += BLOCK * BLOCK) {
    var ui = V(); var uni = V(); var ni = V();
    for (var j = i; j < min(i + BLOCK * BLOCK, end); j += BLOCK) {
      var uj = V(); var unj = V(); var nj = V();
      for (var p = j; p < min(j + BLOCK, end); p++) {
        let n = (x(at + p * step) - m) * rstd;
        let u = upstream(dy(at + p * step), n, weight, bias);
        uj += u;
        unj += u * n;
        nj += n;
      }
      ui += uj; uni += unj; ni += nj;
    }
    su += ui; sun += uni; sn += ni;
  }
  return BackwardSums(su, sun, sn);
}

// A thread of the elementwise kernels owns PIXELS pixels of a channel vector, with a stride of `step`: the values of the channel are
// loaded once for all of them, and adjacent threads still access adjacent memory.

struct Column {
  k: u32,     // channel vector
  c: u32,     // the same in [B, C]
  begin: u32, // first vector, then every `step` before `end`; empty for threads past the last column
  step: u32,
  end: u32,
}

fn stride() -> u32 { return (params.pixels + PIXELS - 1u) / PIXELS; }

fn column(item: u32) -> Column {
  let image = item / (stride() * params.size);
  let k = item % params.size;
  let begin = (image * params.pixels + item / params.size % stride()) * params.size + k;
  let end = select(0u, (image + 1u) * params.pixels * params.size, image < params.images);
  return Column(k, image * params.size + k, begin, stride() * params.size, end);
}

@compute @workgroup_size(64)
fn group_apply(id: Invocation) {
  let own = column(thread_of(id, 64u));
  let m = mean(own.c);
  let scale = r(own.c) * w(own.k);
  let bias = b(own.k);
  for (var at = own.begin; at < own.end; at += own.step) {
    let z = (x(at) - m) * scale + bias;
    if (SILU == 0u) { store_y(at, z); } else { store_y(at, z * sigmoid(z)); }
  }
}

@compute @workgroup_size(64)
fn group_backward_x(id: Invocation) {
  let item = thread_of(id, 64u);
  let own = column(item);
  let m = mean(own.c);
  let rstd = r(own.c);
  let weight = w(own.k);
  let bias = b(own.k);
  let map = params.images * params.size;
  let m1 = group_sums(own.c);
  let m2 = group_sums(map + own.c);
  for (var at = own.begin; at < own.end; at += own.step) {
    let n = (x(at) - m) * rstd;
    store_dx(at, rstd * (upstream(dy(at), n, weight, bias) * weight - m1 - n * m2));
  }
  // The threads past the last column reduce dw and db, each over a slice of the images.
  let past = item - params.images * stride() * params.size;
  if (past < params.slices * params.size) {
    let k = past % params.size;
    let first = past / params.size * params.slice;
    var s = V(); var q = V();
    for (var image = first; image < min(first + params.slice, params.images); image++) {
      s += group_sums(2u * map + image * params.size + k);
      q += group_sums(3u * map + image * params.size + k);
    }
    store_dw(past, q);
    store_db(past, s);
  }
}
