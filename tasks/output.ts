// Output that several commands share: encoding with progress, and scores.

import { join } from "@std/path";
import type { ImageSource } from "../src/data/image_source.ts";
import { writeJson } from "../src/formats/files.ts";
import type { ImageTokenizer } from "../src/models/tokenizer.ts";
import type { Log, Progress } from "../src/run/log.ts";
import { type EncodeOptions, encodeTo } from "../src/train/encode_latents.ts";

/** encodeTo() with a progress line, which includes the latents of an interrupted run. */
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

/** Prints scores and writes them to metrics.json in `out`; nothing if there are none. */
export function reportScores(scores: Record<string, number>, out: string, log: Log): void {
  if (Object.keys(scores).length === 0) return;
  log.begin();
  for (const [name, value] of Object.entries(scores)) {
    log.line(`${name.padEnd(30)} ${Number(value.toPrecision(5))}`);
  }
  writeJson(join(out, "metrics.json"), scores);
  log.line(`scores: ${join(out, "metrics.json")}`);
}
