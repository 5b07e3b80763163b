// tok sweep: scores of a diffusion model over all combinations of sampling options. Started again in the same folder, it
// computes the cells that are missing.

import { join } from "@std/path";
import { refuseWithoutEffect } from "../src/cli/conditions.ts";
import { sweepConditions, sweepConfig, SWEPT } from "../src/cli/sweep_config.ts";
import {
  bestOf,
  type CellResult,
  cellsOf,
  distinct,
  optionsOf,
  runCells,
  sampleCommand,
  scoresOf,
  variedIn,
} from "../src/experiment/sweep.ts";
import { describe, metricsOf, protocolText, tableLines, writeSweep } from "../src/experiment/sweep_report.ts";
import { SetEvaluation } from "../src/metrics/evaluate.ts";
import { underProtocol } from "../src/metrics/protocols.ts";
import { Selection } from "../src/metrics/selection.ts";
import { beginPictures, refuseOthers } from "../src/run/existing_output.ts";
import { resumeCommandOf } from "../src/run/resume.ts";
import { planOf } from "../src/sampling/plan.ts";
import { classesOf, labelsOf, unguidedIfUnconditional } from "../src/sampling/labels.ts";
import { openGenerator } from "../src/zoo/generator.ts";
import { openGuides } from "../src/zoo/guide.ts";
import { openInception } from "../src/zoo/networks.ts";
import { command, openAdapter, openOutput } from "./command.ts";
import { chosenEncoder, inputRun, openWorkers } from "./inputs.ts";
import { makesShapes, openSet, probeImages } from "./sets.ts";

export const sweep = command({
  name: "sweep",
  purpose: "Score a diffusion model over all combinations of sampling options",
  schema: sweepConfig,
  examples: [
    "tok sweep --cfg 1,1.5,2,4 --steps 10,20,50",
    "tok sweep --sampler euler,heun --steps 5,10,20 --cfg 2 --interval 0-1,0.1-1 --num 1000 --out sweep",
  ],
  async run(given, context) {
    const { log } = context;
    refuseWithoutEffect(given, sweepConditions(given), context.origins);
    const c = {
      standard: ["fd-encoder", "classes", ...given.inception === undefined ? [] : ["fid"]],
      ...underProtocol(given, "model"),
    };
    const selection = new Selection("model", c), run = inputRun(c.model, "model", log);
    using output = openOutput(c.out, "sweep");
    const out = output.folder;
    refuseOthers(out, "sweep");
    await openAdapter(c, log);
    using workers = openWorkers(c);
    const say = (text: string) => log.line(text);
    const opened = await openGenerator(run, { tokenizer: c.tokenizer, latents: c.latents, say });
    const { model, tokenizer, madeFrom } = opened, { classes } = model.config;
    const { cfg } = unguidedIfUnconditional(run, model.config, { cfg: c.cfg }, context.origins);
    const toy = c.real === undefined && makesShapes(classes);
    selection.exclude(({ from }) =>
      from === "labels" && !toy && "they need a model of the generated shapes, and no --real"
    );
    const side = model.config.dit.input_size * tokenizer.factor;
    const guides = await openGuides(model, c, say);
    const all = cellsOf({ ...c, cfg }, guides), cells = distinct(all);
    // Refuses what the model cannot do.
    for (const cell of cells) planOf(model.config.dit, optionsOf(cell, { config: c, guides }));
    const real = await openSet(c.real, side, { c, workers, log });
    const labels = labelsOf({ count: c.num, classes: classesOf(["all"], classes) });
    const { seed, num, metrics, protocol, inception, inceptionInput, encoder } = c;
    const networks = {
      ...c,
      inception: () => openInception(inception ?? ""),
      lpips: () => Promise.reject(),
      encoder: () => chosenEncoder(c, log),
    };
    const fakeFacts = { name: "samples", images: labels };
    using evaluation = await SetEvaluation.open(selection, networks, real, fakeFacts, log);
    beginPictures(out, "sweep", {
      options: { seed, num, metrics, protocol, inceptionInput },
      madeFrom: {
        ...madeFrom,
        "real set": real.identity,
        ...await evaluation.networks(),
        ...Object.fromEntries([...guides].map(([path, { identity }]) => [`guide "${path}"`, identity])),
      },
      others: {
        model: run,
        real: c.real,
        inception,
        encoder,
        ...Object.fromEntries(SWEPT.map((name) => [name, c[name]])),
      },
      folders: ["cells"],
    });
    context.resumeCommand = resumeCommandOf(context, c.out === undefined ? out : undefined);
    const folder = output.sub("cells"), varied = variedIn(cells);
    const train = probeImages(workers, side), config = c;
    const shared = {
      model,
      path: run,
      tokenizer,
      guides,
      labels,
      config,
      folder,
      evaluation,
      real,
      train,
      workers,
      log,
    };
    const results = await runCells(cells, shared, describe(varied)), best = bestOf(results) as CellResult;
    const shown = { model: run, tokenizer: c.tokenizer, latents: c.latents, num, seed };
    const line = sampleCommand(best, shown);
    const protocols = Object.fromEntries(
      scoresOf(results).map((key) => [key, selection.protocolOf(key, c, num, real.pooled !== undefined)]),
    );
    await writeSweep(out, all, results, { folder, line: context.commandLine, command: line, protocols });
    tableLines(results).forEach((row) => log.line(row));
    log.line(`protocols: ${protocolText(protocols)}`);
    log.line(`best: ${line}`);
    log.line(`page: ${join(out, "report.html")}`);
    return { out, cells: results.length, best: metricsOf(best), command: line, protocols };
  },
});
