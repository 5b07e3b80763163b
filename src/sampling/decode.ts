// Latents to pictures. Picture i depends on latent i alone, not on the batch.

import { NotFiniteError } from "../errors.ts";
import { notFinite } from "../formats/finite.ts";
import { capture } from "../gpu/program.ts";
import { toBytes } from "../image/image.ts";
import { throwIfStopped } from "../interruption.ts";
import { denormalised, type Statistics } from "../models/normalisation.ts";
import type { ImageTokenizer } from "../models/tokenizer.ts";
import { permute } from "../ops/layout.ts";
import { noGrad } from "../tensor/autograd.ts";
import { input } from "../tensor/tensor.ts";
import type { Numbered } from "./pictures.ts";

/** Latents [C,H,W] by number. */
export interface LatentSource {
  readonly length: number;
  readonly shape: readonly [number, number, number];
  latent(i: number): Promise<Float32Array> | Float32Array;
}

/**
 * Decodes latents to bytes [size, size, 3].
 * @param options.statistics of normalised latents; without them they are decoded as they are
 * @param options.numbers the latents to decode (all)
 * @param options.needed whether the picture of a number is needed (all are); a batch without one is skipped
 * @throws NotFiniteError when a picture is not finite
 */
export async function* decodeLatents(
  tokenizer: ImageTokenizer,
  latents: LatentSource,
  options: {
    batchSize: number;
    statistics?: Statistics | undefined;
    numbers?: readonly number[];
    needed?: (index: number) => boolean;
    onProgress?: (done: number) => void;
  },
): AsyncGenerator<Numbered> {
  const { statistics, numbers, needed, onProgress } = options, [C, H, W] = latents.shape;
  const N = numbers?.length ?? latents.length;
  const B = Math.min(options.batchSize, N), size = C * H * W;
  const program = await capture(
    "decode",
    { x: input([B, C, H, W], "f32", "latents") },
    ({ x }) =>
      noGrad(() => {
        const z = permute(x, [0, 2, 3, 1]); // [B, H, W, C]
        return { y: tokenizer.decode(statistics ? denormalised(z, statistics) : z) };
      }),
    { runs: Math.ceil(N / B), batchInvariant: true },
  ).prepare();
  const x = new Float32Array(B * size);
  try {
    for (let first = 0; first < N; first += B) {
      throwIfStopped();
      const count = Math.min(B, N - first);
      const indices = Array.from({ length: count }, (_, i) => numbers?.[first + i] ?? first + i);
      if (needed && !indices.some(needed)) continue;
      for (const [i, index] of indices.entries()) x.set(await latents.latent(index), i * size);
      program.run({ x });
      const y = await program.read(program.outputs.y), length = y.length / B;
      for (const [i, index] of indices.entries()) {
        const pixels = y.subarray(i * length, (i + 1) * length), fault = notFinite(pixels);
        if (fault !== undefined) {
          throw new NotFiniteError(
            `Cannot decode latent ${index}: its picture holds ${fault}; use another tokenizer, or make the latent again`,
          );
        }
        yield { index, image: toBytes(pixels) };
      }
      onProgress?.(first + count);
    }
  } finally {
    program.destroy();
  }
}
