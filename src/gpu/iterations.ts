// The number of loop iterations that one thread may run. Mesa's llvmpipe ends the loops of a thread after 65,535 iterations in
// total, without an error; GPU drivers stop a launch that takes seconds. Ops split their work by `partsOf`, and bind() refuses a
// launch whose threads run more than MAX_ITERATIONS, or that does not say how many they run.

/** Maximum number of loop iterations of one thread, over all its loops. */
export const MAX_ITERATIONS = 16_384;

/** Iterations that `partsOf` reserves for the loops around and after the main ones: blocks, taps of a kernel, sums over threads. */
const RESERVE = MAX_ITERATIONS / 4;

/** Number of parts to split `iterations` of each of `loops` loops into, so that a thread of one part stays within the maximum. */
export function partsOf(iterations: number, loops = 1): number {
  return Math.max(1, Math.ceil(iterations * loops / (MAX_ITERATIONS - RESERVE)));
}

/** Additions per level of a three-level sum, whose rounding errors do not grow with its length. */
const BLOCK = 16;

/** Loop iterations of a thread for a three-level sum of `loads` elements. */
export function iterationsOfSum(loads: number): number {
  return loads + Math.ceil(loads / BLOCK) + Math.ceil(loads / BLOCK ** 2);
}

/** Whether WGSL (without comments) has a loop whose length is not fixed by literals and `constants` of the text. */
export function hasOpenLoop(text: string, constants: ReadonlySet<string>): boolean {
  if (/\b(?:while|loop)\b/.test(text)) return true;
  return [...text.matchAll(/\bfor\s*\(([^;]*);([^;]*);/g)].some(([, start = "", condition = ""]) => {
    const variable = /^\s*var\s+(\w+)/.exec(start)?.[1];
    const names = `${start.replace(/^\s*var\s+\w+/, "")} ${condition}`.match(/(?<![\w.])[A-Za-z_]\w*/g) ?? [];
    return names.some((name) => name !== variable && !constants.has(name));
  });
}
