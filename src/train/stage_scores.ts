// Scores of an alignment on held-out images, after each stage and within it: reconstruction, Frechet distance in the frozen
// encoder's features, a linear probe and nearest neighbours of the latents. Writes metrics.json, a picture of each stage, and a
// row of reconstructions of the same images for each validation.

import { join } from "@std/path";
import type { ImageSource } from "../data/image_source.ts";
import { ChannelStatistics } from "../formats/channel_statistics.ts";
import { exists, makeFolder, readJson, writeJson } from "../formats/files.ts";
import { grid, type Image, pairGrid, writePng } from "../image/image.ts";
import { infer } from "../metrics/batched.ts";
import { FeatureFrechet } from "../metrics/feature_frechet.ts";
import type { Gaussian } from "../metrics/moments.ts";
import { LpipsScore } from "../metrics/lpips_score.ts";
import { SSIM_SIDE } from "../metrics/psnr_ssim.ts";
import { canProbe, encoderProgram, scoreLatents, scoreReconstruction } from "../metrics/tokenizer.ts";
import type { Lpips } from "../models/lpips.ts";
import type { ImageTokenizer, TrainableTokenizer } from "../models/tokenizer.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Resumed } from "../run/resume.ts";
import { stageAt } from "./align_config.ts";
import type { Stage } from "./stage_run.ts";

/** Held-out images in the picture of a stage, and in a row of it. */
const SHOWN = 20, COLUMNS = 10;

/** Number of images in the row of a validation: about 1,000 pixels, so that reports of large images stay small. */
const watchedOf = (size: number) => Math.min(8, Math.max(2, Math.floor(1024 / size)));

type Scores = Record<string, number>;
type Pair = readonly [original: Uint8Array, reconstruction: Uint8Array];

export interface ScoredImages {
  size: number;
  heldOut: ImageSource;
  /** Labelled images to train the linear probe on; undefined: no scores of the latents. */
  probe: ImageSource | undefined;
}

export class StageScores {
  /** Scores of the latents, which change only with encoder and adapter. */
  #latentScores: Scores | undefined;
  /** Features of the held-out images. */
  #originals: Gaussian | undefined;

  /**
   * @param networks.lpips scores LPIPS, if given
   * @param networks.tokens of an encoder that does not change, for the Frechet distance of its features
   * @param warn says that a linear probe did not converge
   */
  constructor(
    private readonly out: string,
    private readonly tokenizer: ImageTokenizer,
    private readonly images: ScoredImages,
    private readonly networks: { lpips?: Lpips | undefined; tokens?: ((x: Tensor) => Tensor) | undefined },
    private readonly warn: (text: string) => void,
  ) {}

  #warned = false;

  /** Says once that a probe did not converge. */
  readonly #warnOnce = (text: string) => {
    if (!this.#warned) this.warn(text);
    this.#warned = true;
  };

  /** The metrics that are computed. */
  get metrics(): string[] {
    const { size, heldOut, probe } = this.images, { lpips, tokens } = this.networks;
    return [
      "psnr",
      ...size >= SSIM_SIDE ? ["ssim"] : [],
      "mse",
      ...lpips ? ["lpips"] : [],
      ...tokens && heldOut.length > 1 ? ["fd_encoder"] : [],
      ...probe && canProbe(this.tokenizer, probe, size) ? ["probe"] : [],
      ...probe ? ["knn"] : [],
    ];
  }

  /** Scores by stage; {@link resume} fills in those of earlier stages. */
  readonly stages: Record<string, Scores> = {};

  /** Reads the scores of the finished stages; the resumed one is scored at its end. */
  resume({ step, config, elsewhere }: Resumed, stages: readonly Stage[]): void {
    const file = join(this.out, "metrics.json");
    // Checkpoints of tok 0.2.0 have none.
    const found = (config as { metrics?: Record<string, Scores> }).metrics ??
      (!elsewhere && exists(file)
        ? (readJson(file) as { stages?: Record<string, Scores> }).stages
        : undefined) ??
      {};
    const earlier = stages.slice(0, stageAt(stages, step).index).map(({ name }) => name as string);
    for (const [name, scores] of Object.entries(found)) {
      if (earlier.includes(name)) this.stages[name] = scores;
    }
  }

