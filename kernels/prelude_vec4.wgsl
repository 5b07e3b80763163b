// Prelude of kernels that access rows as vec4s; prelude_scalar.wgsl is its twin for sizes that are not multiples of 4.
alias V = vec4<f32>;
const WIDTH = 4.0;
fn total(v: V) -> f32 { return v.x + v.y + v.z + v.w; }
fn pairwise(v: V) -> f32 { return (v.x + v.y) + (v.z + v.w); } // the sum, added in pairs
fn biggest(v: V) -> f32 { return max(max(v.x, v.y), max(v.z, v.w)); }
fn head(v: V) -> f32 { return v.x; }
fn one_hot(k: u32, element: u32) -> V { return select(V(), V(1.0), vec4(4u * k) + vec4(0u, 1u, 2u, 3u) == vec4(element)); }
