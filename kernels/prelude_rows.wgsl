// Prelude of row kernels: LANES invocations share a row and agree on sums and maxima, ROWS rows make a workgroup.
// On a software adapter LANES is 1: a barrier costs more there than a whole row, and these branches vanish.
override LANES: u32 = 1;
override ROWS: u32 = 8;
var<workgroup> lanes: array<vec2<f32>, 256>;

fn sum_lanes(own: vec2<f32>, lane: u32, row: u32) -> vec2<f32> {
  if (LANES == 1u) { return own; }
  lanes[row * LANES + lane] = own;
  workgroupBarrier();
  for (var half = LANES / 2u; half > 0u; half /= 2u) {
    if (lane < half) { lanes[row * LANES + lane] += lanes[row * LANES + lane + half]; }
    workgroupBarrier();
  }
  let whole = lanes[row * LANES];
  workgroupBarrier();
  return whole;
}

fn max_lanes(own: f32, lane: u32, row: u32) -> f32 {
  if (LANES == 1u) { return own; }
  lanes[row * LANES + lane].x = own;
  workgroupBarrier();
  for (var half = LANES / 2u; half > 0u; half /= 2u) {
    if (lane < half) { lanes[row * LANES + lane].x = max(lanes[row * LANES + lane].x, lanes[row * LANES + lane + half].x); }
    workgroupBarrier();
  }
  let whole = lanes[row * LANES].x;
  workgroupBarrier();
  return whole;
}
