// tok edit: regenerates a real image as another class (inversion), or a masked part of it (inpainting).

import { join } from "@std/path";
import { type Condition, type Conditions, refuseWithoutEffect } from "../src/cli/conditions.ts";
import { type EditConfig, editConfig } from "../src/cli/config.ts";
import { UsageError } from "../src/errors.ts";
import { fingerprintOfBytes } from "../src/formats/provenance.ts";
import { writeNoise } from "../src/formats/latents_file.ts";
import { grid, writePng } from "../src/image/image.ts";
import { beginPictures, refuseOthers } from "../src/run/existing_output.ts";
import { decodeLatents } from "../src/sampling/decode.ts";
import { editTimes, encodeImage, readMask, readSquare, solveOde } from "../src/sampling/editing.ts";
import { classesOf, unguidedIfUnconditional } from "../src/sampling/labels.ts";
import { channelsFirst, noiseOf } from "../src/sampling/noise.ts";
import { recipeOf, writePicture } from "../src/sampling/pictures.ts";
import { openGenerator } from "../src/zoo/generator.ts";
import { command, openAdapter, openOutput } from "./command.ts";
import { inputRun } from "./inputs.ts";

const INVERTED: Condition<EditConfig> = [
  ({ mask }) => mask === undefined,
  "--mask paints from noise, without inversion",
  "drop --mask",
];
const EDITING: Conditions<EditConfig> = { class: [INVERTED], strength: [INVERTED] };

export const edit = command({
  name: "edit",
  purpose: "Edit an image with a diffusion model: regenerate it as another class, or inpaint a masked part",
  schema: editConfig,
  examples: [
    "tok edit --image cat.png --class cat --to dog",
    "tok edit --image street.png --mask hole.png --to street",
  ],
  async run(asked, { log, origins }) {
    if (asked.image === undefined) {
      throw new UsageError(
        "Cannot edit: give an image with --image FILE, and either the classes --class FROM --to CLASS or --mask FILE",
      );
    }
    refuseWithoutEffect(asked, EDITING, origins);
    const run = inputRun(asked.model, "model", log);
    using output = openOutput(asked.out, "edit");
    const out = output.folder;
    refuseOthers(out, "edit");
    await openAdapter(asked, log);
    const { model, tokenizer, madeFrom } = await openGenerator(run, {
      ...asked,
      say: (text) => log.line(text),
    });
    const c = unguidedIfUnconditional(run, model.config, asked, origins);
    const { dit, config: { classes, latent_mean: mean = [], latent_std: std = [] } } = model;
    const { input_size: S, in_channels: C, num_classes } = dit.config;
    const labelOf = (name: string | undefined) =>
      name === undefined ? num_classes : classesOf([name], classes)[0] as number;
    const from = labelOf(c.class), to = labelOf(c.to ?? c.class);
    const cfg = c.cfg ?? (to === from || to === num_classes ? 1 : 4);
    if (cfg !== 1 && to === num_classes) {
      throw new UsageError(`Cannot use --cfg ${cfg}: there is no class to guide to; name one with --to`);
    }
    const { factor, channels } = tokenizer, size = S * factor, statistics = { mean, std };
    const image = await readSquare(asked.image, size);
    const mask = c.mask === undefined
      ? undefined
      : await readMask(c.mask, { path: asked.image, original: image.original }, { size, factor, channels });
    const fingerprint = fingerprintOfBytes(image.data);
    const sources = { ...madeFrom, image: { name: asked.image, fingerprint } };
    const options = {
      ...{ class: c.class, to: c.to, cfg, method: c.method, steps: c.steps, shift: c.shift, ema: c.ema },
      ...{
        strength: c.strength,
        seed: c.seed,
        mask: mask && fingerprintOfBytes(new Uint8Array(mask.buffer)),
      },
    };
    beginPictures(out, "edit", {
      options,
      madeFrom: sources,
      others: { model: run, tokenizer: c.tokenizer, latents: c.latents },
    });
    const data = await encodeImage(tokenizer, image.data, statistics);
    const times = editTimes(c.steps, c.shift, 1 - c.strength), shape = [S, S, C] as const;
    const inverted = mask
      ? { x: Float32Array.from((await noiseOf(c.seed, shape, [0]))[0] as Float32Array), evaluations: 0 }
      : await solveOde(dit, data, from, { method: c.method, times: times.toReversed(), clampTime: true });
    const noise = inverted.x, kept = mask && { mask, noise, data }, clampTime = !mask;
    const edited = await solveOde(dit, noise, to, { method: c.method, cfg, times, kept, clampTime });
    const nfe = inverted.evaluations + edited.evaluations;

    const latents = [data, edited.x].map((z) => channelsFirst(z, C)),
      pictures = [Uint8Array.from(image.data)];
    const source = {
      length: 2,
      shape: [C, S, S] as const,
      latent: (i: number) => latents[i] as Float32Array,
    };
    for await (const made of decodeLatents(tokenizer, source, { batchSize: 2, statistics })) {
      pictures.push(made.image);
    }
    const result = { width: size, height: size, data: pictures[2] as Uint8Array<ArrayBuffer> };
    await writePicture(join(out, "edited.png"), result, recipeOf(sources, options));
    await writePng(join(out, "grid.png"), grid(pictures, size, 3));
    if (!mask && c.strength === 1) {
      await writeNoise(join(out, "noise.safetensors"), [1, C, S, S], channelsFirst(noise, C));
    }
    log.line(`image, its reconstruction, and the edited one, ${nfe} NFE: ${join(out, "grid.png")}`);
    return { out, nfe };
  },
});
