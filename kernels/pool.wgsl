// Nearest-2x upsampling and pooling of channels-last maps [B, H, W, C] (C in vectors V; needs prelude_vec4 or
// prelude_scalar). Backward gathers: a thread owns an element of dx and loops over the windows that contain it in scan order, without
// atomics. The gradient of a maximum goes to the first element of the window that equals it.

struct Params {
  count: u32, // threads: vectors of the output
  H: u32,
  W: u32,
  C: u32,
  Ho: u32,
  Wo: u32,
  K: u32,
  stride: u32,
  padding: u32,
}

var<storage> x: array<V>;
var<storage> dy: array<V>;
var<storage> y: array<V>;

override MAX: u32 = 0;
override COUNT_PADDING: u32 = 1;

// One input vector becomes four of the output.
@compute @workgroup_size(64)
fn upsample(id: Invocation) {
  let i = thread_of(id, 64u);
  if (i >= params.count) { return; }
  let pixel = i / params.C;
  let row = pixel / params.W;
  let line = params.W * 2u * params.C;
  let at = row * 2u * line + (pixel - row * params.W) * 2u * params.C + i - pixel * params.C;
  let v = x(i);
  store_y(at, v);
  store_y(at + params.C, v);
  store_y(at + line, v);
  store_y(at + line + params.C, v);
}

@compute @workgroup_size(64)
fn upsample_backward(id: Invocation) {
  let i = thread_of(id, 64u);
  if (i >= params.count) { return; }
  let pixel = i / params.C;
  let row = pixel / params.W;
  let line = params.W * 2u * params.C;
  let at = row * 2u * line + (pixel - row * params.W) * 2u * params.C + i - pixel * params.C;
  store_y(i, dy(at) + dy(at + params.C) + dy(at + line) + dy(at + line + params.C));
}

// Divisor of the mean: all cells of the window (PyTorch's count_include_pad), or those on the map.
fn cells(oy: u32, ox: u32) -> f32 {
  if (COUNT_PADDING == 1u) { return f32(params.K * params.K); }
  let y0 = oy * params.stride;
  let x0 = ox * params.stride;
  let h = min(y0 + params.K, params.H + params.padding) - max(y0, params.padding);
  let w = min(x0 + params.K, params.W + params.padding) - max(x0, params.padding);
  return f32(h * w);
}

// Padding is zero in the mean and is left out of the maximum.
fn window(image: u32, oy: u32, ox: u32, c: u32) -> V {
  var acc = V(select(0.0, -3.4028234e38, MAX == 1u));
  for (var k = 0u; k < params.K * params.K; k++) {
    let iy = i32(oy * params.stride + k / params.K) - i32(params.padding);
    let ix = i32(ox * params.stride + k % params.K) - i32(params.padding);
    if (iy < 0 || ix < 0 || iy >= i32(params.H) || ix >= i32(params.W)) { continue; }
    let v = x(((image * params.H + u32(iy)) * params.W + u32(ix)) * params.C + c);
    if (MAX == 1u) { acc = max(acc, v); } else { acc += v; }
  }
  return acc;
}

@compute @workgroup_size(64)
fn pool(id: Invocation) {
  let i = thread_of(id, 64u);
  if (i >= params.count) { return; }
  let pixel = i / params.C;
  let oy = pixel / params.Wo % params.Ho;
  let ox = pixel % params.Wo;
  let acc = window(pixel / (params.Wo * params.Ho), oy, ox, i % params.C);
  if (MAX == 1u) { store_y(i, acc); } else { store_y(i, acc / cells(oy, ox)); }
}

// Whether an earlier element of the window has the same value.
fn earlier(image: u32, oy: u32, ox: u32, c: u32, own: u32, value: V) -> V {
  var hits = V();
  for (var k = 0u; k < own; k++) {
    let iy = i32(oy * params.stride + k / params.K) - i32(params.padding);
    let ix = i32(ox * params.stride + k % params.K) - i32(params.padding);
    if (iy < 0 || ix < 0 || iy >= i32(params.H) || ix >= i32(params.W)) { continue; }
    hits += select(V(), V(1.0), x(((image * params.H + u32(iy)) * params.W + u32(ix)) * params.C + c) == value);
  }
  return hits;
}

// Along one axis: the last of `windows` that contains padded position i, and how many do.
fn containing(i: u32, windows: u32) -> vec2<u32> {
  let last = min(i / params.stride, windows - 1u);
  let first = select(0u, (i - params.K) / params.stride + 1u, i >= params.K);
  return vec2(last, select(0u, last - first + 1u, last >= first));
}

@compute @workgroup_size(64)
fn pool_backward(id: Invocation) {
  let i = thread_of(id, 64u);
  if (i >= params.count) { return; }
  let pixel = i / params.C;
  let c = i % params.C;
  let image = pixel / (params.W * params.H);
  let iy = pixel / params.W % params.H + params.padding;
  let ix = pixel % params.W + params.padding;
  let own = x(i);
  var acc = V();
  let rows = containing(iy, params.Ho);
  let columns = containing(ix, params.Wo);
  for (var j = 0u; j < rows.y * columns.y; j++) {
    let oy = rows.x - j / columns.y;
    let ox = columns.x - j % columns.y;
    let k = (iy - oy * params.stride) * params.K + ix - ox * params.stride; // the element's place in the window
    let g = dy(((image * params.Ho + oy) * params.Wo + ox) * params.C + c);
    if (MAX == 0u) { acc += g / cells(oy, ox); }
    else {
      let first = (window(image, oy, ox, c) == own) & (earlier(image, oy, ox, c, k, own) == V());
      acc += select(V(), g, first);
    }
  }
  store_y(i, acc);
}
