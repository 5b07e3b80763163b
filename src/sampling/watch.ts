// Watching a diffusion training: a picture of samples with the same noise and classes each time, and the Frechet distance of samples
// from the training data in an encoder's features (fd_encoder, as eval computes it). Training does not change by a bit.

import { join } from "@std/path";
import type { TrainDitConfig } from "../cli/config.ts";
import type { CropName } from "../data/crops.ts";
import type { Workers } from "../data/decode_pool.ts";
import type { ImageSource } from "../data/image_source.ts";
import type { InputSource } from "../data/network_input.ts";
import { ahead } from "../data/prefetch.ts";
import { makeFolder } from "../formats/files.ts";
import type { Latents } from "../formats/latents.ts";
import { type Image, writePng } from "../image/image.ts";
import { throwIfStopped } from "../interruption.ts";
import { EncoderFeatures } from "../metrics/encoder_features.ts";
import { frechet } from "../metrics/frechet.ts";
import { type Gaussian, Moments } from "../metrics/moments.ts";
import type { Denoiser } from "../models/denoiser.ts";
import type { ImageTokenizer } from "../models/tokenizer.ts";
import type { Log } from "../run/log.ts";
import type { Training } from "../train/run.ts";
import type { Scores } from "../train/validation.ts";
import type { EncoderSource } from "../zoo/encoders.ts";
import type { ModelConfig } from "../zoo/runs.ts";
import { decodeLatents } from "./decode.ts";
import { generate } from "./generate.ts";
import { classesOf, labelsOf } from "./labels.ts";
import { batchSizeOf, drawPreview, unlessImpossible } from "./preview.ts";
import type { SamplingOptions } from "./sampler.ts";

/** Training images that samples are compared with, or all where there are fewer. */
const MIN_REAL = 2000;
/** Images between two passes of the encoder, and images of one pass. */
const CHUNK = 256, BATCH = 32;

/** Steps between pictures, and between distances (0: none); of a distance the samples and their guidance weight; all samples' steps. */
export type WatchOptions = Pick<
  TrainDitConfig,
  "sampleEvery" | "valEvery" | "valNum" | "valCfg" | "valSteps"
>;

/** What samples are compared with: images with the crop that the model learns, or else latents, which are decoded. */
export type Real = { images: ImageSource; crop: CropName } | { latents: Latents };

/** What is watched. */
export interface Watched {
  model: Denoiser;
  /** The model's configuration as it would be saved in a folder. */
  configIn(folder: string): ModelConfig;
  tokenizer: ImageTokenizer;
  /** Undefined in a dry run. */
  real: Real | undefined;
  workers: Workers;
  /** Of the pictures; of the distance but for its guidance weight. */
  sampling: Omit<SamplingOptions, "batchSize">;
}

export class SampleWatch {
  #features: EncoderFeatures | undefined;
  #real: Gaussian | undefined;
  readonly #config: ModelConfig;

  private constructor(
    private readonly out: string,
    private readonly watched: Watched,
    private readonly options: WatchOptions,
    private readonly encoder: EncoderSource | undefined,
  ) {
    this.#config = watched.configIn(out);
  }

  /**
   * @param out the run's folder; undefined: a dry run
   * @param encoder opens the encoder of the distance, where one is computed
   * @returns undefined where nothing is watched
   */
  static async open(
    out: string | undefined,
    watched: Watched,
    options: WatchOptions,
    encoder: () => Promise<EncoderSource>,
  ): Promise<SampleWatch | undefined> {
    const { sampleEvery, valEvery } = options;
    if (out === undefined || sampleEvery + valEvery === 0) return undefined;
    return new SampleWatch(out, watched, options, valEvery > 0 ? await encoder() : undefined);
  }

  /**
   * The parts of a training that watch it.
   * @param save writes the weights as they are as a result of their own
   */
  hooks(
    save: (folder: string) => Promise<void>,
    log: Log,
  ): Required<Pick<Training, "validation" | "afterRecipe">> {
    const { sampleEvery, valEvery } = this.options;
    return {
      validation: {
        every: [sampleEvery, valEvery],
        best: valEvery > 0 ? "fd-encoder" : undefined,
        metrics: valEvery > 0 ? ["fd_encoder"] : [],
        shows: "samples",
        score: (_, step) => this.score(step, log),
        save,
      },
      afterRecipe: (_, step) => this.score(step, log, { last: true }),
    };
  }

