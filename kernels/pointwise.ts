// Prints the WGSL of elementwise expressions: values t0, t1, ... of inputs x0, x1, ... at index i, some of which are stored.
// A generator because fused chains have many forms. The same function is a kernel of its own (a workgroup computes contiguous
// vectors, see pointwiseTiling), or an accessor of another kernel: its prologue or epilogue. Sizes and scalars are
// parameters, so a text serves every shape.

/**
 * How an array is indexed at vector i:
 * value: not at all, it is what the calling kernel stores; same i; scalar 0; at: one element for all i;
 * row i % r; cycle, element by element, for rows of r elements that are no whole vectors;
 * column i / r (one element for the whole vector);
 * vector and splat: through the axes of a grid, the last contiguous (vector) or constant over a vector (splat).
 */
export type Access = "value" | "same" | "scalar" | "at" | "row" | "cycle" | "column" | "vector" | "splat";

export interface PlaceSpec {
  readonly access: Access;
  /** vector and splat: which of the grids. */
  readonly grid: number;
  /** vector: axes of the grid that are padded. */
  readonly bounded: readonly number[];
}

export interface ExpressionSpec {
  readonly inputs: readonly PlaceSpec[];
  readonly scalars: number;
  /** Expressions t0, t1, ... in WGSL over x0.., s0.. and earlier t's. `T` is the type. */
  readonly body: readonly string[];
  /** What is stored: the name of a value, and where. */
  readonly outputs: readonly { readonly value: string; readonly place: PlaceSpec }[];
  /** Number of axes of each grid. */
  readonly grids: readonly number[];
  readonly width: number;
  readonly element: "f32" | "u32";
}

/** Vectors per thread in the gpu profile. */
const UNROLL = 4;

/**
 * Threads of a workgroup, and vectors per thread. A software adapter starts a workgroup in the time in which it computes two
 * vectors, so there a workgroup is one SIMD vector of threads with many steps.
 * @param simd threads of a software adapter's workgroup
 * @param count number of vectors
 */
export function pointwiseTiling(
  profile: "cpu" | "gpu",
  simd: number,
  count: number,
): { threads: number; steps: number } {
  if (profile === "gpu") return { threads: 64, steps: UNROLL };
  // 32 workgroups at least, to share among the processors; past 64 steps nothing is gained.
  return { threads: simd, steps: Math.min(64, Math.max(1, Math.floor(count / simd / 32))) };
}

/**
 * The text of an expression: `struct Params` of its own, arrays <prefix>in<k> and <prefix>out<k>, and the function `name`(i: u32),
 * with a second argument where an input is the caller's value. Parameters are s<k> scalars, r<k> rows and columns,
 * p<k>_<axis> strides, o<k> offsets, g<n>_<axis> sizes, l<k>_<axis> and h<k>_<axis> bounds.
 * @param prefix of all other names, so that none is a name of the kernel that it is fused into
 * @param returns the first output's value, instead of storing the outputs
 */
