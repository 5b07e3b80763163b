// tok train-dit: a LightningDiT on a tokenizer's latents.

import { dirname, join } from "@std/path";
import { sampleConfig, trainDitConfig } from "../src/cli/config.ts";
import { UsageError } from "../src/errors.ts";
import { openRun, saveCheckpoint } from "../src/run/checkpoint.ts";
import { exists, makeFolder, readJson, validated, writeJson } from "../src/formats/files.ts";
import { grid, writePng } from "../src/image/image.ts";
import { type Latents, openLatents } from "../src/formats/latents.ts";
import type { Log } from "../src/run/log.ts";
import { differences, fingerprintOf, type Provenance } from "../src/formats/provenance.ts";
import { writeReport } from "../src/run/report.ts";
import type { ImageSource } from "../src/data/image_source.ts";
import { Dit, DIT_SIZES, type DitConfig, ditConfig } from "../src/models/dit.ts";
import { countParameters, restore, snapshot } from "../src/nn/layers.ts";
import { Initializer } from "../src/nn/init.ts";
import {
  type DiffusionModel,
  type KnownTokenizer,
  type ModelConfig,
  openTokenizer,
  saveDit,
} from "../src/zoo/runs.ts";
import { Diffusion, DIFFUSION_METRICS } from "../src/train/diffusion.ts";
import { generate } from "../src/sampling/generate.ts";
import { placesOf } from "../src/zoo/generator.ts";
import type { ImageTokenizer } from "../src/models/tokenizer.ts";
import { type LatentBatch, latentBatches, latentsRecord } from "../src/train/encode_latents.ts";
import { schedule, trainLoop } from "../src/train/loop.ts";
import {
  command,
  imageSource,
  inputRun,
  lineAgain,
  openAdapter,
  openOutput,
  openWorkers,
  SEEDS,
} from "./command.ts";
import { checkResumed, openResumed, type Resumed } from "./resume.ts";
import { samplingOf } from "./sample.ts";
import { encodeShown, percent, planTable, progressOf } from "./output.ts";

/** The smallest DiT: the default of `train-dit`. */
export const TINY = { depth: 4, hidden_size: 144, num_heads: 4 } satisfies Partial<DitConfig>;

type Config = typeof trainDitConfig._output;

