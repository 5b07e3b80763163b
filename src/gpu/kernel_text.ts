// The text of a kernel: WGSL in which arrays are declared as `var<storage> x: array<V>;` (or `var<texture>`), without bindings,
// and accessed by the functions of accessors.ts, and parameters as `struct Params` without a binding (where there are several,
// their fields are concatenated). It is parsed into declarations and functions, and printed as WGSL for one entry point.

import { GpuError } from "../errors.ts";
import {
  accessorNames,
  accessors,
  type ArrayDeclaration,
  type ArrayForm,
  fp16Functions,
  isAtomic,
} from "./accessors.ts";

export interface Param {
  readonly name: string;
  readonly type: "u32" | "i32" | "f32";
}

export interface KernelText {
  /** WGSL extensions that the text names in `enable` directives; provider.ts removes those that a compiler does not know. */
  readonly enables: readonly string[];
  readonly arrays: readonly ArrayDeclaration[];
  readonly params: readonly Param[];
  /** Constants, types and workgroup variables. */
  readonly declarations: string;
  /** Functions by name, with their attributes. */
  readonly functions: ReadonlyMap<string, string>;
}

/** What an entry point uses. */
export interface Reach {
  readonly functions: readonly string[];
  /** Names of all functions called, accessors and built-in ones too. */
  readonly called: ReadonlySet<string>;
  readonly arrays: readonly ArrayDeclaration[];
  readonly usesParams: boolean;
}

export function parseKernel(source: string): KernelText {
  let text = source.replace(/\/\/[^\n]*/g, "").replace(/\/\*[\s\S]*?\*\//g, "");
  const aliases = new Map(
    [...text.matchAll(/\balias\s+(\w+)\s*=\s*([^;]+);/g)].map((m) => [m[1], m[2]?.trim()]),
  );
  const enables: string[] = [];
  text = text.replace(/\benable\s+([\w\s,]+);/g, (_, names: string) => {
    enables.push(...names.split(",").map((name) => name.trim()));
    return "";
  });
  const arrays: ArrayDeclaration[] = [];
  text = text.replace(
    /\bvar<(storage|texture)>\s+(\w+)\s*:\s*array<([^;]+)>\s*;/g,
    (_, space, name, type) => {
      const element = type.replace(/\w+/g, (word: string) => aliases.get(word) ?? word);
      arrays.push({ name, element, texture: space === "texture" });
      return "";
    },
  );
  const params: Param[] = [];
  text = text.replace(/\bstruct\s+Params\s*\{([^}]*)\}/g, (_, fields: string) => {
    for (const field of fields.split(",").map((line) => line.trim()).filter(Boolean)) {
      const match = /^(\w+)\s*:\s*(u32|i32|f32)$/.exec(field);
      if (!match) throw new GpuError(`Cannot load a kernel: "${field}" in Params is not a scalar`);
      params.push({ name: match[1] as string, type: match[2] as Param["type"] });
    }
    return "";
  });
  const functions = new Map<string, string>();
  let declarations = "", from = 0;
  const start = /(?:@\w+\s*(?:\([^()]*\))?\s*)*\bfn\s+(\w+)\s*\(/g;
  for (let match = start.exec(text); match; match = start.exec(text)) {
    let to = text.indexOf("{", match.index);
    for (let depth = 0; to < text.length; to++) {
      if (text[to] === "{") depth++;
      else if (text[to] === "}" && --depth === 0) break;
    }
    functions.set(match[1] as string, text.slice(match.index, to + 1));
    declarations += text.slice(from, match.index);
    start.lastIndex = from = to + 1;
  }
  declarations += text.slice(from);
  return { enables, arrays, params, declarations: declarations.replace(/\n\s*\n+/g, "\n").trim(), functions };
}

/** What `entry` uses, directly or through the functions that it calls. @throws GpuError when there is no such function */
export function reachOf({ arrays, functions }: KernelText, entry: string): Reach {
  if (!functions.has(entry)) {
    throw new GpuError(`Cannot load kernel "${entry}": the text has no such function`);
  }
  const names = new Set([entry]), called = new Set<string>();
  for (const name of names) {
    for (
      const [, callee = ""] of (functions.get(name) as string).matchAll(/(?<![.\w])([A-Za-z_]\w*)\s*\(/g)
    ) {
      called.add(callee);
      if (functions.has(callee)) names.add(callee);
    }
  }
  const own = [...functions].flatMap(([name, text]) => names.has(name) ? [text] : []);
  const uses = (array: ArrayDeclaration) =>
    isAtomic(array)
      ? own.some((text) => new RegExp(`\\b${array.name}\\b`).test(text))
      : Object.values(accessorNames(array.name)).some((name) => called.has(name));
  return {
    functions: own,
    called,
    arrays: arrays.filter(uses),
    usesParams: own.some((text) => /\bparams\b/.test(text)),
  };
}

/** The WGSL of an entry point. Binding i is the i-th array of the text; the parameters come after the arrays. */
export function printWgsl(
  text: KernelText,
  { functions, called, arrays, usesParams }: Reach,
  formOf: (name: string) => ArrayForm,
): string {
  return [
    ...text.enables.map((name) => `enable ${name};`),
    usesParams ? printParams(text.params) : "",
    usesParams ? `@group(0) @binding(${text.arrays.length}) var<uniform> params: Params;` : "",
    text.declarations,
    ...arrays.map((a) => accessors(a, formOf(a.name), text.arrays.indexOf(a), called)),
    fp16Functions(arrays.map(({ name }) => formOf(name))),
    functions.some((text) => text.includes("Invocation")) ? INVOCATION : "",
    ...functions,
  ].filter(Boolean).join("\n");
}

/** The argument of entry points that need to know their thread. Grids are folded into x and y, see fold(). */
const INVOCATION = `struct Invocation {
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32, // of the workgroup
}
fn group_index(id: Invocation) -> u32 { return id.group.y * id.groups.x + id.group.x; }
fn thread_of(id: Invocation, group_size: u32) -> u32 { return group_index(id) * group_size + id.thread; }`;

const printParams = (params: readonly Param[]): string =>
  `struct Params {\n${params.map(({ name, type }) => `  ${name}: ${type},\n`).join("")}}`;

/** The source of a kernel in which the functions of `added` are the accessors of the `replaced` arrays. */
export function replaceAccessors(
  text: KernelText,
  replaced: ReadonlySet<string>,
  added: readonly KernelText[],
): string {
  const kept = { ...text, arrays: text.arrays.filter(({ name }) => !replaced.has(name)) };
  const all = [kept, ...added];
  return [
    ...new Set(all.flatMap(({ enables }) => enables.map((name) => `enable ${name};`))),
    printParams(all.flatMap(({ params }) => params)),
    ...all.flatMap(({ arrays }) => arrays).map((a) =>
      `var<${a.texture ? "texture" : "storage"}> ${a.name}: array<${a.element}>;`
    ),
    ...all.map(({ declarations }) => declarations),
    ...all.flatMap(({ functions }) => [...functions.values()]),
  ].join("\n");
}
