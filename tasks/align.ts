// tok align: turns an encoder into a tokenizer in three stages.

import { type AlignConfig, alignConfig } from "../src/cli/config.ts";
import { ALIGN_GRADES } from "../src/cli/grades.ts";
import { ALIGN_PRESETS } from "../src/cli/presets.ts";
import { Lpips } from "../src/models/lpips.ts";
import { Initializer } from "../src/nn/init.ts";
import type { Log } from "../src/run/log.ts";
import { percent } from "../src/run/progress.ts";
import { addLora, checkOptions, checkStages, stagesOf, usesEncoder } from "../src/train/align_config.ts";
import { checkWarmup, type DiscriminatorSource, openDiscriminator } from "../src/train/discriminators.ts";
import { stepsOfStages } from "../src/train/epochs.ts";
import { fitMemory } from "../src/train/fit_memory.ts";
import {
  alignmentOf,
  countModels,
  initModels,
  loadEncoder,
  recipeTokenizer,
} from "../src/train/align_models.ts";
import { ALIGN_RECIPES } from "../src/train/align_recipes.ts";
import { initialise } from "../src/train/initial_weights.ts";
import { run, type Training } from "../src/train/run.ts";
import { stageRecipes } from "../src/train/stage_recipe.ts";
import { StageScores, updateStatistics } from "../src/train/stage_scores.ts";
import type { EncoderSource } from "../src/zoo/encoders.ts";
import { openLpips } from "../src/zoo/networks.ts";
import { saveTokenizer } from "../src/zoo/runs.ts";
import { command, explained, openAdapter, openOutput } from "./command.ts";
import { chosenEncoder, openWorkers, splitImages, type TrainingImages } from "./inputs.ts";

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
    checkOptions(c, context.origins);
    const encoder = usesEncoder(c) ? await chosenEncoder(c, log) : undefined;
    log.line(`encoder: ${encoder ? c.encoder ?? "the embedded one" : "none"}`);
    const open = (spec: string) => chosenEncoder({ ...c, encoder: spec, interpolateOffset: undefined }, log);
    const adversary = await openDiscriminator(c, encoder, open, log);
    await openAdapter(c, log, { tune: !c.dryRun });
    using workers = openWorkers(c);
    const images = () => splitImages(c, workers, log);
    const counted = c.epochs !== undefined && c.data !== undefined ? await images() : undefined;
    const sized = { ...c, steps: stepsOfStages(c, counted?.train.length, log) };
    checkWarmup(sized);
    const config = await fitMemory(sized, log, (c) => training(c, encoder, adversary, log, undefined));
    const options = {
      command: "align",
      title: "Alignment",
      result: "tokenizer",
      config,
      schema: alignConfig,
      schedule: ["steps", "stages"],
      remedies: ["a smaller --batch-size with --accumulate"],
      context,
      output: () => openOutput(c.out, "align"),
    } as const;
    return await run(options, (folder) => {
      const out = folder === undefined
        ? undefined
        : { folder, images: async () => counted ?? await images() };
      return training(config, encoder, adversary, log, out);
    });
  },
});

/** Models and stages. @param out the run's folder, and what opens its images; undefined: a dry run, for which no weights are read */
async function training(
  c: AlignConfig,
  encoder: EncoderSource | undefined,
  adversary: DiscriminatorSource,
  log: Log,
  out: { folder: string; images(): Promise<TrainingImages> } | undefined,
): Promise<Training> {
  const tokenizer = recipeTokenizer(c, encoder);
  tokenizer.side(c.imageSize);
  const byLpips = c.perceptual === "lpips" && c.wPerceptual > 0;
  // Given weights also score the stages, whatever the perceptual loss is; a dry run needs the sizes of the network only.
  const lpips = c.lpips !== undefined && out !== undefined
    ? await openLpips(c.lpips)
    : byLpips
    ? new Lpips()
    : undefined;
  const alignment = alignmentOf(c, tokenizer, encoder, adversary.make, byLpips ? lpips : undefined);
  const { discriminator } = alignment;
  const images = await out?.images(), folder = out?.folder as string;
  const stages = stagesOf(c, discriminator !== undefined), init = new Initializer(c.seed);
  addLora(alignment, c, stages);
  initModels(alignment, init);
  const fingerprint = images && await loadEncoder(c, alignment, encoder, init);
  const initial = await initialise(alignment, c, images && log);
  const scores = images && new StageScores(folder, tokenizer, { size: c.imageSize, ...images }, {
    lpips,
    tokens: alignment.reference && ((x) => alignment.frozenFeatures(x)),
  }, log.warn.bind(log));
  const save = async (folder: string) => {
    const { train } = images as NonNullable<typeof images>;
    const measured = { size: c.imageSize, batchSize: 32, images: Math.min(1000, train.length) };
    await updateStatistics(tokenizer, train, measured);
    await saveTokenizer(folder, tokenizer);
  };
  return {
    recipes: stageRecipes(alignment, stages, { ...c, augmentations: adversary.augmentations }, images?.train),
    parameters: countModels(alignment),
    madeFrom: {
      ...fingerprint === undefined ? {} : { encoder: { name: c.encoder ?? "the embedded one", fingerprint } },
      ...initial,
      ...images ? await adversary.load(discriminator) : {},
      ...images?.all.identity ? { data: images.all.identity() } : {},
      ...images?.validation?.identity ? { "validation data": images.validation.identity() } : {},
      ...lpips?.fingerprint ? { LPIPS: { name: `${c.lpips}`, fingerprint: lpips.fingerprint } } : {},
    },
    checkpoint: { metrics: scores?.stages ?? {} },
    validation: scores && {
      every: c.valEvery,
      best: c.best ?? (c.valEvery > 0 ? "psnr" : undefined),
      metrics: scores.metrics,
      score: (index, step) => scores.validate(stages[index] as typeof stages[number], step),
      save,
    },
    checkSchedule: (resumed) => checkStages(resumed, c, stages, log),
    begin: (resumed) => resumed && scores?.resume(resumed, stages),
    async afterRecipe(index, step, dataWait) {
      const stage = stages[index] as typeof stages[number];
      const result = await (scores as StageScores).score(stage, index, step), { scores: found } = result;
      const text = Object.entries(found).map(([k, v]) => `${k} ${v.toFixed(k === "n" ? 0 : 3)}`).join(", ");
      const title = log.bold(`stage ${index + 1} (${stage.name})`);
      log.line(`${title}: ${text}; waited for data ${percent(dataWait)}`);
      // Times are not reproducible, so they are not in metrics.json.
      log.event("stage", { stage: stage.name, ...found, data_wait: dataWait });
      return result;
    },
    async finish(dataWaits) {
      await save(folder);
      const all = (scores as StageScores).stages;
      return { stages: all, ...Object.values(all).at(-1) ?? {}, data_wait: dataWaits };
    },
  };
}
