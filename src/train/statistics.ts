// Per-channel mean and standard deviation of a tokenizer's latents, kept with it: diffusion works on (z - mean) / std.

import type { ImageSource } from "../data/image_source.ts";
import { infer } from "../metrics/batched.ts";
import { encoderProgram } from "../metrics/tokenizer.ts";
import type { Tokenizer } from "../models/tokenizer.ts";

/** Measures the statistics over the first `images` of a source and writes them into the tokenizer. */
export async function updateStatistics(
  tokenizer: Tokenizer,
  source: ImageSource,
  options: { size: number; batchSize: number; images: number },
): Promise<void> {
  const C = tokenizer.config.decoder.z_channels;
  const sum = new Float64Array(C), squares = new Float64Array(C);
  let count = 0;
  const program = await encoderProgram(tokenizer, options.batchSize, options.size, options.images);
  for await (const { outputs: { z } } of infer(program, source, options.images)) {
    for (let i = 0; i < z.length; i++) {
      const v = z[i] as number, c = i % C;
      sum[c] = (sum[c] as number) + v;
      squares[c] = (squares[c] as number) + v * v;
    }
    count += z.length / C;
  }
  program.destroy();
  const mean = sum.map((s) => s / count);
  const std = squares.map((q, c) => Math.sqrt(Math.max(1e-12, q / count - (mean[c] as number) ** 2)));
  for (const [tensor, values] of [[tokenizer.latent_mean, mean], [tokenizer.latent_std, std]] as const) {
    await tensor.storage.materialise();
    tensor.storage.write(Float32Array.from(values));
  }
}
