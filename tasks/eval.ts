// tok eval: scores of a tokenizer, of a diffusion model's samples, or of two sets of images; or a report of several of them.

import metadata from "../deno.json" with { type: "json" };
import { refuseWithoutEffect } from "../src/cli/conditions.ts";
import { evalConditions, evalConfig } from "../src/cli/eval_config.ts";
import type { Findings } from "../src/metrics/evaluation_page.ts";
import { Intervals } from "../src/metrics/intervals.ts";
import { underProtocol } from "../src/metrics/protocols.ts";
import { missingFigures, partsOf, Results, selectParts } from "../src/metrics/selection.ts";
import { refuseOthers } from "../src/run/existing_output.ts";
import { checkSampling } from "../src/sampling/sampler_options.ts";
import { openInception, openLpips } from "../src/zoo/networks.ts";
import { command, openAdapter, openOutput } from "./command.ts";
import { compareRuns } from "./compare.ts";
import { chosenEncoders, chosenFeatureEncoder } from "./encoders.ts";
import { scoreParts } from "./eval_parts.ts";
import { inputRun, openWorkers } from "./inputs.ts";
import { recordOfScores, reportScores } from "./output.ts";
import { lockSaved } from "./sets.ts";

export const evaluate = command({
  name: "eval",
  purpose: "Score a tokenizer, a diffusion model, or two sets of images",
  schema: evalConfig,
  examples: [
    "tok eval --tokenizer runs/photos --model runs/dit --data photos --lpips vgg16-397923af.pth,vgg.pth",
    "tok eval --real imagenet.npz --fake samples.npz --inception pt_inception-2015-12-05-6726825d.pth",
    "tok eval --compare runs/eval-001 runs/eval-002 --out comparison",
  ],
  async run(given, context) {
    if (given.compare !== undefined) return await compareRuns({ ...given, compare: given.compare }, context);
    const { log, origins, commandLine } = context, subjects = partsOf(given);
    refuseWithoutEffect(given, evalConditions(subjects, given), origins);
    const c = underProtocol(given, subjects.includes("tokenizer") ? "tokenizer" : "sets");
    checkSampling(c, origins);
    const parts = selectParts(subjects, c), scored = parts.map(({ subject }) => subject);
    refuseWithoutEffect(given, evalConditions(subjects, given, scored), origins);
    const sampled = c.model !== undefined || parts.some(({ subject }) => subject === "model");
    const model = sampled ? inputRun(c.model, "model", log) : undefined;
    using output = openOutput(c.out, "eval");
    const out = output.folder;
    refuseOthers(out, "eval");
    using _saves = lockSaved(c);
    const { facts: { description }, profile } = await openAdapter(c, log);
    using workers = openWorkers(c);
    let encoder: ReturnType<typeof chosenFeatureEncoder> | undefined;
    const intervals = c.intervals ? new Intervals(log) : undefined;
    const options = {
      ...c,
      out,
      intervals,
      inception: () => openInception(c.inception ?? ""),
      lpips: () => openLpips(c.lpips ?? []),
      encoder: () => encoder ??= chosenFeatureEncoder(c, log),
      six: async () => ({ encoders: await chosenEncoders(c, log), inception: c.inception !== undefined }),
    };
    const results = new Results({
      precision: "f32",
      seed: c.seed,
      tok: metadata.version,
      adapter: `${description} (${profile} kernels)`,
    });
    const job = { c, options, results, workers, log, record: recordOfScores(out, c) };
    const warned = log.warnings.length;
    let findings: Findings = {};
    try {
      findings = await scoreParts(job, parts, model, origins);
    } finally { // scores computed before a failure are written
      await reportScores(results, out, {
        line: commandLine,
        findings,
        cautions: log.warnings.slice(warned),
        missing: missingFigures(parts, c.metrics),
      }, log);
      intervals?.write(out, results.scores);
    }
    results.rethrow();
    return { out, ...results.scores, protocols: results.protocols };
  },
});
