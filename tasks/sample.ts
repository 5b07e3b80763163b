// tok sample: pictures from a diffusion model. Started again in the same folder, it makes those that are missing.

import { join } from "@std/path";
import { sampleConfig } from "../src/cli/config.ts";
import { UsageError } from "../src/errors.ts";
import { beginPictures, refuseOthers } from "../src/run/existing_output.ts";
import { exists } from "../src/formats/files.ts";
import { grid, readImage, writePng } from "../src/image/image.ts";
import { writeNpz } from "../src/formats/npz.ts";
import { fingerprintOf } from "../src/formats/provenance.ts";
import { resumeCommandOf } from "../src/run/resume.ts";
import { generate } from "../src/sampling/generate.ts";
import { samplingOptions } from "../src/sampling/sampler.ts";
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
  async run(c, context) {
    const { log } = context;
    const run = inputRun(c.model, "model", log);
    using output = openOutput(c.out, "samples");
    const out = output.folder;
    refuseOthers(out, "sample");
    await openAdapter(c, log);
    const { model, tokenizer, origin } = await openGenerator(run, {
      tokenizer: c.tokenizer,
      latents: c.latents,
      say: (text) => log.line(text),
    });
    log.line(`latents are normalised by ${origin}`);
    const chosen = classesOf(c.classes, model.config.classes);
    const labels = Array.from({ length: c.num }, (_, i) => chosen[i % chosen.length] as number);
    const size = model.config.dit.input_size * tokenizer.factor;
    const folders = c.folders
      ? model.config.classes.map((name, k) =>
        `${String(k).padStart(4, "0")}_${name.replace(/[^\w.-]/g, "_")}`
      )
      : [];
    const nameOf = (i: number) =>
      join(folders[labels[i] as number] ?? "", `${String(i).padStart(6, "0")}.png`);
    const pathOf = (i: number) => join(out, nameOf(i));
    const { fingerprint, name } = tokenizer.identity;
    const { latent_mean: mean, latent_std: std } = model.config;
    beginPictures(out, "sample", {
      options: decidingOf(c),
      madeFrom: {
        model: model.identity,
        tokenizer: { name, fingerprint },
        "latent statistics": { name: origin, fingerprint: fingerprintOf(JSON.stringify([mean, std])) },
        classes: { name: c.classes.join(), fingerprint: fingerprintOf(chosen.join()) },
      },
      others: { num: c.num, npz: c.npz, batchSize: c.batchSize, model: run, labels },
      folders,
    });
    context.resumeCommand = resumeCommandOf(context, c.out === undefined ? out : undefined);
    for (const folder of folders) output.sub(folder);
    // Pictures appear complete or not at all, so one that is there is done.
    const there = new Set(labels.keys().filter((i) => exists(pathOf(i))));
    if (there.size) log.line(`${there.size} of ${c.num} images are there already: going on`);
    const progress = log.progress("sampling", c.num, "images", there.size);
    const shown: Uint8Array[] = [];
    /** All pictures in their order; those that are there are read where somebody needs them. Only the grid's are kept. */
    const pictures = async function* (): AsyncGenerator<Uint8Array> {
      let at = 0;
      const earlier = async function* (to: number) {
        for (; at < to; at++) {
          if (!c.npz && at >= SHOWN) continue;
          const { data } = await readImage(pathOf(at));
          if (at < SHOWN) shown.push(data);
          yield data;
        }
      };
      const options = {
        ...samplingOptions(c),
        labels,
        onProgress: (n: number) => progress.update(n),
        needed: (i: number) => !there.has(i),
      };
      for await (const { index, image } of generate(model, tokenizer, options)) {
        yield* earlier(index);
        if (!there.has(index)) await writePng(pathOf(index), { width: size, height: size, data: image });
        if (index < SHOWN) shown.push(image);
        at = index + 1;
        yield image;
      }
      yield* earlier(c.num);
    };
    if (c.npz) {
      await writeNpz(join(out, "samples.npz"), [
        { name: "arr_0", shape: [c.num, size, size, 3], data: pictures() },
        { name: "arr_1", shape: [c.num], data: BigInt64Array.from(labels, BigInt) },
      ]);
    } else for await (const _ of pictures());
    progress.end();
    const columns = chosen.length >= 5 && chosen.length <= 20 ? chosen.length : 10;
    await writePng(join(out, "grid.png"), grid(shown, size, columns));
    log.line(`${c.num} images, guidance ${c.cfg}: ${join(out, "grid.png")}`);
    return { out, n: c.num };
  },
});

/** Pictures in the grid. */
const SHOWN = 200;

/** The options that decide about each picture; with more of them, or another batch size, the first ones are the same. */
function decidingOf(c: typeof sampleConfig._output) {
  const { seed, cfg, cfgInterval, cfgChannels, sampler, steps, shift, folders } = c;
  return { seed, cfg, cfgInterval, cfgChannels, sampler, steps, shift, folders };
}

function classesOf(words: readonly string[], names: readonly string[]): number[] {
  if (words.join() === "all") return names.map((_, i) => i);
  return words.map((word) => {
    const i = names.includes(word) ? names.indexOf(word) : /^\d+$/.test(word) ? Number(word) : -1;
    if (i < 0 || i >= names.length) {
      throw new UsageError(
        `Cannot sample the class "${word}": the model has 0 to ` +
          `${names.length - 1}${names.length <= 20 ? ` (${names.join(", ")})` : ""}`,
      );
    }
    return i;
  });
}
