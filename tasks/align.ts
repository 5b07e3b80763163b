// tok align: turns an encoder into a tokenizer in three stages.

import { join } from "@std/path";
import { alignConfig } from "../src/cli/config.ts";
import { UsageError } from "../src/errors.ts";
import { openRun, saveCheckpoint } from "../src/run/checkpoint.ts";
import { exists, makeFolder, readJson, validated, writeJson } from "../src/formats/files.ts";
import { grid, writePng } from "../src/image/image.ts";
import type { Log } from "../src/run/log.ts";
import type { Provenance } from "../src/formats/provenance.ts";
import { writeReport } from "../src/run/report.ts";
import { drawnBy } from "../src/data/decode_pool.ts";
import { Shapes } from "../src/data/toy_shapes.ts";
import { part } from "../src/data/image_source.ts";
import { LpipsScore } from "../src/metrics/lpips_score.ts";
import { scoreLatents, scoreReconstruction } from "../src/metrics/tokenizer.ts";
import { Discriminator } from "../src/models/discriminator.ts";
import { Lpips, LPIPS_FILES, openLpips } from "../src/models/lpips.ts";
import { Tokenizer, tokenizerConfig } from "../src/models/tokenizer.ts";
import { countParameters } from "../src/nn/layers.ts";
import { Initializer } from "../src/nn/init.ts";
import { runAlignment } from "../src/train/align.ts";
import { Alignment, type Stage, StageRun } from "../src/train/alignment.ts";
import { saveTokenizer } from "../src/zoo/runs.ts";
import { schedule } from "../src/train/loop.ts";
import { updateStatistics } from "../src/train/statistics.ts";
import {
  chosenEncoder,
  command,
  imageSource,
  lineAgain,
  openAdapter,
  openOutput,
  openWorkers,
  SEEDS,
} from "./command.ts";
import { checkResumed, openResumed, type Resumed } from "./resume.ts";
import { percent, planTable, progressOf } from "./output.ts";

