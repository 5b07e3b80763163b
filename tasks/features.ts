// tok features: writes an encoder's tokens of images to a file.

import { featuresConfig } from "../src/cli/config.ts";
import { generatedInputs } from "../src/data/decode_pool.ts";
import { resized, sideOf } from "../src/data/preprocess.ts";
import { Shapes } from "../src/data/toy_shapes.ts";
import { writeTokens } from "../src/metrics/encoder_features.ts";
import { Output } from "../src/run/output.ts";
import { command, openAdapter } from "./command.ts";
import { chosenFeatureEncoder } from "./encoders.ts";
import { imageFiles, openWorkers, SEEDS } from "./inputs.ts";

export const features = command({
  name: "features",
  purpose: "Write an encoder's patch tokens, CLS token and pooled features of images",
  schema: featuresConfig,
  examples: [
    "tok features --input photos --encoder facebook/dinov2-large",
    "tok features --input photos --image-size native --out f.safetensors",
  ],
  async run(c, { log }) {
    using _output = Output.file(c.out);
    const encoder = await chosenFeatureEncoder(c, log);
    await openAdapter(c, log);
    using workers = openWorkers(c);
    const own = c.imageSize === undefined ? encoder.preprocessor : resized(encoder.preprocessor, c.imageSize);
    const side = sideOf(own) ?? encoder.config.image_size;
    // Generated images are made at the encoder's size.
    const [images, preprocessor] = c.input === undefined
      ? [generatedInputs(workers, new Shapes(16, SEEDS.heldOut), side), resized(own, "native")]
      : [await imageFiles(c.input, c, workers, log), own];
    const progress = log.progress("encoding", images.length, "images");
    const { N, T, C, cls, D } = await writeTokens(c.out, encoder, images, {
      preprocessor,
      batchSize: c.batchSize,
      onProgress: progress.update,
    });
    progress.end();
    const second = cls ? `, cls_token [${N}, ${C}]` : " (the encoder has no CLS token)";
    const third = D === undefined ? "" : `, pooled [${N}, ${D}]`;
    log.line(`patch_tokens [${N}, ${T}, ${C}]${second}${third}: ${c.out}`);
    return { out: c.out, n: N, tokens: T, channels: C, ...D === undefined ? {} : { pooled: D } };
  },
});
