// y [R, H] = silu(a) b for x [R, 2H] = (a, b) in rows, Shazeer (2020). Backward writes both halves of dx:
//   da = dy b s (1 + a (1 - s)),  db = dy a s,  s = sigmoid(a). Needs the prelude wide or narrow.

struct Params {
  count: u32, // vectors of y
  size: u32,  // vectors of H
}

@group(0) @binding(0) var<storage, read> x: array<V>;
@group(0) @binding(1) var<storage, read> dy: array<V>;
@group(0) @binding(2) var<storage, read_write> y: array<V>;
@group(0) @binding(3) var<uniform> params: Params;

@compute @workgroup_size(64)
fn swiglu(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
          @builtin(local_invocation_index) thread: u32) {
  let i = (group.y * groups.x + group.x) * 64u + thread;
  if (i >= params.count) { return; }
  let at = i + i / params.size * params.size;
  let a = x[at];
  y[i] = a / (1.0 + exp(-a)) * x[at + params.size];
}

@compute @workgroup_size(64)
fn swiglu_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                   @builtin(local_invocation_index) thread: u32) {
  let i = (group.y * groups.x + group.x) * 64u + thread;
  if (i >= params.count) { return; }
  let at = i + i / params.size * params.size;
  let a = x[at];
  let s = 1.0 / (1.0 + exp(-a));
  let g = dy[i];
  y[at] = g * x[at + params.size] * s * (1.0 + a * (1.0 - s));
  y[at + params.size] = g * a * s;
}
