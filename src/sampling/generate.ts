// From a diffusion model and a tokenizer to images. Image i depends on (seed, i) and its class, not on the batch. Latents stay
// on the device between sampler and decoder.

import { noGrad } from "../tensor/autograd.ts";
import { NotFiniteError, UsageError } from "../errors.ts";
import { capture } from "../gpu/program.ts";
import { throwIfStopped } from "../interruption.ts";
import { notFinite } from "../formats/finite.ts";
import { toBytes } from "../image/image.ts";
import type { Denoiser } from "../models/denoiser.ts";
import { denormalised } from "../models/normalisation.ts";
import type { ImageTokenizer } from "../models/tokenizer.ts";
import { permute } from "../ops/layout.ts";
import { readTensor, type Tensor } from "../tensor/tensor.ts";
import type { ModelConfig } from "../zoo/runs.ts";
import { Sampler, type SamplingOptions } from "./sampler.ts";

export interface GenerateOptions extends SamplingOptions {
  /** Class of each image. */
  labels: readonly number[];
  /** Number of the first image (0). */
  first?: number;
  /** The noise [S,S,C] that the image of a number starts from, instead of that of (seed, number). */
  noise?: ((index: number) => Float32Array | Promise<Float32Array>) | undefined;
  /** Whether each image comes with its latent [C,S,S], as the tokenizer decodes it (false). */
  withLatents?: boolean;
  onProgress?: (done: number) => void;
  /** Called when the programs are compiled, before the first batch. */
  onStart?: () => void;
  /** Whether the image of a number is needed (all are). A batch is skipped if none is needed, and else made in full. */
  needed?: (index: number) => boolean;
}

export interface GeneratedImage {
  index: number;
  /** Bytes [size, size, 3]. */
  image: Uint8Array<ArrayBuffer>;
  pixels: Float32Array;
  /** Evaluations of the network for it (NFE). */
  evaluations: number;
  /** [C,S,S], as the tokenizer decodes it, where it was asked for. */
  latent?: Float32Array;
}

/**
 * Generates one image for each label, as bytes [size, size, 3]; `index` is its number.
 * @throws UsageError when the model does not know the statistics of its latents, or an image is not finite
 */
export async function* generate(
  { dit, config }: { dit: Denoiser; config: Pick<ModelConfig, "latent_mean" | "latent_std"> },
  tokenizer: ImageTokenizer,
  options: GenerateOptions,
): AsyncGenerator<GeneratedImage> {
  const { labels, first: start = 0, withLatents = false } = options;
  const B = Math.min(options.batchSize, labels.length);
  const { latent_mean: mean, latent_std: std } = config;
  if (!mean || !std) {
    throw new UsageError("Cannot sample: nothing says how the model's latents were normalised");
  }
  const batches = Math.ceil(labels.length / B);
  using sampler = await new Sampler(dit, { ...options, batchSize: B, batches }).prepare();
  using decode = await capture("decode", {}, () =>
    noGrad(() => {
      const z = denormalised(sampler.latents, { mean, std });
      return { y: tokenizer.decode(z), ...withLatents ? { z: permute(z, [0, 3, 1, 2]) } : {} };
    }), { runs: batches, batchInvariant: true }).prepare();
  const each = sampler.latents.size / B;
  options.onStart?.();
  for (let done = 0; done < labels.length; done += B) {
    throwIfStopped();
    const count = Math.min(B, labels.length - done), first = start + done;
    const indices = Array.from({ length: count }, (_, i) => first + i);
    if (options.needed && !indices.some(options.needed)) continue;
    const classes = Uint32Array.from(
      { length: B },
      (_, i) => labels[done + Math.min(i, count - 1)] as number,
    );
    const noise = options.noise && await batchNoise(indices, options.noise, each, B);
    await sampler.run(classes, first, { noise, count });
    decode.run();
    const y = await decode.read(decode.outputs.y), length = y.length / B;
    const z = decode.outputs.z && await decode.read(decode.outputs.z);
    for (let i = 0; i < count; i++) {
      const pixels = y.slice(i * length, (i + 1) * length);
      const fault = notFinite(pixels);
      if (fault !== undefined) throw await refusal(first + i, i, sampler.latents, fault);
      const evaluations = sampler.evaluations[i] as number;
      const latent = z && { latent: z.slice(i * each, (i + 1) * each) };
      yield { index: first + i, image: toBytes(pixels), pixels, evaluations, ...latent };
    }
    options.onProgress?.(done + count);
  }
}

/** The noise of a batch of B images of `size` elements; the rest of it is zero. */
export async function batchNoise(
  indices: readonly number[],
  noise: NonNullable<GenerateOptions["noise"]>,
  size: number,
  B: number,
): Promise<Float32Array<ArrayBuffer>> {
  const all = new Float32Array(B * size);
  for (const [i, index] of indices.entries()) all.set(await noise(index), i * size);
  return all;
}

/** The error for image `index`, whose pixels hold `fault`: it says whether its latent, number `i` of `latents`, does too. */
async function refusal(index: number, i: number, latents: Tensor, fault: string): Promise<NotFiniteError> {
  const z = await readTensor(latents), size = z.length / latents.dim(0);
  const inLatent = notFinite(z.subarray(i * size, (i + 1) * size));
  const [what, found, remedy] = inLatent === undefined
    ? ["the picture that the tokenizer decodes", fault, "another tokenizer"]
    : ["the latent", inLatent, "a smaller --cfg or another model"];
  return new NotFiniteError(`Cannot generate image ${index}: ${what} holds ${found}; use ${remedy}`);
}