export const trainDit = command({
  name: "train-dit",
  purpose: "Train a LightningDiT on a tokenizer's latents",
  schema: trainDitConfig,
  examples: [
    "tok train-dit",
    "tok train-dit --tokenizer runs/photos --latents latents --model B/1 --steps 80000",
  ],
  async run(c, context) {
    const { log, line, stopping } = context;
    if (c.latents !== undefined && c.data !== undefined) {
      throw new UsageError("Cannot train on --data and --latents at once: give one of them");
    }
    const tokenizerRun = inputRun(c.tokenizer ?? resumedTokenizer(c, log), "tokenizer", log);
    await openAdapter(c, log, { tune: !c.dryRun });
    using workers = openWorkers(c);
    const tokenizer = await openTokenizer(tokenizerRun);
    const size = c.imageSize ?? tokenizer.config.image_size, side = tokenizer.side(size);
    const lock = c.dryRun ? undefined : openRun(openOutput(c.out, "dit"), { resume: c.resume !== undefined });
    const out = lock?.folder ?? "";
    if (lock) {
      context.goOn = lineAgain(context, c.out === undefined ? out : undefined, true);
    }
    try {
      const source = c.latents === undefined
        ? await imageSource(
          c.data,
          { length: c.images, seed: SEEDS.train + c.seed },
          c.badImage,
          workers,
          log,
        )
        : undefined;
      const folder = c.latents ?? join(out, "latents");
      if (source && !c.dryRun && !exists(join(folder, "latents_stats.safetensors"))) {
        await encodeShown(folder, tokenizer, source, { size, batchSize: 50, mirrored: c.flip }, log);
      }
      const latents = c.dryRun && source ? undefined : await openLatents(folder);
      const madeFrom = latents ? checkLatents(latents, tokenizer, { ...c, size, source, log }) : {};
      const known = latents?.record?.classes ?? source?.classes ?? [];
      const highest = latents ? latents.labels.reduce((a, b) => Math.max(a, b), 0) : 0;
      const classes = known.length ? [...known] : Array.from({ length: highest + 1 }, (_, i) => String(i));
      const shape = latents?.shape ?? [tokenizer.channels, side, side];
      if (shape[0] !== tokenizer.channels) {
        throw new UsageError(
          `Cannot train on "${folder}": its latents have ${
            shape[0]
          } channels, the tokenizer ${tokenizer.channels}`,
        );
      }
      if (c.imageSize !== undefined && shape[1] !== side) {
        throw new UsageError(
          `Cannot train on "${folder}": its latents are ${
            shape[1]
          } cells wide, images of side ${size} give ${side}`,
        );
      }
      const architecture = validated(ditConfig, {
        ...(c.model === "tiny" ? TINY : DIT_SIZES[c.model]),
        input_size: shape[1],
        in_channels: shape[0],
        num_classes: classes.length,
        use_qknorm: c.qkNorm,
      }, "the options");
      const dit = new Dit(architecture);
      const diffusion = new Diffusion(dit, {
        batchSize: c.batchSize,
        labelDropout: c.labelDropout,
        directionWeight: c.wDirection,
        ema: c.ema > 0,
        seed: c.seed,
        precision: c.precision,
        recompute: c.recompute,
      });
      const program = diffusion.capture();
      const parameters = { dit: countParameters(dit) };
      if (c.dryRun || !latents) {
        const plans = [{ name: "diffusion", steps: c.steps, plan: program.plan }];
        return planTable(parameters, plans, log, {
          recompute: c.recompute,
          remedies: ["a smaller --batch-size"],
        });
      }

      const resume = await openResumed(c.resume, { out, command: "train-dit", log });
      if (resume) {
        checkResumed(resume, { config: c, defaults: trainDitConfig.parse({}), madeFrom }, ["steps"], log);
        checkSteps(resume, c, log);
      }
      log.line(`run: ${out}${resume ? ` (resumed after step ${resume.step})` : ""}`);
      log.openFile(out);
      const record = { command: "train-dit", ...c, tokenizer: tokenizerRun, made_from: madeFrom };
      writeJson(join(out, "config.json"), record);
      log.event("start", {
        command: "train-dit",
        out,
        parameters,
        flops: program.plan.flops,
        step: resume?.step ?? 0,
      });

      dit.init(new Initializer(c.seed));
      const progress = progressOf(log, [["diffusion", c.steps]]);
      progress.begin("diffusion");
      if (resume) {
        await restore(diffusion.state(), resume.file);
        resume.file.close();
      } else {
        await diffusion.set.materialise();
        await diffusion.optimizer.startEma();
      }
      await diffusion.prepare(program, progress.compile);
      const from = resume?.step ?? 0;
      const stream = latentBatches(latents, {
        batchSize: c.batchSize,
        seed: c.seed,
        step: from,
        end: c.steps,
        flip: c.flip,
      });
      const { done, dataWait } = await trainLoop({
        from,
        to: c.steps,
        runningMetrics: diffusion.runningMetrics,
        metrics: DIFFUSION_METRICS,
        optimizers: [diffusion.optimizer],
        logEvery: c.logEvery,
        saveEvery: c.saveEvery,
        stepBytes: c.batchSize * shape[0] * shape[1] * shape[2] * 4,
        data: async () => (await stream.next()).value as LatentBatch,
        async step(n, { x, labels }) {
          diffusion.optimizer.set({
            lr: c.lr * schedule(n, c.steps, c.warmup, c.lrEnd),
            beta1: c.beta1,
            beta2: c.beta2,
            eps: 1e-8,
            weightDecay: c.weightDecay,
            clip: c.clip,
            emaDecay: Math.min(c.ema, (1 + n) / (10 + n)),
          });
          diffusion.random.set(n);
          program.run({ x, labels });
        },
        onStep: progress.step,
        onLog: (row) => {
          progress.row(row);
          log.event("step", { ...row });
        },
        onSkipped: (message) => log.warn(message),
        save: async (n) =>
          void await saveCheckpoint(out, n, await snapshot(diffusion.state()), record, { keep: c.keep }),
        stopping,
      });
      progress.end();
      latents.close();
      if (done < c.steps) {
        log.line(`saved; go on with: ${context.goOn}`);
        return { out, finished: false };
      }
      await diffusion.optimizer.readEmaInto(0, diffusion.set);
      const description: ModelConfig = {
        dit: architecture,
        tokenizer: tokenizerRun,
        classes,
        latent_mean: [...latents.mean],
        latent_std: [...latents.std],
        made_from: {
          tokenizer: { ...tokenizer.identity, places: placesOf(tokenizerRun, join(out, "model")) },
          latents: madeFrom,
        },
      };
      await saveDit(out, dit, description);
      await drawSamples(out, { dit, config: description }, tokenizer, c.seed);
      await writeReport(out, { title: "Diffusion training", line });
      log.line(`${percent(dataWait)} of the training time was spent waiting for data`);
      log.line(`model: ${join(out, "model")}, report: ${join(out, "report.html")}`);
      return { out, finished: true, steps: c.steps, parameters: parameters.dit, data_wait: dataWait };
    } finally {
      lock?.release();
    }
  },
});

