// tok features: an encoder's tokens for a folder of images, comparable to the reference implementation's.

import { noGrad } from "../src/tensor/autograd.ts";
import { featuresConfig } from "../src/cli/config.ts";
import { UsageError } from "../src/errors.ts";
import { capture } from "../src/gpu/program.ts";
import { throwIfStopped } from "../src/interruption.ts";
import { ahead, depthOf } from "../src/data/prefetch.ts";
import { notFinite } from "../src/formats/finite.ts";
import type { Log } from "../src/run/log.ts";
import { Output } from "../src/run/output.ts";
import { type Pixels, preprocess, resized, sideOf } from "../src/data/preprocess.ts";
import { rowsOf } from "../src/image/rows.ts";
import { RowsWriter } from "../src/formats/safetensors.ts";
import { Shapes } from "../src/data/toy_shapes.ts";
import type { Workers } from "../src/data/decode_pool.ts";
import { fits, Vit } from "../src/models/vit.ts";
import { input, type Tensor } from "../src/tensor/tensor.ts";
import type { EncoderSource } from "../src/zoo/encoders.ts";
import { chosenEncoder, command, imageFolder, openAdapter, openWorkers, SEEDS } from "./command.ts";

export const features = command({
  name: "features",
  purpose: "Write an encoder's patch and CLS tokens for images",
  schema: featuresConfig,
  examples: [
    "tok features --input photos --encoder facebook/dinov2-large",
    "tok features --input photos --image-size native --out f.safetensors",
  ],
  async run(c, { log }) {
    using _output = Output.file(c.out);
    const encoder = await chosenEncoder(c, log);
    await openAdapter(c, log);
    const vit = new Vit(encoder.config);
    await encoder.load(vit);
    using workers = openWorkers(c);
    const images = await imagesOf(c, encoder, workers, log), N = images.length, pixelsOf = images.pixels;
    const { width, height } = await pixelsOf(0);
    const P = encoder.config.patch_size, C = encoder.config.hidden_size;
    if (![width, height].every((side) => fits(side, encoder.config))) {
      throw new UsageError(
        `Cannot encode ${width} x ${height} images: the sides must be multiples of the patch size ${P}; ` +
          `give another --image-size`,
      );
    }
    const T = Math.floor(width / P) * Math.floor(height / P), B = Math.min(c.batchSize, N);
    const x = input([B, height, width, 3], "f32", "images");
    const program = await capture(
      "features",
      { x },
      ({ x }) =>
        noGrad((): { patches: Tensor; cls?: Tensor } => {
          const { patches, cls } = vit.forward(x);
          return cls ? { patches, cls } : { patches };
        }),
      { batchInvariant: true },
    ).prepare();
    const { patches: patchTokens, cls: clsToken } = program.outputs;
    const progress = log.progress("encoding", N, "images");
    const batch = async (first: number) => {
      const made = Array.from({ length: Math.min(B, N - first) }, (_, i) => pixelsOf(first + i));
      made.forEach((image) => image.catch(() => {})); // the first to fail in their order is reported
      const pixels = new Float32Array(x.size);
      for (const [i, pending] of made.entries()) {
        const image = await pending;
        if (image.width !== width || image.height !== height) {
          throw new UsageError(
            `Cannot stack features: image ${first + i} is ${image.width} x ${image.height}, the first one ` +
              `${width} x ${height}; give --image-size`,
          );
        }
        pixels.set(image.data, i * image.data.length);
      }
      return { first, count: made.length, pixels };
    };
    const depth = depthOf(images, 4 * x.size);
    // A million images have hundreds of gigabytes of features: they go to the file as they come.
    const file = new RowsWriter(c.out, [
      { name: "patch_tokens", shape: [N, T, C] },
      ...(clsToken ? [{ name: "cls_token", shape: [N, C] }] : []),
    ], { encoder: encoder.path });
    const batches = ahead((k) => batch(k * B), { to: Math.ceil(N / B), depth });
    try {
      for await (const { first, count, pixels } of batches) {
        throwIfStopped();
        program.run({ x: pixels });
        const add = async (name: string, tokens: Tensor, each: number) => {
          const data = (await program.read(tokens)).subarray(0, count * each);
          for (let i = 0; i < count; i++) {
            const fault = notFinite(data.subarray(i * each, (i + 1) * each));
            if (fault === undefined) continue;
            throw new UsageError(
              `Cannot write features: ${name} of image ${
                first + i
              } holds ${fault}, numbers overflow in the ` +
                `encoder "${encoder.path}"; use another one`,
            );
          }
          file.add(name, data);
        };
        await add("patch_tokens", patchTokens, T * C);
        if (clsToken) await add("cls_token", clsToken, C);
        progress.update(first + count);
      }
      file.commit();
    } catch (error) {
      file.abort();
      throw error;
    }
    progress.end();
    const second = clsToken ? `, cls_token [${N}, ${C}]` : " (the encoder has no CLS token)";
    log.line(`patch_tokens [${N}, ${T}, ${C}]${second}: ${c.out}`);
    return { out: c.out, n: N, tokens: T, channels: C };
  },
});

/** The images as the encoder wants them, made when asked for. */
async function imagesOf(
  c: typeof featuresConfig._output,
  encoder: EncoderSource,
  workers: Workers,
  log: Log,
): Promise<{ length: number; parallel: number; pixels(i: number): Promise<Pixels> }> {
  const p = c.imageSize === undefined ? encoder.preprocessor : resized(encoder.preprocessor, c.imageSize);
  if (c.input === undefined) {
    const shapes = new Shapes(16, SEEDS.heldOut), side = sideOf(p) ?? encoder.config.image_size;
    const pixels = async (i: number) => {
      const data = Uint8Array.from(shapes.image(i, side), (v) => Math.round((v + 1) * 127.5));
      return await preprocess(rowsOf({ width: side, height: side, data }), resized(p, "native"));
    };
    return { length: shapes.length, parallel: 0, pixels };
  }
  const folder = await imageFolder(c.input, c.badImage, workers, log);
  return {
    length: folder.length,
    parallel: folder.parallel,
    pixels: (i) => folder.pixels(i, (path) => ({ kind: "encoder", path, preprocessor: p })),
  };
}
