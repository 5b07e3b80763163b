// Prints how a kernel accesses its arrays. A kernel declares `var<storage> x: array<V>;`, reads element i by x(i) and writes it by
// store_x(i, v); the binding and the two functions are printed here, for what the array of a launch is: f32, fp16 in packed
// u32, a texture, or a constant in place of an operand that is absent. Arithmetic stays in f32: WGSL's array<f16> needs
// `shader-f16`, and was slower where it was measured; only kernels with subgroup matrices declare it.

import { GpuError } from "../errors.ts";

/** An array that a kernel declares. */
export interface ArrayDeclaration {
  readonly name: string;
  /** Type of an element, without aliases. */
  readonly element: string;
  /** Read as a texture, in which a copy of the buffer is staged; see software/staging.ts. */
  readonly texture: boolean;
}

/** What an array is in a launch: a buffer of its element type, a buffer of fp16, or a constant without a buffer. */
export type ArrayForm = "buffer" | "fp16" | number;

/** Atomics have no accessors: kernels use the array itself. */
export const isAtomic = ({ element }: ArrayDeclaration): boolean => element.startsWith("atomic<");

/** Whether elements are u32 whatever the buffer holds. */
export const seesBits = ({ element }: ArrayDeclaration): boolean => /\bu32\b/.test(element);

/** Whether elements are WGSL's f16, so that only buffers of fp16 can be bound. */
export const isF16 = ({ element }: ArrayDeclaration): boolean => /\bf16\b/.test(element);

/** Whether the accessors among `called` write the array. */
export const isStored = (array: ArrayDeclaration, called: ReadonlySet<string>): boolean =>
  isAtomic(array) || called.has(accessorNames(array.name).store);

/** Components of an element that is f32, 0 of others. */
export function widthOf({ element }: ArrayDeclaration): number {
  const match = /^(?:vec([24])<f32>|f32)$/.exec(element);
  return match ? Number(match[1] ?? 1) : 0;
}

/** Format of the texture that an array is staged in. */
export function textureFormat({ texture }: ArrayDeclaration, form: ArrayForm): GPUTextureFormat | undefined {
  return texture ? form === "fp16" ? "rg32uint" : "rgba32float" : undefined;
}

/** Width of staging textures in texels. */
export const TEXELS = 1024;

/** How elements of each width are stored as fp16: storage type, load and store. */
const FP16: Readonly<Record<number, { type: string; load: string; store?: string }>> = {
  4: { type: "vec2<u32>", load: "from_fp16x4(DATA[i])", store: "to_fp16x4(v)" },
  2: { type: "u32", load: "unpack2x16float(DATA[i])", store: "to_fp16x2(v)" },
  1: { type: "u32", load: "unpack2x16float(DATA[i >> 1u])[i & 1u]" },
};

/** Rounds to nearest even, as drivers may not; what is not finite or too large becomes an infinity, to be noticed. */
const FP16_FUNCTIONS = `
fn from_fp16x4(v: vec2<u32>) -> vec4<f32> { return vec4<f32>(unpack2x16float(v.x), unpack2x16float(v.y)); }
fn to_fp16x4(v: vec4<f32>) -> vec2<u32> { return vec2<u32>(to_fp16x2(v.xy), to_fp16x2(v.zw)); }
fn to_fp16x2(v: vec2<f32>) -> u32 {
  let bits = bitcast<vec2<u32>>(v);
  let rounded = (bits + 0xfffu + ((bits >> vec2<u32>(13u)) & vec2<u32>(1u))) & vec2<u32>(0xffffe000u);
  let infinite = (bits & vec2<u32>(0x80000000u)) | vec2<u32>(0x7f800000u);
  let large = (bits & vec2<u32>(0x7fffffffu)) >= vec2<u32>(0x477ff000u);
  return pack2x16float(bitcast<vec2<f32>>(select(rounded, infinite, large)));
}
`;

/** The access functions of an array: element load, load of a component by its index, and store. */
export const accessorNames = (name: string) =>
  ({ load: name, scalar: `${name}_scalar`, store: `store_${name}` }) as const;

/** The binding of an array and the access functions among `called`. @throws GpuError for unsupported fp16 accesses */
export function accessors(
  array: ArrayDeclaration,
  form: ArrayForm,
  binding: number,
  called: ReadonlySet<string>,
): string {
  const { name, element, texture } = array, width = widthOf(array), data = `${name}_data`;
  const { load, scalar, store } = accessorNames(name);
  if (isAtomic(array)) {
    return `@group(0) @binding(${binding}) var<storage, read_write> ${name}: array<${element}>;`;
  }
  const stores = called.has(store);
  if (form === "fp16" && !FP16[width]) {
    throw new GpuError(`Cannot bind fp16 to "${name}": its elements are "${element}"`);
  }
  const fp16 = form === "fp16" ? FP16[width] : undefined;
  if (fp16 && stores && !fp16.store) {
    throw new GpuError(`Cannot store single fp16 elements to "${name}": two of them share a u32`);
  }
  const declaration = typeof form === "number"
    ? ""
    : texture
    ? `@group(0) @binding(${binding}) var ${data}: texture_storage_2d<${textureFormat(array, form)}, read>;`
    : `@group(0) @binding(${binding}) var<storage, ${stores ? "read_write" : "read"}> ${data}: array<${
      fp16?.type ?? element
    }>;`;
  const texel = `textureLoad(${data}, vec2<u32>(i & ${TEXELS - 1}u, i >> ${Math.log2(TEXELS)}u))`;
  const loaded = typeof form === "number"
    ? `${element}(${form})`
    : texture
    ? fp16 ? `from_fp16x4(${texel}.xy)` : texel
    : fp16?.load.replace("DATA", data) ?? `${data}[i]`;
  const component = width === 1
    ? loaded
    : typeof form === "number"
    ? `f32(${form})`
    : fp16
    ? `unpack2x16float(${data}[i / ${width}u]${width === 4 ? "[(i >> 1u) & 1u]" : ""})[i & 1u]`
    : `${data}[i / ${width}u][i % ${width}u]`;
  const value = fp16?.store ?? "v";
  return [
    declaration,
    called.has(load) ? `fn ${load}(i: u32) -> ${element} { return ${loaded}; }` : "",
    called.has(scalar) ? `fn ${scalar}(i: u32) -> f32 { return ${component}; }` : "",
    stores
      ? `fn ${store}(i: u32, v: ${element}) { ${typeof form === "number" ? "" : `${data}[i] = ${value};`} }`
      : "",
  ].filter(Boolean).join("\n");
}

/** Functions that the accessors of these forms call. */
export const fp16Functions = (forms: Iterable<ArrayForm>): string =>
  [...forms].includes("fp16") ? FP16_FUNCTIONS : "";
