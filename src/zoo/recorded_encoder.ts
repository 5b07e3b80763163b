// Which encoder a tokenizer was made from, as the run that made it records it.

import { dirname, join } from "@std/path";
import { z } from "zod";
import { isFile, readJson } from "../formats/files.ts";
import { identitySchema } from "../formats/provenance.ts";

const record = z.object({
  command: z.literal("align"),
  encoder: z.string().optional(),
  made_from: z.object({ encoder: identitySchema }),
});

export interface RecordedEncoder {
  /** As in --encoder; undefined: the embedded one. */
  encoder: string | undefined;
  /** Of its weights, as EncoderSource.load() returns it. */
  fingerprint: string;
}

/** The encoder of a tokenizer in RUN, RUN/tokenizer or RUN/best; undefined if no run records one. */
export function recordedEncoder(path: string): RecordedEncoder | undefined {
  for (const folder of [path, dirname(path), dirname(dirname(path))]) {
    const file = join(folder, "config.json");
    if (!isFile(file)) continue;
    const { success, data } = record.safeParse(readJson(file));
    if (success) return { encoder: data.encoder, fingerprint: data.made_from.encoder.fingerprint };
  }
  return undefined;
}
