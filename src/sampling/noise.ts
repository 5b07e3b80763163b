// The noise that images start from: that of an image's number, noise between two, and noise from a file.

import { UsageError } from "../errors.ts";
import { openNoise } from "../formats/latents_file.ts";
import type { Identity } from "../formats/provenance.ts";
import { noGrad } from "../tensor/autograd.ts";
import { capture } from "../gpu/program.ts";
import { normal, RandomState } from "../ops/random.ts";

/** Streams of randomness: the noise that images start from, the noise of stochastic steps, and random labels. */
export const STREAMS = { start: 0, step: 1, labels: 0x1abe1 };

/** The noise [S,S,C] of the images `numbers`, the same bits as in {@link Sampler}. */
export async function noiseOf(
  seed: number,
  shape: readonly [S: number, S: number, C: number],
  numbers: readonly number[],
): Promise<Float32Array[]> {
  const random = new RandomState(seed), noise: Float32Array[] = [];
  try {
    using program = await capture(
      "noise",
      {},
      () => noGrad(() => ({ y: normal([1, ...shape], random, STREAMS.start) })),
      { runs: numbers.length },
    ).prepare();
    for (const number of numbers) {
      random.set(0, number);
      program.run();
      noise.push((await program.read(program.outputs.y)).slice());
    }
  } finally {
    random.tensor.storage.destroy();
  }
  return noise;
}

/**
 * Spherical linear interpolation from a (t = 0) to b (t = 1): Shoemake (1985). Noise of high dimension keeps its norm, which a
 * mean of the two would not.
 */
export function slerp(a: Float32Array, b: Float32Array, t: number): Float32Array {
  let ab = 0, aa = 0, bb = 0;
  for (let i = 0; i < a.length; i++) {
    const x = a[i] as number, y = b[i] as number;
    ab += x * y;
    aa += x * x;
    bb += y * y;
  }
  const angle = Math.acos(Math.min(1, Math.max(-1, ab / Math.sqrt(aa * bb)))), sine = Math.sin(angle);
  const [p, q] = sine < 1e-6 ? [1 - t, t] : [Math.sin((1 - t) * angle) / sine, Math.sin(t * angle) / sine];
  return a.map((x, i) => p * x + q * (b[i] as number));
}

/** [C,H,W] to [H,W,C]. */
export function channelsLast(z: Float32Array, C: number): Float32Array {
  const cells = z.length / C;
  return z.map((_, i) => z[i % C * cells + Math.floor(i / C)] as number);
}

/** [H,W,C] to [C,H,W]. */
export function channelsFirst(z: Float32Array, C: number): Float32Array {
  const cells = z.length / C;
  return z.map((_, i) => z[i % cells * C + Math.floor(i / cells)] as number);
}

/** Noise from a file, for the images of the same numbers. */
export interface GivenNoise extends Disposable {
  identity: Identity;
  /** The noise [S,S,C] of an image. */
  noise(index: number): Promise<Float32Array>;
}

/**
 * Opens noise for the images 0 to `end` - 1.
 * @param shape [C,S,S]
 * @throws UsageError if the file has fewer rows, or rows of another shape
 */
export async function openGivenNoise(
  path: string,
  shape: readonly [number, number, number],
  end: number,
): Promise<GivenNoise> {
  const rows = await openNoise(path, shape);
  try {
    if (rows.length < end) {
      throw new UsageError(
        `Cannot start from "${path}": it has noise for the images 0 to ${rows.length - 1}, and image ${
          end - 1
        } is ` +
          `asked for; use a smaller --num or other --seeds`,
      );
    }
    return {
      identity: { name: path, fingerprint: await rows.fingerprint() },
      noise: async (index) => channelsLast(await rows.latent(index), shape[0]),
      [Symbol.dispose]: () => rows.close(),
    };
  } catch (error) {
    rows.close();
    throw error;
  }
}
