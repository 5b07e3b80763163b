// Half precision without a device feature. A storage that holds halves keeps two in a word, so that a kernel's text, which
// knows only f32, is rewritten when such a storage is bound to it: the binding becomes words, reads unpack, writes
// pack. Arithmetic stays in f32. WGSL's own `array<f16>` needs `shader-f16`, and was slower where it was measured.

import { GpuError } from "../errors.ts";

/** What accesses to an array become. */
export interface AccessForm {
  /** The expression of an element; undefined: it stays as it is. */
  read?: ((index: string) => string) | undefined;
  /** The statement that writes an element, without its semicolon; undefined: it stays as it is. */
  write?: ((index: string, value: string) => string) | undefined;
}

/** How halves stand for an element type. */
interface Form {
  readonly type: string;
  read(array: string, index: string): string;
  /** undefined: two invocations would write one word. */
  write?(value: string): string;
}

/** A texture of four numbers a texel holds four halves as two words. */
const TEXTURE = "texture_storage_2d<rgba32float, read>",
  FP16_TEXTURE = "texture_storage_2d<rg32uint, read>";

const FORMS: Readonly<Record<string, Form>> = {
  "vec4<f32>": {
    type: "vec2<u32>",
    read: (array, index) => `from_halves4(${array}[${index}])`,
    write: (value) => `to_halves4(${value})`,
  },
  "vec2<f32>": {
    type: "u32",
    read: (array, index) => `unpack2x16float(${array}[${index}])`,
    write: (value) => `to_halves2(${value})`,
  },
  "f32": {
    type: "u32",
    read: (array, index) => `from_halves1(${array}[u32(${index}) >> 1u], u32(${index}))`,
  },
};

/**
 * Packing rounds to nearest, ties to even; drivers' own packing may truncate, and may turn what is too large into the
 * largest half. What is not finite becomes an infinity, so that a gradient that overflows is noticed.
 */
const HELPERS = `
fn from_halves1(pair: u32, at: u32) -> f32 { return unpack2x16float(pair)[at & 1u]; }
fn from_halves4(v: vec2<u32>) -> vec4<f32> { return vec4<f32>(unpack2x16float(v.x), unpack2x16float(v.y)); }
fn to_halves4(v: vec4<f32>) -> vec2<u32> { return vec2<u32>(to_halves2(v.xy), to_halves2(v.zw)); }
fn to_halves2(v: vec2<f32>) -> u32 {
  let bits = bitcast<vec2<u32>>(v);
  let rounded = (bits + 0xfffu + ((bits >> vec2<u32>(13u)) & vec2<u32>(1u))) & vec2<u32>(0xffffe000u);
  let infinite = (bits & vec2<u32>(0x80000000u)) | vec2<u32>(0x7f800000u);
  let large = (bits & vec2<u32>(0x7fffffffu)) >= vec2<u32>(0x477ff000u);
  return pack2x16float(bitcast<vec2<f32>>(select(rounded, infinite, large)));
}
`;

/**
 * The text with the storage bindings `names` (of f32, vec2<f32> or vec4<f32> elements) holding halves.
 * @param text WGSL without comments, whose accesses are written `name[index]`, `name[index] = value;`, or with += and its like;
 *   a texture's `textureLoad(name, index)`
 * @throws GpuError where an entry point writes single elements: two of them share a word
 */
export function withFp16(text: string, names: readonly string[]): string {
  const aliases = new Map([...text.matchAll(/\balias\s+(\w+)\s*=\s*([^;]+);/g)].map((m) => [m[1], m[2]]));
  const forms = new Map<string, AccessForm>();
  let result = text;
  for (const name of names) {
    const texture = `var ${name}: ${TEXTURE}`;
    if (text.includes(texture)) {
      result = fp16Texture(result.replace(texture, `var ${name}: ${FP16_TEXTURE}`), name);
      continue;
    }
    const declaration = new RegExp(`(var<storage[^>]*>\\s*${name}\\s*:\\s*)array<(\\w+(?:<\\w+>)?)>`);
    const element = (declaration.exec(text)?.[2] ?? "").replace(
      /\w+/g,
      (word) => aliases.get(word)?.trim() ?? word,
    );
    const form = FORMS[element];
    if (!form) throw new GpuError(`Cannot bind halves to "${name}": its elements are "${element}"`);
    forms.set(name, {
      read: (index) => form.read(name, index),
      write: (index, value) => {
        if (!form.write) {
          throw new GpuError(`Cannot write single halves to "${name}": two of them share a word`);
        }
        return `${name}[${index}] = ${form.write(value)}`;
      },
    });
    result = result.replace(declaration, `$1array<${form.type}>`);
  }
  return (forms.size ? rewrite(result, forms) : result) + HELPERS;
}

/** Unpacks every load from the texture `name`. */
function fp16Texture(text: string, name: string): string {
  const load = `textureLoad(${name}, `, [before, ...loads] = text.split(load) as [string, ...string[]];
  return before + loads.map((rest) => {
    const close = endOf(rest, 0, ")");
    return `from_halves4(${load}${rest.slice(0, close)}).xy)${rest.slice(close + 1)}`;
  }).join("");
}

/** Rewrites every access to an array of `forms` in a piece of text. */
export function rewrite(text: string, forms: ReadonlyMap<string, AccessForm>): string {
  const access = new RegExp(`(?<![.\\w])(${[...forms.keys()].join("|")})\\[`, "g");
  let done = "", from = 0;
  for (let match = access.exec(text); match; match = access.exec(text)) {
    const name = match[1] as string, form = forms.get(name) as AccessForm;
    const open = match.index + match[0].length;
    const close = endOf(text, open, "]");
    const index = rewrite(text.slice(open, close), forms);
    const read = form.read?.(index) ?? `${name}[${index}]`;
    const assignment = /^\s*([-+*/]?)=(?!=)/.exec(text.slice(close + 1));
    done += text.slice(from, match.index);
    from = close + 1;
    if (assignment) {
      const begin = close + 1 + assignment[0].length;
      from = endOf(text, begin, ";");
      const value = rewrite(text.slice(begin, from), forms);
      const whole = assignment[1] ? `${read} ${assignment[1]} (${value})` : value;
      done += form.write?.(index, whole) ?? `${name}[${index}] = ${whole}`;
    } else done += read;
    access.lastIndex = from;
  }
  return done + text.slice(from);
}

/** Where the bracket or statement that `from` stands in ends. */
function endOf(text: string, from: number, end: "]" | ")" | ";"): number {
  let depth = 0;
  for (let at = from; at < text.length; at++) {
    const c = text[at] as string;
    if (depth === 0 && c === end) return at;
    if ("([{".includes(c)) depth++;
    else if (")]}".includes(c)) depth--;
  }
  throw new GpuError(`Cannot find the "${end}" behind "${text.slice(from, from + 40)}"`);
}
