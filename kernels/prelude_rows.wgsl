// Prelude of row kernels: THREADS invocations share a row and agree on sums and maxima, ROWS rows make a workgroup.
// On a software adapter THREADS is 1: a barrier costs more there than a whole row, and these branches vanish.
override THREADS: u32 = 1;
override ROWS: u32 = 8;
var<workgroup> partials: array<vec2<f32>, 256>;

fn sum_threads(own: vec2<f32>, thread: u32, row: u32) -> vec2<f32> {
  if (THREADS == 1u) { return own; }
  partials[row * THREADS + thread] = own;
  workgroupBarrier();
  for (var half = THREADS / 2u; half > 0u; half /= 2u) {
    if (thread < half) { partials[row * THREADS + thread] += partials[row * THREADS + thread + half]; }
    workgroupBarrier();
  }
  let whole = partials[row * THREADS];
  workgroupBarrier();
  return whole;
}

fn max_threads(own: f32, thread: u32, row: u32) -> f32 {
  if (THREADS == 1u) { return own; }
  partials[row * THREADS + thread].x = own;
  workgroupBarrier();
  for (var half = THREADS / 2u; half > 0u; half /= 2u) {
    if (thread < half) { partials[row * THREADS + thread].x = max(partials[row * THREADS + thread].x, partials[row * THREADS + thread + half].x); }
    workgroupBarrier();
  }
  let whole = partials[row * THREADS].x;
  workgroupBarrier();
  return whole;
}
