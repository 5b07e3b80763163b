// Images as programs take them: the device converts bytes to the same floats as the host, and mirroring moves the same bits.

import { assertEquals } from "@std/assert";
import { gather, type ImageSource } from "../../src/data/image_source.ts";
import { capture } from "../../src/gpu/program.ts";
import { toFloat } from "../../src/image/image.ts";
import { imageInput, pixels, unpackImages } from "../../src/ops/pixels.ts";
import { input } from "../../src/tensor/tensor.ts";
import { PROFILES, testDevice } from "../helpers/check.ts";

/** Image i has the bytes 5 i, 5 i + 1, ... */
const bytesOf = (i: number, size: number) => Uint8Array.from({ length: 3 * size ** 2 }, (_, k) => 5 * i + k);
const source: ImageSource = {
  length: 60,
  classes: [],
  label: (i) => i,
  name: String,
  bytes: bytesOf,
};

for (const profile of PROFILES) {
  Deno.test(`bytes become the floats that the host makes of them, rows of 1 to 54 bytes, profile ${profile}`, async () => {
    await testDevice(profile);
    for (const [B, S] of [[1, 1], [3, 5], [2, 8], [4, 18]] as const) {
      const indices = Array.from({ length: B }, (_, k) => (7 * k + 50) % 60);
      const { images, labels } = await gather(source, indices, S);
      const x = imageInput(B, S), bytes = indices.map((i) => bytesOf(i, S));
      const program = await capture("pixels", { x }, ({ x }) => ({ y: pixels(x) })).prepare();
      program.run({ x: images });
      const expected = toFloat(Uint8Array.from(bytes.flatMap((image) => [...image])));
      assertEquals(await program.read(program.outputs.y), expected, `${B} images of ${S}`);
      assertEquals(toFloat(unpackImages(images, S)), expected);
      assertEquals([...labels], indices);
      program.destroy();
    }
  });

  Deno.test(`flips mirror the images that they name, profile ${profile}`, async () => {
    await testDevice(profile);
    const B = 3, S = 6, { images } = await gather(source, [1, 2, 3], S);
    const inputs = { x: imageInput(B, S), flips: input([B]) };
    const program = await capture("flips", inputs, ({ x, flips }) => ({ y: pixels(x, flips) })).prepare();
    program.run({ x: images, flips: Float32Array.of(0, 1, 0) });
    const plain = toFloat(unpackImages(images, S));
    const expected = plain.map((v, at) => {
      const i = Math.floor(at / (3 * S * S)), column = Math.floor(at / 3) % S;
      return i === 1 ? plain[at + 3 * (S - 1 - 2 * column)] as number : v;
    });
    assertEquals(await program.read(program.outputs.y), expected);
    program.destroy();
  });
}
