// Philox4x32-10, the counter-based generator of Salmon et al. (2011): a number is a function of where it is used, so
// there is no state to save. kernels/random.wgsl is its twin on the device; both give the same bits.
// Counter = [element / 4, stream, step, row], key = [seed low, seed high].

const M0 = 0xd2511f53, M1 = 0xcd9e8d57, W0 = 0x9e3779b9, W1 = 0xbb67ae85;

type Four = [number, number, number, number];

/** Ten rounds on a counter with a key: four random u32. */
export function philox(counter: Readonly<Four>, key: readonly [number, number]): Four {
  let [c0, c1, c2, c3] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < 10; round++) {
    const high0 = mulHigh(M0, c0), low0 = Math.imul(M0, c0);
    const high1 = mulHigh(M1, c2), low1 = Math.imul(M1, c2);
    [c0, c1, c2, c3] = [high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0];
    k0 = (k0 + W0) >>> 0;
    k1 = (k1 + W1) >>> 0;
  }
  return [c0 >>> 0, c1 >>> 0, c2 >>> 0, c3 >>> 0];
}

function mulHigh(a: number, b: number): number {
  const al = a & 0xffff, ah = a >>> 16, bl = b & 0xffff, bh = b >>> 16;
  const low = al * bl, mid1 = ah * bl + (low >>> 16), mid2 = al * bh + (mid1 & 0xffff);
  return (ah * bh + Math.floor(mid1 / 65536) + Math.floor(mid2 / 65536)) >>> 0;
}

/** The key of a seed: any non-negative safe integer. */
export function keyOf(seed: number): [number, number] {
  return [seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0];
}

/** Bits to a number in (0, 1): never 0 or 1. */
const unit = (bits: number) => ((bits >>> 8) + 0.5) * 2 ** -24;

/** `count` uniform numbers in (0, 1). */
export function uniform(seed: number, stream: number, count: number, step = 0, row = 0): Float32Array {
  const key = keyOf(seed);
  const out = new Float32Array(count);
  for (let i = 0; i < count; i += 4) {
    const bits = philox([i / 4, stream, step, row], key);
    for (let j = 0; j < 4 && i + j < count; j++) out[i + j] = unit(bits[j] as number);
  }
  return out;
}

/** `count` standard normal numbers (Box and Muller, 1958). */
export function normal(seed: number, stream: number, count: number, step = 0, row = 0): Float32Array {
  const u = uniform(seed, stream, Math.ceil(count / 4) * 4, step, row);
  const out = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    const pair = i & ~1;
    const radius = Math.sqrt(-2 * Math.log(u[pair] as number)), angle = 2 * Math.PI * (u[pair + 1] as number);
    out[i] = radius * (i === pair ? Math.cos(angle) : Math.sin(angle));
  }
  return out;
}

/** An order of 0..count-1 that is a function of the seed and the stream (Fisher and Yates). */
export function permutation(seed: number, stream: number, count: number): Uint32Array {
  const key = keyOf(seed);
  const order = Uint32Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const [bits] = philox([i, stream, 0x5eed, 0], key);
    const j = Math.floor(bits / 2 ** 32 * (i + 1));
    const kept = order[i] as number;
    order[i] = order[j] as number;
    order[j] = kept;
  }
  return order;
}
