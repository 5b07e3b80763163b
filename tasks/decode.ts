// tok decode: latents in a folder or a file to pictures. Started again in the same folder, it makes those that are missing.

import { join } from "@std/path";
import { decodeConfig } from "../src/cli/config.ts";
import { resumeCommandOf } from "../src/run/resume.ts";
import { beginPictures, refuseOthers } from "../src/run/existing_output.ts";
import { decodeLatents } from "../src/sampling/decode.ts";
import { newestLatents, openForDecoding } from "../src/sampling/latent_input.ts";
import { Pictures, recipeOf } from "../src/sampling/pictures.ts";
import { openTokenizer } from "../src/zoo/runs.ts";
import { command, openAdapter, openOutput, RUNS } from "./command.ts";
import { inputRun } from "./inputs.ts";

export const decode = command({
  name: "decode",
  purpose: "Decode latents into images",
  schema: decodeConfig,
  examples: [
    "tok decode",
    "tok decode --latents runs/latents-001 --tokenizer runs/align-001 --out pictures",
    "tok decode --latents latents.safetensors --tokenizer vavae.pt --npz",
  ],
  async run(c, context) {
    const { log } = context;
    const run = inputRun(c.tokenizer, "tokenizer", log);
    using output = openOutput(c.out, "decode");
    const out = output.folder;
    refuseOthers(out, "decode");
    await openAdapter(c, log);
    const tokenizer = await openTokenizer(run), { name, fingerprint } = tokenizer.identity;
    const path = c.latents ?? await newestLatents(RUNS, tokenizer);
    if (c.latents === undefined) log.line(`latents: ${path} (the newest)`);
    using latents = await openForDecoding(path, tokenizer, (line) => log.line(line));
    const { source, labels, statistics, identity } = latents, count = source.length;
    const madeFrom = { tokenizer: { name, fingerprint }, latents: identity };
    beginPictures(out, "decode", {
      options: {},
      madeFrom,
      others: { num: count, npz: c.npz, batchSize: c.batchSize },
    });
    context.resumeCommand = resumeCommandOf(context, c.out === undefined ? out : undefined);
    const pictures = new Pictures({
      folder: out,
      size: source.shape[1] * tokenizer.factor,
      first: 0,
      count,
      labels,
      npz: c.npz,
      recipe: (image) => recipeOf(madeFrom, { image, ...labels ? { class: labels[image] } : {} }),
    });
    const { there } = pictures;
    if (there.size) log.line(`${there.size} of ${count} images are there already: going on`);
    const progress = log.progress("decoding", count, "images", there.size);
    await pictures.write(decodeLatents(tokenizer, source, {
      batchSize: c.batchSize,
      statistics,
      needed: (i) => !there.has(i),
      onProgress: (n) => progress.update(n),
    }));
    progress.end();
    log.line(`${count} images: ${join(out, "grid.png")}`);
    return { out, n: count, tokenizer: run };
  },
});
