// Group norm over channels-last maps x [B, P, C] (P pixels, C in vectors V), with an optional SiLU behind it.
//   n = (x - mean_g) r_g,  z = n w + b,  y = z or z sigmoid(z)
// Batch norm is the case of one image and one channel a group. Three launches: `partials` sums over chunks of pixels for each
// channel, relative to the channel's first value (so that a large mean does not cancel); `statistics` joins the chunks
// and the channels of a group; `apply` is elementwise. Backward mirrors them, with u = dy silu'(z):
//   dx = r (u w - mean_g(u w) - n mean_g(u w n)),  dw = sum u n,  db = sum u
// where the last launch also adds up dw and db over the images. Where groups are small and many, and launches dear,
// `moments` does in one launch what the first two do: a thread takes a whole group. Sums over pixels have the three levels of
// reduce.wgsl.
// Needs the preludes prelude_vec4 or prelude_scalar, and prelude_rows: for `statistics` a row is the chunks of a group.

override SILU: u32 = 0;
override PIXELS: u32 = 8; // of a thread of the elementwise kernels
override WG: u32 = 16;    // threads of a workgroup of `partials`

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
var<storage> dy: array<V>;
var<storage> s1: array<V>;   // [B, chunks, C]
var<storage> s2: array<V>;
var<storage> y: array<V>;
var<storage> x1: array<f32>;       // the same memories, element by element
var<storage> w1: array<f32>;
var<storage> sum1: array<f32>;
var<storage> sum2: array<f32>;
var<storage> out1: array<f32>;  // [B, C]
var<storage> out2: array<f32>;
var<storage> all: array<f32>;   // [4, B, C] mean_g(u w), mean_g(u w n), sum u, sum u n
var<storage> joined: array<V>;  // the same, written in vectors
var<storage> of_u: array<V>;          // the same, read
var<storage> dw: array<V>;      // [slices, C]
var<storage> db: array<V>;
var<storage> mean_out: array<V>; // [B, C]
var<storage> r_out: array<V>;
var<storage> s3: array<V>;
var<storage> sum3: array<f32>;

fn sigmoid(z: V) -> V { return 1.0 / (1.0 + exp(-z)); }

// dLoss/dz from dLoss/dy, for z = n weight + bias.
fn upstream(g: V, n: V, weight: V, bias: V) -> V {
  if (SILU == 0u) { return g; }
  let z = n * weight + bias;
  let s = sigmoid(z);
  return g * s * (1.0 + z * (1.0 - s));
}

// Sums over pixels, for each channel of a vector.
struct Sums {
  first: V,
  second: V,
}

struct BackwardSums {
  u: V,
  un: V,
  n: V,
}

// Sums of x - origin and of its squares over the pixels [begin, end) of vector `at` of the first pixel.
fn deviations(at: u32, origin: V, begin: u32, end: u32) -> Sums {
  let step = params.size;
  var s = V();
  var q = V();
  for (var i = begin; i < end; i += BLOCK * BLOCK) {
    var si = V();
    var qi = V();
    for (var j = i; j < min(i + BLOCK * BLOCK, end); j += BLOCK) {
      var sj = V();
      var qj = V();
      for (var p = j; p < min(j + BLOCK, end); p++) {
        let d = x(at + p * step) - origin;
        sj += d;
        qj += d * d;
      }
      si += sj;
      qi += qj;
    }
    s += si;
    q += qi;
  }
  return Sums(s, q);
}

// Sums of u, of u n and of n over the same, for channel vector k, which is c in [B, C].
fn upstreams(at: u32, k: u32, c: u32, begin: u32, end: u32) -> BackwardSums {
  let step = params.size;
  let m = mean(c);
  let rstd = r(c);
  let weight = w(k);
  let bias = b(k);
  var su = V();
  var sun = V();
  var sn = V();
  for (var i = begin; i < end; i += BLOCK * BLOCK) {
    var ui = V();
    var uni = V();
    var ni = V();
    for (var j = i; j < min(i + BLOCK * BLOCK, end); j += BLOCK) {
      var uj = V();
      var unj = V();
      var nj = V();
      for (var p = j; p < min(j + BLOCK, end); p++) {
        let n = (x(at + p * step) - m) * rstd;
        let u = upstream(dy(at + p * step), n, weight, bias);
        uj += u;
        unj += u * n;
        nj += n;
      }
      ui += uj;
      uni += unj;
      ni += nj;
    }
    su += ui;
    sun += uni;
    sn += ni;
  }
  return BackwardSums(su, sun, sn);
}

// A thread of the elementwise kernels owns PIXELS pixels of one channel vector, a slab apart: what belongs to the channel
// is read once for all of them, and neighbouring threads still touch neighbouring memory.

struct Strand {
  k: u32,     // channel vector
  c: u32,     // the same in [B, C]
  begin: u32, // first vector of the map, then every `step` before `end`; nothing for threads past the last one
  step: u32,
  end: u32,
}

fn slab() -> u32 { return (params.pixels + PIXELS - 1u) / PIXELS; }

