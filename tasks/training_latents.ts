// Tokenizer and training data of tok train-dit: the latents of --latents, or those of the images of --data, encoded into the run's
// folder, or with --online by each step.

import { dirname, join } from "@std/path";
import type { TrainDitConfig } from "../src/cli/config.ts";
import type { Workers } from "../src/data/decode_pool.ts";
import type { ImageSource } from "../src/data/image_source.ts";
import { UsageError } from "../src/errors.ts";
import { exists, readJson } from "../src/formats/files.ts";
import type { CropName } from "../src/data/crops.ts";
import { openLatents } from "../src/formats/latents.ts";
import type { Provenance } from "../src/formats/provenance.ts";
import type { Log } from "../src/run/log.ts";
import type { Resumed } from "../src/run/resume.ts";
import type { Real } from "../src/sampling/watch.ts";
import { checkLatents, measureStatistics, type OnlineLatents } from "../src/train/encode_latents.ts";
import { IMAGENET } from "../src/train/epochs.ts";
import { EncodedImages, type LatentSource, StoredLatents } from "../src/train/latent_source.ts";
import type { KnownTokenizer } from "../src/zoo/runs.ts";
import { imageSource, SEEDS } from "./inputs.ts";
import { encodeShown } from "./output.ts";
import { classesOfLatents, numbered, plannedSource, sizeOf } from "./planned_latents.ts";

export interface TrainingLatents {
  source: LatentSource;
  madeFrom: Provenance;
  /** Their names; none for an unconditional model. */
  classes: string[];
  /** Of one latent, [C, S, S]. */
  shape: readonly number[];
  /** Number of images; undefined in a dry run that is planned for ImageNet. */
  length: number | undefined;
  /** The images of the latents, in their order; undefined for a folder of latents. */
  images: ImageSource | undefined;
  /** What samples are compared with; undefined in a dry run. */
  real: Real | undefined;
  /** Of --online: their statistics, which checkpoints have and the run's folder gets. */
  online?: OnlineLatents;
  close(): void;
}

/**
 * Opens the latents that the options name; encodes images first, or measures the statistics of those that the training encodes.
 * @param out the run's folder; undefined: a dry run, for which no image is encoded
 * @param resumed the checkpoint that the run resumes from
 */
export async function openTrainingLatents(
  c: TrainDitConfig,
  tokenizer: KnownTokenizer,
  workers: Workers,
  log: Log,
  out: string | undefined,
  resumed?: Resumed,
): Promise<TrainingLatents> {
  const size = sizeOf(c, tokenizer), side = tokenizer.side(size);
  const generated = { length: c.images, seed: SEEDS.train + c.seed };
  // Without images a dry run of another preset, or of epochs, is planned for ImageNet.
  const imagenet = out === undefined && c.data === undefined && c.latents === undefined &&
    (c.epochs !== undefined || c.preset !== "tiny");
  const images = c.latents === undefined && !imagenet
    ? await imageSource(c.data, generated, c, workers, log)
    : undefined;
  if (c.online || out === undefined && c.latents === undefined) {
    const classes = c.unconditional ? [] : imagenet ? numbered(IMAGENET.classes) : classesOf(images);
    const shape = [tokenizer.channels, side, side], length = images?.length, close = () => {};
    if (!images || out === undefined) {
      const stored = () => new StoredLatents([tokenizer.channels, side, side], undefined, c);
      const source = plannedSource(c, tokenizer) ?? stored();
      return { source, madeFrom: {}, classes, shape, length, images, real: undefined, close };
    }
    const source = new EncodedImages(tokenizer, images, { ...c, size });
    const online = await measureStatistics(out, source, tokenizer, images, { ...c, size }, log, resumed);
    const real = { images, crop: c.crop }, { madeFrom } = online;
    return { source, madeFrom, classes, shape, length, images, real, online, close };
  }
  const folder = c.latents ?? join(out ?? "", "latents"), crop = c.crop as Exclude<CropName, "random">;
  if (images && out !== undefined && !exists(join(folder, "latents_stats.safetensors"))) {
    await encodeShown(folder, tokenizer, images, { size, crop, batchSize: 50, mirrored: c.flip }, log);
  }
  const latents = await openLatents(folder), { shape } = latents, close = () => latents.close();
  try {
    const madeFrom = await checkLatents(latents, tokenizer, { ...c, size, source: images, log });
    const classes = c.unconditional ? [] : [...classesOfLatents(latents, images)];
    const misfit = shape[0] !== tokenizer.channels
      ? `its latents have ${shape[0]} channels, the tokenizer ${tokenizer.channels}`
      : c.imageSize !== undefined && shape[1] !== side
      ? `its latents are ${shape[1]} cells wide, images of side ${size} give ${side}`
      : undefined;
    if (misfit !== undefined) throw new UsageError(`Cannot train on "${folder}": ${misfit}`);
    const source = new StoredLatents(shape, latents, c), real = images ? { images, crop } : { latents };
    return { source, madeFrom, classes, shape, length: latents.length, images, real, close };
  } catch (error) {
    close();
    throw error;
  }
}

const classesOf = (images: ImageSource | undefined) => images?.classes.length ? [...images.classes] : ["0"];

/** The tokenizer of the run that is resumed, which need not be the newest any more; undefined where it is not said. */
export function resumedTokenizer(
  { resume, out }: { resume?: string | undefined; out?: string | undefined },
  log: Log,
): string | undefined {
  if (resume === undefined) return undefined;
  const run = resume === "" ? out ?? "" : dirname(dirname(resume)), file = join(run, "config.json");
  const { tokenizer } = (exists(file) ? readJson(file) ?? {} : {}) as { tokenizer?: unknown };
  if (typeof tokenizer !== "string" || !exists(tokenizer)) return undefined;
  log.line(`tokenizer: ${tokenizer} (the run's)`);
  return tokenizer;
}
