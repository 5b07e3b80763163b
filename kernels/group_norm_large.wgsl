// Statistics of large groups, in two launches. `partials` sums over chunks of pixels per channel vector, relative to the
// channel's first value so that a large mean does not cancel; `statistics` reduces the chunks and the channels of a group,
// element by element. Backward mirrors them.
// Needs group_norm.wgsl, prelude_rows, and prelude_vec4 or prelude_scalar; `statistics` prelude_scalar, always.

override WG: u32 = 16; // threads of a workgroup of `partials`

var<storage> part1: array<V>; // [B, chunks, C] sums of d, or of u
var<storage> part2: array<V>; // of d^2, or of u n
var<storage> part3: array<V>; // of n

@compute @workgroup_size(WG)
fn group_partials(id: Invocation) {
  let item = thread_of(id, WG);
  if (item >= params.images * params.chunks * params.size) { return; }
  let k = item % params.size;
  let chunk = item / params.size % params.chunks;
  let from_image = item / (params.size * params.chunks) * params.pixels * params.size + k;
  let end = min((chunk + 1u) * params.chunk, params.pixels);
  let sums = deviations(from_image, x(from_image), chunk * params.chunk, end);
  store_part1(item, sums.first);
  store_part2(item, sums.second);
}

// A row of the statistics kernels is the chunks of a group; a thread reduces every THREADS-th of them.
struct Group {
  row: Row,
  image: u32,
  first: u32,  // channel
  chunks: u32, // 0 past the last group
}

fn group_of(row: Row) -> Group {
  let first = row.index % params.groups * (params.channels / params.groups);
  return Group(row, row.index / params.groups, first, select(0u, params.chunks, row.live));
}

@compute @workgroup_size(THREADS * ROWS)
fn group_statistics(id: Invocation) {
  let own = group_of(row_of(id, params.images * params.groups));
  let thread = own.row.thread;
  let image = own.image;
  let width = params.channels / params.groups;
  let first = own.first;
  let pixels = f32(params.pixels);
  let from_image = image * params.pixels * params.channels;
  let from_sums = image * params.chunks * params.channels;
  let origin = x(from_image + first); // so that a constant group has exactly its own mean
  var firsts = 0.0; // sum of the channels' first values - origin
  var rest = 0.0; // of the thread: sum of x - first value of the channel
  for (var c = first; c < first + width; c++) {
    firsts += x(from_image + c) - origin;
    var channel = 0.0;
    for (var k = thread; k < own.chunks; k += THREADS) { channel += part1(from_sums + k * params.channels + c); }
    rest += channel;
  }
  let mean_g = origin + (firsts + sum_threads(vec2(rest, 0.0), own.row).x / pixels) / f32(width);
  var squares = 0.0; // of the thread: sum of squared deviations from the mean, without the offsets' part
  var offsets = 0.0;
  for (var c = first; c < first + width; c++) {
    let offset = x(from_image + c) - mean_g;
    offsets += offset * offset;
    var channel = 0.0;
    for (var k = thread; k < own.chunks; k += THREADS) {
      let at = from_sums + k * params.channels + c;
      channel += part2(at) + 2.0 * offset * part1(at);
    }
    squares += channel;
  }
  let variance = sum_threads(vec2(squares, 0.0), own.row).x / pixels + offsets;
  if (own.chunks == 0u || thread > 0u) { return; }
  let rstd = inverseSqrt(max(variance, 0.0) / f32(width) + params.eps);
  for (var c = first; c < first + width; c++) {
    store_mean(image * params.channels + c, mean_g);
    store_r(image * params.channels + c, rstd);
  }
}

@compute @workgroup_size(WG)
fn group_backward_partials(id: Invocation) {
  let item = thread_of(id, WG);
  if (item >= params.images * params.chunks * params.size) { return; }
  let k = item % params.size;
  let chunk = item / params.size % params.chunks;
  let image = item / (params.size * params.chunks);
  let from_image = image * params.pixels * params.size + k;
  let end = min((chunk + 1u) * params.chunk, params.pixels);
  let sums = upstreams(from_image, k, image * params.size + k, chunk * params.chunk, end);
  store_part1(item, sums.u);
  store_part2(item, sums.un);
  store_part3(item, sums.n);
}

@compute @workgroup_size(THREADS * ROWS)
fn group_backward_statistics(id: Invocation) {
  let own = group_of(row_of(id, params.images * params.groups));
  let thread = own.row.thread;
  let image = own.image;
  let width = params.channels / params.groups;
  let first = own.first;
  let map = params.images * params.channels;
  let from_map = image * params.channels;
  // The mean is rounded, so n has a mean of its own; where u has one too, their product would grow with the pixels in the sum
  // of u n. It is subtracted.
  var rest = 0.0;
  for (var c = first; c < first + width; c++) {
    var channel = 0.0;
    for (var k = thread; k < own.chunks; k += THREADS) { channel += part3((image * params.chunks + k) * params.channels + c); }
    rest += channel;
  }
  let mean_n = sum_threads(vec2(rest, 0.0), own.row).x / f32(params.pixels * width);
  var totals = vec2<f32>(); // sums of u w and of u w n
  for (var j = 0u; j < width; j++) { // uniform: sum_threads has barriers
    let c = first + j;
    var pair = vec2<f32>();
    for (var k = thread; k < own.chunks; k += THREADS) {
      let at = (image * params.chunks + k) * params.channels + c;
      pair += vec2(part1(at), part2(at));
    }
    var sums = sum_threads(pair, own.row);
    sums.y -= mean_n * sums.x;
    if (own.chunks > 0u && thread == 0u) {
      store_group_sums(2u * map + from_map + c, sums.x);
      store_group_sums(3u * map + from_map + c, sums.y);
    }
    totals += sums * w(c);
  }
  if (own.chunks == 0u || thread > 0u) { return; }
  let means = totals / f32(params.pixels * width);
  for (var c = first; c < first + width; c++) {
    store_group_sums(from_map + c, means.x);
    store_group_sums(map + from_map + c, means.y);
  }
}
