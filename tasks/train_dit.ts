// tok train-dit: a LightningDiT on a tokenizer's latents.

import { sampleConfig, type TrainDitConfig, trainDitConfig } from "../src/cli/config.ts";
import { TRAIN_DIT_GRADES } from "../src/cli/grades.ts";
import { requireData, TRAIN_DIT_PRESETS, trainDitDefaults } from "../src/cli/presets.ts";
import type { Workers } from "../src/data/decode_pool.ts";
import { Initializer } from "../src/nn/init.ts";
import { newestRun } from "../src/run/checkpoint.ts";
import type { Log } from "../src/run/log.ts";
import type { Resumed } from "../src/run/resume.ts";
import { percent } from "../src/run/progress.ts";
import { samplingOptions } from "../src/sampling/sampler.ts";
import { writePreview } from "../src/sampling/preview.ts";
import { SampleWatch } from "../src/sampling/watch.ts";
import { checkResumable } from "../src/train/diffusion.ts";
import {
  checkDitOptions,
  diffusionRecipe,
  ditOf,
  parametersOf,
  repaOf,
  snapshotsLine,
  suggestQkNorm,
  trainedConfig,
} from "../src/train/dit_training.ts";
import { stepsOfEpochs } from "../src/train/epochs.ts";
import { fitMemory } from "../src/train/fit_memory.ts";
import { initialiseDit } from "../src/train/initial_weights.ts";
import { run, type Training } from "../src/train/run.ts";
import type { EncoderSource } from "../src/zoo/encoders.ts";
import { openInitialDit } from "../src/zoo/initial_weights.ts";
import { type KnownTokenizer, saveDit } from "../src/zoo/runs.ts";
import { command, explained, openAdapter, openOutput, RUNS } from "./command.ts";
import { chosenEncoder, inputRun, openTokenizerFor, openWorkers } from "./inputs.ts";
import { plannedLatents, plannedTokenizer } from "./planned_latents.ts";
import { openTrainingLatents, resumedTokenizer } from "./training_latents.ts";

export const trainDit = command({
  name: "train-dit",
  purpose: "Train a LightningDiT on a tokenizer's latents",
  schema: trainDitConfig,
  defaults: trainDitDefaults,
  presets: TRAIN_DIT_PRESETS,
  examples: [
    "tok train-dit",
    "tok train-dit --tokenizer runs/photos --latents latents --model B/1 --steps 80000",
  ],
  async run(c, context) {
    const { log } = context;
    if (c.explain) return explained("train-dit", trainDitConfig, c, TRAIN_DIT_GRADES, context);
    requireData(c.preset, c.dryRun, { data: c.data, latents: c.latents });
    checkDitOptions(c, context.origins);
    const { repa, download, dryRun } = c;
    const encoder = repa === undefined
      ? undefined
      : await chosenEncoder({ encoder: repa === "embedded" ? undefined : repa, download, dryRun }, log);
    const given = c.tokenizer ?? resumedTokenizer(c, log);
    const none = c.dryRun && given === undefined && newestRun(RUNS, "tokenizer") === undefined;
    const tokenizerRun = none ? undefined : inputRun(given, "tokenizer", log);
    await openAdapter(c, log, { tune: !c.dryRun });
    using workers = openWorkers(c);
    const { tokenizer } = tokenizerRun === undefined
      ? plannedTokenizer(log)
      : await openTokenizerFor(c, tokenizerRun);
    const { size, shape, classes, source } = await plannedLatents(c, tokenizer);
    const planned = (c: TrainDitConfig) => {
      const dit = ditOf(c, shape, classes), repa = repaOf(c, dit.config, encoder, undefined, size);
      return diffusionRecipe(c, dit, source, undefined, repa);
    };
    const config = await fitMemory(c, log, (c) => Promise.resolve({ recipes: [planned(c)] })); // before anything is encoded
    const options = {
      command: "train-dit",
      title: "Diffusion training",
      result: "model",
      config,
      schema: trainDitConfig,
      schedule: ["steps"],
      remedies: ["a smaller --batch-size with --accumulate"],
      context,
      output: () => openOutput(c.out, "dit"),
    } as const;
    const from = { tokenizerRun: tokenizerRun ?? "", tokenizer, encoder, workers };
    return await run(options, (out, resumed) => training(config, from, log, out, resumed));
  },
});

/** What a training reads. */
interface Inputs {
  tokenizerRun: string;
  tokenizer: KnownTokenizer;
  encoder: EncoderSource | undefined; // of --repa
  workers: Workers;
}

/** Latents and model. @param out the run's folder; undefined: a dry run, for which no image is encoded and no encoder read */
async function training(
  c: TrainDitConfig,
  { tokenizerRun, tokenizer, encoder, workers }: Inputs,
  log: Log,
  out: string | undefined,
  resumed: Resumed | undefined,
): Promise<Training> {
  const data = await openTrainingLatents(c, tokenizer, workers, log, out, resumed);
  const { source, madeFrom, online } = data;
  const epochs = c.epochs === undefined ? [] : [c.epochs];
  const [steps = c.steps] = stepsOfEpochs(epochs, data.length, c.batchSize * c.accumulate, log);
  suggestQkNorm(c, steps, log);
  using from = c.init === undefined ? undefined : await openInitialDit(c.init);
  const dit = ditOf(c, data.shape, data.classes.length, from?.parametrization.reversed);
  const init = new Initializer(c.seed);
  const repa = repaOf(c, dit.config, encoder, data.images, c.imageSize ?? tokenizer.config.image_size);
  const recipe = diffusionRecipe({ ...c, steps }, dit, source, out, repa);
  for (const network of [dit, repa]) network?.init(init);
  const fingerprint = repa && out !== undefined ? await encoder?.load(repa.encoder.vit) : undefined;
  const initial = from ? await initialiseDit(dit, from, log, { ...c, read: out !== undefined }) : {};
  const parameters = parametersOf(dit, repa), snapshots = snapshotsLine({ ...c, steps }, parameters.dit);
  if (snapshots !== undefined) log.line(snapshots);
  const configIn = (folder: string) =>
    trainedConfig(dit, { ...data, ...source, prediction: c.prediction, tokenizer, tokenizerRun }, folder);
  const save = (folder: string) => saveDit(folder, dit, configIn(folder));
  const sampling = samplingOptions({ ...sampleConfig.parse({}), seed: c.seed });
  const valEncoder = () => chosenEncoder({ encoder: c.valEncoder, download: c.download }, log);
  const watched = { model: recipe.model, configIn, tokenizer, real: data.real, workers, sampling };
  const watch = await SampleWatch.open(out, watched, c, valEncoder);
  return {
    recipes: [recipe],
    parameters,
    madeFrom: {
      ...madeFrom,
      ...initial,
      ...fingerprint === undefined ? {} : { "alignment encoder": { name: c.repa as string, fingerprint } },
    },
    record: { tokenizer: tokenizerRun, steps, reversed_time: dit.config.reversed_time },
    checkpoint: { statistics: online?.statistics },
    begin: () => online?.write(),
    ...watch?.hooks(save, log),
    checkSchedule: (resumed) => checkResumable(resumed, dit.config, { ...c, steps }, log),
    async finish({ diffusion: dataWait = 0 }) {
      if (out === undefined) return {};
      await save(out);
      await writePreview(out, { dit: recipe.model, config: configIn(out) }, tokenizer, sampling, log);
      log.line(`${percent(dataWait)} of the training time was spent waiting for data`);
      return { steps, parameters: parameters.dit, data_wait: dataWait };
    },
    close() {
      watch?.destroy();
      data.close();
    },
  };
}
