// Sum and maximum over one axis, with a fixed order of additions (no atomics): the same bits every time.
// reduce_rows:    y[r, s]    = scale * op over k in chunk s of pre(x[r, k])        x [R, K]
// reduce_columns: y[o, s, i] = scale * op over k in chunk s of pre(x[o, k, i])     x [O, K, I]
// A second launch reduces the chunks. THREADS invocations share one row, or one column of vectors (1 on software adapters, where
// barriers are dear); a workgroup has ROWS rows or WG columns, and is one-dimensional so that they fill one SIMD vector. The
// `1` entry points take sizes that are no multiple of 4. Sums have three levels, so that rounding errors do not
// grow with the length: an invocation adds up to BLOCK elements, up to BLOCK such sums, and what those give.

override THREADS: u32 = 1;
override ROWS: u32 = 8;
override WG: u32 = 64;
override OP: u32 = 0;  // 0 sum, 1 maximum
override PRE: u32 = 0; // 0 x, 1 x * x, 2 abs(x)

const BLOCK = 16u;

struct Params {
  rows: u32,    // R or O
  size: u32,    // K
  inner: u32,   // I, in vectors
  chunks: u32,  // S
  chunk: u32,   // elements (vectors) of a chunk
  scale: f32,
}

var<storage> x: array<f32>;
var<storage> x4: array<vec4<f32>>;
var<storage> y: array<f32>;
var<storage> y4: array<vec4<f32>>;

var<workgroup> shared_acc: array<f32, 256>;
var<workgroup> shared_acc4: array<vec4<f32>, 256>;

const LOWEST = -3.4028234e38;

fn pre4(v: vec4<f32>) -> vec4<f32> {
  if (PRE == 1u) { return v * v; }
  if (PRE == 2u) { return abs(v); }
  return v;
}

fn pre1(v: f32) -> f32 {
  if (PRE == 1u) { return v * v; }
  if (PRE == 2u) { return abs(v); }
  return v;
}

fn both4(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
  if (OP == 1u) { return max(a, b); }
  return a + b;
}

fn both1(a: f32, b: f32) -> f32 {
  if (OP == 1u) { return max(a, b); }
  return a + b;
}

fn start() -> f32 {
  if (OP == 1u) { return LOWEST; }
  return 0.0;
}

fn finish_row(item: u32, thread: u32, row: u32, own: f32) {
  var acc = own;
  if (THREADS > 1u) {
    shared_acc[row * THREADS + thread] = acc;
    workgroupBarrier();
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
      if (thread < half) {
        shared_acc[row * THREADS + thread] = both1(shared_acc[row * THREADS + thread], shared_acc[row * THREADS + thread + half]);
      }
      workgroupBarrier();
    }
    acc = shared_acc[row * THREADS];
  }
  if (thread == 0u && item < params.rows * params.chunks) { store_y(item, acc * params.scale); }
}

@compute @workgroup_size(THREADS * ROWS)
fn reduce_rows(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
               @builtin(local_invocation_index) index: u32) {
  let thread = index % THREADS;
  let row = index / THREADS;
  let item = (group.y * groups.x + group.x) * ROWS + row;
  let from_row = (item / params.chunks) * params.size;
  let begin = (item % params.chunks) * params.chunk;
  var acc = vec4<f32>(start());
  if (item < params.rows * params.chunks) {
    let end = min(begin + params.chunk, params.size);
    for (var i = begin; i < end; i += BLOCK * BLOCK * THREADS) {
      var middle = vec4<f32>(start());
      for (var j = i; j < min(i + BLOCK * BLOCK * THREADS, end); j += BLOCK * THREADS) {
        var block = vec4<f32>(start());
        for (var k = j + thread; k < min(j + BLOCK * THREADS, end); k += THREADS) { block = both4(block, pre4(x4(from_row + k))); }
        middle = both4(middle, block);
      }
      acc = both4(acc, middle);
    }
  }
  finish_row(item, thread, row, both1(both1(acc.x, acc.y), both1(acc.z, acc.w)));
}

