// Prints the WGSL of a pointwise kernel: y[i] = f(x0[..], x1[..], ...) for every element i, with broadcasting.
// A generator because fused chains have as many forms as there are chains. One invocation computes UNROLL vectors;
// a workgroup's elements are contiguous. Sizes and scalars are parameters, so a text serves every shape.

/**
 * How input k is indexed at vector i of the output:
 * same i; scalar 0; row i % r; column i / r (one value for the whole vector);
 * vector and splat: through four coalesced dimensions, the last contiguous (vector) or constant (splat).
 */
export type Access = "same" | "scalar" | "row" | "column" | "vector" | "splat";

export interface PointwiseSpec {
  readonly accesses: readonly Access[];
  readonly scalars: number;
  /** Expressions t0, t1, ... in WGSL over x0.., s0.. and earlier t's; the last one is the result. `T` is the type. */
  readonly body: readonly string[];
  /** Elements per vector: 4 when every row is a multiple of 4, else 1. */
  readonly width: 1 | 4;
}

export const POINTWISE_WG = 64;
export const POINTWISE_UNROLL = 4;

/** The WGSL text; entry point `pointwise`, buffers x0.. and y, parameters count, d1..d3, r<k>, p<k>..q<k>, s0.. */
export function pointwiseWgsl({ accesses, scalars, body, width }: PointwiseSpec): string {
  const T = width === 4 ? "vec4<f32>" : "f32";
  const general = accesses.some((a) => a === "vector" || a === "splat");
  const fields = ["count: u32"];
  if (general) fields.push("d1: u32", "d2: u32", "d3: u32");
  accesses.forEach((access, k) => {
    if (access === "row" || access === "column") fields.push(`r${k}: u32`);
    if (access === "vector" || access === "splat") {
      for (let d = 0; d < 4; d++) fields.push(`p${k}_${d}: u32`);
    }
  });
  for (let k = 0; k < scalars; k++) fields.push(`s${k}: f32`);
  const type = (access: Access) => access === "same" || access === "row" || access === "vector" ? T : "f32";
  const at = (access: Access, k: number) =>
    ({
      same: "i",
      scalar: "0u",
      row: `i % params.r${k}`,
      column: `i / params.r${k}`,
      vector: `j0 * params.p${k}_0 + j1 * params.p${k}_1 + j2 * params.p${k}_2 + j3 * params.p${k}_3`,
      splat: `j0 * params.p${k}_0 + j1 * params.p${k}_1 + j2 * params.p${k}_2`,
    })[access];
  const binding = (k: number) => `@group(0) @binding(${k}) var`;
  return `alias T = ${T};
struct Params {
  ${fields.join(",\n  ")},
}
${accesses.map((a, k) => `${binding(k)}<storage, read> in${k}: array<${type(a)}>;`).join("\n")}
${binding(accesses.length)}<storage, read_write> y: array<T>;
${binding(accesses.length + 1)}<uniform> params: Params;

fn element(i: u32) -> T {
${
    general
      ? `  let j3 = i % params.d3; let i2 = i / params.d3;
  let j2 = i2 % params.d2; let i1 = i2 / params.d2;
  let j1 = i1 % params.d1; let j0 = i1 / params.d1;\n`
      : ""
  }${accesses.map((a, k) => `  let x${k} = T(in${k}[${at(a, k)}]);`).join("\n")}
${Array.from({ length: scalars }, (_, k) => `  let s${k} = T(params.s${k});`).join("\n")}
${body.map((expression, k) => `  let t${k} = ${expression};`).join("\n")}
  return t${body.length - 1};
}

@compute @workgroup_size(${POINTWISE_WG})
fn pointwise(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
             @builtin(local_invocation_index) lane: u32) {
  let first = (group.y * groups.x + group.x) * ${POINTWISE_WG * POINTWISE_UNROLL}u + lane;
${
    Array.from({ length: POINTWISE_UNROLL }, (_, u) => {
      const i = u ? `first + ${u * POINTWISE_WG}u` : "first";
      return `  if (${i} < params.count) { y[${i}] = element(${i}); }`;
    }).join("\n")
  }
}
${HELPERS}`;
}

/** Helpers of formulas. erf(x) has a fractional error of erfc below 1.2e-7 (Chebyshev fit of Numerical Recipes, 6.2). */
const HELPERS = `
fn pow2(x: T) -> T { return x * x; }

fn erf(x: T) -> T {
  let t = 1.0 / (1.0 + 0.5 * abs(x));
  let p = -1.26551223 + t * (1.00002368 + t * (0.37409196 + t * (0.09678418 + t * (-0.18628806
        + t * (0.27886807 + t * (-1.13520398 + t * (1.48851587 + t * (-0.82215223 + t * 0.17087277))))))));
  let c = t * exp(-x * x + p);
  return sign(x) * (1.0 - c);
}
`;
