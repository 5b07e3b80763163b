// Encodes images into a folder of latents, and compares such a folder with a tokenizer and images.

import { Interrupted, UsageError } from "../errors.ts";
import { differences, fingerprintOf, type Provenance } from "../formats/provenance.ts";
import type { Log } from "../run/log.ts";
import { type Latents, type LatentsRecord, LatentsWriter } from "../formats/latents.ts";
import { gather, type ImageSource } from "../data/image_source.ts";
import { inferBatches } from "../metrics/batched.ts";
import { noGrad } from "../tensor/autograd.ts";
import { capture } from "../gpu/program.ts";
import { imageInput, pixels } from "../ops/pixels.ts";
import { flip, permute } from "../ops/layout.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { ImageTokenizer, TokenizerIdentity } from "../models/tokenizer.ts";

/** What `encodeTo` makes of images. */
export interface EncodeOptions {
  /** Side of the images, pixels. */
  size: number;
  batchSize: number;
  /** Encode mirrored copies too; else the flipped latents repeat the plain ones. */
  mirrored: boolean;
  /** Gets the number of latents that an interrupted run has left. */
  onStart?: (known: number) => void;
  onProgress?: (done: number) => void;
  /** Latents in a file (2048). */
  perShard?: number;
}

/** Milliseconds between saves: the work that a killed process loses at most. */
const SAVE = 60_000;

/** The record of latents of `source`. */
export function latentsRecord(
  tokenizer: ImageTokenizer,
  source: ImageSource,
  { size, mirrored }: Pick<EncodeOptions, "size" | "mirrored">,
): LatentsRecord {
  const { identity } = tokenizer;
  return {
    made_from: {
      // Another decoder changes nothing in the latents.
      ...identity ? { tokenizer: { name: identity.name, fingerprint: identity.latents } } : {},
      ...source.identity ? { data: source.identity() } : {},
      "image size": size,
      flip: mirrored,
    },
    classes: [...source.classes],
  };
}

/**
 * Encodes a source into `folder`, or the rest of it where an interrupted run has left a part: the files get the same bytes.
 * @throws Interrupted when the command is to stop; what is done is saved
 * @throws UsageError when the part was made with another tokenizer, other images or other settings
 */
export async function encodeTo(
  folder: string,
  tokenizer: ImageTokenizer,
  source: ImageSource,
  options: EncodeOptions,
): Promise<void> {
  const { size, batchSize } = options, side = tokenizer.side(size), C = tokenizer.channels;
  const record = latentsRecord(tokenizer, source, options);
  const writer = await LatentsWriter.open(folder, [C, side, side], record, options.perShard);
  options.onStart?.(writer.length);
  const images = imageInput(batchSize, size);
  const program = await capture("encode", { x: images }, ({ x: images }) =>
    noGrad(() => {
      const x = pixels(images);
      const encode = (x: Tensor) => permute(tokenizer.encode(x), [0, 3, 1, 2]); // [B, C, side, side], as in files
      const z = encode(x);
      return { z, mirrored: options.mirrored ? encode(flip(x, 2)) : z };
    }), { runs: Math.ceil(source.length / batchSize), batchInvariant: true }).prepare();
  // The batches are those of a run that was not interrupted.
  const from = Math.floor(writer.length / batchSize) * batchSize;
  const last = source.length - 1;
  const load = (first: number) =>
    gather(source, Array.from({ length: batchSize }, (_, i) => Math.min(first + i, last)), size);
  const batches = inferBatches(program, load, {
    n: source.length,
    from,
    parallel: source.parallel ?? 0,
    nameOf: (i) => source.name(i),
  });
  let saved = performance.now();
  try {
    for await (const { first, labels, outputs } of batches) {
      const known = writer.length - first, size = C * side * side;
      await writer.add(
        outputs.z.subarray(known * size),
        outputs.mirrored.subarray(known * size),
        labels.subarray(known),
      );
      options.onProgress?.(writer.length);
      if (performance.now() - saved < SAVE) continue;
      await writer.save();
      saved = performance.now();
    }
    await writer.close();
  } catch (error) {
    if (error instanceof Interrupted) await writer.save();
    throw error;
  } finally {
    program.destroy();
  }
}

/**
 * What latents were made from.
 * @param source the images, where this run encodes them
 * @throws UsageError when the latents are not of this tokenizer, these images or these settings
 */
export function checkLatents(
  latents: Latents,
  tokenizer: ImageTokenizer & { identity: TokenizerIdentity },
  { size, imageSize, flip, source, log }: {
    size: number;
    /** The side that was asked for. */
    imageSize?: number | undefined;
    flip: boolean;
    source: ImageSource | undefined;
    log: Log;
  },
): Provenance {
  const { folder, record } = latents, { name, latents: fingerprint } = tokenizer.identity;
  if (!record) {
    log.line(`"${folder}" does not name the tokenizer of its latents: "${name}" is assumed`);
    const numbers = fingerprintOf(`${latents.mean}`, `${latents.std}`, `${latents.labels}`);
    return { tokenizer: { name, fingerprint }, data: { name: folder, fingerprint: numbers } };
  }
  const asked: Provenance = source ? latentsRecord(tokenizer, source, { size, mirrored: flip }).made_from : {
    tokenizer: { name, fingerprint },
    ...imageSize === undefined ? {} : { "image size": imageSize },
    ...flip ? { flip } : {},
  };
  const [difference] = differences(record.made_from, asked);
  if (difference === undefined) return record.made_from;
  throw new UsageError(
    `Cannot train on the latents "${folder}": ${difference}; ${
      source ? "use the same, or choose another --out" : "name the ones of this run, or encode again"
    }`,
  );
}
