// tok align: turns an encoder into a tokenizer in three stages.

import { type AlignConfig, alignConfig } from "../src/cli/config.ts";
import { ALIGN_GRADES } from "../src/cli/grades.ts";
import { ALIGN_PRESETS, requireData } from "../src/cli/presets.ts";
import { generatedImages, type Workers } from "../src/data/decode_pool.ts";
import { type ImageSource, part } from "../src/data/image_source.ts";
import { Shapes } from "../src/data/toy_shapes.ts";
import { UsageError } from "../src/errors.ts";
import { Lpips, LPIPS_FILES } from "../src/models/lpips.ts";
import { Initializer } from "../src/nn/init.ts";
import { countParameters } from "../src/nn/layers.ts";
import type { Log } from "../src/run/log.ts";
import { percent } from "../src/run/progress.ts";
import { checkStages, discriminatorOf, stagesOf } from "../src/train/align_config.ts";
import { alignmentOf, loadEncoder, recipeTokenizer, usesEncoder } from "../src/train/align_models.ts";
import { ALIGN_RECIPES } from "../src/train/align_recipes.ts";
import { run, type Training } from "../src/train/run.ts";
import { alignRecipes } from "../src/train/stage_run.ts";
import { StageScores, updateStatistics } from "../src/train/stage_scores.ts";
import type { EncoderSource } from "../src/zoo/encoders.ts";
import { openLpips } from "../src/zoo/networks.ts";
import { saveTokenizer } from "../src/zoo/runs.ts";
import { command, explained, openAdapter, openOutput } from "./command.ts";
import { chosenEncoder, imageSource, openWorkers, SEEDS } from "./inputs.ts";

export const align = command({
  name: "align",
  purpose: "Turn an encoder into an image tokenizer (three stages)",
  schema: alignConfig,
  presets: ALIGN_PRESETS,
  recipes: ALIGN_RECIPES,
  examples: [
    "tok align",
    "tok align --preset dinov2-l-f16d32 --data photos --lpips vgg16.pth,vgg.pth --out runs/photos",
  ],
  async run(c, context) {
    const { log } = context;
    if (c.explain) return explained("align", alignConfig, c, ALIGN_GRADES, context);
    requireData(c.preset, c.dryRun, { data: c.data });
    const byLpips = c.perceptual === "lpips" && c.wPerceptual > 0;
    if (byLpips && c.lpips === undefined && !c.dryRun) {
      throw new UsageError(
        `Cannot compute the perceptual loss: --perceptual lpips needs --lpips FILES (${LPIPS_FILES}); ` +
          `or choose --perceptual encoder`,
      );
    }
    const encoder = usesEncoder(c) ? await chosenEncoder(c, log) : undefined;
    log.line(
      `encoder: ${encoder ? c.encoder ?? "the embedded one" : `none: --recipe ${c.recipe} trains its own`}`,
    );
    await openAdapter(c, log, { tune: !c.dryRun });
    using workers = openWorkers(c);
    const options = {
      command: "align",
      title: "Alignment",
      result: "tokenizer",
      config: c,
      schema: alignConfig,
      schedule: ["steps", "stages"],
      remedies: ["a smaller --batch-size with --accumulate"],
      context,
      output: () => openOutput(c.out, "align"),
    } as const;
    return await run(options, (out) => training(c, encoder, workers, log, out));
  },
});