export const align = command({
  name: "align",
  purpose: "Turn an encoder into an image tokenizer (three stages)",
  schema: alignConfig,
  examples: [
    "tok align",
    "tok align --encoder dinov2-large --preset dinov2-l --data photos --out runs/photos",
  ],
  async run(config, context) {
    const c = config, { log, line, stopping } = context;
    const byLpips = c.perceptual === "lpips" && c.wPerceptual > 0;
    if (byLpips && c.lpips === undefined && !c.dryRun) {
      throw new UsageError(
        `Cannot compute the perceptual loss: --perceptual lpips needs --lpips FILES (${LPIPS_FILES}); ` +
          `or choose --perceptual encoder`,
      );
    }
    const encoder = await chosenEncoder(c, log);
    log.line(`encoder: ${c.encoder ?? "the embedded one"}`);
    await openAdapter(c, log, { tune: !c.dryRun });
    using workers = openWorkers(c);

    const tokenizer = new Tokenizer(validated(tokenizerConfig, {
      image_size: c.imageSize,
      encoder: encoder.config,
      image_mean: encoder.preprocessor.mean,
      image_std: encoder.preprocessor.std,
      adapter_hidden: c.adapterHidden ?? encoder.config.hidden_size,
      decoder: {
        ch: c.decoderChannels,
        ch_mult: c.decoderMultiples,
        num_res_blocks: c.decoderBlocks,
        attn_resolutions: c.decoderAttention.filter((side) => side > 0),
        resolution: c.imageSize,
        z_channels: c.latentChannels,
        groups: c.decoderGroups,
      },
    }, "the options"));
    tokenizer.side(c.imageSize);
    const adversarial = c.gan === "patch" && c.wGan > 0;
    const discriminator = adversarial
      ? new Discriminator({ ndf: c.discriminatorChannels, n_layers: c.discriminatorLayers })
      : undefined;
    const lpips = c.lpips !== undefined && !c.dryRun
      ? await openLpips(c.lpips)
      : byLpips
      ? new Lpips()
      : undefined;
    const alignment = new Alignment(tokenizer, discriminator, byLpips ? lpips : undefined, c.precision);
    const stages = stagesOf(c, adversarial);
    const options = {
      batchSize: c.batchSize,
      accumulate: c.accumulate,
      imageSize: c.imageSize,
      semanticLoss: c.semanticLoss,
      semanticAt: c.semanticAt,
      recompute: c.recompute,
    };
    const parameters = {
      encoder: countParameters(tokenizer.encoder),
      adapter: countParameters(tokenizer.adapter),
      decoder: countParameters(tokenizer.decoder) + countParameters(tokenizer.post_quant_conv),
      ...(discriminator ? { discriminator: countParameters(discriminator) } : {}),
      ...(alignment.lpips ? { lpips: countParameters(alignment.lpips) } : {}),
    };
    if (c.dryRun) {
      const plans = stages.map((stage) => {
        const stageRun = new StageRun(alignment, stage, options);
        return {
          name: stage.name,
          steps: stage.steps,
          plan: stageRun.capture(adversarial && stage.ganStart < stage.steps).plan,
        };
      });
      return planTable(parameters, plans, log, {
        recompute: c.recompute,
        remedies: ["a smaller --batch-size with --accumulate"],
      });
    }

    const all = await imageSource(
      c.data,
      { length: 1_000_000, seed: SEEDS.train + c.seed },
      c.badImage,
      workers,
      log,
    );
    // Generated images are held out by another seed, files by their number.
    const few = Math.min(c.heldOut, Math.max(1, Math.floor(all.length / 10)));
    const train = c.data === undefined ? all : part(all, few, all.length);
    const shapes = (n: number, seed: number) => drawnBy(workers, new Shapes(n, seed));
    const heldOut = c.data === undefined ? shapes(c.heldOut, SEEDS.heldOut) : part(all, 0, few);
    if (train.length === 0) throw new UsageError(`Cannot train on "${c.data}": one image is not enough`);

    // Before the run's folder is made, so that a wrong encoder leaves nothing behind.
    const init = new Initializer(c.seed);
    tokenizer.init(init);
    discriminator?.init(init);
    const fingerprint = await encoder.load(tokenizer.encoder);
    await alignment.setReference();
    const madeFrom: Provenance = {
      encoder: { name: c.encoder ?? "the embedded one", fingerprint },
      ...all.identity ? { data: all.identity() } : {},
      ...lpips?.fingerprint ? { LPIPS: { name: `${c.lpips}`, fingerprint: lpips.fingerprint } } : {},
    };

    const lock = openRun(openOutput(c.out, "align"), { resume: c.resume !== undefined });
    const out = lock.folder;
    context.goOn = lineAgain(context, c.out === undefined ? out : undefined, true);
    try {
      const resume = await openResumed(c.resume, { out, command: "align", log });
      if (resume) {
        const now = { config: c, defaults: alignConfig.parse({}), madeFrom };
        checkResumed(resume, now, ["steps", "stages"], log);
        checkStages(resume, c, stages, log);
      }
      log.line(`run: ${out}${resume ? ` (resumed after step ${resume.step})` : ""}`);
      log.openFile(out);
      const record = { command: "align", ...c, made_from: madeFrom };
      writeJson(join(out, "config.json"), record);
      makeFolder(join(out, "images"));
      log.event("start", { command: "align", out, parameters, step: resume?.step ?? 0 });

      const metrics = resume ? earlierMetrics(resume, out, stages) : {};
      const progress = progressOf(log, stages.map((s) => [s.name, s.steps]));
      const waits: Record<string, number> = {};
      /** Of the latents as the latest stage that changes them left them. */
      let ofLatents: { probe: number; knn: number } | undefined;
      const evaluateStage = async (stage: Stage, index: number, dataWait: number) => {
        const shown: Uint8Array[][] = [];
        const batch = { size: c.imageSize, batchSize: Math.min(32, heldOut.length) };
        const pair = lpips && await LpipsScore.open(lpips, batch);
        const scores = await scoreReconstruction(
          tokenizer,
          heldOut,
          { ...batch, pairs: pair ? [pair] : [] },
          (i, a, b) => void (i < 20 && shown.push([a.slice(), b.slice()])),
        );
        pair?.destroy();
        metrics[stage.name] = { ...scores };
        if (heldOut.classes.length > 1 && c.data === undefined) {
          const moved = stage.train.includes("encoder") || stage.train.includes("adapter");
          if (moved || !ofLatents) {
            ofLatents = await scoreLatents(tokenizer, shapes(500, SEEDS.probe), heldOut, {
              size: c.imageSize,
              batchSize: 32,
            });
          }
          Object.assign(metrics[stage.name] as object, ofLatents);
        }
        writeJson(join(out, "metrics.json"), { stages: metrics, ...metrics[stage.name] });
        const columns = Math.min(10, shown.length);
        const rows: Uint8Array[] = [];
        for (let at = 0; at < shown.length; at += columns) {
          const pairs = shown.slice(at, at + columns);
          rows.push(...pairs.map(([a]) => a as Uint8Array), ...pairs.map(([, b]) => b as Uint8Array));
        }
        await writePng(
          join(out, "images", `${index + 1}_${stage.name}.png`),
          grid(rows, c.imageSize, columns),
        );
        const text = Object.entries(metrics[stage.name] as object).map(([k, v]) =>
          `${k} ${(v as number).toFixed(k === "n" ? 0 : 3)}`
        );
        // How long it took is no part of the result, and so not in metrics.json.
        waits[stage.name] = dataWait;
        log.line(
          `${log.bold(`stage ${index + 1} (${stage.name})`)}: ${text.join(", ")}; waited for data ${
            percent(dataWait)
          }`,
        );
        log.event("stage", { stage: stage.name, ...metrics[stage.name], data_wait: dataWait });
      };

      const finished = await runAlignment({
        alignment,
        stages,
        options,
        source: train,
        optimizer: c,
        seed: c.seed,
        flip: c.flip,
        logEvery: c.logEvery,
        saveEvery: c.saveEvery,
        hooks: {
          onStage: (stage) => progress.begin(stage.name),
          onCompile: progress.compile,
          onStep: (_, n) => progress.step(n),
          onLog: (stage, row) => {
            progress.row(row);
            log.event("step", { stage: stage.name, ...row });
          },
          onSkipped: (message) => log.warn(message),
          onStageEnd: async (stage, index, dataWait) => {
            progress.end();
            await evaluateStage(stage, index, dataWait);
          },
          save: async (step, tensors) =>
            void await saveCheckpoint(out, step, tensors, { ...record, metrics }, { keep: c.keep }),
          stopping,
        },
      }, resume && { step: resume.step, source: resume.file });
      resume?.file.close();
      progress.end();
      if (!finished) {
        log.line(`saved; go on with: ${context.goOn}`);
        return { out, finished };
      }
      await updateStatistics(tokenizer, train, {
        size: c.imageSize,
        batchSize: 32,
        images: Math.min(1000, train.length),
      });
      await saveTokenizer(out, tokenizer);
      await writeReport(out, { title: "Alignment", line });
      const last = Object.values(metrics).at(-1) ?? {};
      log.line(`tokenizer: ${join(out, "tokenizer")}, report: ${join(out, "report.html")}`);
      return { out, stages: metrics, ...last, data_wait: waits };
    } finally {
      lock.release();
    }
  },
});

