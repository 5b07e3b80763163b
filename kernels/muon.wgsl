// Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon) on a flat set of matrices, around the orthogonalisation that
// ops/muon.ts records:
//   g' = g * min(1, clip / norm);  m = mu m + (1 - mu) g';  g = (1 - mu) g' + mu m (Nesterov);  g = orthogonalised(g), scaled;
//   p = p - lr (g + wd p);  ema = d ema + (1 - d) p
// `momentum` and `muon` are the launches before and after. Gradients, loss scale, norm2 and skipped steps are as in adamw.wgsl;
// `check_update` makes checked_norm2 infinite where the update could take a weight beyond LARGEST_WEIGHT.

struct Params {
  size: u32, // vec4s
  bound: f32, // of the magnitudes of an update
}

var<storage> p: array<vec4<f32>>;
var<storage> g: array<vec4<f32>>;
var<storage> m: array<vec4<f32>>;
var<storage> ema: array<vec4<f32>>;  // absent without EMA
var<storage> work: array<vec4<f32>>; // fp16 copy of p; absent in fp32
var<storage> hyper: array<f32>;      // [4] wd, [5] clip (0: none), [6] d, [7] mu, [8] lr
var<storage> norm2: array<f32>;
var<storage> progress: array<f32>;   // [2] loss scale
var<storage> checked_norm2: array<f32>;
var<storage> fault: array<f32>;

const UNROLL = 4u; // vec4s of a thread
const LARGEST_WEIGHT = 1e6;

// By the exponent bits, because drivers may fold comparisons with NaN.
fn finite(value: f32) -> bool { return (bitcast<u32>(value) & 0x7f800000u) != 0x7f800000u; }

// For rates from which nothing can be learned: below them no weight gets that large in a run, and nothing is read.
@compute @workgroup_size(64)
fn check_update(id: Invocation) {
  let lr = hyper(8);
  if ((lr * params.bound <= 100.0 && lr * hyper(4) <= 1.0) || !finite(norm2(0))) { return; }
  let first = thread_of(id, 64u * UNROLL);
  for (var u = 0u; u < UNROLL; u++) {
    let i = first + u * 64u;
    if (i < params.size) {
      let next = abs(1.0 - lr * hyper(4)) * abs(p(i)) + lr * params.bound;
      if (!all(next <= vec4<f32>(LARGEST_WEIGHT))) {
        var infinite = 0x7f800000u; // no constant: those must be finite
        store_checked_norm2(0, bitcast<f32>(infinite));
        store_fault(0, 3.0);
      }
    }
  }
}

@compute @workgroup_size(64)
fn momentum(id: Invocation) {
  if (!finite(norm2(0))) { return; }
  let mu = hyper(7);
  let unscale = 1.0 / progress(2);
  let norm = sqrt(norm2(0)) * unscale;
  let factor = (1.0 - mu) * unscale * select(1.0, hyper(5) / norm, hyper(5) > 0.0 && norm > hyper(5));
  let first = thread_of(id, 64u * UNROLL);
  for (var u = 0u; u < UNROLL; u++) {
    let i = first + u * 64u;
    if (i < params.size) {
      let gi = factor * g(i);
      let mi = mu * m(i) + gi;
      store_m(i, mi);
      store_g(i, mu * mi + gi);
    }
  }
}

@compute @workgroup_size(64)
fn muon(id: Invocation) {
  if (!finite(norm2(0))) { return; }
  let lr = hyper(8);
  let first = thread_of(id, 64u * UNROLL);
  for (var u = 0u; u < UNROLL; u++) {
    let i = first + u * 64u;
    if (i < params.size) {
      let next = p(i) - lr * (g(i) + hyper(4) * p(i));
      store_p(i, next);
      store_work(i, next);
      store_ema(i, hyper(6) * ema(i) + (1.0 - hyper(6)) * next);
    }
  }
}
