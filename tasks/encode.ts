// tok encode: a folder of images to a folder of latents, in the layout of LightningDiT's tools.

import { encodeConfig } from "../src/config.ts";
import { openTokenizer } from "../src/train/artifacts.ts";
import { encodeTo } from "../src/train/latents.ts";
import { command, imageSource, inputRun, openAdapter, runFolder, SEEDS } from "./command.ts";

export const encode = command({
  name: "encode",
  purpose: "Encode images into latents for train-dit",
  schema: encodeConfig,
  examples: ["tok encode", "tok encode --tokenizer runs/photos --data photos --out latents"],
  async run(c, { log }) {
    const run = inputRun(c.tokenizer, "tokenizer", log);
    await openAdapter(c, log);
    const tokenizer = await openTokenizer(run);
    const source = await imageSource(
      c.data,
      { length: c.images, seed: SEEDS.train + c.seed },
      c.badImage,
      log,
    );
    const out = runFolder(c.out, "latents");
    const progress = log.progress("encoding", source.length, "images");
    await encodeTo(out, tokenizer, source, {
      batchSize: c.batchSize,
      mirrored: c.flip,
      onProgress: (n) => progress.update(n),
    });
    progress.end();
    log.line(`${source.length} latents: ${out}`);
    return { out, n: source.length, tokenizer: run };
  },
});
