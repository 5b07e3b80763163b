// Scores after each stage of an alignment, on held-out images: reconstruction, a linear probe and nearest neighbours of the
// latents. Writes metrics.json and a picture of originals above their reconstructions.

import { join } from "@std/path";
import type { ImageSource } from "../data/image_source.ts";
import { ChannelStatistics } from "../formats/channel_statistics.ts";
import { exists, makeFolder, readJson, writeJson } from "../formats/files.ts";
import { pairGrid, writePng } from "../image/image.ts";
import { infer } from "../metrics/batched.ts";
import { LpipsScore } from "../metrics/lpips_score.ts";
import { encoderProgram, scoreLatents, scoreReconstruction } from "../metrics/tokenizer.ts";
import type { Lpips } from "../models/lpips.ts";
import type { ImageTokenizer, TrainableTokenizer } from "../models/tokenizer.ts";
import type { Resumed } from "../run/resume.ts";
import { stageAt } from "./align_config.ts";
import type { Stage } from "./stage_run.ts";

/** Held-out images in the picture of a stage, and in a row of it. */
const SHOWN = 20, COLUMNS = 10;

type Scores = Record<string, number>;

export class StageScores {
  /** Of the latents, as the latest stage that changes them left them. */
  #latentScores: Scores | undefined;

  /** @param probe labelled images to train the probe on; undefined: no scores of the latents */
  constructor(
    private readonly out: string,
    private readonly tokenizer: ImageTokenizer,
    private readonly images: { size: number; heldOut: ImageSource; probe: ImageSource | undefined },
    private readonly lpips: Lpips | undefined,
  ) {}

  /** Scores by stage; {@link resume} fills in those of earlier stages. */
  readonly stages: Record<string, Scores> = {};

  /** Takes the scores of the stages that were over before the one that is resumed, which gets its own at its end. */
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

  /** Scores the tokenizer as stage `index` left it. */
  async score(stage: Stage, index: number): Promise<Scores> {
    const { size, heldOut, probe } = this.images;
    const shown: [Uint8Array, Uint8Array][] = [];
    const batch = { size, batchSize: Math.min(32, heldOut.length) };
    const pair = this.lpips && await LpipsScore.open(this.lpips, batch);
    const scores: Scores = await scoreReconstruction(
      this.tokenizer,
      heldOut,
      { ...batch, also: pair ? [pair] : [] },
      (i, a, b) => void (i < SHOWN && shown.push([a.slice(), b.slice()])),
    );
    pair?.destroy();
    if (probe) {
      const moved = stage.train.includes("encoder") || stage.train.includes("adapter");
      if (moved) this.#latentScores = undefined;
      this.#latentScores ??= {
        ...await scoreLatents(this.tokenizer, probe, heldOut, { size, batchSize: 32 }),
      };
      Object.assign(scores, this.#latentScores);
    }
    this.stages[stage.name] = scores;
    writeJson(join(this.out, "metrics.json"), { stages: this.stages, ...scores });
    makeFolder(join(this.out, "images"));
    await writePng(
      join(this.out, "images", `${index + 1}_${stage.name}.png`),
      pairGrid(shown, size, COLUMNS),
    );
    return scores;
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
