// tok sample: pictures from a diffusion model.

import { join } from "@std/path";
import { sampleConfig } from "../src/config.ts";
import { UsageError } from "../src/errors.ts";
import { makeFolder, writeJson } from "../src/io/files.ts";
import { grid, writePng } from "../src/io/image.ts";
import { writeNpz } from "../src/io/npz.ts";
import { generate } from "../src/train/generate.ts";
import { openGenerator } from "../src/train/generator.ts";
import { command, inputRun, openAdapter, runFolder } from "./command.ts";

export const sample = command({
  name: "sample",
  purpose: "Draw images from a diffusion model, with guidance",
  schema: sampleConfig,
  examples: [
    "tok sample --cfg 4",
    "tok sample --model runs/dit-001 --num 50000 --classes all --cfg 1.5 --npz --out samples",
    "tok sample --model lightningdit-xl-imagenet256-64ep.pt --tokenizer vavae.pt --classes 207,360 --num 8 --cfg 4",
  ],
  async run(c, { log, stopping }) {
    const run = inputRun(c.model, "model", log);
    await openAdapter(c, log);
    const { model, tokenizer, origin } = await openGenerator(run, {
      tokenizer: c.tokenizer,
      latents: c.latents,
      say: (text) => log.line(text),
    });
    log.line(`latents are normalised by ${origin}`);
    const chosen = classesOf(c.classes, model.config.classes);
    const labels = Array.from({ length: c.num }, (_, i) => chosen[i % chosen.length] as number);
    const out = runFolder(c.out, "samples");
    makeFolder(out);
    const size = model.config.dit.input_size * tokenizer.factor;
    const folders = c.folders
      ? model.config.classes.map((name, k) =>
        `${String(k).padStart(4, "0")}_${name.replace(/[^\w.-]/g, "_")}`
      )
      : [];
    for (const folder of folders) makeFolder(join(out, folder));
    const progress = log.progress("sampling", c.num, "images");
    const shown: Uint8Array[] = [];
    let drawn = 0;
    /** Draws and writes one picture after another; only those of the grid are kept. */
    const draw = async function* (): AsyncGenerator<Uint8Array> {
      const options = {
        ...samplingOf(c),
        labels,
        onProgress: (n: number) => progress.update(n),
        stopping,
      };
      for await (const { index, image } of generate(model, tokenizer, options)) {
        const name = `${String(index).padStart(6, "0")}.png`;
        const folder = folders[labels[index] as number];
        await writePng(folder ? join(out, folder, name) : join(out, name), {
          width: size,
          height: size,
          data: image,
        });
        if (drawn++ < 200) shown.push(image);
        yield image;
      }
      if (c.npz && drawn < c.num) throw new Interrupted();
    };
    try {
      if (c.npz) {
        await writeNpz(join(out, "samples.npz"), [
          { name: "arr_0", shape: [c.num, size, size, 3], data: draw() },
          { name: "arr_1", shape: [c.num], data: BigInt64Array.from(labels, BigInt) },
        ]);
      } else for await (const _ of draw());
    } catch (error) {
      if (!(error instanceof Interrupted)) throw error;
      log.line("samples.npz was not written: it would not be whole");
    }
    progress.end();
    const columns = chosen.length >= 5 && chosen.length <= 20 ? chosen.length : 10;
    if (shown.length) await writePng(join(out, "grid.png"), grid(shown, size, columns));
    writeJson(join(out, "config.json"), { command: "sample", ...c, model: run, labels });
    log.line(`${drawn} images, guidance ${c.cfg}: ${join(out, "grid.png")}`);
    return { out, n: drawn };
  },
});

/** The sampling options of a config, as the sampler takes them. */
export function samplingOf(
  c: Pick<
    typeof sampleConfig._output,
    "batchSize" | "steps" | "sampler" | "shift" | "cfg" | "cfgInterval" | "cfgChannels" | "seed"
  >,
) {
  const [from, to] = c.cfgInterval as [number, number];
  return {
    batchSize: c.batchSize,
    steps: c.steps,
    sampler: c.sampler,
    shift: c.shift,
    cfg: c.cfg,
    cfgInterval: [from, to] as const,
    cfgChannels: c.cfgChannels === "all" ? undefined : c.cfgChannels,
    seed: c.seed,
  };
}

function classesOf(words: readonly string[], names: readonly string[]): number[] {
  if (words.join() === "all") return names.map((_, i) => i);
  return words.map((word) => {
    const i = names.includes(word) ? names.indexOf(word) : /^\d+$/.test(word) ? Number(word) : -1;
    if (i < 0 || i >= names.length) {
      throw new UsageError(
        `Cannot sample the class "${word}": the model has 0 to ${names.length - 1}${
          names.length <= 20 ? ` (${names.join(", ")})` : ""
        }`,
      );
    }
    return i;
  });
}

/** Ctrl-C or SIGTERM came before the last picture. */
class Interrupted extends Error {}