export function expressionWgsl(
  { inputs, scalars, body, outputs, grids, width, element }: ExpressionSpec,
  name: string,
  prefix: string,
  returns = false,
): string {
  const T = width === 1 ? element : `vec${width}<${element}>`;
  const fields: string[] = [];
  for (let k = 0; k < scalars; k++) fields.push(`${prefix}s${k}: f32`);
  grids.forEach((rank, g) => {
    for (let d = 1; d < rank; d++) fields.push(`${prefix}g${g}_${d}: u32`);
  });
  const stored = returns ? [] : outputs;
  const places = [
    ...inputs.map((place, k) => ({ place, array: `in${k}` })),
    ...stored.map(({ place }, k) => ({ place, array: `out${k}` })),
  ];
  const arrays: string[] = [];
  const at = new Map<string, string>();
  /** Whether the element of a padded array has data. */
  const inside = new Map<string, string>();
  const cycles: string[] = [];
  for (const { place: { access, grid, bounded }, array } of places) {
    if (access === "value") continue;
    const field = (f: string) => {
      fields.push(`${prefix}${f}_${array}: u32`);
      return `params.${prefix}${f}_${array}`;
    };
    const type = access === "same" || access === "row" || access === "vector" ? T : element;
    arrays.push(`var<storage> ${prefix}${array}: array<${type}>;`);
    const general = () => {
      const rank = grids[grid] as number;
      const terms = Array.from({ length: rank }, (_, d) => {
        if (d < rank - 1 || (access === "vector" && width === 1)) return `g${grid}_${d} * ${field(`p${d}`)}`;
        return access === "vector" ? `g${grid}_${d}` : "";
      });
      return [...terms.filter(Boolean), field("o")].join(" + ");
    };
    if (access === "cycle") {
      const r = field("r"), name = (e: number) => `${array}_${e}`;
      cycles.push(`  let ${name(0)} = i * ${width}u % ${r};`);
      for (let e = 1; e < width; e++) {
        cycles.push(`  let ${name(e)} = select(${name(e - 1)} + 1u, 0u, ${name(e - 1)} + 1u == ${r});`);
      }
      continue;
    }
    at.set(
      array,
      access === "same"
        ? "i"
        : access === "scalar"
        ? "0u"
        : access === "at"
        ? field("o")
        : access === "row"
        ? `i % ${field("r")}`
        : access === "column"
        ? `i / ${field("r")}`
        : general(),
    );
    if (bounded.length) {
      const within = bounded.map((d) =>
        `g${grid}_${d} >= ${field(`l${d}`)} && g${grid}_${d} < ${field(`h${d}`)}`
      );
      inside.set(array, within.join(" && "));
    }
  }
  const multiIndex = grids.map((rank, g) => {
    const lines: string[] = [];
    let rest = "i";
    for (let d = rank - 1; d > 0; d--) {
      lines.push(`  let g${g}_${d} = ${rest} % params.${prefix}g${g}_${d};`);
      lines.push(`  let q${g}_${d} = ${rest} / params.${prefix}g${g}_${d};`);
      rest = `q${g}_${d}`;
    }
    return [...lines, `  let g${g}_0 = ${rest};`].join("\n");
  });
  const typed = (expression: string) =>
    expression.replace(/\bT\b/g, T).replace(/\b(erf|pow2|sin|cos)\(/g, `$1_${width}(`).replace(
      /\b[xst]\d+\b/g,
      `${prefix}$&`,
    );
  const read = (access: Access, k: number) => {
    if (access === "value") return `${prefix}v`;
    const data = inside.get(`in${k}`), index = at.get(`in${k}`);
    if (data) return `select(${T}(), ${prefix}in${k}(select(0u, ${index}, ${data})), ${data})`;
    if (access !== "cycle") return `${T}(${prefix}in${k}(${index}))`;
    return `${T}(${Array.from({ length: width }, (_, e) => `${prefix}in${k}(in${k}_${e})`).join(", ")})`;
  };
  const value = inputs.some(({ access }) => access === "value");
  return `struct Params { ${fields.join(", ")} }
${arrays.join("\n")}
fn ${name}(i: u32${value ? `, ${prefix}v: ${T}` : ""})${returns ? ` -> ${T}` : ""} {
${
    [
      ...multiIndex,
      ...cycles,
      ...inputs.map(({ access }, k) => `  let ${prefix}x${k} = ${read(access, k)};`),
      ...Array.from({ length: scalars }, (_, k) => `  let ${prefix}s${k} = ${T}(params.${prefix}s${k});`),
      ...body.map((expression, k) => `  let ${prefix}t${k} = ${typed(expression)};`),
      ...stored.map(({ value }, k) => `  store_${prefix}out${k}(${at.get(`out${k}`)}, ${prefix}${value});`),
      ...(returns ? [`  return ${prefix}${outputs[0]?.value};`] : []),
    ].join("\n")
  }
}`;
}

/** Functions that bodies call, for vectors of `width`. */
export function helpersWgsl(bodies: readonly string[], width: number): string {
  const T = width === 1 ? "f32" : `vec${width}<f32>`;
  return Object.entries(HELPERS).filter(([name]) => bodies.some((b) => b.includes(`${name}(`)))
    .map(([name, text]) => text.replaceAll("T", T).replace(`fn ${name}(`, `fn ${name}_${width}(`)).join("\n");
}

/** The kernel of an expression: entry point `pointwise`, parameters `count` (vectors) and `steps` (of a thread). */
export function pointwiseWgsl(spec: ExpressionSpec, profile: "cpu" | "gpu", simd: number): string {
  const { threads } = pointwiseTiling(profile, simd, 0);
  const unrolled = Array.from(
    { length: UNROLL },
    (_, u) => `{ let i = first + ${u * threads}u + thread; if (i < end) { element(i); } }`,
  ).join("\n  ");
  return `struct Params { count: u32, steps: u32 }
${expressionWgsl(spec, "element", "")}

@compute @workgroup_size(${threads})
fn pointwise(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
             @builtin(local_invocation_index) thread: u32) {
  let most = ${threads}u * params.steps;
  let first = (group.y * groups.x + group.x) * most;
  let end = min(first + most, params.count);
  ${profile === "gpu" ? unrolled : `for (var i = first + thread; i < end; i += ${threads}u) { element(i); }`}
}
${helpersWgsl(spec.body, spec.width)}`;
}

/**
 * sin(x + quarter pi / 2) to 1e-7 for |x| < 1e5, as the Cephes library's sinf: pi / 2 in three parts is subtracted `n` times, then one
 * of two polynomials. A GPU's own sin has an absolute error of 2^-21 or more, which for the small angles of a time embedding is a
 * relative error of a percent.
 */
const sine = (name: string, quarter: number) =>
  `fn ${name}(own: T) -> T {
  let n = round(own * 0.636619772);
  let r = ((own - n * 1.5703125) - n * 4.837512969970703e-4) - n * 7.549789954891882e-8;
  let z = r * r;
  let odd = r + r * z * (z * (8.3321608736e-3 - z * 1.9515295891e-4) - 1.6666654611e-1);
  let even = 1.0 - 0.5 * z + z * z * (z * (z * 2.443315711809948e-5 - 1.388731625493765e-3) + 4.166664568298827e-2);
  let q = n + ${quarter}.0 - 4.0 * floor((n + ${quarter}.0) * 0.25);
  let value = select(odd, even, q - 2.0 * floor(q * 0.5) > T(0.5));
  return select(value, -value, q > T(1.5));
}`;

/** erf(x) has a fractional error of erfc below 1.2e-7 (Chebyshev fit of Numerical Recipes, 6.2). */
const HELPERS: Readonly<Record<string, string>> = {
  sin: sine("sin", 0),
  cos: sine("cos", 1),
  pow2: "fn pow2(own: T) -> T { return own * own; }",
  erf: `fn erf(own: T) -> T {
  let share = 1.0 / (1.0 + 0.5 * abs(own));
  let power = -1.26551223 + share * (1.00002368 + share * (0.37409196 + share * (0.09678418 + share * (-0.18628806
         + share * (0.27886807 + share * (-1.13520398 + share * (1.48851587 + share * (-0.82215223 + share * 0.17087277))))))));
  return sign(own) * (1.0 - share * exp(-own * own + power));
}`,
};
