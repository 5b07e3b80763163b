// tok reconstruct: images through a tokenizer and back.

import { basename, dirname, extname, join } from "@std/path";
import { reconstructConfig } from "../src/cli/config.ts";
import { beginPictures, refuseOthers } from "../src/run/existing_output.ts";
import { writeJson } from "../src/formats/files.ts";
import { pairGrid, writePng } from "../src/image/image.ts";
import { fingerprintOf } from "../src/formats/provenance.ts";
import type { ImageSource } from "../src/data/image_source.ts";
import { SSIM_SIDE } from "../src/metrics/psnr_ssim.ts";
import { scoreReconstruction } from "../src/metrics/tokenizer.ts";
import { resumeCommandOf } from "../src/run/resume.ts";
import { command, openAdapter, openOutput } from "./command.ts";
import { imageSource, inputRun, openTokenizerFor, openWorkers, SEEDS } from "./inputs.ts";

export const reconstruct = command({
  name: "reconstruct",
  purpose: "Send images through a tokenizer and back, and measure what was lost",
  schema: reconstructConfig,
  examples: [
    "tok reconstruct",
    "tok reconstruct --tokenizer sd-vae-ft-mse --input photos --image-size 256 --out out",
  ],
  async run(c, context) {
    const { log } = context;
    const run = inputRun(c.tokenizer, "tokenizer", log);
    using output = openOutput(c.out, "reconstruct");
    const out = output.folder;
    refuseOthers(out, "reconstruct");
    await openAdapter(c, log);
    using workers = openWorkers(c);
    const { tokenizer, size } = await openTokenizerFor(c, run);
    const generated = { length: c.num, seed: SEEDS.heldOut };
    const source = await imageSource(c.input, generated, c, workers, log);
    const names = targets(source, c.grid ? ["grid.png"] : []);
    const { fingerprint, name } = tokenizer.identity;
    beginPictures(out, "reconstruct", {
      options: { imageSize: size },
      madeFrom: {
        tokenizer: { name, fingerprint },
        images: source.identity?.() ??
          { name: `${names.length} images`, fingerprint: fingerprintOf(...names) },
      },
      others: { tokenizer: run, input: c.input, num: source.length, grid: c.grid },
      folders: names.map(dirname),
    });
    context.resumeCommand = resumeCommandOf(context, c.out === undefined ? out : undefined);
    const progress = log.progress("reconstructing", source.length, "images");
    const shown: [Uint8Array, Uint8Array][] = [];
    const scores = await scoreReconstruction(
      tokenizer,
      source,
      { size, batchSize: Math.min(c.batchSize, source.length) },
      async (i, original, made) => {
        const name = names[i] as string, path = join(output.sub(dirname(name)), basename(name));
        await writePng(path, { width: size, height: size, data: made });
        if (shown.length < 60) shown.push([original.slice(), made.slice()]);
        progress.update(i + 1);
      },
    );
    progress.end();
    if (c.grid) await writePng(join(out, "grid.png"), pairGrid(shown, size, 12));
    writeJson(join(out, "metrics.json"), scores);
    const { psnr = 0, ssim } = scores;
    const similarity = ssim === undefined
      ? `no SSIM below ${SSIM_SIDE} x ${SSIM_SIDE} pixels`
      : `SSIM ${ssim.toFixed(3)}`;
    log.line(
      `PSNR ${psnr.toFixed(2)} dB, ${similarity} over ${scores.n} images; ` +
        `${join(out, c.grid ? "grid.png" : "")}`,
    );
    return { out, ...scores };
  },
});

/** The name of each reconstruction: its image's with ".png" in place of the extension, or behind it where two would be one. */
function targets(source: ImageSource, taken: readonly string[]): string[] {
  const plain = Array.from({ length: source.length }, (_, i) => {
    const name = source.name(i), folder = dirname(name);
    return join(folder === "." ? "" : folder, `${basename(name, extname(name))}.png`);
  });
  const uses = new Map<string, number>(taken.map((name) => [name, 1]));
  for (const name of plain) uses.set(name, (uses.get(name) ?? 0) + 1);
  return plain.map((name, i) => uses.get(name) === 1 ? name : `${source.name(i)}.png`);
}
