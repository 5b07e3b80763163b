// tok train-dit: a LightningDiT on a tokenizer's latents.

import { dirname, join } from "@std/path";
import { sampleConfig, type TrainDitConfig, trainDitConfig } from "../src/cli/config.ts";
import { TRAIN_DIT_GRADES } from "../src/cli/grades.ts";
import { requireData, TRAIN_DIT_PRESETS } from "../src/cli/presets.ts";
import type { Workers } from "../src/data/decode_pool.ts";
import { UsageError } from "../src/errors.ts";
import { exists, makeFolder, readJson, validated } from "../src/formats/files.ts";
import { openLatents } from "../src/formats/latents.ts";
import { writePng } from "../src/image/image.ts";
import { Dit, DIT_SIZES, type DitConfig, ditConfig } from "../src/models/dit.ts";
import { Initializer } from "../src/nn/init.ts";
import { countParameters } from "../src/nn/layers.ts";
import type { Log } from "../src/run/log.ts";
import { percent } from "../src/run/progress.ts";
import { samplingOptions } from "../src/sampling/sampler.ts";
import { drawPreview } from "../src/sampling/preview.ts";
import { checkSteps, DiffusionRecipe } from "../src/train/diffusion.ts";
import { checkLatents } from "../src/train/encode_latents.ts";
import { run, type Training } from "../src/train/run.ts";
import { placesOf } from "../src/zoo/generator.ts";
import { type KnownTokenizer, type ModelConfig, saveDit } from "../src/zoo/runs.ts";
import { command, explained, openAdapter, openOutput } from "./command.ts";
import { imageSource, inputRun, openTokenizerFor, openWorkers, SEEDS } from "./inputs.ts";
import { encodeShown } from "./output.ts";

/** The smallest DiT: the default of `train-dit`. */
export const TINY = { depth: 4, hidden_size: 144, num_heads: 4 } satisfies Partial<DitConfig>;

export const trainDit = command({
  name: "train-dit",
  purpose: "Train a LightningDiT on a tokenizer's latents",
  schema: trainDitConfig,
  presets: TRAIN_DIT_PRESETS,
  examples: [
    "tok train-dit",
    "tok train-dit --tokenizer runs/photos --latents latents --model B/1 --steps 80000",
  ],
  async run(c, context) {
    const { log } = context;
    if (c.explain) return explained("train-dit", trainDitConfig, c, TRAIN_DIT_GRADES, context);
    requireData(c.preset, c.dryRun, { data: c.data, latents: c.latents });
    if (c.latents !== undefined && c.data !== undefined) {
      throw new UsageError("Cannot train on --data and --latents at once: give one of them");
    }
    const tokenizerRun = inputRun(c.tokenizer ?? resumedTokenizer(c, log), "tokenizer", log);
    await openAdapter(c, log, { tune: !c.dryRun });
    using workers = openWorkers(c);
    const { tokenizer } = await openTokenizerFor(c, tokenizerRun);
    const options = {
      command: "train-dit",
      title: "Diffusion training",
      result: "model",
      config: c,
      schema: trainDitConfig,
      schedule: ["steps"],
      remedies: ["a smaller --batch-size"],
      context,
      output: () => openOutput(c.out, "dit"),
    } as const;
    return await run(options, (out) => training(c, tokenizerRun, tokenizer, workers, log, out));
  },
});

/** Latents and model. @param out the run's folder; undefined: a dry run, for which no image is encoded */
async function training(
  c: TrainDitConfig,
  tokenizerRun: string,
  tokenizer: KnownTokenizer,
  workers: Workers,
  log: Log,
  out: string | undefined,
): Promise<Training> {
  const size = c.imageSize ?? tokenizer.config.image_size, side = tokenizer.side(size);
  const generated = { length: c.images, seed: SEEDS.train + c.seed };
  const source = c.latents === undefined ? await imageSource(c.data, generated, c, workers, log) : undefined;
  const folder = c.latents ?? join(out ?? "", "latents");
  if (source && out !== undefined && !exists(join(folder, "latents_stats.safetensors"))) {
    await encodeShown(folder, tokenizer, source, { size, batchSize: 50, mirrored: c.flip }, log);
  }
  const latents = out === undefined && source ? undefined : await openLatents(folder);
  const madeFrom = latents ? checkLatents(latents, tokenizer, { ...c, size, source, log }) : {};
  const known = latents?.record?.classes ?? source?.classes ?? [];
  const highest = latents ? latents.labels.reduce((a, b) => Math.max(a, b), 0) : 0;
  const classes = known.length ? [...known] : Array.from({ length: highest + 1 }, (_, i) => String(i));
  const shape = latents?.shape ?? [tokenizer.channels, side, side];
  const misfit = shape[0] !== tokenizer.channels
    ? `its latents have ${shape[0]} channels, the tokenizer ${tokenizer.channels}`
    : c.imageSize !== undefined && shape[1] !== side
    ? `its latents are ${shape[1]} cells wide, images of side ${size} give ${side}`
    : undefined;
  if (misfit !== undefined) throw new UsageError(`Cannot train on "${folder}": ${misfit}`);
  const dit = new Dit(validated(ditConfig, {
    ...(c.model === "tiny" ? TINY : DIT_SIZES[c.model]),
    input_size: shape[1],
    in_channels: shape[0],
    num_classes: classes.length,
    use_qknorm: c.qkNorm,
  }, "the options"));
  dit.init(new Initializer(c.seed));
  const steadied = c.qkNorm ? [] : ["--qk-norm"];
  const options = { ...c, directionWeight: c.wDirection, ema: c.ema > 0, emaDecay: c.ema, steadied };
  const parameters = { dit: countParameters(dit) };
  return {
    recipes: [new DiffusionRecipe(dit, options, latents)],
    parameters,
    madeFrom,
    record: { tokenizer: tokenizerRun },
    checkSchedule: (resumed) => checkSteps(resumed, c, log),
    async finish({ diffusion: dataWait = 0 }) {
      if (!latents || out === undefined) return {};
      const places = placesOf(tokenizerRun, join(out, "model"));
      const config: ModelConfig = {
        dit: dit.config,
        tokenizer: tokenizerRun,
        classes,
        latent_mean: [...latents.mean],
        latent_std: [...latents.std],
        made_from: { tokenizer: { ...tokenizer.identity, places }, latents: madeFrom },
      };
      await saveDit(out, dit, config);
      const sampling = samplingOptions({ ...sampleConfig.parse({}), seed: c.seed });
      const picture = await drawPreview({ dit, config }, tokenizer, sampling);
      makeFolder(join(out, "images"));
      await writePng(join(out, "images", `samples_with_guidance_${sampling.cfg}.png`), picture);
      log.line(`${percent(dataWait)} of the training time was spent waiting for data`);
      return { steps: c.steps, parameters: parameters.dit, data_wait: dataWait };
    },
    close: () => latents?.close(),
  };
}

/** The tokenizer of the run that is resumed, which need not be the newest any more; undefined where it is not said. */
function resumedTokenizer({ resume, out }: TrainDitConfig, log: Log): string | undefined {
  if (resume === undefined) return undefined;
  const run = resume === "" ? out ?? "" : dirname(dirname(resume)), file = join(run, "config.json");
  const { tokenizer } = (exists(file) ? readJson(file) ?? {} : {}) as { tokenizer?: unknown };
  if (typeof tokenizer !== "string" || !exists(tokenizer)) return undefined;
  log.line(`tokenizer: ${tokenizer} (the run's)`);
  return tokenizer;
}
