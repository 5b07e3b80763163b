// Encodes images into a folder of latents, and compares such a folder with a tokenizer and images.

import { Interrupted, UsageError } from "../errors.ts";
import {
  differences,
  fingerprintOf,
  fingerprintOfBytes,
  type Identity,
  type Provenance,
} from "../formats/provenance.ts";
import type { Log } from "../run/log.ts";
import type { Resumed } from "../run/resume.ts";
import { checkStatistics } from "../formats/finite.ts";
import {
  type Latents,
  type LatentsRecord,
  LatentsWriter,
  readStatistics,
  writeStatistics,
} from "../formats/latents.ts";
import type { EncodedImages } from "./latent_source.ts";
import type { Crop, CropName } from "../data/crops.ts";
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
  /** How images become squares ["center"]. */
  crop?: Exclude<CropName, "random">;
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

/** Images whose pixels are compared: files may be overwritten by others of the same size. */
const COMPARED = 256;

/** The record of latents of `source`: what they are made from, and the pixels of up to 256 evenly spaced images. */
export async function latentsRecord(
  tokenizer: ImageTokenizer,
  source: ImageSource,
  { size, mirrored, crop = "center" }: Pick<EncodeOptions, "size" | "mirrored"> & { crop?: CropName },
): Promise<LatentsRecord> {
  const { identity } = tokenizer, data = source.identity?.();
  return {
    made_from: {
      // Another decoder changes nothing in the latents.
      ...identity ? { tokenizer: { name: identity.name, fingerprint: identity.latents } } : {},
      ...data ? { data } : {},
      "image size": size,
      crop,
      flip: mirrored,
      ...data ? { "image content": await contentOf(source, data.name, size) } : {},
    },
    classes: [...source.classes],
  };
}

/** Identity of the pixels of evenly spaced images. */
async function contentOf(source: ImageSource, name: string, size: number): Promise<Identity> {
  const n = Math.min(source.length, COMPARED), step = 32, parts: string[] = [];
  for (let first = 0; first < n; first += step) {
    const indices = Array.from(
      { length: Math.min(step, n - first) },
      (_, k) => Math.floor((first + k) * source.length / n),
    );
    const { images } = await gather(source, indices, size);
    parts.push(fingerprintOfBytes(new Uint8Array(images.buffer)));
  }
  return { name: `${n} of ${name}`, fingerprint: fingerprintOf(...parts) };
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
  const record = await latentsRecord(tokenizer, source, options);
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
  const crops = new Array<Crop>(batchSize).fill(options.crop ?? "center");
  const load = (first: number) =>
    gather(source, Array.from({ length: batchSize }, (_, i) => Math.min(first + i, last)), size, crops);
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
export async function checkLatents(
  latents: Latents,
  tokenizer: ImageTokenizer & { identity: TokenizerIdentity },
  { size, imageSize, crop, flip, source, log }: {
    size: number;
    crop: CropName;
    /** The side that was asked for. */
    imageSize?: number | undefined;
    flip: boolean;
    source: ImageSource | undefined;
    log: Log;
  },
): Promise<Provenance> {
  const { folder, record } = latents, { name, latents: fingerprint } = tokenizer.identity;
  if (!record) {
    log.line(`"${folder}" does not name the tokenizer of its latents: "${name}" is assumed`);
    const numbers = fingerprintOf(`${latents.mean}`, `${latents.std}`, `${latents.labels}`);
    return { tokenizer: { name, fingerprint }, data: { name: folder, fingerprint: numbers } };
  }
  const asked: Provenance = source
    ? (await latentsRecord(tokenizer, source, { size, crop, mirrored: flip })).made_from
    : {
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

/** Statistics of the latents that a training encodes, as its checkpoints have them. */
export interface OnlineStatistics {
  mean: readonly number[];
  std: readonly number[];
  /** Number of images that they were measured over. */
  count: number;
}

/** Normalisation of latents that the training encodes. */
export interface OnlineLatents {
  madeFrom: Provenance;
  statistics: OnlineStatistics;
  /** Writes the statistics to the run's folder. */
  write(): Promise<void>;
}

/**
 * Gives the source the statistics of its checkpoint, or those that this run has measured, in its folder, or measures them. The
 * weights of a checkpoint go with its statistics, whatever images they were measured over, unless its tokenizer was another.
 * @throws UsageError if those in the folder are of another tokenizer, other images or other settings
 */
export async function measureStatistics(
  out: string,
  source: EncodedImages,
  tokenizer: ImageTokenizer,
  images: ImageSource,
  { size, crop, flip, statImages }: { size: number; crop: CropName; flip: boolean; statImages: number },
  log: Log,
  resumed?: Resumed,
): Promise<OnlineLatents> {
  const record = await latentsRecord(tokenizer, images, { size, crop, mirrored: flip }),
    { made_from } = record;
  const asked = Math.min(statImages, images.length), known = await readStatistics(out);
  const [difference] = differences(known?.record?.made_from ?? {}, made_from);
  if (difference !== undefined) {
    throw new UsageError(
      `Cannot train on the statistics "${known?.path}": ${difference}; use the same, or choose another --out`,
    );
  }
  const saved = resumed && savedStatistics(resumed, made_from);
  const usable = saved ?? (known?.record && known.count === asked ? known : undefined);
  if (usable) {
    Object.assign(source, { mean: Float32Array.from(usable.mean), std: Float32Array.from(usable.std) });
  } else {
    const progress = log.progress("statistics of latents", asked, "images");
    await source.measureStatistics(asked, progress.update);
    progress.end();
    checkStatistics(`the latents of "${images.identity?.().name}"`, source.mean, source.std);
  }
  const { mean, std } = source, count = saved?.count ?? asked;
  log.line(
    `statistics of latents: over ${count} images, ${
      saved ? "of the checkpoint" : "as the training crops them"
    }`,
  );
  const identity = { name: `over ${count} images`, fingerprint: fingerprintOf(`${mean}`, `${std}`) };
  return {
    madeFrom: { ...made_from, "statistics of latents": identity },
    statistics: { mean: [...mean], std: [...std], count },
    write: () => writeStatistics(out, source, record, count),
  };
}

/** The statistics of a checkpoint; undefined where it has none, and where its tokenizer was another. */
function savedStatistics({ config }: Resumed, madeFrom: Provenance): OnlineStatistics | undefined {
  const { statistics, made_from: { tokenizer } = {} } = config as {
    statistics?: OnlineStatistics;
    made_from?: Provenance;
  };
  return tokenizer && differences({ tokenizer }, madeFrom).length ? undefined : statistics;
}