fn strand(item: u32) -> Strand {
  let image = item / (slab() * params.size);
  let k = item % params.size;
  let begin = (image * params.pixels + item / params.size % slab()) * params.size + k;
  let end = select(0u, (image + 1u) * params.pixels * params.size, image < params.images);
  return Strand(k, image * params.size + k, begin, slab() * params.size, end);
}

@compute @workgroup_size(WG)
fn group_partials(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                  @builtin(local_invocation_index) thread: u32) {
  let item = (group.y * groups.x + group.x) * WG + thread;
  if (item >= params.images * params.chunks * params.size) { return; }
  let k = item % params.size;
  let chunk = item / params.size % params.chunks;
  let from_image = item / (params.size * params.chunks) * params.pixels * params.size + k;
  let end = min((chunk + 1u) * params.chunk, params.pixels);
  let sums = deviations(from_image, x(from_image), chunk * params.chunk, end);
  store_s1(item, sums.first);
  store_s2(item, sums.second);
}

// What a thread of the kernels that join chunks adds up: those of one group, THREADS apart.
struct Share {
  thread: u32,
  row: u32,
  image: u32,
  first: u32,  // channel of the group
  chunks: u32, // 0 for rows past the last group, which only keep the others company at barriers
}

fn share(workgroup: u32, index: u32) -> Share {
  let row = index / THREADS;
  let item = workgroup * ROWS + row;
  let chunks = select(0u, params.chunks, item < params.images * params.groups);
  let first = item % params.groups * (params.channels / params.groups);
  return Share(index % THREADS, row, item / params.groups, first, chunks);
}

@compute @workgroup_size(THREADS * ROWS)
fn group_statistics(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                    @builtin(local_invocation_index) index: u32) {
  let own = share(group.y * groups.x + group.x, index);
  let thread = own.thread;
  let image = own.image;
  let width = params.channels / params.groups;
  let first = own.first;
  let pixels = f32(params.pixels);
  let from_image = image * params.pixels * params.channels;
  let from_sums = image * params.chunks * params.channels;
  let origin = x1(from_image + first); // so that a constant group is exactly its mean
  var apart = 0.0; // first values of the channels, above the origin
  var above = 0.0; // of the thread: what the channels are above their first values
  for (var c = first; c < first + width; c++) {
    apart += x1(from_image + c) - origin;
    var channel = 0.0;
    for (var k = thread; k < own.chunks; k += THREADS) { channel += sum1(from_sums + k * params.channels + c); }
    above += channel;
  }
  let mean_g = origin + (apart + sum_threads(vec2(above, 0.0), thread, own.row).x / pixels) / f32(width);
  var squares = 0.0; // of the thread: of what they are above the mean, less the offsets' part
  var offsets = 0.0;
  for (var c = first; c < first + width; c++) {
    let offset = x1(from_image + c) - mean_g;
    offsets += offset * offset;
    var channel = 0.0;
    for (var k = thread; k < own.chunks; k += THREADS) {
      let at = from_sums + k * params.channels + c;
      channel += sum2(at) + 2.0 * offset * sum1(at);
    }
    squares += channel;
  }
  let variance = sum_threads(vec2(squares, 0.0), thread, own.row).x / pixels + offsets;
  if (own.chunks == 0u || thread > 0u) { return; }
  let rstd = inverseSqrt(max(variance, 0.0) / f32(width) + params.eps);
  for (var c = first; c < first + width; c++) {
    store_out1(image * params.channels + c, mean_g);
    store_out2(image * params.channels + c, rstd);
  }
}

// Mean and squares about it of the channels of a vector, then of the vectors of the group, one after another.
@compute @workgroup_size(ROWS)
fn group_moments(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                 @builtin(local_invocation_index) thread: u32) {
  let item = (group.y * groups.x + group.x) * ROWS + thread;
  if (item >= params.images * params.groups) { return; }
  let image = item / params.groups;
  let vectors = params.size / params.groups;
  let first = item % params.groups * vectors;
  let pixels = f32(params.pixels);
  var mean_g = 0.0;
  var squares = 0.0;
  for (var k = 0u; k < vectors; k++) {
    let at = image * params.pixels * params.size + first + k;
    let origin = x(at);
    let sums = deviations(at, origin, 0u, params.pixels);
    let m = origin + sums.first / pixels;
    let mean_v = head(m) + total(m - head(m)) / WIDTH;
    let apart = m - mean_v;
    let offset = mean_v - mean_g;
    let share = 1.0 / f32(k + 1u);
    mean_g += offset * share;
    squares += total(sums.second - sums.first * sums.first / pixels + pixels * apart * apart)
      + offset * offset * pixels * WIDTH * f32(k) * share;
  }
  let rstd = inverseSqrt(max(squares, 0.0) / (pixels * f32(vectors) * WIDTH) + params.eps);
  for (var k = first; k < first + vectors; k++) {
    store_mean_out(image * params.size + k, V(mean_g));
    store_r_out(image * params.size + k, V(rstd));
  }
}