@compute @workgroup_size(THREADS * ROWS)
fn reduce_rows1(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                @builtin(local_invocation_index) index: u32) {
  let thread = index % THREADS;
  let row = index / THREADS;
  let item = (group.y * groups.x + group.x) * ROWS + row;
  let from_row = (item / params.chunks) * params.size;
  let begin = (item % params.chunks) * params.chunk;
  var acc = start();
  if (item < params.rows * params.chunks) {
    let end = min(begin + params.chunk, params.size);
    for (var i = begin; i < end; i += BLOCK * BLOCK * THREADS) {
      var middle = start();
      for (var j = i; j < min(i + BLOCK * BLOCK * THREADS, end); j += BLOCK * THREADS) {
        var block = start();
        for (var k = j + thread; k < min(j + BLOCK * THREADS, end); k += THREADS) { block = both1(block, pre1(x(from_row + k))); }
        middle = both1(middle, block);
      }
      acc = both1(acc, middle);
    }
  }
  finish_row(item, thread, row, acc);
}

@compute @workgroup_size(WG * THREADS)
fn reduce_columns(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                  @builtin(local_invocation_index) index: u32) {
  let thread = index / WG;
  let item = (group.y * groups.x + group.x) * WG + index % WG;
  let i = item % params.inner;
  let s = (item / params.inner) % params.chunks;
  let o = item / (params.inner * params.chunks);
  let end = select(0u, min((s + 1u) * params.chunk, params.size), o < params.rows); // nothing for threads past the last column
  var acc = vec4<f32>(start());
  for (var h = s * params.chunk; h < end; h += BLOCK * BLOCK * THREADS) {
    var middle = vec4<f32>(start());
    for (var j = h; j < min(h + BLOCK * BLOCK * THREADS, end); j += BLOCK * THREADS) {
      var block = vec4<f32>(start());
      for (var k = j + thread; k < min(j + BLOCK * THREADS, end); k += THREADS) {
        block = both4(block, pre4(x4((o * params.size + k) * params.inner + i)));
      }
      middle = both4(middle, block);
    }
    acc = both4(acc, middle);
  }
  if (THREADS > 1u) {
    shared_acc4[index] = acc;
    workgroupBarrier();
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
      if (thread < half) { shared_acc4[index] = both4(shared_acc4[index], shared_acc4[index + half * WG]); }
      workgroupBarrier();
    }
    acc = shared_acc4[index];
  }
  if ((THREADS == 1u || thread == 0u) && o < params.rows) { store_y4(item, acc * params.scale); }
}

@compute @workgroup_size(WG * THREADS)
fn reduce_columns1(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                  @builtin(local_invocation_index) index: u32) {
  let thread = index / WG;
  let item = (group.y * groups.x + group.x) * WG + index % WG;
  let i = item % params.inner;
  let s = (item / params.inner) % params.chunks;
  let o = item / (params.inner * params.chunks);
  let end = select(0u, min((s + 1u) * params.chunk, params.size), o < params.rows); // nothing for threads past the last column
  var acc = start();
  for (var h = s * params.chunk; h < end; h += BLOCK * BLOCK * THREADS) {
    var middle = start();
    for (var j = h; j < min(h + BLOCK * BLOCK * THREADS, end); j += BLOCK * THREADS) {
      var block = start();
      for (var k = j + thread; k < min(j + BLOCK * THREADS, end); k += THREADS) {
        block = both1(block, pre1(x((o * params.size + k) * params.inner + i)));
      }
      middle = both1(middle, block);
    }
    acc = both1(acc, middle);
  }
  if (THREADS > 1u) {
    shared_acc[index] = acc;
    workgroupBarrier();
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
      if (thread < half) { shared_acc[index] = both1(shared_acc[index], shared_acc[index + half * WG]); }
      workgroupBarrier();
    }
    acc = shared_acc[index];
  }
  if ((THREADS == 1u || thread == 0u) && o < params.rows) { store_y(item, acc * params.scale); }
}