/** The tokenizer of the run that is resumed, which need not be the newest any more; undefined where it is not said. */
function resumedTokenizer({ resume, out }: Config, log: Log): string | undefined {
  if (resume === undefined) return undefined;
  const run = resume === "" ? out ?? "" : dirname(dirname(resume)), file = join(run, "config.json");
  const { tokenizer } = (exists(file) ? readJson(file) ?? {} : {}) as { tokenizer?: unknown };
  if (typeof tokenizer !== "string" || !exists(tokenizer)) return undefined;
  log.line(`tokenizer: ${tokenizer} (the run's)`);
  return tokenizer;
}

/**
 * What latents were made from.
 * @param source the images, where this run encodes them
 * @throws UsageError when the latents are not of this tokenizer, these images or these settings
 */
function checkLatents(
  latents: Latents,
  tokenizer: KnownTokenizer,
  { size, imageSize, flip, source, log }: Pick<Config, "imageSize" | "flip"> & {
    size: number;
    source: ImageSource | undefined;
    log: Log;
  },
): Provenance {
  const { folder, record } = latents, { name, latents: fingerprint } = tokenizer.identity;
  if (!record) {
    log.line(`"${folder}" does not say what its latents are of: they are taken to be of "${name}"`);
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

/** More steps than the run was begun with bend its schedule: says how. @throws UsageError when they are done already */
function checkSteps({ path, step, config }: Resumed, c: Config, log: Log): void {
  const before = (config as Partial<Config>).steps;
  if (before === undefined || before === c.steps) return;
  if (c.steps < step) {
    throw new UsageError(
      `Cannot resume from "${path}": it has done ${step} steps, and --steps is ${c.steps}; ask for more`,
    );
  }
  const rate = (steps: number) => (c.lr * schedule(step, steps, c.warmup, c.lrEnd)).toPrecision(3);
  log.line(
    `--steps was ${before} and is ${c.steps}: the learning rate now falls until step ${c.steps}, and goes from ` +
      `${rate(before)} to ${rate(c.steps)} at step ${step}`,
  );
}

/** A few pictures for the report: a column for each class (the first ten), with guidance. */
async function drawSamples(
  out: string,
  model: Pick<DiffusionModel, "dit" | "config">,
  tokenizer: ImageTokenizer,
  seed: number,
): Promise<void> {
  const columns = Math.min(10, model.config.classes.length), count = Math.max(20, 2 * columns);
  const images: Uint8Array[] = [];
  const side = model.config.dit.input_size * tokenizer.factor;
  const batchSize = Math.min(count, Math.max(1, Math.floor((512 / side) ** 2))); // a decoder's maps are large
  const options = samplingOf({ ...sampleConfig.parse({}), batchSize, seed });
  const labels = Array.from({ length: count }, (_, i) => i % columns);
  for await (const { image } of generate(model, tokenizer, { ...options, labels })) images.push(image);
  makeFolder(join(out, "images"));
  await writePng(
    join(out, "images", `samples_with_guidance_${options.cfg}.png`),
    grid(images, side, columns),
  );
}