type Metrics = Record<string, Record<string, number>>;

/** The scores of the stages that were over before the one that is resumed, which gets its own at its end. */
function earlierMetrics(
  { step, config, elsewhere }: Resumed,
  out: string,
  stages: readonly Stage[],
): Metrics {
  const file = join(out, "metrics.json");
  // Checkpoints of tok 0.2.0 have none.
  const found = (config as { metrics?: Metrics }).metrics ??
    (!elsewhere && exists(file) ? (readJson(file) as { stages?: Metrics }).stages : undefined) ?? {};
  const earlier = stages.slice(0, stageAt(stages, step).index).map(({ name }) => name as string);
  return Object.fromEntries(Object.entries(found).filter(([name]) => earlier.includes(name)));
}

/** The stage to which `step` steps belong, the end of a stage to that stage, and the steps before it. */
function stageAt(stages: readonly { steps: number }[], step: number): { index: number; begin: number } {
  let index = 0, begin = 0;
  for (; index < stages.length - 1 && step > begin + (stages[index]?.steps ?? 0); index++) {
    begin += stages[index]?.steps ?? 0;
  }
  return { index, begin };
}

/**
 * The stage of a checkpoint and those after it may get other numbers of steps, and there may be more of them: says what that
 * does to the schedule. @throws UsageError for stages that are over
 */
