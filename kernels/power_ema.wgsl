// Power-function average of a flat set of parameters (Karras et al., 2024, arXiv 2312.02696, eq. 4) after applied step t:
//   ema = ema + (1 - (1 - 1/t)^power) (p - ema)
// For long runs 1 - 1/t has few digits left in fp32, so from t = 32 on the factor is -expm1(power log1p(-1/t)) by series. A step
// whose checked_norm2 is not finite is skipped, as in adamw.wgsl, where progress counts it.

struct Params {
  size: u32, // vec4s
  power: f32, // gamma + 1
}

var<storage> p: array<vec4<f32>>;
var<storage> ema: array<vec4<f32>>;
var<storage> norm2: array<f32>;
var<storage> progress: array<f32>; // steps applied, this one included, ...

const UNROLL = 4u; // vec4s of a thread

// By the exponent bits, because drivers may fold comparisons with NaN.
fn finite(value: f32) -> bool { return (bitcast<u32>(value) & 0x7f800000u) != 0x7f800000u; }

fn factor(t: f32) -> f32 {
  if (t <= 1.0) { return 1.0; }
  let x = 1.0 / t;
  if (t < 32.0) { return 1.0 - pow(1.0 - x, params.power); }
  let log = -x * (1.0 + x * (1.0 / 2.0 + x * (1.0 / 3.0 + x * (1.0 / 4.0 + x / 5.0))));
  let y = params.power * log;
  if (y < -1.0) { return 1.0 - exp(y); }
  return -y * (1.0 + y / 2.0 * (1.0 + y / 3.0 * (1.0 + y / 4.0 * (1.0 + y / 5.0 * (1.0 + y / 6.0 * (1.0 + y / 7.0))))));
}

@compute @workgroup_size(64)
fn power_ema(id: Invocation) {
  if (!finite(norm2(0))) { return; }
  let part = factor(progress(0));
  let first = thread_of(id, 64u * UNROLL);
  for (var u = 0u; u < UNROLL; u++) {
    let i = first + u * 64u;
    if (i < params.size) { store_ema(i, ema(i) + part * (p(i) - ema(i))); }
  }
}
