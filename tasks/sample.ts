// tok sample: pictures from a diffusion model. Started again in the same folder, it makes those that are missing.

import { join } from "@std/path";
import { sampleConfig } from "../src/cli/config.ts";
import { guidanceText } from "../src/cli/guidance.ts";
import { SAMPLING } from "../src/cli/sampling_conditions.ts";
import { beginPictures, refuseOthers } from "../src/run/existing_output.ts";
import { resumeCommandOf } from "../src/run/resume.ts";
import { drawTrajectory, MAX_ROWS } from "../src/sampling/trajectory.ts";
import { openGivenNoise } from "../src/sampling/noise.ts";
import { latentsFolder, SavedLatents } from "../src/sampling/saved_latents.ts";
import { writePng } from "../src/image/image.ts";
import { generate } from "../src/sampling/generate.ts";
import { interpolate } from "../src/sampling/interpolate.ts";
import { decidingOptions, endsOf, imagesOf, labelsIdentity, optionsIdentity } from "../src/sampling/job.ts";
import { classesOf, labelsOf, labelSummary, unguidedIfUnconditional } from "../src/sampling/labels.ts";
import { classFolders, Pictures, recipeOf } from "../src/sampling/pictures.ts";
import { planOf } from "../src/sampling/plan.ts";
import { samplingOptions } from "../src/sampling/sampler.ts";
import { checkSampling, Evaluations } from "../src/sampling/sampler_options.ts";
import { openGenerator } from "../src/zoo/generator.ts";
import { command, openAdapter, openOutput } from "./command.ts";
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
    checkSampling(asked, context.origins);
    const images = imagesOf(asked, context.origins), { first, count } = images;
    const run = inputRun(asked.model, "model", log);
    using output = openOutput(asked.out, "samples");
    const out = output.folder;
    refuseOthers(out, "sample");
    await openAdapter(asked, log);
    const { model, tokenizer, origin, guide, madeFrom } = await openGenerator(run, {
      ...asked,
      say: (text) => log.line(text),
    });
    const c = unguidedIfUnconditional(run, model.config, asked, context.origins, SAMPLING);
    const sampler = samplingOptions(c, guide?.dit);
    planOf(model.config.dit, sampler); // refuses what the model cannot do
    log.line(`latents are normalised by ${origin}`);
    const chosen = classesOf(c.classes, model.config.classes);
    const labels = labelsOf({ ...images, classes: chosen, labeling: c.labels, seed: c.seed });
    log.line(labelSummary(labels, chosen, c.labels));
    const size = model.config.dit.input_size * tokenizer.factor;
    const folders = c.folders ? classFolders(model.config.classes) : [];
    const { input_size: S, in_channels: C } = model.config.dit;
    using given = c.noise === undefined ? undefined : await openGivenNoise(c.noise, [C, S, S], first + count);
    const options = decidingOptions(c, guide?.identity.fingerprint, given?.identity.fingerprint);
    const classesIdentity = labelsIdentity(c, chosen);
    beginPictures(out, "sample", {
      options: { ...options, folders: c.folders, interpolate: c.interpolate, frames: c.frames },
      defaults: sampleConfig.parse({}),
      madeFrom: { ...madeFrom, classes: classesIdentity },
      others: {
        ...{ num: count, seeds: c.seeds, npz: c.npz, batchSize: c.batchSize, model: run },
        ...{ classes: c.classes, labels: c.labels, imageClasses: labels },
      },
      folders,
    });
    context.resumeCommand = resumeCommandOf(context, c.out === undefined ? out : undefined);
    if (c.interpolate !== undefined) {
      const progress = log.progress("sampling", c.frames, "images");
      const between = { ...sampler, frames: c.frames, evaluations, onProgress: progress.update };
      const path = join(out, "interpolation.png");
      await writePng(path, await interpolate(model, tokenizer, endsOf(c, chosen), between));
      progress.end();
      log.line(`${c.frames} images from ${c.interpolate.replace("-", " to ")}${evaluations}: ${path}`);
      return { out, n: c.frames, ...evaluations.result };
    }
    for (const folder of folders) output.sub(folder);
    const pictures = new Pictures({
      folder: out,
      size,
      ...images,
      labels,
      folders,
      npz: c.npz,
      recipe: (image) => {
        const label = labels[image - first] as number;
        return recipeOf(madeFrom, { image, class: label, name: model.config.classes[label], ...options });
      },
    });
    const saved = c.saveLatents
      ? await SavedLatents.open(latentsFolder(out), [C, S, S], { first, labels }, {
        madeFrom: {
          ...madeFrom,
          tokenizer: { ...madeFrom.tokenizer, fingerprint: tokenizer.identity.latents },
          classes: classesIdentity,
          "sampling recipe": optionsIdentity(options),
        },
        classes: model.config.classes,
      })
      : undefined;
    const { there } = pictures;
    if (there.size) log.line(`${there.size} of ${count} images are there already: going on`);
    const progress = log.progress("sampling", count, "images", there.size);
    const made = generate(model, tokenizer, {
      ...sampler,
      labels,
      first,
      noise: given?.noise,
      withLatents: c.saveLatents,
      onProgress: (n) => progress.update(n),
      needed: (i) => !there.has(i) || saved?.lacks(i) === true,
    });
    await pictures.write(evaluations.of(saved ? saved.tee(made) : made));
    progress.end();
    if (c.trajectory) {
      const rows = { ...sampler, labels: labels.slice(0, MAX_ROWS), first, noise: given?.noise };
      await writePng(join(out, "trajectory.png"), await drawTrajectory(model, tokenizer, rows));
    }
    log.line(`${count} images, ${guidanceText(c)}${evaluations}: ${join(out, "grid.png")}`);
    return { out, n: count, ...evaluations.result };
  },
});