  /**
   * Scores and draws the weights as they are, whichever is due after `step` steps; after the last one, both, and logs the scores.
   * What cannot be made of the samples, see {@link unlessImpossible}, is missing: a score is NaN.
   */
  async score(
    step: number,
    log: Log,
    { last = false }: { last?: boolean } = {},
  ): Promise<{ scores: Scores; picture?: Image }> {
    const { sampleEvery, valEvery } = this.options;
    const due = (every: number) => every > 0 && (last || step % every === 0);
    const distance = due(valEvery) && (await unlessImpossible(log, () => this.#distance()) ?? NaN);
    const scores: Scores = distance === false ? {} : { fd_encoder: distance };
    if (last) {
      for (const [name, value] of Object.entries(scores)) {
        log.line(`step ${step}: ${name} ${value.toFixed(3)}`);
      }
    }
    const picture = due(sampleEvery) ? await unlessImpossible(log, () => this.#draw(step)) : undefined;
    return picture ? { scores, picture } : { scores };
  }

  destroy(): void {
    this.#features?.destroy();
  }

  async #draw(step: number): Promise<Image> {
    const { tokenizer, sampling } = this.watched, steps = this.options.valSteps;
    const picture = await drawPreview(this.#model, tokenizer, { ...sampling, steps });
    const folder = join(this.out, "images", "samples");
    makeFolder(folder);
    await writePng(join(folder, `step_${String(step).padStart(8, "0")}.png`), picture);
    return picture;
  }

  async #distance(): Promise<number> {
    this.#real ??= await this.#gaussian(this.#realImages());
    return await frechet(this.#real, await this.#gaussian(this.#samples()));
  }

  get #side(): number {
    return this.#config.dit.input_size * this.watched.tokenizer.factor;
  }

  get #model() {
    return { dit: this.watched.model, config: this.#config };
  }

  async *#samples(): AsyncGenerator<Uint8Array<ArrayBuffer>> {
    const { valNum, valCfg: cfg, valSteps: steps } = this.options, { tokenizer, sampling } = this.watched;
    const labels = labelsOf({ count: valNum, classes: classesOf(["all"], this.#config.classes) });
    const options = { ...sampling, cfg, steps, batchSize: batchSizeOf(this.#side, valNum), labels };
    for await (const { image } of generate(this.#model, tokenizer, options)) yield image;
  }

  /** Evenly spaced images of the training. */
  async *#realImages(): AsyncGenerator<Uint8Array> {
    const real = this.watched.real as Real,
      length = "images" in real ? real.images.length : real.latents.length;
    const n = Math.min(length, Math.max(this.options.valNum, MIN_REAL));
    const at = (k: number) => Math.floor(k * length / n);
    if ("latents" in real) {
      const batchSize = batchSizeOf(this.#side, n), numbers = Array.from({ length: n }, (_, k) => at(k));
      const decoded = decodeLatents(this.watched.tokenizer, real.latents, { batchSize, numbers });
      for await (const { image } of decoded) yield image;
    } else {
      // A random crop is another one each time; its mean is the center.
      const { images } = real, crop = real.crop === "random" ? "center" : real.crop;
      const load = async (k: number) => await images.bytes(at(k), this.#side, crop);
      yield* ahead(load, { to: n, depth: 1 + (images.parallel ?? 0) });
    }
  }

  /** Moments of the features of images [side, side, 3]. */
  async #gaussian(images: AsyncIterable<Uint8Array>): Promise<Gaussian> {
    this.#features ??= await EncoderFeatures.open(this.encoder as EncoderSource, {
      batchSize: BATCH,
      n: CHUNK,
    });
    const features = this.#features;
    using moments = new Moments(features.columns);
    let waiting: Uint8Array[] = [];
    const add = async () => {
      throwIfStopped();
      await moments.add((await features.extract(this.#inputs(waiting))).features.data);
      waiting = [];
    };
    for await (const image of images) if (waiting.push(image) === CHUNK) await add();
    if (waiting.length) await add();
    return await moments.gaussian();
  }

  #inputs(images: readonly Uint8Array[]): InputSource {
    const { workers } = this.watched, side = this.#side;
    const bytes = (i: number) => images[i] as Uint8Array<ArrayBuffer>;
    return {
      length: images.length,
      classes: [],
      parallel: workers.count,
      label: () => 0,
      name: (i) => String(i),
      bytes,
      input: (i, view) =>
        workers.run({ kind: "input", image: { width: side, height: side, data: bytes(i) }, view }),
    };
  }
}
