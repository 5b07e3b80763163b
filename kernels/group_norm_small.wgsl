// Statistics of many small groups in one launch: a thread owns a group. For software adapters, where a launch costs more than
// parallelism within a group gains.
// Needs group_norm.wgsl, prelude_rows (a row is a thread), and prelude_vec4 or prelude_scalar.

// Mean and sum of squared deviations of a channel vector, then of the vectors of the group, one after another.
@compute @workgroup_size(ROWS)
fn group_moments(id: Invocation) {
  let item = thread_of(id, ROWS);
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
    let deviation = m - mean_v;
    let offset = mean_v - mean_g;
    let share = 1.0 / f32(k + 1u);
    mean_g += offset * share;
    squares += total(sums.second - sums.first * sums.first / pixels + pixels * deviation * deviation)
      + offset * offset * pixels * WIDTH * f32(k) * share;
  }
  let rstd = inverseSqrt(max(squares, 0.0) / (pixels * f32(vectors) * WIDTH) + params.eps);
  for (var k = first; k < first + vectors; k++) {
    store_mean(image * params.size + k, V(mean_g));
    store_r(image * params.size + k, V(rstd));
  }
}

@compute @workgroup_size(ROWS)
fn group_backward_moments(id: Invocation) {
  let item = thread_of(id, ROWS);
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
    store_group_sums(2u * map + from_map + k, sums.u);
    store_group_sums(3u * map + from_map + k, sums.un);
    g += total(sums.u * w(k));
    gn += total(sums.un * w(k));
  }
  let count = f32(params.pixels * vectors) * WIDTH;
  for (var k = first; k < first + vectors; k++) {
    store_group_sums(from_map + k, V(g / count));
    store_group_sums(map + from_map + k, V(gn / count));
  }
}
