// From a diffusion model and a tokenizer to pictures. Picture i depends on (seed, i) and its class, not on the batch.

import { noGrad } from "../tensor/autograd.ts";
import { UsageError } from "../errors.ts";
import { capture } from "../gpu/program.ts";
import { throwIfStopped } from "../interruption.ts";
import { notFinite } from "../formats/finite.ts";
import { toBytes } from "../image/image.ts";
import type { ImageTokenizer } from "../models/tokenizer.ts";
import { add, mul } from "../ops/math.ts";
import { constant, input } from "../tensor/tensor.ts";
import type { DiffusionModel } from "../zoo/runs.ts";
import { Sampler, type SamplingOptions } from "./samplers.ts";

export interface GenerateOptions extends SamplingOptions {
  /** Class of each picture. */
  labels: readonly number[];
  onProgress?: (done: number) => void;
  /** Whether a picture is needed (all are). A batch of which none is needed is not made, others are made in full. */
  needed?: (index: number) => boolean;
}

/**
 * Draws one picture for each label, as bytes [size, size, 3].
 * @throws UsageError when the model does not know the statistics of its latents
 */
export async function* generate(
  { dit, config }: Pick<DiffusionModel, "dit" | "config">,
  tokenizer: ImageTokenizer,
  options: GenerateOptions,
): AsyncGenerator<{ index: number; image: Uint8Array<ArrayBuffer>; pixels: Float32Array }> {
  const { labels, batchSize: B } = options;
  const { input_size: S, in_channels: C } = config.dit;
  if (!config.latent_mean || !config.latent_std) {
    throw new UsageError("Cannot sample: nothing says how the model's latents were normalised");
  }
  const batches = Math.ceil(labels.length / B);
  const sampler = await new Sampler(dit, { ...options, batches }).prepare();
  const latents = input([B, S, S, C], "f32", "latents");
  const mean = constant(Float32Array.from(config.latent_mean), [C]),
    std = constant(Float32Array.from(config.latent_std), [C]);
  const decode = await capture(
    "decode",
    { z: latents },
    ({ z }) => noGrad(() => ({ y: tokenizer.decode(add(mul(z, std), mean)) })),
    { runs: batches, batchInvariant: true },
  ).prepare();
  try {
    for (let first = 0; first < labels.length; first += B) {
      throwIfStopped();
      const count = Math.min(B, labels.length - first);
      const indices = Array.from({ length: count }, (_, i) => first + i);
      if (options.needed && !indices.some(options.needed)) continue;
      const classes = Uint32Array.from(
        { length: B },
        (_, i) => labels[first + Math.min(i, count - 1)] as number,
      );
      const z = new Float32Array(await sampler.run(classes, first).storage.read());
      const size = z.length / B;
      for (let i = 0; i < count; i++) {
        refuse(
          first + i,
          "the latent",
          z.subarray(i * size, (i + 1) * size),
          "a smaller --cfg or another model",
        );
      }
      decode.run({ z });
      const y = await decode.read(decode.outputs.y);
      const length = y.length / B;
      for (let i = 0; i < count; i++) {
        const pixels = y.slice(i * length, (i + 1) * length);
        refuse(first + i, "the picture that the tokenizer decodes", pixels, "another tokenizer");
        yield { index: first + i, image: toBytes(pixels), pixels };
      }
      options.onProgress?.(first + count);
    }
  } finally {
    sampler.destroy();
    decode.destroy();
  }
}

/** @throws UsageError when what was made for image `index` is not finite: it becomes no picture */
function refuse(index: number, what: string, data: Float32Array, remedy: string): void {
  const fault = notFinite(data);
  if (fault === undefined) return;
  throw new UsageError(`Cannot draw image ${index}: ${what} holds ${fault}; use ${remedy}`);
}
