// tok features: an encoder's tokens for a folder of images, comparable to the reference implementation's.

import { noGrad } from "../src/autograd.ts";
import { featuresConfig } from "../src/config.ts";
import { UsageError } from "../src/errors.ts";
import { capture } from "../src/gpu/program.ts";
import { type Folder, openFolder } from "../src/io/dataset.ts";
import { readImage, toFloat } from "../src/io/image.ts";
import { type Image, resizeAndCrop } from "../src/io/resize.ts";
import { writeSafetensors } from "../src/io/safetensors.ts";
import { Shapes } from "../src/io/shapes.ts";
import { Vit } from "../src/models/vit.ts";
import { input } from "../src/tensor.ts";
import { type EncoderFolder, openEncoder } from "../src/train/encoders.ts";
import { command, openAdapter, SEEDS } from "./command.ts";

export const features = command({
  name: "features",
  purpose: "Write an encoder's patch and CLS tokens for images",
  schema: featuresConfig,
  examples: [
    "tok features --input photos --encoder dinov2-large",
    "tok features --input photos --image-size native --out f.safetensors",
  ],
  async run(c, { log }) {
    const encoder = openEncoder(c.encoder);
    await openAdapter(c, log);
    const vit = new Vit(encoder.config);
    await encoder.load(vit);
    const images = await pixelsOf(c, encoder);
    const [{ width, height }] = images as [Image];
    const P = encoder.config.patch_size, C = encoder.config.hidden_size;
    if (images.some((i) => i.width !== width || i.height !== height)) {
      throw new UsageError("Cannot stack features: the images differ in size; give --image-size");
    }
    if (width % P || height % P) {
      throw new UsageError(
        `Cannot encode ${width} x ${height} images: the sides must be multiples of the patch size ${P}`,
      );
    }
    const T = (width / P) * (height / P), B = Math.min(c.batchSize, images.length), N = images.length;
    const x = input([B, height, width, 3], "f32", "images");
    const program = await capture("features", { x }, ({ x }) =>
      noGrad(() => {
        const { patches, cls } = vit.forward(x);
        return { patches, cls };
      })).prepare();
    const patch = new Float32Array(N * T * C), cls = new Float32Array(N * C);
    const progress = log.progress("encoding", N, "images");
    for (let first = 0; first < N; first += B) {
      const count = Math.min(B, N - first);
      const pixels = new Float32Array(B * width * height * 3);
      for (let i = 0; i < count; i++) {
        pixels.set(normalised(images[first + i] as Image, encoder), i * width * height * 3);
      }
      program.run({ x: pixels });
      patch.set((await program.read(program.outputs.patches)).subarray(0, count * T * C), first * T * C);
      cls.set((await program.read(program.outputs.cls)).subarray(0, count * C), first * C);
      progress.update(first + count);
    }
    progress.end();
    await writeSafetensors(c.out, [
      { name: "patch_tokens", shape: [N, T, C], data: patch },
      { name: "cls_token", shape: [N, C], data: cls },
    ], { encoder: encoder.path });
    log.line(`patch_tokens [${N}, ${T}, ${C}], cls_token [${N}, ${C}]: ${c.out}`);
    return { out: c.out, n: N, tokens: T, channels: C };
  },
});

async function pixelsOf(c: typeof featuresConfig._output, encoder: EncoderFolder): Promise<Image[]> {
  const size = c.imageSize === "native" ? undefined : c.imageSize;
  if (c.input === undefined) {
    const shapes = new Shapes(16, SEEDS.heldOut), side = size ?? encoder.crop;
    return Array.from({ length: 16 }, (_, i) => ({
      width: side,
      height: side,
      data: Uint8Array.from(shapes.image(i, side), (v) => Math.round((v + 1) * 127.5)),
    }));
  }
  const folder: Folder = await openFolder(c.input, { badImage: c.badImage });
  return await Promise.all(Array.from({ length: folder.length }, async (_, i) => {
    const image = await readImage(folder.path(i));
    if (c.imageSize === "native") return image;
    return size === undefined
      ? resizeAndCrop(image, encoder.resize, encoder.crop, encoder.filter)
      : resizeAndCrop(image, size, size, encoder.filter);
  }));
}

/** (byte / 255 - mean) / std */
function normalised({ data }: Image, { mean, std }: EncoderFolder): Float32Array {
  return toFloat(data).map((v, i) => ((v + 1) / 2 - (mean[i % 3] as number)) / (std[i % 3] as number));
}
