// AdamW (Loshchilov and Hutter, 2019) with global-norm clipping and a moving average of the weights, one launch a flat set:
//   g' = g * min(1, clip / norm);  m = b1 m + (1 - b1) g';  v = b2 v + (1 - b2) g'^2;
//   p = p - lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + wd p);  ema = d ema + (1 - d) p
// Gradients come multiplied by the loss scale (1 in fp32). A step: `check_values` copies norm2, the squared global norm, into
// checked_norm2, or the first reported value that is not finite; `check_update` makes it infinite if an updated number is not
// finite. The other kernels bind checked_norm2 as norm2 and skip the step if it is not finite. `advance` counts the step, `adamw`
// updates, `rescale` divides the loss scale by 2 after a skipped step and doubles it after GROWTH applied ones, `record` adds the
// reported values to running sums, `restore` undoes what else a skipped step changed.

struct Params {
  size: u32, // vec4s; of record: values
  factor: f32, // of the learning rate, for this set
}

var<storage> p: array<vec4<f32>>;
var<storage> g: array<vec4<f32>>;
var<storage> m: array<vec4<f32>>;
var<storage> v: array<vec4<f32>>;
var<storage> ema: array<vec4<f32>>;  // absent without EMA
var<storage> work: array<vec4<f32>>; // fp16 copy of p; absent in fp32
var<storage> hyper: array<f32>;      // lr, b1, b2, eps, wd, clip (0: none), d, and what muon.wgsl reads
var<storage> norm2: array<f32>;
var<storage> progress: array<f32>;   // steps applied, steps skipped, loss scale, steps in a row (< 0: skipped)
var<storage> values: array<f32>;     // what a step reports
var<storage> sums: array<f32>;
var<storage> checked_norm2: array<f32>; // norm2, or not finite if the step is to be skipped
var<storage> fault: array<f32>;      // of the latest skipped step: 1 value, 2 gradient, 3 update; index of the value

const UNROLL = 4u; // vec4s of a thread

// By the exponent bits, because drivers may fold comparisons with NaN.
fn finite(value: f32) -> bool { return (bitcast<u32>(value) & 0x7f800000u) != 0x7f800000u; }

@compute @workgroup_size(1)
fn advance() {
  if (finite(norm2(0))) {
    store_progress(0, progress(0) + 1.0);
    store_progress(3, max(progress(3), 0.0) + 1.0);
  } else {
    store_progress(1, progress(1) + 1.0);
    store_progress(3, min(progress(3), 0.0) - 1.0);
  }
}

@compute @workgroup_size(1)
fn check_values() {
  store_checked_norm2(0, norm2(0));
  if (!finite(norm2(0))) { store_fault(0, 2.0); }
  for (var i = 0u; i < params.size; i++) {
    if (!finite(values(i))) {
      store_checked_norm2(0, values(i));
      store_fault(0, 1.0);
      store_fault(1, f32(i));
      return;
    }
  }
}

@compute @workgroup_size(64)
fn restore(id: Invocation) {
  let i = thread_of(id, 64u);
  if (i < params.size && !finite(norm2(0))) { store_sums(i, values(i)); }
}

@compute @workgroup_size(64)
fn record(@builtin(local_invocation_index) thread: u32) {
  if (!finite(norm2(0))) { return; }
  for (var i = thread; i < params.size; i += 64u) { store_sums(i, sums(i) + values(i)); }
}

const GROWTH = 500.0;
const LARGEST = 16777216.0; // 2^24

@compute @workgroup_size(1)
fn rescale() {
  if (!finite(norm2(0))) {
    store_progress(2, max(1.0, progress(2) * 0.5));
    return;
  }
  if (progress(3) >= GROWTH) {
    store_progress(2, min(LARGEST, progress(2) * 2.0));
    store_progress(3, 0.0);
  }
}

struct Updated { p: vec4<f32>, m: vec4<f32>, v: vec4<f32> }

// Vector i after applied step t.
fn updated(i: u32, t: f32) -> Updated {
  let lr = hyper(0) * params.factor;
  let b1 = hyper(1);
  let b2 = hyper(2);
  let unscale = 1.0 / progress(2);
  let norm = sqrt(norm2(0)) * unscale;
  let gi = g(i) * (unscale * select(1.0, hyper(5) / norm, hyper(5) > 0.0 && norm > hyper(5)));
  let mi = b1 * m(i) + (1.0 - b1) * gi;
  let vi = b2 * v(i) + (1.0 - b2) * gi * gi;
  let ratio = (mi / (1.0 - pow(b1, t))) / (sqrt(vi / (1.0 - pow(b2, t))) + hyper(3));
  return Updated(p(i) - lr * (ratio + hyper(4) * p(i)), mi, vi);
}

fn all_finite(x: vec4<f32>) -> bool { return finite(x.x) && finite(x.y) && finite(x.z) && finite(x.w); }

const LARGEST_WEIGHT = 1e6; // with weights beyond it, the next step overflows

// Runs before `advance`, for rates from which nothing can be learned: |ratio| <= 2e19 / eps, as norm2 is finite, so below them no
// number can overflow, and nothing is read.
@compute @workgroup_size(64)
fn check_update(id: Invocation) {
  let lr = hyper(0) * params.factor;
  if ((lr <= 100.0 && lr * hyper(4) <= 1.0) || !finite(norm2(0))) { return; }
  let first = thread_of(id, 64u * UNROLL);
  for (var u = 0u; u < UNROLL; u++) {
    let i = first + u * 64u;
    if (i < params.size) {
      let next = updated(i, progress(0) + 1.0);
      let fits = all(abs(next.p) <= vec4<f32>(LARGEST_WEIGHT));
      if (!(fits && all_finite(next.p) && all_finite(next.m) && all_finite(next.v))) {
        var infinite = 0x7f800000u; // no constant: those must be finite
        store_checked_norm2(0, bitcast<f32>(infinite));
        store_fault(0, 3.0);
      }
    }
  }
}

@compute @workgroup_size(64)
fn adamw(id: Invocation) {
  if (!finite(norm2(0))) { return; }
  let first = thread_of(id, 64u * UNROLL);
  for (var u = 0u; u < UNROLL; u++) {
    let i = first + u * 64u;
    if (i < params.size) {
      let next = updated(i, progress(0));
      store_m(i, next.m);
      store_v(i, next.v);
      store_p(i, next.p);
      store_work(i, next.p);
      store_ema(i, hyper(6) * ema(i) + (1.0 - hyper(6)) * next.p);
    }
  }
}