@compute @workgroup_size(64)
fn group_apply(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
               @builtin(local_invocation_index) thread: u32) {
  let own = strand((group.y * groups.x + group.x) * 64u + thread);
  let m = mean(own.c);
  let scale = r(own.c) * w(own.k);
  let bias = b(own.k);
  for (var at = own.begin; at < own.end; at += own.step) {
    let z = (x(at) - m) * scale + bias;
    if (SILU == 0u) { store_y(at, z); } else { store_y(at, z * sigmoid(z)); }
  }
}

@compute @workgroup_size(WG)
fn group_backward_partials(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                           @builtin(local_invocation_index) thread: u32) {
  let item = (group.y * groups.x + group.x) * WG + thread;
  if (item >= params.images * params.chunks * params.size) { return; }
  let k = item % params.size;
  let chunk = item / params.size % params.chunks;
  let image = item / (params.size * params.chunks);
  let from_image = image * params.pixels * params.size + k;
  let end = min((chunk + 1u) * params.chunk, params.pixels);
  let sums = upstreams(from_image, k, image * params.size + k, chunk * params.chunk, end);
  store_s1(item, sums.u);
  store_s2(item, sums.un);
  store_s3(item, sums.n);
}

@compute @workgroup_size(THREADS * ROWS)
fn group_backward_statistics(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                             @builtin(local_invocation_index) index: u32) {
  let own = share(group.y * groups.x + group.x, index);
  let thread = own.thread;
  let image = own.image;
  let width = params.channels / params.groups;
  let first = own.first;
  let map = params.images * params.channels;
  let from_map = image * params.channels;
  // A mean is rounded, and so n has a mean of its own; where u has one too, their product would grow with the pixels in the
  // sum of u n. It is taken off.
  var rest = 0.0;
  for (var c = first; c < first + width; c++) {
    var channel = 0.0;
    for (var k = thread; k < own.chunks; k += THREADS) { channel += sum3((image * params.chunks + k) * params.channels + c); }
    rest += channel;
  }
  let mean_n = sum_threads(vec2(rest, 0.0), thread, own.row).x / f32(params.pixels * width);
  var of_group = vec2<f32>(); // sums of u w and of u w n
  for (var j = 0u; j < width; j++) { // as often in every thread: they meet in sum_threads
    let c = first + j;
    var pair = vec2<f32>();
    for (var k = thread; k < own.chunks; k += THREADS) {
      let at = (image * params.chunks + k) * params.channels + c;
      pair += vec2(sum1(at), sum2(at));
    }
    var sums = sum_threads(pair, thread, own.row);
    sums.y -= mean_n * sums.x;
    if (own.chunks > 0u && thread == 0u) {
      store_all(2u * map + from_map + c, sums.x);
      store_all(3u * map + from_map + c, sums.y);
    }
    of_group += sums * w1(c);
  }
  if (own.chunks == 0u || thread > 0u) { return; }
  let means = of_group / f32(params.pixels * width);
  for (var c = first; c < first + width; c++) {
    store_all(from_map + c, means.x);
    store_all(map + from_map + c, means.y);
  }
}

@compute @workgroup_size(ROWS)
fn group_backward_moments(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                          @builtin(local_invocation_index) thread: u32) {
  let item = (group.y * groups.x + group.x) * ROWS + thread;
  if (item >= params.images * params.groups) { return; }
  let image = item / params.groups;
  let vectors = params.size / params.groups;
  let first = item % params.groups * vectors;
  let map = params.images * params.size;
  let from_map = image * params.size;
  var g = 0.0;
  var gn = 0.0;
  for (var k = first; k < first + vectors; k++) {
    let sums = upstreams(image * params.pixels * params.size + k, k, from_map + k, 0u, params.pixels);
    store_joined(2u * map + from_map + k, sums.u);
    store_joined(3u * map + from_map + k, sums.un);
    g += total(sums.u * w(k));
    gn += total(sums.un * w(k));
  }
  let count = f32(params.pixels * vectors) * WIDTH;
  for (var k = first; k < first + vectors; k++) {
    store_joined(from_map + k, V(g / count));
    store_joined(map + from_map + k, V(gn / count));
  }
}

@compute @workgroup_size(64)
fn group_backward_x(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                    @builtin(local_invocation_index) thread: u32) {
  let item = (group.y * groups.x + group.x) * 64u + thread;
  let own = strand(item);
  let m = mean(own.c);
  let rstd = r(own.c);
  let weight = w(own.k);
  let bias = b(own.k);
  let map = params.images * params.size;
  let m1 = of_u(own.c);
  let m2 = of_u(map + own.c);
  for (var at = own.begin; at < own.end; at += own.step) {
    let n = (x(at) - m) * rstd;
    store_y(at, rstd * (upstream(dy(at), n, weight, bias) * weight - m1 - n * m2));
  }
  // The threads behind the map's have dw and db to themselves, each of a slice of the images.
  let behind = item - params.images * slab() * params.size;
  if (behind < params.slices * params.size) {
    let k = behind % params.size;
    let first = behind / params.size * params.slice;
    var s = V();
    var q = V();
    for (var image = first; image < min(first + params.slice, params.images); image++) {
      s += of_u(2u * map + image * params.size + k);
      q += of_u(3u * map + image * params.size + k);
    }
    store_dw(behind, q);
    store_db(behind, s);
  }
}
