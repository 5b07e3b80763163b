// Encoding with a progress line, for the commands that make latents.

import type { ImageSource } from "../src/data/image_source.ts";
import type { ImageTokenizer } from "../src/models/tokenizer.ts";
import type { Log, Progress } from "../src/run/log.ts";
import { type EncodeOptions, encodeTo } from "../src/train/encode_latents.ts";

/** encodeTo() with a progress line, which counts from what an interrupted run has left. */
export async function encodeShown(
  folder: string,
  tokenizer: ImageTokenizer,
  source: ImageSource,
  options: EncodeOptions,
  log: Log,
): Promise<void> {
  let progress: Progress | undefined;
  await encodeTo(folder, tokenizer, source, {
    ...options,
    onStart(known) {
      if (known) log.line(`${known} of ${source.length} latents are there already: going on`);
      progress = log.progress("encoding", source.length, "images", known);
    },
    onProgress: (done) => progress?.update(done),
  });
  progress?.end();
}
