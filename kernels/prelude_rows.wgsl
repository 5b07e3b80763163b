// Prelude of row kernels: THREADS threads share a row and reduce over it together, ROWS rows make a workgroup.
// On a software adapter THREADS is 1: a barrier costs more there than a row, and these branches vanish.
// A sum is a tree in which thread t adds what thread t + half has, for half = THREADS / 2, ..., 2, 1: through workgroup memory, but
// below SUBGROUP by sum_subgroup, of prelude_subgroups where the device has subgroups. The order of additions is the same.
override THREADS: u32 = 1;
override ROWS: u32 = 8;
override SUBGROUP: u32 = 1; // consecutive threads that are in one subgroup whatever its size; 1 without subgroups
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
  var sum = own;
  if (THREADS > SUBGROUP) {
    let first = row.slot * THREADS;
    let at = first + row.thread;
    partials[at] = own;
    workgroupBarrier();
    for (var half = THREADS / 2u; half > SUBGROUP; half /= 2u) {
      if (row.thread < half) { partials[at] += partials[at + half]; }
      workgroupBarrier();
    }
    let low = first + row.thread % SUBGROUP;
    sum = partials[low] + partials[low + SUBGROUP];
    workgroupBarrier();
  }
  return sum_subgroup(sum);
}

fn max_threads(own: f32, row: Row) -> f32 {
  if (THREADS == 1u) { return own; }
  var top = own;
  if (THREADS > SUBGROUP) {
    let first = row.slot * THREADS;
    let at = first + row.thread;
    partials[at].x = own;
    workgroupBarrier();
    for (var half = THREADS / 2u; half > SUBGROUP; half /= 2u) {
      if (row.thread < half) { partials[at].x = max(partials[at].x, partials[at + half].x); }
      workgroupBarrier();
    }
    let low = first + row.thread % SUBGROUP;
    top = max(partials[low].x, partials[low + SUBGROUP].x);
    workgroupBarrier();
  }
  return max_subgroup(top);
}
