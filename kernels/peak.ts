// Prints the WGSL that measures peak arithmetic throughput: y = a sum of `chains` vectors, each taken `rounds * depth` times through
// v = v a + b. Chains are independent, so that a multiply-add need not wait for the one before it; they stay in registers, and
// x, a, b and rounds are known only at run time, so that no compiler can remove the loop.

/** Multiply-adds of a chain per loop iteration: enough that the loop itself costs nothing. */
export const PEAK_DEPTH = 16;
export const PEAK_WORKGROUP = 64;

/** The WGSL text; entry point `multiply_adds`, arrays x and y of vec4 (one a thread), parameters rounds, a, b. */
export function peakWgsl(chains: number): string {
  const each = (line: (v: string, i: number) => string, separator = "\n  ") =>
    Array.from({ length: chains }, (_, i) => line(`v${i}`, i)).join(separator);
  const step = each((v) => `${v} = fma(${v}, a, b);`, " ");
  return `struct Params { rounds: u32, a: f32, b: f32 }
var<storage> x: array<vec4<f32>>;
var<storage> y: array<vec4<f32>>;

@compute @workgroup_size(${PEAK_WORKGROUP})
fn multiply_adds(@builtin(global_invocation_id) id: vec3<u32>) {
  let a = vec4<f32>(params.a);
  let b = vec4<f32>(params.b);
  ${each((v, i) => `var ${v} = x(id.x) + ${i}.0;`)}
  for (var i = 0u; i < params.rounds; i++) {
    ${Array(PEAK_DEPTH).fill(step).join("\n    ")}
  }
  store_y(id.x, ${each((v) => v, " + ")});
}
`;
}
