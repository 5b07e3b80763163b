// tok sample: pictures from a diffusion model. Started again in the same folder, it makes those that are missing.

import { join } from "@std/path";
import metadata from "../deno.json" with { type: "json" };
import { type SampleConfig, sampleConfig } from "../src/cli/config.ts";
import { checkGuidance, guidanceText } from "../src/cli/guidance.ts";
import { parseRange, sampling } from "../src/cli/options.ts";
import { UsageError } from "../src/errors.ts";
import { beginPictures, refuseOthers } from "../src/run/existing_output.ts";
import { fingerprintOf } from "../src/formats/provenance.ts";
import { resumeCommandOf } from "../src/run/resume.ts";
import { generate } from "../src/sampling/generate.ts";
import { classesOf, labelsOf, labelSummary, optionsFor } from "../src/sampling/labels.ts";
import { classFolders, Pictures } from "../src/sampling/pictures.ts";
import { samplingOptions } from "../src/sampling/sampler.ts";
import { checkSamplerOptions, Evaluations } from "../src/sampling/sampler_options.ts";
import { openGenerator } from "../src/zoo/generator.ts";
import { command, type Context, openAdapter, openOutput } from "./command.ts";
import { inputRun } from "./inputs.ts";

export const sample = command({
  name: "sample",
  purpose: "Sample images from a diffusion model, with guidance",
  schema: sampleConfig,
  examples: [
    "tok sample --cfg 4",
    "tok sample --model runs/dit-001 --num 50000 --classes all --cfg 1.5 --npz --out samples",
    "tok sample --model lightningdit-xl-imagenet256-64ep.pt --tokenizer vavae.pt --classes 207,360 --num 8 --cfg 4",
  ],
  async run(asked, context) {
    const { log } = context, evaluations = new Evaluations();
    checkSamplerOptions(asked, context.origins);
    const images = imagesOf(asked, context), { first, count } = images;
    const run = inputRun(asked.model, "model", log);
    using output = openOutput(asked.out, "samples");
    const out = output.folder;
    refuseOthers(out, "sample");
    await openAdapter(asked, log);
    const { model, tokenizer, origin, guide } = await openGenerator(run, {
      ...asked,
      say: (text) => log.line(text),
    });
    const c = checkGuidance(optionsFor(run, model.config, asked, context.origins), context.origins);
    log.line(`latents are normalised by ${origin}`);
    const chosen = classesOf(c.classes, model.config.classes);
    const labels = labelsOf({ ...images, classes: chosen, labeling: c.labels, seed: c.seed });
    log.line(labelSummary(labels, chosen, c.labels));
    const size = model.config.dit.input_size * tokenizer.factor;
    const folders = c.folders ? classFolders(model.config.classes) : [];
    const { fingerprint, name } = tokenizer.identity;
    const { latent_mean: mean, latent_std: std } = model.config;
    const options = decidingOf(c, guide?.identity.fingerprint),
      madeFrom = {
        model: model.identity,
        tokenizer: { name, fingerprint },
        "latent statistics": { name: origin, fingerprint: fingerprintOf(JSON.stringify([mean, std])) },
      };
    beginPictures(out, "sample", {
      options: { ...options, folders: c.folders },
      defaults: sampleConfig.parse({}),
      madeFrom: { ...madeFrom, classes: labelsIdentity(c, chosen) },
      others: { num: count, seeds: c.seeds, npz: c.npz, batchSize: c.batchSize, model: run, labels },
      folders,
    });
    context.resumeCommand = resumeCommandOf(context, c.out === undefined ? out : undefined);
    for (const folder of folders) output.sub(folder);
    const sources = Object.fromEntries(Object.entries(madeFrom).map(([key, is]) => [key, is.fingerprint]));
    const pictures = new Pictures({
      folder: out,
      size,
      ...images,
      labels,
      folders,
      npz: c.npz,
      recipe: (image) => {
        const label = labels[image - first] as number;
        return {
          tok: metadata.version,
          ...sources,
          image,
          class: label,
          name: model.config.classes[label],
          ...options,
        };
      },
    });
    const { there } = pictures;
    if (there.size) log.line(`${there.size} of ${count} images are there already: going on`);
    const progress = log.progress("sampling", count, "images", there.size);
    const made = generate(model, tokenizer, {
      ...samplingOptions(c, guide?.dit),
      labels,
      first,
      onProgress: (n) => progress.update(n),
      needed: (i) => !there.has(i),
    });
    await pictures.write(evaluations.of(made));
    progress.end();
    log.line(`${count} images, ${guidanceText(c)}${evaluations}: ${join(out, "grid.png")}`);
    return { out, n: count, ...evaluations.result };
  },
});

/** The options that decide about each picture; with more of them, or another batch size, the first ones are the same. */
function decidingOf(c: SampleConfig, guide: string | undefined): Record<string, unknown> {
  const keys = ["seed", "ema", ...Object.keys(sampling)] as (keyof SampleConfig)[];
  return { ...Object.fromEntries(keys.map((key) => [key, c[key]])), guide };
}

/** Numbers of the images. @throws UsageError if both options say them */
function imagesOf(c: SampleConfig, { origins }: Context): { first: number; count: number } {
  const range = c.seeds === undefined ? undefined : parseRange(c.seeds);
  if (!range) return { first: 0, count: c.num };
  if (origins?.num !== undefined) {
    throw new UsageError(`Cannot use --num with --seeds ${c.seeds}, which says how many; leave one out`);
  }
  return { first: range[0], count: range[1] - range[0] + 1 };
}

/** What decides about the class of each image. */
function labelsIdentity(c: SampleConfig, chosen: readonly number[]) {
  const order = c.labels === "equal"
    ? labelsOf({ count: chosen.length, classes: chosen })
    : [c.labels, ...chosen];
  const name = c.labels === "equal" ? c.classes.join() : `${c.classes.join()} at random`;
  return { name, fingerprint: fingerprintOf(order.join()) };
}