/** Models, images and stages. @param out the run's folder; undefined: a dry run, for which nothing is read */
async function training(
  c: AlignConfig,
  encoder: EncoderSource | undefined,
  workers: Workers,
  log: Log,
  out: string | undefined,
): Promise<Training> {
  const tokenizer = recipeTokenizer(c, encoder);
  tokenizer.side(c.imageSize);
  const discriminator = discriminatorOf(c), byLpips = c.perceptual === "lpips" && c.wPerceptual > 0;
  // Given weights also score the stages, whatever the perceptual loss is; a dry run needs the sizes of the network only.
  const lpips = c.lpips !== undefined && out !== undefined
    ? await openLpips(c.lpips)
    : byLpips
    ? new Lpips()
    : undefined;
  const alignment = alignmentOf(c, tokenizer, encoder, discriminator, byLpips ? lpips : undefined);
  const stages = stagesOf(c, discriminator !== undefined);
  const images = out === undefined ? undefined : await openImages(c, workers, log);
  const init = new Initializer(c.seed);
  tokenizer.init(init);
  discriminator?.init(init);
  if (alignment.projection) init.torchDefault(alignment.projection);
  const fingerprint = images && await loadEncoder(c, alignment, encoder, init);
  const scores = images && new StageScores(out as string, tokenizer, { size: c.imageSize, ...images }, lpips);
  return {
    recipes: alignRecipes(alignment, stages, c, images?.train),
    parameters: {
      ...Object.fromEntries(
        Object.entries(tokenizer.parts).map(([name, part]) => [name, countParameters(part)]),
      ),
      ...(discriminator ? { discriminator: countParameters(discriminator) } : {}),
      ...(alignment.lpips ? { lpips: countParameters(alignment.lpips) } : {}),
    },
    madeFrom: {
      ...encoder
        ? { encoder: { name: c.encoder ?? "the embedded one", fingerprint: fingerprint ?? "" } }
        : {},
      ...images?.all.identity ? { data: images.all.identity() } : {},
      ...lpips?.fingerprint ? { LPIPS: { name: `${c.lpips}`, fingerprint: lpips.fingerprint } } : {},
    },
    metrics: scores?.stages ?? {},
    checkSchedule: (resumed) => checkStages(resumed, c, stages, log),
    begin: (resumed) => resumed && scores?.resume(resumed, stages),
    async afterRecipe(index, dataWait) {
      const stage = stages[index] as typeof stages[number];
      const found = await (scores as StageScores).score(stage, index);
      const text = Object.entries(found).map(([k, v]) => `${k} ${v.toFixed(k === "n" ? 0 : 3)}`).join(", ");
      const title = log.bold(`stage ${index + 1} (${stage.name})`);
      log.line(`${title}: ${text}; waited for data ${percent(dataWait)}`);
      // Times are not reproducible, so they are not in metrics.json.
      log.event("stage", { stage: stage.name, ...found, data_wait: dataWait });
    },
    async finish(dataWaits) {
      const { train } = images as NonNullable<typeof images>;
      const measured = { size: c.imageSize, batchSize: 32, images: Math.min(1000, train.length) };
      await updateStatistics(tokenizer, train, measured);
      await saveTokenizer(out as string, tokenizer);
      const all = (scores as StageScores).stages;
      return { stages: all, ...Object.values(all).at(-1) ?? {}, data_wait: dataWaits };
    },
  };
}

/** Training and held-out images; `probe`, for generated images only, trains the linear probe that scores latents. */
async function openImages(c: AlignConfig, workers: Workers, log: Log) {
  const generated = { length: 1_000_000, seed: SEEDS.train + c.seed };
  const all = await imageSource(c.data, generated, c.badImage, workers, log);
  const shapes = (n: number, seed: number): ImageSource => generatedImages(workers, new Shapes(n, seed));
  // Held-out images: generated ones have another seed, of files the first --held-out, at most a tenth, are held out.
  if (c.data === undefined) {
    const heldOut = shapes(c.heldOut, SEEDS.heldOut);
    return { all, train: all, heldOut, probe: shapes(500, SEEDS.probe) };
  }
  const n = Math.min(c.heldOut, Math.max(1, Math.floor(all.length / 10)));
  const train = part(all, n, all.length), heldOut = part(all, 0, n);
  if (train.length === 0) throw new UsageError(`Cannot train on "${c.data}": one image is not enough`);
  return { all, train, heldOut, probe: undefined };
}
