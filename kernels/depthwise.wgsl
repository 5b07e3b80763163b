// Depthwise convolution of channels-last maps [B, H, W, C] with stride 1 (C in vectors V; needs prelude_vec4 or prelude_scalar):
// a thread owns a vector of the output and adds the taps in scan order. The weight is [K, K, C]. With MIRRORED taps and the
// complementary padding it is the gradient of the input.

struct Params {
  count: u32, // threads: vectors of the output
  H: u32,
  W: u32,
  C: u32,
  Ho: u32,
  Wo: u32,
  K: u32,
  padding: u32,
}

var<storage> x: array<V>;
var<storage> weight: array<V>;
var<storage> y: array<V>;

override MIRRORED: u32 = 0;

@compute @workgroup_size(64)
fn depthwise(id: Invocation) {
  let i = thread_of(id, 64u);
  if (i >= params.count) { return; }
  let pixel = i / params.C;
  let c = i % params.C;
  let oy = pixel / params.Wo % params.Ho;
  let ox = pixel % params.Wo;
  let image = pixel / (params.Wo * params.Ho);
  let taps = params.K * params.K;
  var acc = V();
  for (var k = 0u; k < taps; k++) {
    let iy = i32(oy + k / params.K) - i32(params.padding);
    let ix = i32(ox + k % params.K) - i32(params.padding);
    if (iy < 0 || ix < 0 || iy >= i32(params.H) || ix >= i32(params.W)) { continue; }
    let tap = select(k, taps - 1u - k, MIRRORED == 1u);
    acc += x(((image * params.H + u32(iy)) * params.W + u32(ix)) * params.C + c) * weight(tap * params.C + c);
  }
  store_y(i, acc);
}
