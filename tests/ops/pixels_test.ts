// Images as programs take them: bytes that are converted on the device are the floats that the host would make of them, and
// mirroring on the device moves the same bits.

import { assertEquals } from "@std/assert";
import { gather, gatherForUpload, type ImageSource } from "../../src/data/image_source.ts";
import { capture } from "../../src/gpu/program.ts";
import { toFloat } from "../../src/image/image.ts";
import { imageInput, pixels } from "../../src/ops/pixels.ts";
import { input } from "../../src/tensor/tensor.ts";
import { PROFILES, testDevice } from "../helpers/check.ts";

/** Image i has the bytes 5 i, 5 i + 1, ... */
const bytesOf = (i: number, size: number) => Uint8Array.from({ length: 3 * size ** 2 }, (_, k) => 5 * i + k);
const source: ImageSource = {
  length: 60,
  classes: [],
  label: (i) => i,
  name: String,
  image: (i, size) => toFloat(bytesOf(i, size)),
  bytes: (i, size) => Promise.resolve(bytesOf(i, size)),
};

for (const profile of PROFILES) {
  Deno.test(`bytes become the floats that the host makes of them, whole rows of u32 or not, profile ${profile}`, async () => {
    await testDevice(profile);
    for (const [B, S] of [[1, 1], [3, 5], [2, 8], [4, 18]] as const) {
      const indices = Array.from({ length: B }, (_, k) => (7 * k + 50) % 60);
      const packed = await gatherForUpload(source, indices, S), { images } = await gather(source, indices, S);
      const x = imageInput(B, S, true);
      const program = await capture("pixels", { x }, ({ x }) => ({ y: pixels(x) })).prepare();
      program.run({ x: packed.images });
      assertEquals(await program.read(program.outputs.y), images, `${B} images of ${S}`);
      assertEquals([...packed.labels], indices);
      program.destroy();
    }
  });

  Deno.test(`flips mirror the images that they name, profile ${profile}`, async () => {
    await testDevice(profile);
    const B = 3, S = 6, { images } = await gather(source, [1, 2, 3], S);
    for (const bytes of [false, true]) {
      const inputs = { x: imageInput(B, S, bytes), flips: input([B]) };
      const program = await capture("flips", inputs, ({ x, flips }) => ({ y: pixels(x, flips) })).prepare();
      const x = bytes ? (await gatherForUpload(source, [1, 2, 3], S)).images : images;
      program.run({ x, flips: Float32Array.of(0, 1, 0) });
      const expected = images.map((v, at) => {
        const i = Math.floor(at / (3 * S * S)), column = Math.floor(at / 3) % S;
        return i === 1 ? images[at + 3 * (S - 1 - 2 * column)] as number : v;
      });
      assertEquals(await program.read(program.outputs.y), expected, bytes ? "bytes" : "floats");
      program.destroy();
    }
  });
}
