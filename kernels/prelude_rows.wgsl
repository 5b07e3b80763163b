// Prelude of row kernels: THREADS threads share a row and reduce over it together, ROWS rows make a workgroup.
// On a software adapter THREADS is 1: a barrier costs more there than a row, and these branches vanish.
override THREADS: u32 = 1;
override ROWS: u32 = 8;
var<workgroup> partials: array<vec2<f32>, 256>;

struct Row {
  thread: u32, // of the row
  slot: u32,   // of the row in its workgroup
  index: u32,
  live: bool,  // false past the last row, where threads only take part in barriers
}

fn row_of(id: Invocation, rows: u32) -> Row {
  let slot = id.thread / THREADS;
  let row = group_index(id) * ROWS + slot;
  return Row(id.thread % THREADS, slot, row, row < rows);
}

fn sum_threads(own: vec2<f32>, row: Row) -> vec2<f32> {
  if (THREADS == 1u) { return own; }
  let first = row.slot * THREADS;
  partials[first + row.thread] = own;
  workgroupBarrier();
  for (var half = THREADS / 2u; half > 0u; half /= 2u) {
    if (row.thread < half) { partials[first + row.thread] += partials[first + row.thread + half]; }
    workgroupBarrier();
  }
  let sum = partials[first];
  workgroupBarrier();
  return sum;
}

fn max_threads(own: f32, row: Row) -> f32 {
  if (THREADS == 1u) { return own; }
  let first = row.slot * THREADS;
  partials[first + row.thread].x = own;
  workgroupBarrier();
  for (var half = THREADS / 2u; half > 0u; half /= 2u) {
    if (row.thread < half) { partials[first + row.thread].x = max(partials[first + row.thread].x, partials[first + row.thread + half].x); }
    workgroupBarrier();
  }
  let top = partials[first].x;
  workgroupBarrier();
  return top;
}
