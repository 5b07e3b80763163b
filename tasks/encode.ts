// tok encode: a folder of images to a folder of latents, in the layout of LightningDiT's tools.

import { encodeConfig } from "../src/cli/config.ts";
import { readStatistics } from "../src/formats/latents.ts";
import { differences } from "../src/formats/provenance.ts";
import { resumeCommandOf } from "../src/run/resume.ts";
import { latentsRecord } from "../src/train/encode_latents.ts";
import { command, openAdapter, openOutput } from "./command.ts";
import { imageSource, inputRun, openTokenizerFor, openWorkers, SEEDS } from "./inputs.ts";
import { encodeShown } from "./output.ts";

export const encode = command({
  name: "encode",
  purpose: "Encode images into latents for train-dit",
  schema: encodeConfig,
  examples: [
    "tok encode",
    "tok encode --tokenizer sd-vae-ft-mse --data photos --image-size 256 --out latents",
  ],
  async run(c, context) {
    const { log } = context;
    const run = inputRun(c.tokenizer, "tokenizer", log);
    await openAdapter(c, log);
    using workers = openWorkers(c);
    const { tokenizer, size } = await openTokenizerFor(c, run);
    const generated = { length: c.images, seed: SEEDS.train + c.seed };
    const source = await imageSource(c.data, generated, c, workers, log);
    using output = openOutput(c.out, "latents");
    const out = output.folder;
    context.resumeCommand = resumeCommandOf(context, c.out === undefined ? out : undefined);
    const settings = { size, crop: c.crop, batchSize: c.batchSize, mirrored: c.flip };
    const there = await readStatistics(out);
    const { made_from: now } = await latentsRecord(tokenizer, source, settings);
    if (there?.record && there.count === source.length && !differences(there.record.made_from, now).length) {
      log.line(`${source.length} latents of these images are there already: ${out}`);
      return { out, n: source.length, tokenizer: run };
    }
    await encodeShown(out, tokenizer, source, settings, log);
    log.line(`${source.length} latents of images of side ${size}: ${out}`);
    return { out, n: source.length, tokenizer: run };
  },
});
