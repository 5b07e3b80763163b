// Per-channel mean and standard deviation of a tokenizer's latents, kept with it: diffusion works on (z - mean) / std.

import type { ImageSource } from "../data/image_source.ts";
import { ChannelStatistics } from "../formats/channel_statistics.ts";
import { infer } from "../metrics/batched.ts";
import { encoderProgram } from "../metrics/tokenizer.ts";
import type { Tokenizer } from "../models/tokenizer.ts";

/** Of a channel that is constant. */
const MIN_STD = 1e-6;

/** Measures the statistics over the first `images` of a source and writes them into the tokenizer. */
export async function updateStatistics(
  tokenizer: Tokenizer,
  source: ImageSource,
  options: { size: number; batchSize: number; images: number },
): Promise<void> {
  const found = new ChannelStatistics(tokenizer.channels);
  const program = await encoderProgram(tokenizer, options.batchSize, options.size, options.images);
  for await (const { outputs: { z } } of infer(program, source, options.images)) found.add(z, 1);
  program.destroy();
  const std = found.std().map((s) => Math.max(MIN_STD, s));
  for (
    const [tensor, values] of [[tokenizer.latent_mean, found.mean], [tokenizer.latent_std, std]] as const
  ) {
    await tensor.storage.materialise();
    tensor.storage.write(Float32Array.from(values));
  }
}