function checkStages(
  { path, step, config }: Resumed,
  c: typeof alignConfig._output,
  now: readonly Stage[],
  log: Log,
): void {
  const options = { ...c, ...config as object } as typeof c;
  const before = stagesOf(options, now.some(({ losses }) => losses.gan > 0));
  const { index, begin } = stageAt(before, step), at = before[index] as Stage, n = step - begin;
  const fixed = before.slice(0, index).find((stage, i) =>
    stage.name !== now[i]?.name || stage.steps !== now[i]?.steps
  );
  if (fixed || now[index]?.name !== at.name || (now[index]?.steps ?? 0) < n) {
    throw new UsageError(
      `Cannot resume from "${path}": it has done ${n} steps of the stage "${at.name}", and --stages ${c.stages} ` +
        `--steps ${c.steps} does not lead there (it was --stages ${options.stages} --steps ${options.steps}); ` +
        `change only what comes after, or begin without --resume in another --out`,
    );
  }
  for (const stage of now.slice(index)) {
    const was = before.find(({ name }) => name === stage.name);
    if (was?.steps === stage.steps) continue;
    const done = stage.name === at.name ? n : 0;
    const rate = (steps: number) => (stage.lr * schedule(done, steps, c.warmup, c.lrEnd)).toPrecision(3);
    log.line(
      `stage "${stage.name}": ${was?.steps ?? 0} steps before, ${stage.steps} now` +
        (was && done ? `; its learning rate goes from ${rate(was.steps)} to ${rate(stage.steps)}` : "") +
        (stage.losses.gan > 0 && stage.ganStart >= (was?.steps ?? 0) && stage.ganStart < stage.steps
          ? `; the adversarial loss counts from its step ${stage.ganStart}`
          : ""),
    );
  }
}

/** The stages that the options describe. */
export function stagesOf(c: typeof alignConfig._output, adversarial: boolean): Stage[] {
  const losses = {
    l1: c.wL1,
    perceptual: c.perceptual === "none" ? 0 : c.wPerceptual,
    gan: adversarial ? c.wGan : 0,
    semantic: 0,
  };
  const table: Omit<Stage, "steps" | "lr" | "ganStart">[] = [
    { name: "latent", train: ["adapter", "decoder"], losses, encoderLr: 0, ema: 0 },
    {
      name: "perceptual",
      train: ["encoder", "adapter", "decoder"],
      losses: { ...losses, semantic: c.wSemantic },
      encoderLr: c.encoderLr,
      ema: c.ema,
    },
    { name: "refine", train: ["decoder"], losses, encoderLr: 0, ema: 0 },
  ];
  return [...new Set(c.stages)].sort().map((n) => ({
    ...(table[n - 1] as (typeof table)[number]),
    steps: c.steps[n - 1] as number,
    lr: c.lr[n - 1] as number,
    ganStart: c.ganStart[n - 1] as number,
  }));
}
