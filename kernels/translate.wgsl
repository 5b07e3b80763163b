// Images shifted by whole pixels, each by its own amount, zeros outside: y[b, i, j] = x[b, i + SIGN * down, j + SIGN * right]
// with (down, right) = shifts[b]. The gradient is the shift back. One thread owns a pixel's channel.

override SIGN: i32 = 1;

struct Params {
  count: u32, // elements of y
  height: u32,
  width: u32,
  channels: u32,
}

var<storage> x: array<f32>;
var<storage> shifts: array<f32>; // [B, 2], whole numbers
var<storage> y: array<f32>;

@compute @workgroup_size(64)
fn translate(id: Invocation) {
  let k = thread_of(id, 64u);
  if (k >= params.count) { return; }
  let c = k % params.channels;
  let pixel = k / params.channels;
  let j = i32(pixel % params.width);
  let i = i32(pixel / params.width % params.height);
  let image = pixel / (params.width * params.height);
  let row = i + SIGN * i32(shifts(2u * image));
  let column = j + SIGN * i32(shifts(2u * image + 1u));
  let inside = row >= 0 && row < i32(params.height) && column >= 0 && column < i32(params.width);
  let at = ((image * params.height + u32(max(row, 0))) * params.width + u32(max(column, 0))) * params.channels + c;
  var value = 0.0;
  if (inside) { value = x(at); }
  store_y(k, value);
}
