// How many loop iterations one thread may run. Mesa's llvmpipe ends all loops of a thread after 65,535 iterations of them
// together, without an error; drivers of GPUs stop a launch that takes seconds. Ops cut their work by `partsOf`, and
// Kernel.launch refuses a launch whose threads would run more than MAX_ITERATIONS, or that does not say how many they run.

/** Loop iterations of one thread, over all its loops. */
export const MAX_ITERATIONS = 16_384;

/** What `partsOf` leaves for the loops around and behind the main ones: blocks, taps of a kernel, sums over threads. */
const RESERVE = MAX_ITERATIONS / 4;

/** The number of parts that `iterations` of each of `loops` loops are cut into, so that a thread of one part stays within bounds. */
export function partsOf(iterations: number, loops = 1): number {
  return Math.max(1, Math.ceil(iterations * loops / (MAX_ITERATIONS - RESERVE)));
}

/** Additions of one level of a sum that kernels take in three levels, so that rounding errors do not grow with its length. */
const BLOCK = 16;

/** Loop iterations of a thread for a sum of `loads` in three levels. */
export function iterationsOfSum(loads: number): number {
  return loads + Math.ceil(loads / BLOCK) + Math.ceil(loads / BLOCK ** 2);
}

/**
 * Whether a piece of WGSL (without comments) has a loop whose length it does not fix itself, by literals, `const`s and
 * `override`s: how long that runs depends on the launch.
 * @param constants names of the text's `const`s and `override`s
 */
export function hasOpenLoop(text: string, constants: ReadonlySet<string>): boolean {
  if (/\b(?:while|loop)\b/.test(text)) return true;
  return [...text.matchAll(/\bfor\s*\(([^;]*);([^;]*);/g)].some(([, start = "", condition = ""]) => {
    const variable = /^\s*var\s+(\w+)/.exec(start)?.[1];
    const names = `${start.replace(/^\s*var\s+\w+/, "")} ${condition}`.match(/(?<![\w.])[A-Za-z_]\w*/g) ?? [];
    return names.some((name) => name !== variable && !constants.has(name));
  });
}
