// Assembler of WebAssembly functions with 128-bit SIMD of f64, for inner loops of linear algebra: no maintained BLAS for
// JavaScript has SIMD. Encodings are those of the WebAssembly specification 3.0, chapter 5. Memory accesses are checked in Deno,
// which makes an offset other than zero cost an instruction: loops advance their pointers instead.

/** Bytes of code. */
export type Code = readonly number[];

/** A function of i32 parameters. Local variables are numbered: parameters, `i32` more, then `v128`. */
export interface WasmFunction {
  parameters: number;
  i32: number;
  v128: number;
  code: Code;
}

const I32 = 0x7f, V128 = 0x7b, VOID = 0x40, END = 0x0b;

/** The value of a local variable. */
export const get = (local: number): Code => [0x20, local];
/** Sets a local variable to the value of `code`. */
export const set = (local: number, code: Code): Code => [...code, 0x21, local];
/** An integer from 0 to 8191. */
export const constant = (
  value: number,
): Code => [0x41, ...(value < 64 ? [value] : [value & 127 | 128, value >>> 7])];
/** The sum of two i32. */
export const plus = (a: Code, b: Code): Code => [...a, ...b, 0x6a];
/** Adds to an i32 variable. */
export const advance = (local: number, by: Code): Code => set(local, plus(get(local), by));
/** Repeats `body` while a < b as unsigned numbers, at least once. */
export const repeatWhileLess = (a: Code, b: Code, body: Code): Code => [
  ...[0x03, VOID, ...body, ...a, ...b, 0x49],
  ...[0x0d, 0, END],
];
/** Runs `body` where a < b as unsigned numbers. */
export const ifLess = (a: Code, b: Code, body: Code): Code => [...a, ...b, 0x49, 0x04, VOID, ...body, END];

const simd = (code: number, ...immediates: number[]) => [0xfd, ...unsigned(code), ...immediates];
/** The two f64 at an address. */
export const load = (address: Code, offset = 0): Code => [...address, ...simd(0, 0, offset)];
/** The f64 at an address, twice. */
export const loadTwice = (address: Code, offset = 0): Code => [...address, ...simd(10, 0, offset)];
/** Stores two f64. */
export const store = (address: Code, value: Code, offset = 0): Code => [
  ...[...address, ...value],
  ...simd(11, 0, offset),
];
/** Two of the four f64 of a and b: 0 and 1 are those of a. */
export const pick = (a: Code, b: Code, first: number, second: number): Code => [
  ...[...a, ...b],
  ...simd(13, ...[first, second].flatMap((which) => Array.from({ length: 8 }, (_, k) => 8 * which + k))),
];
export const add = (a: Code, b: Code): Code => [...a, ...b, ...simd(0xf0)];
export const subtract = (a: Code, b: Code): Code => [...a, ...b, ...simd(0xf1)];
export const divide = (a: Code, b: Code): Code => [...a, ...b, ...simd(0xf3)];
/** b where a < b, else a. */
export const larger = (a: Code, b: Code): Code => [...a, ...b, ...simd(0xf7)];
/** All bits where a < b, else none: -1 or 0 as i64. */
export const less = (a: Code, b: Code): Code => [...a, ...b, ...simd(0x49)];
/** a where the bits of `mask` are set, else b. */
export const select = (mask: Code, a: Code, b: Code): Code => [...a, ...b, ...mask, ...simd(0x52)];
/** The difference of two pairs of i64. */
export const subtractIntegers = (a: Code, b: Code): Code => [...a, ...b, ...simd(0xd1)];
/** sum + a b; where `fused` is set and the processor can, the product is not rounded before (f64x2.relaxed_madd). */
export const multiplyAdd = (a: Code, b: Code, sum: Code, fused: boolean): Code =>
  fused ? [...a, ...b, ...sum, ...simd(0x107)] : [...sum, ...a, ...b, ...simd(0xf2), ...simd(0xf0)];

/**
 * Compiles functions of a memory that is imported as host.memory.
 * @param functions given whether multiplyAdd() may be fused, which older runtimes refuse
 */
export function compile(functions: (fused: boolean) => Record<string, WasmFunction>): WebAssembly.Module {
  const fused = assemble(functions(true));
  return new WebAssembly.Module(WebAssembly.validate(fused) ? fused : assemble(functions(false)));
}

function assemble(functions: Record<string, WasmFunction>): Uint8Array<ArrayBuffer> {
  const name = (text: string) => [text.length, ...new TextEncoder().encode(text)];
  const section = (id: number, entries: Code[]) => {
    const content = [entries.length, ...entries.flat()];
    return [id, ...unsigned(content.length), ...content];
  };
  const all = Object.values(functions);
  return Uint8Array.from([
    ...[0, ...new TextEncoder().encode("asm"), 1, 0, 0, 0],
    ...section(1, all.map(({ parameters }) => [0x60, parameters, ...Array<number>(parameters).fill(I32), 0])),
    ...section(2, [[...name("host"), ...name("memory"), 2, 0, 1]]), // a memory of one page or more
    ...section(3, all.map((_, k) => [k])), // the type of each function
    ...section(7, Object.keys(functions).map((key, k) => [...name(key), 0, k])), // exports
    ...section(
      10,
      all.map(({ i32, v128, code }) => {
        const body = [2, i32, I32, v128, V128, ...code, END];
        return [...unsigned(body.length), ...body];
      }),
    ),
  ]);
}

/** LEB128. */
function unsigned(value: number): number[] {
  return value < 128 ? [value] : [value & 127 | 128, ...unsigned(value >>> 7)];
}