  /** Scores the tokenizer as stage `index`, which ends after `step` steps of the run, left it. */
  async score(stage: Stage, index: number, step: number): Promise<{ scores: Scores; picture: Image }> {
    const { scores, first, watched } = await this.#measure(stage);
    this.stages[stage.name] = scores;
    writeJson(join(this.out, "metrics.json"), { stages: this.stages, ...scores });
    makeFolder(join(this.out, "images"));
    const { size } = this.images;
    await writePng(
      join(this.out, "images", `${index + 1}_${stage.name}.png`),
      pairGrid(first, size, COLUMNS),
    );
    return { scores, picture: await this.#row(watched, step) };
  }

  /** Scores the tokenizer within a stage, after `step` steps of the run. */
  async validate(stage: Stage, step: number): Promise<{ scores: Scores; picture: Image }> {
    const { scores, watched } = await this.#measure(stage);
    return { scores, picture: await this.#row(watched, step) };
  }

  /** Writes reconstructions of the same images as one row of a picture, and once their originals. */
  async #row(pairs: readonly Pair[], step: number): Promise<Image> {
    const folder = join(this.out, "images", "validation"), { size } = this.images;
    makeFolder(folder);
    const row = (k: 0 | 1) => grid(pairs.map((pair) => pair[k]), size, pairs.length);
    await writePng(join(folder, "originals.png"), row(0));
    const picture = row(1);
    await writePng(join(folder, `step_${String(step).padStart(8, "0")}.png`), picture);
    return picture;
  }

  /** @returns scores, the first held-out images, and some that are evenly spaced */
  async #measure(stage: Stage): Promise<{ scores: Scores; first: Pair[]; watched: Pair[] }> {
    const { size, heldOut, probe } = this.images, { lpips, tokens } = this.networks, n = heldOut.length;
    const batch = { size, batchSize: Math.min(32, n) }, first: Pair[] = [], watched: Pair[] = [];
    const pair = lpips && await LpipsScore.open(lpips, batch);
    const features = tokens && n > 1
      ? await FeatureFrechet.open(tokens, { ...batch, n, originals: this.#originals })
      : undefined;
    const many = Math.min(watchedOf(size), n);
    const spread = new Set(Array.from({ length: many }, (_, k) => Math.floor(k * n / many)));
    const scores: Scores = await scoreReconstruction(
      this.tokenizer,
      heldOut,
      { ...batch, also: [pair, features].filter((score) => score !== undefined) },
      (i, a, b) => {
        if (i >= SHOWN && !spread.has(i)) return;
        const copied = [a.slice(), b.slice()] as const;
        if (i < SHOWN) first.push(copied);
        if (spread.has(i)) watched.push(copied);
      },
    ).finally(() => {
      pair?.destroy();
      features?.destroy();
    });
    this.#originals = await features?.originals();
    if (probe) {
      const moved = stage.train.includes("encoder") || stage.train.includes("adapter");
      if (moved) this.#latentScores = undefined;
      this.#latentScores ??= {
        ...await scoreLatents(this.tokenizer, probe, heldOut, { size, batchSize: 32, warn: this.#warnOnce }),
      };
      Object.assign(scores, this.#latentScores);
    }
    return { scores, first, watched };
  }
}

/** Standard deviation of a constant channel. */
const MIN_STD = 1e-6;

/** Measures mean and deviation of the latents' channels over the first `images` of a source; the tokenizer keeps them. */
export async function updateStatistics(
  tokenizer: TrainableTokenizer,
  source: ImageSource,
  options: { size: number; batchSize: number; images: number },
): Promise<void> {
  const found = new ChannelStatistics(tokenizer.channels);
  const program = await encoderProgram(tokenizer, options.batchSize, options.size, options.images);
  for await (const { outputs: { z } } of infer(program, source, options.images)) found.add(z, 1);
  program.destroy();
  const std = found.std().map((s) => Math.max(MIN_STD, s));
  await tokenizer.setStatistics(found.mean, std);
}
