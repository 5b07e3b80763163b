// Prelude of kernels that access rows one element at a time; see prelude_vec4.wgsl.
alias V = f32;
const WIDTH = 1.0;
fn total(v: V) -> f32 { return v; }
fn pairwise(v: V) -> f32 { return v; }
fn biggest(v: V) -> f32 { return v; }
fn head(v: V) -> f32 { return v; }
fn one_hot(k: u32, element: u32) -> V { return select(0.0, 1.0, k == element); }
